"""What an exported reference says about sizes: its symbols, guards and outputs as size expressions.

Part of `derivation`, which alone imports it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import reduce
from typing import Any

import sympy
import torch
from torch.export import ExportedProgram

from layerport.errors import UsageError
from layerport.foreign import torch_private
from layerport.layers.sympy_sizes import from_sympy
from layerport.parameters.frameworks.torch_dtypes import to_dtype
from layerport.sizes.expressions import Const, Expr, Symbol, as_expr, minimum
from layerport.sizes.output_rules import SizeSymbol, by_first_place, output_name
from layerport.sizes.tensors import TensorType

# As many elements as the input has, at most.
_PICKING = frozenset({"nonzero", "nonzero_numpy", "_unique2", "_unique", "unique_consecutive"})


def size_override(layer: str) -> str:
    """The advice that ends every error about a derivation."""
    return f"write the sizes yourself with @{_short(layer)}.shape_rule"


class Reading:
    """The output rules of one exported reference; see `torch_shapes.Derivation` for the fields.

    strict: whether a condition that is no size expression is an error; without, the outputs are not read either.
    """

    def __init__(
        self, program: ExportedProgram, tensors: Mapping[str, TensorType], layer: str, *, strict: bool = True
    ) -> None:
        self._program = program
        self._strict = strict
        self.unread: list[str] = []
        self._layer = layer
        self._nodes = {node.name: node for node in program.graph.nodes}
        self._facts = torch_private.size_facts(program)
        self._names: dict[str, Expr] = {}
        self._made: dict[str, Expr] = {}
        self._bounds: dict[str, SizeSymbol] = {}
        self.fixed: dict[str, int] = {}
        self.equalities: tuple[tuple[str, str], ...] = ()
        self._name_inputs(tensors)
        self.outputs = self._read_outputs() if strict else ()
        self.size_symbols = tuple(self._bounds.values())

    def constraints(self) -> tuple[Expr, ...]:
        """The conditions on sizes that the reference's run relied on, apart from equal and fixed dims."""
        if self._facts is None:
            return ()
        found = dict[str, Expr](self._made)
        for condition in self._facts.conditions:
            if condition is sympy.true or any(_is_data(symbol) for symbol in condition.free_symbols):
                continue
            try:
                made = from_sympy(condition, self._names)
            except UsageError as error:
                if not self._strict:
                    self.unread.append(self._readable(condition))
                    continue
                raise UsageError(
                    f"{self._layer}: the reference turns sizes into a plain number or branches on them in a way "
                    f"that has no rule: it needs {self._readable(condition)} ({error.fault})",
                    f"keep to +, -, *, //, % and min/max of sizes, or {size_override(self._layer)}",
                ) from error
            if not isinstance(made, Const):
                found[made.text] = made
        return tuple(sorted(found.values(), key=lambda made: made.sort_key))

    def _name_inputs(self, tensors: Mapping[str, TensorType]) -> None:
        equalities: list[tuple[str, str]] = []
        compound: list[tuple[str, Any]] = []
        seen = by_first_place(tensors)
        for node_name, (name, tensor) in zip(self._program.graph_signature.user_inputs, seen.items(), strict=True):
            sizes = self._nodes[str(node_name)].meta["val"].shape
            assert tensor is not None
            for axis, (dim, size) in enumerate(zip(tensor.shape, sizes, strict=True)):
                if not isinstance(dim, Symbol):
                    continue
                place, chosen = f"{name}.{axis}", dim.name
                expr = _sympy_size(size)
                if isinstance(expr, sympy.Integer):
                    self.fixed[place] = int(expr)
                elif isinstance(expr, sympy.Symbol):
                    known = self._names.setdefault(expr.name, dim)
                    if not known.structurally_equals(dim):
                        equalities.append((str(known), place))
                else:
                    compound.append((chosen, expr))
        for place, expr in compound:
            try:
                self._name_compound(place, expr)
            except UsageError:
                if self._strict:
                    raise
                self.unread.append(f"{place} == {self._readable(expr)}")
        self.equalities = tuple(equalities)

    def _name_compound(self, place: str, expr: Any) -> None:
        unknown = sorted((s for s in expr.free_symbols if s.name not in self._names), key=lambda s: s.name)
        if unknown:
            factor = expr.coeff(unknown[0])
            rest = sympy.expand(expr - factor * unknown[0])
            if len(unknown) > 1 or not isinstance(factor, sympy.Integer) or unknown[0] in rest.free_symbols:
                raise UsageError(
                    f"{self._layer}: size {place} is {self._readable(expr)}, in sizes of no argument",
                    size_override(self._layer),
                )
            self._names[unknown[0].name] = (Symbol(place) - from_sympy(rest, self._names)) // int(factor)
        self._require(Symbol(place) == from_sympy(expr, self._names))

    def _require(self, condition: Expr) -> None:
        if not isinstance(condition, Const):
            self._made[condition.text] = condition

    def _read_outputs(self) -> tuple[TensorType, ...]:
        names = self._program.graph_signature.user_outputs
        values = (self._nodes[str(name)].meta["val"] for name in names)
        return tuple(self._read_output(index, output_name(index, len(names)), one) for index, one in enumerate(values))

    def _read_output(self, index: int, name: str, value: torch.Tensor) -> TensorType:
        try:
            dtype = to_dtype(value.dtype)
        except UsageError as error:
            raise UsageError(f"{self._layer}: output {index}: {error.fault}", error.repair) from error
        dims = [self._output_size(index, axis, _sympy_size(size)) for axis, size in enumerate(value.shape)]
        return TensorType(name, dtype, tuple(dims))

    def _output_size(self, index: int, axis: int, expr: Any) -> Expr:
        for symbol in sorted(expr.free_symbols, key=lambda s: (len(s.name), s.name)):
            if _is_data(symbol) and symbol.name not in self._names:
                name = f"u{len(self._bounds)}"
                self._names[symbol.name] = Symbol(name)
                self._bounds[name] = SizeSymbol(name, self._bound(symbol))
        try:
            return from_sympy(expr, self._names)
        except UsageError as error:
            raise UsageError(
                f"{self._layer}: axis {axis} of output {index} has the size {self._readable(expr)}, "
                f"which has no rule: {error.fault}",
                f"keep to +, -, *, //, % and min/max of sizes, or {size_override(self._layer)}",
            ) from error

    def _bound(self, symbol: Any) -> Expr | None:
        assert self._facts is not None
        bounds: list[Expr] = []
        for one in self._facts.asserts.get(symbol, []):
            bounds += self._bound_from_check(symbol, self._facts.replace(one.expr))
        for node in self._program.graph.nodes:
            keys = {self._facts.replace(key) for key in node.meta.get("unbacked_bindings") or {}}
            if symbol in keys:
                bounds += self._bound_from_operator(node)
        upper = self._facts.upper(symbol)
        if isinstance(upper, sympy.Integer) and int(upper) < torch_private.NO_LIMIT:
            bounds.append(Const(int(upper)))
        return reduce(minimum, bounds) if bounds else None

    def _bound_from_check(self, symbol: Any, condition: Any) -> list[Expr]:
        if not isinstance(condition, sympy.core.relational.Relational):
            return []
        condition = condition.reversed if condition.rhs == symbol else condition
        if condition.lhs != symbol or any(_is_data(other) for other in condition.rhs.free_symbols):
            return []
        if isinstance(condition, (sympy.Le, sympy.Lt, sympy.Eq)):
            strict = isinstance(condition, sympy.Lt)
            return [from_sympy(condition.rhs, self._names) - int(strict)]
        return []

    def _bound_from_operator(self, node: torch.fx.Node) -> list[Expr]:
        operator = str(node.target).split(".")[1] if str(node.target).startswith("aten.") else ""
        values: list[Any] = [arg.meta["val"] if isinstance(arg, torch.fx.Node) else arg for arg in node.args]
        try:
            if operator in _PICKING or (operator == "where" and len(values) == 1):
                return [self._elements(values[0].shape)]
            if operator == "unique_dim":
                return [self._elements([values[0].shape[values[1]]])]
            if operator == "masked_select":
                broadcast: Any = torch.broadcast_shapes
                return [self._elements(broadcast(values[0].shape, values[1].shape))]
            if operator == "index":
                indices = [index.meta["val"] for index in values[1] if index is not None]
                return [self._elements(v.shape) for v in indices if v.dtype in (torch.bool, torch.uint8)][:1]
        except UsageError:
            # A size of the operator's input is data-dependent itself, without a bound.
            return []
        return []

    def _elements(self, sizes: Any) -> Expr:
        return as_expr(math.prod((self._largest(_sympy_size(size)) for size in sizes), start=Const(1)))

    def _largest(self, size: Any) -> Expr:
        """The size itself where data has no part in it, the bound of a data-dependent one."""
        if not any(_is_data(symbol) for symbol in size.free_symbols):
            return from_sympy(size, self._names)
        bound = self._bound(size) if isinstance(size, sympy.Symbol) else None
        if bound is None:
            raise UsageError(
                f"no bound is known for {size}",
                "bound it with torch._check in the reference, or with @layer.shape_rule",
            )
        return bound

    def _readable(self, expr: Any) -> str:
        places = {
            symbol: sympy.Symbol(self._names[symbol.name].text, integer=True, nonnegative=True)
            for symbol in expr.free_symbols
            if symbol.name in self._names
        }
        return str(expr.xreplace(places))


