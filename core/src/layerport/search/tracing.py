"""A reference as a graph of Torch operators, traced on tensors without data."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from layerport.foreign import torch_private
from layerport.layers.derivation import quiet_export


@dataclass(frozen=True, eq=False)
class Trace:
    """A function's graph, its inputs by argument, and its outputs."""

    graph: torch.fx.Graph
    inputs: Mapping[str, Node]
    outputs: tuple[Any, ...]

    @property
    def operators(self) -> int:
        """How many operators compute something, views and casts left aside."""
        live = _live(self.outputs)
        return sum(node.op == "call_function" and not is_view_or_cast(node) for node in live)


_CHEAP = (
    *("alias", "detach", "clone", "contiguous", "lift_fresh_copy", "_to_copy", "to", "convert_element_type"),
    *("view", "reshape", "_unsafe_view", "unsqueeze", "squeeze", "flatten", "unflatten", "view_as", "expand"),
    *("expand_as", "permute", "transpose", "t", "slice", "narrow", "select", "split", "split_with_sizes", "chunk"),
    # The last is unsqueeze, expand and flatten.
    *("unbind", "type_as", "repeat_interleave"),
)


def is_view_or_cast(node: Node) -> bool:
    """Whether a node costs next to nothing, so that it may stay beside a layer that has its own."""
    if node.op != "call_function":
        return False
    if not torch_private.is_operator(node.target):
        return getattr(node.target, "__name__", "") == "getitem"
    return torch_private.schema(node.target).name.partition("::")[2] in _CHEAP


def trace(
    function: Callable[..., Any], tensors: Mapping[str, torch.Tensor], constants: Mapping[str, Any], *, symbolic: bool
) -> Trace:
    """Trace a function of named tensors, which hold no data.  Raises what the function raises."""
    names = tuple(tensors)

    def run(*values: torch.Tensor) -> tuple[Any, ...]:
        answer = function(**dict(zip(names, values, strict=True)), **constants)
        return tuple(answer) if isinstance(answer, (tuple, list)) else (answer,)

    with torch.no_grad(), quietly():
        module = torch_private.make_fx()(run, pre_dispatch=True, tracing_mode="symbolic" if symbolic else "fake")(
            *tensors.values()
        )
    nodes = list(module.graph.nodes)
    places = [node for node in nodes if node.op == "placeholder"]
    return Trace(module.graph, dict(zip(names, places, strict=True)), tuple(nodes[-1].args[0]))


def examples(shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, torch.dtype]) -> dict[str, torch.Tensor]:
    """Tensors without data."""
    # Torch makes tensors of some numbers, such as those of torch.where, before it asks what they meet.
    with torch_private.FakeTensorMode(shape_env=torch_private.ShapeEnv(), allow_non_fake_inputs=True):
        return {name: torch.empty(shape, dtype=dtypes.get(name, torch.float32)) for name, shape in shapes.items()}


def runs(function: Callable[..., Any], tensors: Mapping[str, torch.Tensor], constants: Mapping[str, Any]) -> bool:
    """Whether a function takes these tensors, which hold no data."""
    with torch.no_grad(), quietly():
        try:
            function(**tensors, **constants)
        except Exception:
            return False
    return True


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without what references and Torch say of tensors that are none."""
    with warnings.catch_warnings(), quiet_export():
        warnings.simplefilter("ignore")
        yield


def _live(outputs: tuple[Any, ...]) -> set[Node]:
    found: set[Node] = set()
    waiting = [node for node in outputs if isinstance(node, Node)]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += node.all_input_nodes
    return found
