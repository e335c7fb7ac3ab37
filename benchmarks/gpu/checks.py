"""Is each kernel right?  Every kernel of every pack over its cases, against the reference in float64.

Small cases are compared on the CPU, so that a GPU that computes nothing cannot agree with itself; after each comparison
one element is changed, which must be called wrong.  Where the kernels run is passed in, so that the logic is tested
without a GPU.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from layerport.kernels import prepared as prepared_kernels
from layerport.layers.cuda_operator import Cuda, CudaOperator
from layerport.layers.layer import Layer
from layerport.packs.host import Packs
from layerport.system.disk_cache import default_cache
from layerport.targets import Target
from layerport.testing import Case, LayerCase
from layerport.testing.specs import plugin_spec

Args = tuple[Any, ...]
CONTROL = "one element changed"


class NoKernelError(Exception):
    """The kernel does not take this case, which is no fault."""


class Poisoned(Cuda):
    """Outputs begin as bytes of 0xFF, NaN in every dtype, so that an element that is not written shows."""

    def __init__(self) -> None:
        super().__init__()
        allocate = self.empty

        def poisoned(*args: Any) -> torch.Tensor:
            made = allocate(*args)
            if made.numel() and made.ndim:
                made.view(torch.uint8).fill_(0xFF)
            return made

        self.empty = poisoned


poisoned_cuda: Callable[[], Cuda] = functools.cache(Poisoned)


@dataclass(frozen=True)
class Place:
    """Where kernels run: the `Cuda` of it, what Torch calls it, and the ways there and back to the CPU."""

    environment: Callable[[], Any] = poisoned_cuda
    device: str = "cuda"
    there: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor.to("cuda")
    back: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor.cpu()


def layer_cases(packs: Packs) -> tuple[dict[str, LayerCase], list[str]]:
    """The `CASE` of each layer with kernels by name, from the module `case` beside its reference; and the others."""
    cases: dict[str, LayerCase] = {}
    without = []
    for layer in packs.layers:
        package = layer.reference.__module__.rpartition(".")[0]
        if package and layer.kernels and importlib.util.find_spec(f"{package}.case"):
            cases[layer.name] = importlib.import_module(f"{package}.case").CASE
        else:
            without.append(layer.name)
    return cases, without


def refuse(*args: Any) -> Any:
    raise NoKernelError


def single(layer: Layer, kernel: str, environment: Callable[[], Any]) -> CudaOperator:
    """The layer with this kernel alone, and no reference to fall back to."""
    return CudaOperator(layer, refuse, environment, only=kernel)


def operators_of(case: LayerCase, environment: Callable[[], Any]) -> dict[str, CudaOperator]:
    """The layer's operator with each of its kernels alone, by the kernel's name."""
    return {kernel.name: single(case.layer, kernel.name, environment) for kernel in case.layer.kernels}


def misaligned(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, one element behind an address that device memory begins at."""
    storage = torch.empty(tensor.numel() + 1, dtype=tensor.dtype, device=tensor.device)
    view = storage[1:].view(tensor.shape)
    view.copy_(tensor)
    return view