def read_guards(program: ExportedProgram, names: Mapping[str, Expr]) -> tuple[tuple[Expr, ...], tuple[str, ...]]:
    """The conditions on sizes that a whole program relied on, and those that are no size expressions, as text.

    names: the expression of each of Torch's symbols.  What depends on data stays in the program as a check.
    """
    facts = torch_private.size_facts(program)
    found: dict[str, Expr] = {}
    unread: list[str] = []
    for condition in facts.conditions if facts is not None else []:
        if condition is sympy.true or any(_is_data(symbol) for symbol in condition.free_symbols):
            continue
        try:
            made = from_sympy(condition, names)
        except UsageError:
            unread.append(str(condition))
            continue
        if not isinstance(made, Const):
            found[made.text] = made
    return tuple(sorted(found.values(), key=lambda made: made.sort_key)), tuple(unread)


def _sympy_size(size: Any) -> Any:
    return sympy.Integer(size) if isinstance(size, int) else torch_private.expression(size)


def _is_data(symbol: Any) -> bool:
    return str(symbol.name).startswith(("u", "zuf"))


def _short(layer: str) -> str:
    return layer.rpartition("::")[2].partition("@")[0] or layer


def check_deterministic(program: ExportedProgram, layer: str) -> None:
    """Raise UsageError where a reference draws random numbers."""
    for node in program.graph.nodes:
        if node.op != "call_function" or torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
            continue
        arguments = torch_private.schema(node.target).arguments
        given = {argument.name: argument.default_value for argument in arguments}
        given |= dict(zip(given, node.args, strict=False)) | dict(node.kwargs)
        # An operator that could, and is told not to.
        if any(given.get(name, 1) in (0, False) for name in ("train", "training", "dropout_p", "p")):
            continue
        raise UsageError(
            f"{layer}: the reference draws random numbers ({node.target})",
            "give the same outputs for the same inputs: take the random tensor as an input, or leave it out",
        )
