"""Is each kernel right?  Every kernel of every pack over its cases, against the reference in float64.

The environment is passed in, so that the logic is tested without a GPU.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from layerport.adapters.torch_cuda import CudaOperator
from layerport.layers import Layer
from layerport.packs import Packs
from layerport.testing import Case, LayerCase

Args = tuple[Any, ...]


class NoKernelError(Exception):
    """The kernel does not take this case, which is no fault."""


def layer_cases(packs: Packs) -> tuple[dict[str, LayerCase], list[str]]:
    """The `CASE` of each layer by its name, from the module `case` beside its reference; and the layers without."""
    cases: dict[str, LayerCase] = {}
    without = []
    for layer in packs.layers:
        package = layer.reference.__module__.rpartition(".")[0]
        if package and importlib.util.find_spec(f"{package}.case"):
            cases[layer.name] = importlib.import_module(f"{package}.case").CASE
        else:
            without.append(layer.name)
    return cases, without


def refuse(*args: Any) -> Any:
    raise NoKernelError


def single(layer: Layer, kernel: str, environment: Callable[[], Any]) -> CudaOperator:
    """The layer with this kernel alone, and no reference to fall back to."""
    return CudaOperator(layer, refuse, environment, only=kernel)


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


def check_layer(
    case: LayerCase, environment: Callable[[], Any], *, device: str, seed: int, large: bool = True
) -> Iterator[dict[str, Any]]:
    """One record for each kernel, case and variant that a kernel takes: its id, and `fault`, None where it is right.

    large: also what is for GPUs only; `fault` is "skipped: ..." where the memory does not do.
    """
    operators = {kernel.name: single(case.layer, kernel.name, environment) for kernel in case.layer.kernels}
    for one in (*case.cases(), *(case.cases(gpu_only=True) if large else ())):
        try:
            tensors = one.tensors(seed=seed, device=device)
        except torch.OutOfMemoryError:
            yield {"kernel": "*", "case": one.id, "variant": "*", "fault": "skipped: not enough memory"}
            continue
        variants = VARIANTS if not one.shape.gpu_only else {"contiguous": VARIANTS["contiguous"]}
        for name, run in operators.items():
            for variant, change in variants.items():
                changed = {key: None if tensor is None else change(tensor) for key, tensor in tensors.items()}
                fault: str | None = None
                try:
                    with torch.inference_mode():
                        got = run(*one.arguments(changed))
                    compare(one, got, tensors)
                except NoKernelError:
                    break
                except torch.OutOfMemoryError:
                    fault = "skipped: not enough memory"
                except Exception as error:  # whatever it is, the next kernel is to be checked too
                    fault = f"{type(error).__name__}: {error}"
                yield {"kernel": name, "case": one.id, "variant": variant, "fault": fault}


def compare(one: Case, got: Any, tensors: Mapping[str, torch.Tensor | None], most: int = _PART) -> None:
    """As `Case.check`, a large case in parts of its first axis, because float64 takes up to eight times the memory.

    That axis is a batch axis in the cases that are for GPUs only.
    """
    first = next(tensor for tensor in tensors.values() if tensor is not None)
    if not one.shape.gpu_only:
        return one.check(got, one.expected(tensors))
    rows = first.shape[0]
    step = max(1, rows * most // max(1, first.numel()))
    outputs = got if isinstance(got, tuple) else (got,)
    for start in range(0, rows, step):
        part = slice(start, start + step)
        some = {
            name: tensor[part] if tensor is not None and tensor.shape[:1] == (rows,) else tensor
            for name, tensor in tensors.items()
        }
        one.check(tuple(output[part] for output in outputs), one.expected(some))
    return None


def compile_everything(cases: dict[str, LayerCase], architecture: str) -> int:
    """Compile what `check_layer` needs, into the kernel cache; the number of kernels.  Needs no GPU."""
    made = set()
    for case in cases.values():
        for kernel in case.layer.kernels:
            run = single(case.layer, kernel.name, lambda: None)
            for one in (*case.cases(), *case.cases(gpu_only=True)):
                shapes = {
                    name: None if sizes is None else torch.empty(sizes, dtype=_torch(one, name), device="meta")
                    for name, sizes in one.shape.shapes.items()
                }
                built = run.compile(architecture, *one.arguments(shapes))
                if built is not None:
                    made.add((kernel.name, built.cubin.digest))
    return len(made)


def _torch(one: Any, name: str) -> torch.dtype:
    from layerport.adapters.torch_dtypes import from_dtype

    return from_dtype(one.dtype_of(name))
