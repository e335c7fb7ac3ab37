"""The symbolic sizes in an exported graph: named after the model's dims, unknown ones unknown.  `export` imports it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import onnx_ir as ir
import torch

from layerport.errors import UsageError
from layerport.foreign import torch_private
from layerport.layers.sympy_sizes import from_sympy
from layerport.sizes.dims import DimRange
from layerport.sizes.expressions import Expr, Symbol, parse

# Two sizes with one text are equal, so a longer text is replaced by a short name of its own.
_LONGEST = 120
_WORD = re.compile(r"[A-Za-z_]\w*")
# What exporters write for a size that they do not know.
_UNKNOWN = re.compile(r"|\?|-1|.*\bNone\b.*")


class SizeNames:
    """What each symbolic size of an exported program is called: an expression over the model's dims.

    A size that depends on data, or has no such form, gets a name that no dim has; equal sizes get the same one.
    """

    def __init__(self, program: torch.export.ExportedProgram, dims: Mapping[str, DimRange]) -> None:
        self._names: dict[str, Expr] = {symbol: Symbol(dim.name) for symbol, dim in dims.items()}
        self._taken = {dim.name for dim in dims.values()}
        self._texts: dict[str, str] = {}
        for size in _sizes(program):
            text = str(torch_private.expression(size))
            if text not in self._texts:
                self._texts[text] = self._of(torch_private.expression(size))

    def __call__(self, text: str | None) -> str | None:
        """The name of a size that torch.onnx wrote as `text`; None for one that Torch knows nothing of."""
        if text is None or text in self._texts:
            return None if text is None else self._texts[text]
        try:
            # The exporter's optimizer adds sizes up as text; it does so with unknown ones too.
            return parse(_WORD.sub(lambda word: self._names[word[0]].text, text)).text
        except (KeyError, UsageError):
            return None

    def _of(self, expr: Any) -> str:
        for symbol in sorted(expr.free_symbols, key=lambda one: (len(one.name), one.name)):
            self._names.setdefault(symbol.name, Symbol(self._free()))
        try:
            text = from_sympy(expr, self._names).text
        except UsageError:
            return self._free()
        return text if len(text) <= _LONGEST else self._free()

    def _free(self) -> str:
        place = sum(name.startswith("size") for name in self._taken)
        return _unused(f"size{place}", self._taken)


def rename_sizes(model: ir.Model, name: Callable[[str | None], str | None]) -> None:
    """Give every symbolic size of the model a new name, inner graphs and functions included."""
    for value in _values(model):
        if value.shape is not None and not value.shape.is_static():
            value.shape = ir.Shape([dim if isinstance(dim, int) else name(dim.value) for dim in value.shape])


def rename_as_expressions(model: ir.Model) -> None:
    """Make every size of a file an expression over names, whatever its text was; "None" and the like are unknown."""
    names: dict[str, str | None] = {}
    strange = []
    for text in dict.fromkeys(_texts(model)):
        try:
            names[text] = None if _UNKNOWN.fullmatch(text) else parse(text).text
        except UsageError:
            strange.append(text)
    taken = {symbol for text in names.values() if text is not None for symbol in parse(text).symbols()}
    for text in strange:
        name = re.sub(r"\W+", "_", text[:_LONGEST], flags=re.ASCII).strip("_") or "size"
        names[text] = _unused(name if not name[0].isdigit() else f"size_{name}", taken)
    for value in model.graph.inputs:
        dims: list[int | str] = []
        for axis, dim in enumerate(value.shape or ()):
            known = dim if isinstance(dim, int) else names.get(dim.value or "")
            dims.append(_unused(f"{value.name}_dim{axis}", taken) if known is None else known)
        names |= {dim: dim for dim in dims if isinstance(dim, str)}
        value.shape = ir.Shape(dims) if value.shape is not None else None
    rename_sizes(model, lambda text: None if text is None else names[text])


def _unused(name: str, taken: set[str]) -> str:
    name = re.sub(r"\W", "_", name, flags=re.ASCII)
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _texts(model: ir.Model) -> Iterator[str]:
    for value in _values(model):
        for dim in value.shape or ():
            if isinstance(dim, ir.SymbolicDim) and dim.value is not None:
                yield dim.value


def _values(model: ir.Model) -> Iterator[ir.Value]:
    """Every value of a model, each at least once."""
    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for graph in graphs:
        yield from graph.inputs
        for node in graph.all_nodes():
            yield from node.outputs
            for attribute in node.attributes.values():
                for inner in _graphs(attribute):
                    yield from inner.inputs
                    yield from inner.initializers.values()
    yield from model.graph.initializers.values()


def _graphs(attribute: ir.Attr) -> list[ir.Graph]:
    if attribute.type is ir.AttributeType.GRAPH:
        return [attribute.as_graph()]
    return list(attribute.as_graphs()) if attribute.type is ir.AttributeType.GRAPHS else []


def _sizes(program: torch.export.ExportedProgram) -> Iterator[torch.SymInt]:
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            value = node.meta.get("val")
            for one in value if isinstance(value, (tuple, list)) else (value,):
                for size in one.shape if isinstance(one, torch.Tensor) else ():
                    if isinstance(size, torch.SymInt):
                        yield size
