"""Inputs for a module beside the example's: same shapes and types, other magnitudes.  Used by `proving`.

The examples alone would prove that `clamp(x, 0, 6)` is a ReLU where no value passes 6, and any epsilon where the values
are large.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from layerport.foreign.torch_private import pytree
from layerport.front.claim_records import Candidate
from layerport.front.comparison import TOLERANCES
from layerport.layers.layer import BoundLayer

# 1e-3 shows the epsilon of a norm (its square is 1e-6), the large ones show bounds; 30 is for modules that overflow in
# 16 bits at 1000.
MAGNITUDES = (1e-3, 1.0, 30.0, 1e3)
# Above this many elements of floating-point input, a probe is cut along its leading axes where the module takes that.
LARGEST_INPUT = 1 << 13
# A module with more elements than this, parameters and inputs together, is probed once for all of its kind.
LARGEST_MODULE = 1 << 20
# A tensor of so few elements is a setting, not a weight.
FEW = 16

_OWN_ATTRIBUTES = frozenset(vars(torch.nn.Module()))


def can_vary(inputs: Any) -> bool:
    """Whether there is a floating-point tensor to vary; whole numbers and bools are indices and masks, and stay."""
    return any(map(_varies, pytree.tree_leaves(inputs)))


def probe_inputs(inputs: Any, magnitude: float, *, from_real: bool) -> Any:
    """The inputs with other floating-point tensors: seeded normal numbers of a magnitude, all else as it is.

    from_real: instead the real numbers, each times a positive random factor around the magnitude, for a module that
    takes only some numbers (a logarithm, a root).  One tensor given twice stays one.
    """
    generator = torch.Generator().manual_seed(MAGNITUDES.index(magnitude))
    made: dict[int, torch.Tensor] = {}

    def make(leaf: Any) -> Any:
        if not _varies(leaf):
            return leaf
        if id(leaf) not in made:
            if from_real:
                factors = torch.rand(leaf.shape, generator=generator).add_(0.5).mul_(magnitude)
                made[id(leaf)] = (leaf.detach() * factors.to(leaf.device)).to(leaf.dtype)
            else:
                values = torch.randn(leaf.shape, generator=generator).mul_(magnitude)
                made[id(leaf)] = values.to(device=leaf.device, dtype=leaf.dtype)
        return made[id(leaf)]

    return pytree.tree_map(make, inputs)


def cut_inputs(inputs: Any) -> Any:
    """The inputs cut to `LARGEST_INPUT` elements; themselves where they are small or have no leading axis.

    Every axis as long as one that is cut is cut too: a batch or a sequence stands in several inputs.
    """
    tensors = [leaf for leaf in pytree.tree_leaves(inputs) if _varies(leaf)]
    if not tensors or sum(tensor.numel() for tensor in tensors) <= LARGEST_INPUT:
        return inputs
    largest = max(tensors, key=torch.Tensor.numel)
    count = sum(tensor.numel() for tensor in tensors)
    sizes: dict[int, int] = {}
    for size in largest.shape[:-1]:
        if count > LARGEST_INPUT and size > 2 and size not in sizes:
            sizes[size] = max(2, size * LARGEST_INPUT // count)
            count = count * sizes[size] // size
    if not sizes:
        return inputs

    def cut(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        for axis, size in enumerate(leaf.shape):
            leaf = leaf.narrow(axis, 0, sizes.get(size, size))
        return leaf

    return pytree.tree_map(cut, inputs)


def elements(module: torch.nn.Module, inputs: Any) -> int:
    """How much a run of the module reads: the elements of its parameters, buffers and inputs."""
    given = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, torch.Tensor)]
    return sum(tensor.numel() for tensor in (*module.parameters(), *module.buffers(), *given))


def kind_of(module: torch.nn.Module, inputs: Any, candidates: Sequence[Candidate]) -> tuple[Any, ...]:
    """What modules must have in common for the probes of one to stand for another: all but the values of their tensors.

    Whatever it cannot look into counts as different.
    """
    return (
        tuple((path, type(part), _attributes(part), _tensors(part)) for path, part in module.named_modules()),
        tuple(_type_of(leaf) for leaf in pytree.tree_leaves(inputs)),
        str(pytree.tree_structure(inputs)),
        tuple((candidate.number, candidate.pack, candidate.layers, _settings(candidate)) for candidate in candidates),
    )


def _varies(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype in TOLERANCES and value.numel() > 0


def _attributes(module: torch.nn.Module) -> tuple[Any, ...]:
    return tuple(
        (name, value if isinstance(value, (bool, int, float, str, type(None))) else id(value))
        for name, value in sorted(vars(module).items())
        if name not in _OWN_ATTRIBUTES
    )


def _tensors(module: torch.nn.Module) -> tuple[Any, ...]:
    named = (
        *module.named_parameters(recurse=False, remove_duplicate=False),
        *module.named_buffers(recurse=False, remove_duplicate=False),
    )
    return tuple((name, _type_of(tensor), _few_values(tensor)) for name, tensor in named)


def _few_values(tensor: torch.Tensor | None) -> Any:
    # A bound or an epsilon may be a tensor; a weight is not compared.
    return tuple(tensor.flatten().tolist()) if tensor is not None and tensor.numel() <= FEW else None


def _type_of(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.dtype, value.shape
    return value if isinstance(value, (bool, int, float, str, type(None))) else id(value)


def _settings(candidate: Candidate) -> Any:
    answer = candidate.answer
    if isinstance(answer, BoundLayer):
        parameters = answer.parameters
        types = tuple((name, array.dtype.name, array.shape) for name, array in parameters.items())
        return types, repr(sorted(parameters.attributes.items()))
    plain = getattr(answer.forward, "__closure__", 0) is None and not getattr(answer.forward, "__defaults__", None)
    return id(answer.forward) if plain else id(answer)
