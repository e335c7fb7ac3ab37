"""What must hold of a layer's conversion, its kernels and its plugin, without a GPU."""

from __future__ import annotations

import dataclasses
import importlib
from typing import TYPE_CHECKING, Any

from layerport.bundle.plugin_spec import PluginSet, from_bytes, to_bytes
from layerport.errors import LayerportError
from layerport.kernels.cubin import Cubin
from layerport.layers.layer import Place
from layerport.packs.kernel_plugins import why_no_kernel
from layerport.targets import RTX_ARCHITECTURES, Target
from layerport.testing.cases import Case, DTypeChoice
from layerport.testing.conformance.records import FoundFaultError, NotApplicableError
from layerport.testing.conformance.subjects import Subject, elements, is_empty
from layerport.testing.kernel_runs import kernels_for, run_kernel

if TYPE_CHECKING:
    from layerport.bundle.plugin_spec import PluginSpec

ORDERS: tuple[str | int, ...] = ("forward", "backward", 1)
_ENGINE = Target("rtx", ("sm_89",))
_EVERYWHERE = Target("rtx", RTX_ARCHITECTURES)
_MOST_ON_CPU = {True: 1 << 16, False: 1 << 13}


def check_conversion(subject: Subject, choice: DTypeChoice) -> None:
    """The pack's conversion gives the same for the same parameters, and changes none of them."""
    layer = subject.layer
    if not layer.signature.params:
        raise NotApplicableError("it has no parameter")
    for case in subject.cases(choice):
        standard = subject.parameters(case, case.tensors())
        before = {name: array.tobytes() for name, array in standard.items()}
        first, second = (subject.packs.convert_parameters(layer, standard, _ENGINE, path=case.id) for _ in range(2))
        if changed := [name for name, array in standard.items() if array.tobytes() != before[name]]:
            raise FoundFaultError(
                f"{case.id}: the conversion changes its parameters {', '.join(changed)}", "make new arrays of them"
            )
        if first.digest != second.digest:
            raise FoundFaultError(
                f"{case.id}: the conversion gives something else when it is asked again",
                "compute from the parameters alone: no random numbers, no state, no memory that nobody has written",
            )


def check_compilation(subject: Subject, choice: DTypeChoice) -> list[str]:
    """The kernels compile for every architecture; what each uses there."""
    require_kernels(subject)
    used: dict[str, list[str]] = {}
    for case in with_kernel(subject, choice, subject.smallest(choice)):
        spec = _spec(subject, case, _EVERYWHERE)
        for kernel in spec.kernels:
            for step in kernel.steps:
                name = kernel.name if len(kernel.steps) == 1 else f"{kernel.name}, {step.symbol}"
                for architecture, digest in step.images.items():
                    used.setdefault(_resources(name, spec.images[digest], step.symbol), []).append(architecture)
    return [f"{text} on {', '.join(dict.fromkeys(architectures))}" for text, architectures in used.items()]


def _resources(name: str, image: bytes, symbol: str) -> str:
    found = Cubin.read(image, symbol).resources
    return (
        f"kernel {name}: {found.registers} registers, {found.local_bytes} bytes of local memory, "
        f"{found.static_shared} bytes of static shared memory"
    )


def check_plugin(subject: Subject, choice: DTypeChoice) -> None:
    """The plugin spec is the same each time, survives being written and read, and what it names is there."""
    cases = subject.smallest(choice)
    if "layerport_create_plugin" not in subject.pack.hooks:
        require_kernels(subject)
        cases = with_kernel(subject, choice, cases)
    for case in cases:
        spec, again = (_spec(subject, case, _ENGINE) for _ in range(2))
        if spec.key != again.key:
            raise FoundFaultError(
                f"{case.id}: its plugin is another one when it is asked for again",
                "answer layerport_create_plugin from the layer and its parameters alone",
            )
        data = to_bytes(PluginSet({spec.key: spec}, {"node": spec.key}))
        read = from_bytes(data)
        if to_bytes(read) != data:
            raise FoundFaultError(
                f"{case.id}: its plugin spec is not the same once it was written and read",
                "give attributes that JSON has: whole numbers, floats, texts, and lists of them",
            )
        if spec.plugin_class is not None:
            _require_class(case, spec.plugin_class)


