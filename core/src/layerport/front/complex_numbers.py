"""Complex tensors within a program as pairs of real ones, because ONNX has operators for real tensors only.

A program that takes or gives complex tensors, or computes with them what is not known here, stays as it is.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument
from torch.fx import Node
from torch.fx.node import map_arg

from layerport.foreign import torch_private
from layerport.search.running import VIEWS

aten = torch.ops.aten
Part: TypeAlias = Any
"""A node, a number, or None for zero."""
_REAL = {torch.complex32: torch.float16, torch.complex64: torch.float32, torch.complex128: torch.float64}
_CONSTANTS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
# What moves elements, and does the same to both parts.
_MOVES = frozenset(
    {
        *("alias", "detach", "clone", "contiguous", "lift_fresh_copy", "view", "reshape", "_unsafe_view", "unsqueeze"),
        *("squeeze", "flatten", "unflatten", "expand", "permute", "transpose", "t", "slice", "select", "narrow"),
        *("split", "split_with_sizes", "chunk", "unbind", "cat", "stack", "index", "index_select", "gather"),
        *("repeat", "repeat_interleave", "flip", "roll", "tile", "resolve_conj", "resolve_neg", "sum", "mean", "neg"),
    }
)
_JOINS = ("aten.cat.default", "aten.stack.default")
_ONES = ("ones", "ones_like")


class _UnknownError(Exception):
    """A complex tensor goes where nothing is known of pairs."""


@dataclass(frozen=True)
class _Pair:
    real: Part
    imag: Part


def with_real_pairs(program: torch.export.ExportedProgram) -> bool:
    """Compute with pairs of real tensors what a decomposed program computes with complex ones; whether it does now."""
    if not any(_is_complex(node.meta.get("val")) for node in program.graph.nodes):
        return False
    rewriting = _Rewriting(program)
    try:
        graph = rewriting.graph()
    except _UnknownError:
        return False
    torch_private.with_own_constants(program)
    program.constants.update(rewriting.constants)
    program.graph_signature.input_specs[:] = rewriting.specs
    program.graph_module.graph = graph
    program.graph_module.recompile()
    return True


def _is_complex(value: Any) -> bool:
    values = value if isinstance(value, (tuple, list)) else [value]
    return any(isinstance(one, torch.Tensor) and one.is_complex() for one in values)


class _Rewriting:
    """Copies a program's graph, with pairs in the place of complex nodes.

    specs, constants: the inputs of the copy, and the tensors of those that are new.
    """

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        self._program = program
        self._new = torch.fx.Graph(program.graph_module)
        self._known: dict[Node, Any] = {}
        self._of: Node | None = None
        self._made = 0
        self.specs: list[InputSpec] = []
        self.constants: dict[str, torch.Tensor] = {}

    def graph(self) -> torch.fx.Graph:
        """The copy.  Raises _UnknownError where there is none."""
        specs = {spec.arg.name: spec for spec in self._program.graph_signature.input_specs}
        for node in self._program.graph.nodes:
            self._of = node
            if node.op == "placeholder":
                self._known[node] = self._input(node, specs[node.name])
            elif _is_complex(node.meta.get("val")) or any(
                isinstance(self._known[one], _Pair) for one in node.all_input_nodes
            ):
                self._known[node] = self._complex(node)
            else:
                self._known[node] = self._new.node_copy(node, self._known.__getitem__)
        return self._new

    def _input(self, node: Node, spec: InputSpec) -> Any:
        if not _is_complex(node.meta.get("val")):
            self.specs.append(spec)
            return self._new.node_copy(node)
        held = {**self._program.constants, **self._program.state_dict}.get(str(spec.target))
        if spec.kind not in _CONSTANTS or held is None:
            raise _UnknownError
        made = []
        for name, tensor in (("real", held.detach().resolve_conj().real), ("imag", held.detach().resolve_conj().imag)):
            new = self._new.placeholder(f"{node.name}_layerport_{name}")
            new.meta = {**node.meta, "val": self._value(torch.empty, tensor.shape, dtype=tensor.dtype)}
            target = f"{spec.target}_layerport_{name}"
            self.constants[target] = tensor.contiguous()
            self.specs.append(InputSpec(InputKind.CONSTANT_TENSOR, TensorArgument(name=new.name), target))
            made.append(new)
        return _Pair(*made)

    def _complex(self, node: Node) -> Any:
        if node.target is operator.getitem:
            return self._moved(node)
        if node.op != "call_function" or not torch_private.is_operator(node.target):
            raise _UnknownError
        name = torch_private.schema(node.target).name.removeprefix("aten::")
        if name == "_assert_tensor_metadata":
            return None
        if name in _MOVES and not node.kwargs.get("dtype"):
            pair = self._moved(node)
            if not isinstance(node.meta["val"], (tuple, list)):
                self._check(pair.real, node)
                self._check(pair.imag, node)
            return pair
        rule = _RULES.get(name)
        args = [self._known[one] if isinstance(one, Node) else one for one in node.args]
        made = None if rule is None else rule(self, node, *args)
        if made is None or isinstance(made, _Pair) != _is_complex(node.meta.get("val")):
            raise _UnknownError
        for part in (made.real, made.imag) if isinstance(made, _Pair) else (made,):
            self._check(part, node)
        return made

    def _check(self, part: Part, node: Node) -> None:
        """Whether a part has the shape and the dtype that it stands for; a number has none yet."""
        wanted = node.meta["val"]
        if isinstance(part, (int, float)) or (isinstance(part, Node) and part.meta["val"].dtype != _real(wanted)):
            raise _UnknownError

    def _moved(self, node: Node) -> _Pair:
        """An operator applied to each part."""
        joins = str(node.target) in _JOINS

        def on(part: str) -> Node:
            def of(one: Node) -> Any:
                known = self._known[one]
                if not isinstance(known, _Pair):
                    # What is joined to complex numbers is one of them; else it says where they are.
                    return self(aten.zeros_like.default, known) if joins and part == "imag" else known
                mine, other = (known.real, known.imag) if part == "real" else (known.imag, known.real)
                return self(aten.zeros_like.default, other) if mine is None else mine

            args, kwargs = map_arg((node.args, node.kwargs), of)
            # Parts may lie in memory otherwise than the complex tensor does.
            target = aten.reshape.default if str(node.target) in VIEWS else node.target
            return self(target, *args, **kwargs)  # type: ignore[arg-type]  # no argument of these is called name

        sources = [self._known[one] for one in node.all_input_nodes if isinstance(self._known[one], _Pair)]
        if not sources or not _is_complex(node.meta["val"]):  # it reads the same bytes as another dtype
            raise _UnknownError
        zero = {name for name in ("real", "imag") if not joins and getattr(sources[0], name) is None}
        return _Pair(*(None if name in zero else on(name) for name in ("real", "imag")))

    def __call__(self, target: Any, *args: Any, name: str = "", **kwargs: Any) -> Node:
        """A new node.  name: of one that stands for a node of the program."""
        self._made += not name
        name = name or f"layerport_part_{self._made}"
        node = self._new.create_node("call_function", target, args, kwargs, name=name)
        assert self._of is not None
        kept: dict[str, Any] = {
            key: self._of.meta[key] for key in ("nn_module_stack", "stack_trace") if key in self._of.meta
        }
        values = map_arg((args, kwargs), lambda one: one.meta["val"])
        node.meta = {**kept, "val": self._value(target, *values[0], **values[1])}
        return node

    def _value(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        fakes = (node.meta.get("val") for node in self._program.graph.nodes)
        mode = next(mode for fake in fakes if (mode := getattr(fake, "fake_mode", None)) is not None)
        with mode:
            return target(*args, **kwargs)

    def times(self, one: Part, other: Part) -> Part:
        """A product of two parts."""
        if one is None or other is None:
            return None
        for number, factor in ((one, other), (other, one)):
            if isinstance(number, (int, float)) and number == 1:
                return factor
        if not isinstance(one, Node):
            one, other = other, one
        return one * other if not isinstance(one, Node) else self(aten.mul.Tensor, one, other)

    def plus(self, one: Part, other: Part, sign: int = 1) -> Part:
        """The sum of two parts, or their difference."""
        if other is None:
            return one
        if one is None:
            return other if sign > 0 else self.times(other, -1)
        if not isinstance(one, Node):
            return one + sign * other if not isinstance(other, Node) else self.plus(self.times(other, sign), one)
        return self((aten.add if sign > 0 else aten.sub).Tensor, one, other)


def _real(value: torch.Tensor) -> torch.dtype:
    return _REAL.get(value.dtype, value.dtype)


def _pair(value: Any) -> _Pair:
    """Any argument as a pair."""
    if isinstance(value, _Pair):
        return value
    if isinstance(value, complex):
        return _Pair(value.real or None, value.imag or None)
    return _Pair(value, None)


def _product(make: _Rewriting, node: Node, one: Any, other: Any) -> _Pair:
    one, other = _pair(one), _pair(other)
    real = make.plus(make.times(one.real, other.real), make.times(one.imag, other.imag), -1)
    return _Pair(real, make.plus(make.times(one.real, other.imag), make.times(one.imag, other.real)))


def _quotient(make: _Rewriting, node: Node, one: Any, other: Any) -> _Pair | None:
    if isinstance(other, (_Pair, complex)) or node.kwargs:
        return None
    return _Pair(*(None if part is None else make(aten.div.Tensor, part, other) for part in (one.real, one.imag)))


def _sum(sign: int) -> Callable[..., _Pair | None]:
    def made(make: _Rewriting, node: Node, one: Any, other: Any) -> _Pair | None:
        if node.kwargs:
            return None
        one, other = _pair(one), _pair(other)
        return _Pair(make.plus(one.real, other.real, sign), make.plus(one.imag, other.imag, sign))

    return made


def _polar(make: _Rewriting, node: Node, size: Node, angle: Node) -> _Pair:
    known = torch_private.is_operator(size.target) and torch_private.schema(size.target).name.removeprefix("aten::")
    filled = size.args[1] if known in ("full", "full_like") else 1 if known in _ONES else None
    factor = 1 if filled == 1 else size
    return _Pair(make.times(factor, make(aten.cos.default, angle)), make.times(factor, make(aten.sin.default, angle)))


def _exponential(make: _Rewriting, node: Node, value: _Pair) -> _Pair:
    size = 1 if value.real is None else make(aten.exp.default, value.real)
    if value.imag is None:
        return _Pair(size, None)
    turns = (make(one, value.imag) for one in (aten.cos.default, aten.sin.default))
    return _Pair(*(make.times(size, turn) for turn in turns))


def _both(make: _Rewriting, value: _Pair) -> tuple[Node, Node]:
    """The parts as tensors."""
    given = value.imag if value.real is None else value.real
    zero = [make(aten.zeros_like.default, given) for part in (value.real, value.imag) if part is None]
    real, imag = (zero[0] if part is None else part for part in (value.real, value.imag))
    return real, imag


def _as_real(make: _Rewriting, node: Node, value: _Pair) -> Node:
    return make(aten.stack.default, list(_both(make, value)), -1, name=node.name)


def _size(make: _Rewriting, node: Node, value: _Pair) -> Node:
    real, imag = _both(make, value)
    squares = make(aten.add.Tensor, make(aten.mul.Tensor, real, real), make(aten.mul.Tensor, imag, imag))
    return make(aten.sqrt.default, squares, name=node.name)


def _cast(make: _Rewriting, node: Node, value: Any, *args: Any) -> _Pair | None:
    wanted = node.meta["val"]
    if not wanted.is_complex() or (args and not isinstance(args[0], torch.dtype)):
        return None
    parts = _pair(value)
    return _Pair(
        *(
            None if one is None else make(torch.ops.prims.convert_element_type.default, one, _real(wanted))
            for one in (parts.real, parts.imag)
        )
    )


# By the operator's name: what a node gives, from its arguments, complex ones as pairs; None where it cannot be said.
_RULES: dict[str, Callable[..., Any]] = {
    "mul": _product,
    "div": _quotient,
    "add": _sum(1),
    "sub": _sum(-1),
    "rsub": lambda make, node, one, other: _sum(-1)(make, node, other, one),
    "polar": _polar,
    "complex": lambda make, node, real, imag: _Pair(real, imag),
    "view_as_complex": lambda make, node, x: _Pair(make(aten.select.int, x, -1, 0), make(aten.select.int, x, -1, 1)),
    "exp": _exponential,
    "_conj": lambda make, node, z: _Pair(z.real, make.times(z.imag, -1)),
    "conj_physical": lambda make, node, z: _Pair(z.real, make.times(z.imag, -1)),
    "_to_copy": _cast,
    "to": _cast,
    "view_as_real": _as_real,
    "real": lambda make, node, z: make(aten.alias.default, _both(make, z)[0], name=node.name),
    "imag": lambda make, node, z: make(aten.alias.default, _both(make, z)[1], name=node.name),
    "abs": _size,
    "angle": lambda make, node, z: make(aten.atan2.default, *reversed(_both(make, z)), name=node.name),
    "sym_size": lambda make, node, z, dim: make(node.target, z.real or z.imag, dim, name=node.name),
}