def strided(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, each second element of a larger tensor."""
    wide = torch.empty((*tensor.shape, 2), dtype=tensor.dtype, device=tensor.device)
    wide[..., 0].copy_(tensor)
    return wide[..., 0]


_PART = 1 << 28  # elements

VARIANTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "contiguous": lambda tensor: tensor,
    "misaligned": misaligned,
    "strided": strided,
}


def check_layer(case: LayerCase, place: Place, *, seed: int, large: bool = True) -> Iterator[dict[str, Any]]:
    """One record for each kernel, case and variant that a kernel takes: its id, and `fault`, None where it is right.

    large: also what is for GPUs only; `fault` is "skipped: ..." where the memory does not do.  The variant `CONTROL`
    is right where the comparison saw an element that was changed.
    """
    operators = operators_of(case, place.environment)
    for one in (*case.cases(), *(case.cases(gpu_only=True) if large else ())):
        yield from check_case(one, operators, place, seed)


def check_case(one: Case, operators: Mapping[str, CudaOperator], place: Place, seed: int) -> Iterator[dict[str, Any]]:
    """As `check_layer`, for one case."""
    on_host = not one.shape.gpu_only
    try:
        given = one.tensors(seed=seed, device="cpu" if on_host else place.device)
        tensors = {name: None if tensor is None else place.there(tensor) for name, tensor in given.items()}
    except torch.OutOfMemoryError:
        yield {"kernel": "*", "case": one.id, "variant": "*", "fault": "skipped: not enough memory"}
        return
    expected = one.expected(given) if on_host else None
    for name, run in operators.items():
        for variant, change in VARIANTS.items() if on_host else (("contiguous", VARIANTS["contiguous"]),):
            record: dict[str, Any] = {"kernel": name, "case": one.id, "variant": variant, "fault": None}
            got: Args = ()
            try:
                changed = {key: None if tensor is None else change(tensor) for key, tensor in tensors.items()}
                with torch.inference_mode():
                    answer = run(*one.arguments(changed))
                    got = answer if isinstance(answer, tuple) else (answer,)
                    got = tuple(place.back(output) for output in got) if on_host else got
                    compare(one, got, tensors, expected)
            except NoKernelError:
                break
            except torch.OutOfMemoryError:
                record["fault"] = "skipped: not enough memory"
            except Exception as error:  # whatever it is, the next kernel is to be checked too
                record["fault"] = f"{type(error).__name__}: {error}"
            yield record
            if record["fault"] is None and variant == "contiguous" and any(output.numel() for output in got):
                with torch.inference_mode():
                    yield {**record, "variant": CONTROL, "fault": control(one, got, tensors, expected, seed)}


def control(
    one: Case,
    got: Args,
    tensors: Mapping[str, torch.Tensor | None],
    expected: tuple[torch.Tensor, ...] | None,
    seed: int,
) -> str | None:
    """Change one element of right outputs; None where the comparison calls them wrong now, else what that means."""
    output = next(output for output in got if output.numel())
    index = seed % output.numel()
    flat = output.view(-1)
    value = flat[index].item()
    if isinstance(value, bool):
        flat[index] = not value
    else:
        flat[index] = value + 1 + abs(value) if abs(value) < float("inf") else 0  # of NaN too, this is not true
    try:
        compare(one, got, tensors, expected)
    except AssertionError:
        return None
    return f"NOT SEEN: element {index} was {value}, was changed and called right; nothing here shows anything"


def compare(
    one: Case,
    got: Any,
    tensors: Mapping[str, torch.Tensor | None],
    expected: tuple[torch.Tensor, ...] | None = None,
    most: int = _PART,
) -> None:
    """As `Case.check`, a large case in parts of its first axis, because float64 takes up to eight times the memory.

    That axis is a batch axis in the cases that are for GPUs only.  expected: where the reference has run already.
    """
    if expected is not None:
        return one.check(got, expected)
    first = next(tensor for tensor in tensors.values() if tensor is not None)
    rows = first.shape[0]
    if first.numel() <= most:
        return one.check(got, one.expected(tensors))
    step = max(1, rows * most // first.numel())
    outputs = got if isinstance(got, tuple) else (got,)
    for start in range(0, rows, step):
        part = slice(start, start + step)
        some = {
            name: tensor[part] if tensor is not None and tensor.shape[:1] == (rows,) else tensor
            for name, tensor in tensors.items()
        }
        one.check(tuple(output[part] for output in outputs), one.expected(some))
    return None


def prepare(cases: dict[str, LayerCase], architecture: str) -> int:
    """Compile what a run needs into the kernel cache, and mark that as prepared; the number of kernels.

    Needs no GPU.  A run elsewhere then needs neither NVRTC nor Triton.
    """
    from plugins import specs

    store = default_cache()
    prepared_kernels.mark(store, False)  # so that it is filled by the compilers that are here
    made = set()
    for case in cases.values():
        for kernel in case.layer.kernels:
            run = single(case.layer, kernel.name, lambda: None)
            for one in (*case.cases(), *case.cases(gpu_only=True)):
                built = run.compile(architecture, *one.arguments(shapes_of(one)))
                if built is not None:
                    made |= {(kernel.name, step.cubin.digest) for step in built.steps}
        one = smallest(case)
        plugin_spec(case.layer, Target("tensorrt", (architecture,)), *one.arguments(one.tensors()))
        for _, spec in specs(case, architecture):
            made |= {(kernel.name, digest) for kernel in spec.kernels for digest in spec.digests}
    prepared_kernels.mark(store)
    return len(made)


def smallest(case: LayerCase, choice: str = "float16", least: int = 1) -> Case:
    """The smallest case with so many elements; of this dtype where the layer has one of it."""
    sized = [one for one in case.cases() if elements(one) >= least] or list(case.cases())
    return min([one for one in sized if is_in(one, choice)] or sized, key=elements)


def is_in(one: Case, dtype: str) -> bool:
    """Whether all floating-point tensors of a case have this dtype."""
    names = [one.choice] if isinstance(one.choice, str) else list(one.choice.values())
    return {name for name in names if "float" in name} == {dtype}


def elements(one: Case) -> int:
    """Elements of all tensors of a case."""
    return sum(prod(sizes) for sizes in one.shape.shapes.values() if sizes is not None)


def shapes_of(one: Case) -> dict[str, torch.Tensor | None]:
    """The tensors of a case without their data."""
    from layerport.parameters.frameworks.torch_dtypes import from_dtype

    return {
        name: None if sizes is None else torch.empty(sizes, dtype=from_dtype(one.dtype_of(name)), device="meta")
        for name, sizes in one.shape.shapes.items()
    }
