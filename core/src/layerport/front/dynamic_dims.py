"""The dynamic dims of an exported program: the names and limits that the user gave them, the sizes of the example."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils import _pytree as pytree

from layerport.dims import DimRange
from layerport.front.sources import Source

SYMBOL = re.compile(r"[A-Za-z_]\w*")


def read_dims(source: Source, program: torch.export.ExportedProgram) -> dict[str, DimRange]:
    """Torch's symbols (s59), each with its dim: named as the user named it, else `<input>_dim<axis>`."""
    given = _given_dims(source)
    dims: dict[str, DimRange] = {}
    place = -1
    for node in program.graph.nodes:
        if node.op != "placeholder" or node.name not in program.graph_signature.user_inputs:
            continue
        place += 1
        value = node.meta.get("val")
        for axis, size in enumerate(value.shape if isinstance(value, torch.Tensor) else ()):
            symbol = str(size)
            if not isinstance(size, torch.SymInt) or symbol in dims or not SYMBOL.fullmatch(symbol):
                continue
            dim = given.get((place, axis))
            name = _name_of(dim) or f"{node.name}_dim{axis}"
            while any(other.name == name for other in dims.values()):
                name += "_"
            dims[symbol] = _range(name, dim, size, program)
    return dims


def _range(name: str, dim: Any, size: torch.SymInt, program: torch.export.ExportedProgram) -> DimRange:
    limits = next((value for symbol, value in program.range_constraints.items() if str(symbol) == str(size)), None)
    least, greatest = 1, None
    if limits is not None:
        least = int(limits.lower)
        greatest = int(limits.upper) if limits.upper < 2**31 else None
    if least <= 2 and (getattr(dim, "min", None) or 0) < 2:
        # Torch says 2 where nothing was stated, because it treats sizes 0 and 1 apart while it traces.
        least = 1
    usual = int(size.node.hint) if size.node.has_hint() else least
    return DimRange(name, least, usual, greatest)


def _given_dims(source: Source) -> dict[tuple[int, int], Any]:
    """(place of the flat input, axis) -> what `dynamic_shapes` says of it."""
    if source.dynamic_shapes is None:
        return {}
    values = [*source.args, *source.kwargs.values()]
    shapes = source.dynamic_shapes
    if isinstance(shapes, Mapping):
        shapes = [shapes.get(name) for name in dict.fromkeys([*_argument_names(source), *source.kwargs])]
    found = {}
    for place, (_, spec) in enumerate(_with_specs(values, list(shapes))):
        for axis, dim in spec.items() if isinstance(spec, Mapping) else enumerate(spec or ()):
            found[(place, axis)] = dim
    return found


def _name_of(dim: Any) -> str | None:
    name = dim if isinstance(dim, str) else getattr(dim, "__name__", None)
    return name if name and SYMBOL.fullmatch(name) else None


def _argument_names(source: Source) -> list[str]:
    assert isinstance(source.model, torch.nn.Module)
    return list(inspect.signature(source.model.forward).parameters)[: len(source.args)]


def _with_specs(values: list[Any], specs: list[Any]) -> list[tuple[Any, Any]]:
    """Each flat leaf of the values with its shape spec; None for a subtree without one."""
    pairs: list[tuple[Any, Any]] = []
    for value, spec in zip(values, [*specs, *[None] * (len(values) - len(specs))], strict=False):
        if isinstance(value, Mapping):
            inner = [spec.get(key) if isinstance(spec, Mapping) else None for key in value]
            pairs += _with_specs(list(value.values()), inner)
        elif isinstance(value, (list, tuple)):
            pairs += _with_specs(list(value), list(spec) if isinstance(spec, (list, tuple)) else [])
        else:
            pairs += [(leaf, spec) for leaf in pytree.tree_leaves(value)]
    return pairs
