"""What must hold of a layer's conversion, its kernels and its plugin, without a GPU."""

from __future__ import annotations

import dataclasses
import importlib
from typing import TYPE_CHECKING

from layerport.bundle.plugin_spec import PluginSet, from_bytes, to_bytes
from layerport.errors import LayerportError, UsageError
from layerport.kernels.declaration import CudaSource
from layerport.layers.layer import Place
from layerport.packs.kernel_plugins import why_no_kernel
from layerport.targets import RTX_ARCHITECTURES, Target
from layerport.testing.cases import Case, DTypeChoice
from layerport.testing.conformance.records import FoundFaultError, NotApplicableError
from layerport.testing.conformance.subjects import Subject, elements
from layerport.testing.kernel_runs import kernel_for, run_kernel

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


def check_compilation(subject: Subject, choice: DTypeChoice) -> None:
    """The kernels compile for every architecture."""
    _require_kernels(subject)
    for case in _with_kernel(subject, choice, subject.smallest(choice)):
        _spec(subject, case, _EVERYWHERE)


def check_plugin(subject: Subject, choice: DTypeChoice) -> None:
    """The plugin spec is the same each time, survives being written and read, and what it names is there."""
    cases = subject.smallest(choice)
    if "layerport_create_plugin" not in subject.pack.hooks:
        _require_kernels(subject)
        cases = _with_kernel(subject, choice, cases)
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
    """The kernels compute on the CPU what the reference gives in float64, in three orders of the threads."""
    _require_kernels(subject)
    layer = subject.layer
    fitting = _with_kernel(subject, choice, subject.cases(choice))
    cuda = all(isinstance(kernel.source, CudaSource) for kernel in layer.kernels)
    cases = [one for one in fitting if elements(one) <= _MOST_ON_CPU[cuda]]
    if not cases:
        raise NotApplicableError("every shape is too large to run its kernel on the CPU")
    for case in cases:
        tensors = case.tensors()
        args, wanted = case.arguments(tensors), case.expected(tensors)
        orders = ORDERS if case in (cases[0], cases[-1]) else ORDERS[:1]
        for order in orders:
            try:
                case.check(run_kernel(layer, *args, order=order, strict=True, pack=subject.plugin), wanted)
            except AssertionError as error:
                raise FoundFaultError(
                    f"{error} (threads run in order {order})",
                    "correct the kernel, its launch rule or the pack's conversion (layerport.testing.run_kernel runs it"
                    " alone), or a tolerance that is too small for the dtype",
                ) from error


def _require_kernels(subject: Subject) -> None:
    if not subject.layer.kernels:
        raise NotApplicableError("it has no kernel")


def _with_kernel(subject: Subject, choice: DTypeChoice, cases: list[Case]) -> list[Case]:
    """The cases that a kernel takes.  Raises NotApplicableError where none does; what a launch rule raises passes."""
    layer = subject.layer
    found, reason = [], "it has no case"
    for case in cases:
        given = {name: case.dtype_of(name) for name, sizes in case.shape.shapes.items() if sizes is not None}
        if any(
            all(dtypes.get(name) == dtype for name, dtype in given.items())
            for kernel in layer.kernels
            for dtypes in kernel.combinations(layer.signature)
        ) or subject.pack.hooks.keys() & {"layerport_convert_parameters"}:
            found.append(case)
        else:
            reason = f"no kernel takes {choice}"
    if not found:
        raise NotApplicableError(reason)
    if any(kernel.when is not None for kernel in layer.kernels):
        found = [case for case in found if _is_taken(case)]
    return found


def _is_taken(case: Case) -> bool:
    try:
        kernel_for(case.layer, *case.arguments(case.tensors()))
    except UsageError:
        return False
    return True


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