def check_kernels(subject: Subject, choice: DTypeChoice) -> None:
    """Each kernel computes on the CPU what the reference gives in float64, in three orders of the threads."""
    cases = _on_cpu(subject, choice)
    ends = _ends(cases)
    for case in cases:
        tensors = case.tensors()
        args, wanted = case.arguments(tensors), case.expected(tensors)
        orders = ORDERS if case in ends else ORDERS[:1]
        for kernel in kernels_of(subject, case):
            for order in orders:
                _run(subject, case, args, wanted, kernel, order=order)


def check_sanitizer(subject: Subject, choice: DTypeChoice) -> None:
    """The smallest and the largest case pass under the address sanitiser, which knows a kernel's own arrays too."""
    layer = subject.layer
    checked = False
    for case in _ends(_on_cpu(subject, choice)):
        tensors = case.tensors()
        for name in kernels_of(subject, case):
            if all(one.name != name or one.in_cuda for one in layer.kernels):
                checked = True
                _run(subject, case, case.arguments(tensors), case.expected(tensors), name, sanitize=True)
    if not checked:
        raise NotApplicableError("its kernels are in Triton, of which `kernel` sees every access")


def _ends(cases: list[Case]) -> list[Case]:
    """The smallest and the largest case that has something to compute."""
    full = [case for case in cases if not is_empty(case)] or cases
    return [full[0]] if len(full) == 1 else [full[0], full[-1]]


def _on_cpu(subject: Subject, choice: DTypeChoice) -> list[Case]:
    """The cases with a kernel that a CPU runs in good time."""
    require_kernels(subject)
    cuda = all(kernel.in_cuda for kernel in subject.layer.kernels)
    small = [one for one in subject.cases(choice) if elements(one) <= _MOST_ON_CPU[cuda]]
    if not small:
        raise NotApplicableError("every shape is too large to run its kernel on the CPU")
    return with_kernel(subject, choice, small)


def _run(
    subject: Subject,
    case: Case,
    args: tuple[Any, ...],
    wanted: Any,
    kernel: str,
    *,
    order: str | int = "forward",
    sanitize: bool = False,
) -> None:
    try:
        got = run_kernel(
            subject.layer, *args, kernel=kernel, order=order, sanitize=sanitize, once=True, pack=subject.packs
        )
        case.check(got, wanted)
    except AssertionError as error:
        raise FoundFaultError(
            f"{error} (kernel {kernel}, threads run in order {order})",
            "correct the kernel, its launch rule or the pack's conversion (layerport.testing.run_kernel runs it"
            " alone), or a tolerance that is too small for the dtype",
        ) from error


def require_kernels(subject: Subject) -> None:
    """Raise NotApplicableError where the layer has no kernel."""
    if not subject.layer.kernels:
        raise NotApplicableError("it has no kernel")


def kernels_of(subject: Subject, case: Case) -> list[str]:
    """The names of the kernels that take a case.  What a predicate or the pack's conversion raises passes."""
    return kernels_for(subject.layer, *case.arguments(case.tensors()), pack=subject.packs)


def with_kernel(subject: Subject, choice: DTypeChoice, cases: list[Case]) -> list[Case]:
    """The cases that a kernel takes.  Raises NotApplicableError where none does."""
    found = [case for case in cases if kernels_of(subject, case)]
    if not found:
        raise NotApplicableError(f"no kernel takes {choice}" if cases else "it has no case")
    return found


def _spec(subject: Subject, case: Case, target: Target) -> PluginSpec:
    layer = subject.layer
    standard = subject.parameters(case, case.tensors())
    converted = subject.packs.convert_parameters(layer, standard, target, path=case.id)
    shapes, derivation = subject.derivation(case)
    bound = subject.bound(case, case.tensors())
    bound = dataclasses.replace(bound, parameters=converted, place=Place(shapes, derivation, case.id))
    try:
        spec = subject.packs.create_plugin(layer, bound, target, path=case.id)
    except LayerportError as error:
        raise FoundFaultError(
            f"{case.id}: {error.fault}", error.repair or "correct the kernel", faults=error.faults
        ) from error
    if spec is None:
        raise FoundFaultError(
            f"{case.id}: no plugin can be made of it: {why_no_kernel(bound, target)}",
            "let a kernel take these dtypes and all shapes, or leave the dtypes out of the case",
        )
    return spec


def _require_class(case: Case, name: str) -> None:
    module, _, attribute = name.partition(":")
    if not attribute:
        module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ImportError:
        found = None
    if not callable(found):
        raise FoundFaultError(
            f"{case.id}: its plugin names the class {name}, which cannot be imported",
            "name a class of a module that is installed where the engine is built and run",
        )
