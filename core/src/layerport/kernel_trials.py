"""The inputs on which a plugin's kernels are checked: those that its node had, and some at other sizes and magnitudes.

`kernel_checks` imports it.  Every value comes from the model's own samples, so that indices and masks stay sensible.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from layerport.dims import DimRange
from layerport.errors import LayerportError
from layerport.expressions import parse

if TYPE_CHECKING:
    from layerport.adapters.onnx_values import NodeInput

Array = np.ndarray[Any, Any]
Admits = Callable[[Mapping[str, tuple[int, ...]]], bool]

MOST_ELEMENTS = 1 << 24
"""Elements of all inputs and outputs together, beyond which a kernel is not run on the CPU (a few seconds)."""
MOST_INTERPRETED = 1 << 18
"""The same for Triton's interpreter, which is slower."""
_COMBINATIONS = 256


@dataclass(frozen=True)
class Trial:
    """Run-time inputs by the layer's names, and in words which ones they are."""

    inputs: Mapping[str, Array]
    what: str


def make_trials(
    values: Mapping[str, NodeInput], dims: Mapping[str, DimRange], admits: Admits, fits: Admits
) -> tuple[tuple[Trial, ...], str]:
    """What to run a kernel on, and why there is nothing where there is nothing.

    values: what the node's run-time inputs were for the samples.  dims: the model's dynamic dims.  admits: whether the
    kernel may run at these shapes.  fits: whether that is little enough work.
    First come the sample's own values, cut to the least sizes where they are too large; then the same values at other
    sizes, scaled down, which shows what a size or a small constant such as an epsilon is taken for.
    """
    choices = [sizes for env in _environments(dims) if (sizes := _shapes(values, env)) is not None and admits(sizes)]
    if not choices:
        return (), "its predicate holds for none of the sizes tried"
    possible = [sizes for sizes in choices if fits(sizes)]
    if not possible:
        return (), f"even {_show(choices[-1])} is beyond the budget for a run on the CPU"
    first = possible[0]
    sampled = {name: value.array.shape for name, value in values.items()}
    real = "the sample" if first == sampled else f"the sample at {_show(first)}"
    other = next((sizes for sizes in possible[1:] if sizes != first and _distinct(sizes)), None)
    other = other or next((sizes for sizes in possible[1:] if sizes != first), first)
    return (
        Trial(_resized(values, first), real),
        Trial(_scaled(_resized(values, other)), f"the sample at {_show(other)}, scaled down"),
    ), ""


def random_trial(trial: Trial) -> Trial:
    """Seeded normal values in place of the floats, for where the sample's own give a constant."""
    generator = np.random.default_rng(0)
    return Trial(
        {
            name: np.asarray(generator.standard_normal(array.shape)).astype(array.dtype) if _is_float(array) else array
            for name, array in trial.inputs.items()
        },
        "seeded normal values",
    )


def _environments(dims: Mapping[str, DimRange]) -> Iterator[dict[str, int]]:
    """Sizes for the model's dims: the usual ones, then others of which most differ from each other, the least last."""
    yield {name: dim.opt for name, dim in dims.items()}
    wanted = []
    taken: set[int] = set()
    for dim in dims.values():
        greatest = max(dim.opt, 2 * dim.min + 16) if dim.max is None else dim.max
        order = [3, 5, 7, 11, 13, 2, *range(dim.min, min(greatest, dim.min + 40) + 1)]
        inside = [size for size in dict.fromkeys(order) if dim.min <= size <= greatest and size != dim.opt]
        chosen = next((size for size in inside if size not in taken), inside[0] if inside else dim.opt)
        taken.add(chosen)
        wanted.append(list(dict.fromkeys([chosen, dim.opt, max(dim.min, 1), *inside[:12], greatest])))
    if dims:
        for sizes in itertools.islice(itertools.product(*wanted), _COMBINATIONS):
            yield dict(zip(dims, sizes, strict=True))
        yield {name: max(dim.min, 1) for name, dim in dims.items()}


def _shapes(values: Mapping[str, NodeInput], env: Mapping[str, int]) -> dict[str, tuple[int, ...]] | None:
    """The shapes of the inputs for these sizes of the model; a dim that says nothing stays as it was."""
    shapes = {}
    for name, value in values.items():
        sizes = []
        for dim, size in zip(value.dims, value.array.shape, strict=True):
            try:
                sizes.append(size if not isinstance(dim, str) else parse(dim).evaluate(env))
            except LayerportError:  # a size that depends on data
                sizes.append(size)
        if any(new < 0 or (new > 0 and old == 0) for new, old in zip(sizes, value.array.shape, strict=True)):
            return None
        shapes[name] = tuple(int(size) for size in sizes)
    return shapes


def _distinct(shapes: Mapping[str, Sequence[int]]) -> bool:
    return any(len(set(shape)) == len(shape) > 1 for shape in shapes.values())


def _resized(values: Mapping[str, NodeInput], shapes: Mapping[str, Sequence[int]]) -> dict[str, Array]:
    """The values at other sizes, cut or repeated along each axis."""
    arrays = {}
    for name, value in values.items():
        array = value.array
        for axis, size in enumerate(shapes[name]):
            if size != array.shape[axis]:
                array = np.take(array, np.arange(size) % max(array.shape[axis], 1), axis=axis)
        arrays[name] = np.ascontiguousarray(array)
    return arrays


def _scaled(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Floats times a power of two, so that nothing is rounded: small enough to meet an epsilon, not to underflow."""
    return {
        name: (array * np.array(2.0**-10 if array.dtype.itemsize >= 4 else 2.0**-5, array.dtype)).astype(array.dtype)
        if _is_float(array)
        else array
        for name, array in arrays.items()
    }


def _is_float(array: Array) -> bool:
    return array.dtype.name in ("float64", "float32", "float16", "bfloat16")


def _show(shapes: Mapping[str, Sequence[int]]) -> str:
    return ", ".join(f"{name} [{', '.join(map(str, shape))}]" for name, shape in shapes.items())
