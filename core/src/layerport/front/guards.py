"""What an exported model's own forward needs of its sizes: conditions that torch.export recorded; ONNX has no word."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.export.graph_signature import InputKind

from layerport.foreign import torch_private
from layerport.foreign.torch_private import pytree
from layerport.front.evidence import LARGEST, UNKNOWN, Outcome, compare, resized
from layerport.front.sources import Source
from layerport.layers.derivation_reading import read_guards
from layerport.sizes.dims import DimRange
from layerport.sizes.expressions import Expr, Symbol, parse


@dataclass(frozen=True)
class Guards:
    """The conditions over the model's dims, and the program that needs them; unread ones are in Torch's words."""

    conditions: tuple[Expr, ...]
    unread: tuple[str, ...]
    program: torch.export.ExportedProgram
    symbols: Mapping[str, DimRange]

    def trial(
        self, source: Source, model: Any, dims: Mapping[str, DimRange]
    ) -> Callable[[Mapping[str, int]], Outcome] | None:
        """A function that runs model and program at some sizes of the dims; None where only the program is there."""
        if not isinstance(source.model, torch.nn.Module):
            return None
        example = (source.args, dict(source.kwargs))
        usual = {name: dim.opt for name, dim in dims.items()}

        def tried(point: Mapping[str, int]) -> Outcome:
            sizes = {**usual, **point}
            named = {symbol: sizes[dim.name] for symbol, dim in self.symbols.items()}
            shapes = self._shapes(named)
            if sum(math.prod(shape) for shape in shapes if shape is not None) > LARGEST:
                return Outcome(UNKNOWN, "the tensors are too large to try it")
            args, kwargs = resized(example, iter(shapes))
            copies = pytree.tree_map(
                lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, (args, kwargs)
            )
            return compare(
                lambda: model(*copies[0], **copies[1]), self.program, pytree.tree_leaves((args, kwargs)), named
            )

        return tried

    def _shapes(self, named: Mapping[str, int]) -> list[tuple[int, ...] | None]:
        nodes = {node.name: node for node in self.program.graph.nodes if node.op == "placeholder"}
        shapes: list[tuple[int, ...] | None] = []
        for spec in self.program.graph_signature.input_specs:
            if spec.kind is InputKind.USER_INPUT:
                node = nodes.get(spec.arg.name)
                value = node.meta.get("val") if node is not None else None
                sizes_of = value.shape if isinstance(value, torch.Tensor) else None
                shapes.append(None if sizes_of is None else tuple(_size(size, named) for size in sizes_of))
        return shapes


def guards_of(program: torch.export.ExportedProgram, symbols: Mapping[str, DimRange]) -> Guards:
    """What the program needs of its sizes.  symbols: the dim of each of Torch's."""
    conditions, unread = read_guards(program, {symbol: Symbol(dim.name) for symbol, dim in symbols.items()})
    return Guards(conditions, unread, program, symbols)


def _size(size: Any, named: Mapping[str, int]) -> int:
    return size if isinstance(size, int) else parse(str(torch_private.expression(size))).evaluate(named)
