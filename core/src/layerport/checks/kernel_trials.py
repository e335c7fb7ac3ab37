"""The inputs on which a plugin's kernels are checked: those that its node gets for the samples, and at other sizes.

`kernel_checks` imports it.  Other sizes go through the whole model, so that what a node gets fits together: indices,
masks, and tensors that hold sizes.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from layerport.bundle.bundle import Bundle
from layerport.checks.onnx_values import NodeInput, node_inputs
from layerport.errors import LayerportError, UsageError
from layerport.sizes.conditions import first_faults
from layerport.sizes.dims import DimRange, Sizes
from layerport.sizes.expressions import parse

Array = np.ndarray[Any, Any]
Shapes = Mapping[str, tuple[int, ...]]
Env = Mapping[str, int]

MOST_ELEMENTS = 1 << 24
"""Elements of all inputs and outputs together, beyond which a kernel is not run on the CPU (a few seconds)."""
MOST_INTERPRETED = 1 << 18
"""The same for Triton's interpreter, which is slower."""
_COMBINATIONS = 256
# A model is run at other sizes where they are about as large as the samples', and this often for one kernel.
_LARGEST_MODEL_INPUT = 1 << 14
_MODEL_RUNS = 6


class Recorded:
    """What nodes of a bundle's portable model get, for the samples and for the samples at other sizes.

    Each size runs the model once, for all nodes.  Raises BuildError where it does not run for the samples themselves.
    """

    def __init__(self, bundle: Bundle, nodes: Collection[str]) -> None:
        self._bundle = bundle
        self._nodes = tuple(nodes)
        self._inputs = bundle.samples()[0]
        self._lock = threading.Lock()
        self.dims = bundle.dims
        sizes = Sizes(bundle.dims)
        for port in bundle.inputs:
            if port.name in self._inputs and self._inputs[port.name].ndim == port.ndim:
                sizes.add(port, self._inputs[port.name].shape, port.name)
        self.env: Env = {name: dim.opt for name, dim in bundle.dims.items()} | sizes.values()
        self._found = {_key(self.env): node_inputs(bundle.model(), self._inputs, self._nodes)}

    def at(self, node: str, env: Env) -> tuple[NodeInput, ...] | None:
        """The inputs of a node at these sizes of the model; None where it has none to tell, or the model does not run.

        A node inside a loop or branch has none.
        """
        with self._lock:
            key = _key(env)
            if key not in self._found:
                self._found[key] = self._run(env)
            return self._found[key].get(node)

    def _run(self, env: Env) -> dict[str, tuple[NodeInput, ...] | None]:
        try:
            shapes = {port.name: port.resolve(env) for port in self._bundle.inputs if port.name in self._inputs}
            most = max(_LARGEST_MODEL_INPUT, 4 * sum(array.size for array in self._inputs.values()))
            too_large = sum(math.prod(shape) for shape in shapes.values()) > most
            if too_large or first_faults(self._bundle.conditions, env):
                return {}
            inputs = {name: _resized(self._inputs[name], shape) for name, shape in shapes.items()}
            return node_inputs(self._bundle.model(), inputs, self._nodes)
        except LayerportError:
            return {}


@dataclass(frozen=True)
class Trial:
    """Run-time inputs by the layer's names, and in words which ones they are."""

    inputs: Mapping[str, Array]
    what: str


def make_trials(
    sample: Mapping[str, NodeInput],
    at: Callable[[Env], Mapping[str, NodeInput] | None],
    env: Env,
    dims: Mapping[str, DimRange],
    admits: Callable[[Shapes], bool],
    fits: Callable[[Shapes], bool],
) -> tuple[tuple[Trial, ...], str]:
    """What to run a kernel on, and why there is nothing where there is nothing.

    sample: the node's run-time inputs for the samples, whose sizes are `env`; at: the same for other sizes.
    admits: whether the kernel may run at these shapes.  fits: whether that is little enough work.
    First come the sample's own values, at smaller sizes where they are too large; then those of other sizes, scaled
    down, which shows what a size or a small constant such as an epsilon is taken for.
    """
    chosen: list[tuple[dict[str, Array], str]] = []
    admitted, runs = False, 0
    for place, sizes in enumerate(_environments(env, dims)):
        expected = _shapes(sample, sizes) if place else {name: one.array.shape for name, one in sample.items()}
        if not admits(expected):
            continue
        admitted = True
        if not fits(expected) or runs == _MODEL_RUNS:
            continue
        runs += place > 0
        found = at(sizes) if place else sample
        if found is None or not (admits(shapes := _actual(found)) and fits(shapes)):
            continue
        arrays = {name: np.asarray(one.array, order="C") for name, one in found.items()}
        chosen.append((arrays, "the sample" if not place else f"the sample at {_show(shapes)}"))
        if len(chosen) == 2:
            break
    if not chosen:
        if not admitted:
            return (), "its predicate holds for none of the sizes tried"
        return (), f"{_show(_actual(sample))} is beyond the budget for a run on the CPU, and so is every size tried"
    (first, real), (other, what) = chosen[0], chosen[-1]
    return (Trial(first, real), Trial(_scaled(other), f"{what}, scaled down")), ""


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


def _environments(env: Env, dims: Mapping[str, DimRange]) -> Iterator[Env]:
    """Sizes for the model's dims: the samples' own, then others, as many different ones as can be, the least last."""
    yield env
    wanted = []
    taken: set[int] = set()
    for name, dim in dims.items():
        greatest = max(env[name], 2 * dim.min + 16) if dim.max is None else dim.max
        order = [3, 5, 7, 11, 13, 2, *range(dim.min, min(greatest, dim.min + 40) + 1)]
        inside = [size for size in dict.fromkeys(order) if dim.min <= size <= greatest and size != env[name]]
        chosen = next((size for size in inside if size not in taken), inside[0] if inside else env[name])
        taken.add(chosen)
        wanted.append(list(dict.fromkeys([chosen, env[name], max(dim.min, 1), *inside[:12], greatest])))
    if dims:
        for sizes in itertools.islice(itertools.product(*wanted), _COMBINATIONS):
            if sizes != tuple(env.values()):
                yield dict(zip(dims, sizes, strict=True))
        yield {name: max(dim.min, 1) for name, dim in dims.items()}


def _shapes(sample: Mapping[str, NodeInput], env: Env) -> dict[str, tuple[int, ...]]:
    """The shapes of a node's inputs at these sizes, as far as the model states them; other dims as in the sample."""
    shapes = {}
    for name, value in sample.items():
        sizes = []
        for dim, size in zip(value.dims, value.array.shape, strict=True):
            try:
                sizes.append(size if not isinstance(dim, str) else parse(dim).evaluate(env))
            except UsageError:  # a size that depends on data
                sizes.append(size)
        shapes[name] = tuple(int(size) for size in sizes)
    return shapes


def _actual(values: Mapping[str, NodeInput]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(int(size) for size in value.array.shape) for name, value in values.items()}


def _resized(array: Array, shape: Sequence[int]) -> Array:
    """The values at another size, cut or repeated along each axis."""
    for axis, size in enumerate(shape):
        if size != array.shape[axis]:
            if array.shape[axis] == 0:
                raise UsageError("an empty sample has no values to repeat", "give an example input with no size of 0")
            array = np.take(array, np.arange(size) % array.shape[axis], axis=axis)
    return array


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


def _show(shapes: Shapes) -> str:
    return ", ".join(f"{name} [{', '.join(map(str, shape))}]" for name, shape in shapes.items())


def _key(env: Env) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(env.items()))
