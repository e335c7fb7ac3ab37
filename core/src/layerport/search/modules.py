"""Whether a module computes what a layer computes, as formulas: the stronger half of a claim's proof."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.fx import Node
from torch.fx.node import map_arg

from layerport.foreign import torch_private
from layerport.foreign.torch_private import pytree
from layerport.layers.layer import BoundLayer
from layerport.parameters.conversion import from_standard
from layerport.search.numbering import Numbering, Numbers, shape_of
from layerport.search.places import EXACT, FORMULA
from layerport.search.tracing import trace
from layerport.search.values import CONSTANT, INPUT, Value


def structure_of(module: torch.nn.Module, args: Any, kwargs: Any, bound: BoundLayer) -> str | None:
    """EXACT or FORMULA where a module and a layer in its place give the same value, for inputs of these shapes.

    None where they do not, or where the module does something that no trace shows.  Neither is run on data.
    """
    try:
        return _structure(module, args, kwargs, bound)
    except Exception:  # whatever cannot be traced is proven by its numbers alone
        return None


def _structure(module: torch.nn.Module, args: Any, kwargs: Any, bound: BoundLayer) -> str | None:
    leaves, spec = pytree.tree_flatten((args, dict(kwargs)))
    inputs = {f"input{place}": leaf for place, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)}
    held = {
        f"held{place}": (name, tensor)
        for place, (name, tensor) in enumerate([*module.named_parameters(), *module.named_buffers()])
    }
    with torch_private.FakeTensorMode() as mode:
        fakes = {
            name: mode.from_tensor(one) for name, one in (inputs | {key: one for key, (_, one) in held.items()}).items()
        }

    def call(**tensors: torch.Tensor) -> Any:
        given = [tensors.get(f"input{place}", leaf) for place, leaf in enumerate(leaves)]
        positional, named = pytree.tree_unflatten(given, spec)
        state = {name: tensors[key] for key, (name, _) in held.items()}
        return torch.func.functional_call(module, state, positional, named)

    with _as_it_was(module):
        made = trace(call, fakes, {}, symbolic=False)
    numbering = Numbering()
    known = {
        node: numbering.leaf(CONSTANT if name in held else INPUT, name, node.meta["val"])
        for name, node in made.inputs.items()
    }
    numbers = numbering.graph(made.graph, known)
    tensors = {made.inputs[name]: one for name, (_, one) in held.items()}
    chosen: dict[str, tuple[Any, Numbers]] = {}
    given = iter(inputs)
    for argument in bound.layer.signature.inputs:
        if (name := next(given, None)) is not None:
            chosen[argument.name] = fakes[name], numbers[made.inputs[name]]
    for name, array in bound.parameters.items():
        value = from_standard(array, "torch")
        assert isinstance(value, torch.Tensor)
        node = _constant(value, numbers, tensors)
        if node is None:
            return None
        chosen[name] = node.meta["val"], numbers[node]
    absent = {one.name: None for one in bound.layer.signature.tensors if one.name not in chosen}
    layer = trace(
        bound.layer.reference,
        {name: fake for name, (fake, _) in chosen.items()},
        {**absent, **bound.parameters.attributes},
        symbolic=False,
    )
    theirs = numbering.graph(layer.graph, {node: chosen[name][1] for name, node in layer.inputs.items()})
    return _grade([(numbers[one], one) for one in made.outputs], [(theirs[one], one) for one in layer.outputs])


@contextmanager
def _as_it_was(module: torch.nn.Module) -> Iterator[None]:
    """Put back what a module keeps in its attributes: a traced forward leaves tensors without numbers there."""
    before = [(vars(one), dict(vars(one))) for one in module.modules()]
    try:
        yield
    finally:
        for attributes, values in before:
            attributes.clear()
            attributes.update(values)


def _grade(ours: Sequence[tuple[Numbers, Node]], theirs: Sequence[tuple[Numbers, Node]]) -> str | None:
    if len(ours) != len(theirs):
        return None
    for (one, node), (other, their_node) in zip(ours, theirs, strict=True):
        mine, their = node.meta["val"], their_node.meta["val"]
        if one.real is not other.real or (mine.dtype, shape_of(mine)) != (their.dtype, shape_of(their)):
            return None
    return (
        EXACT if all(one.exact is other.exact for (one, _), (other, _) in zip(ours, theirs, strict=True)) else FORMULA
    )


def _constant(
    value: torch.Tensor, numbers: Mapping[Node, Numbers], tensors: Mapping[Node, torch.Tensor]
) -> Node | None:
    """A node that gives this parameter: one of the module's tensors, or what it computes of them alone."""
    values: dict[Node, Any] = dict(tensors)

    def evaluated(node: Node) -> Any:
        if node not in values:
            args, kwargs = map_arg((node.args, node.kwargs), evaluated)
            values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        return values[node]

    for node, one in numbers.items():
        fake = node.meta["val"]
        if not isinstance(one.real, Value) or not one.real.is_constant or not isinstance(fake, torch.Tensor):
            continue
        if (fake.dtype, fake.shape) == (value.dtype, value.shape) and torch.equal(evaluated(node).detach(), value):
            return node
    return None
