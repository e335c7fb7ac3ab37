"""What Torch's operators compute, in terms of the algebras.  An operator without a rule is a value of its own kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from layerport.search.algebras import Algebra, category, part, permute, view
from layerport.search.values import LITERAL, Shape, Value


@dataclass(frozen=True)
class Call:
    """One call of an operator.

    arguments: by name, tensors as values, defaults filled in, sizes as ints or sympy expressions.
    source: the dtype of the first tensor.  shapes, dtypes: of the outputs.  ints: whether each is a literal int.
    """

    op: str
    arguments: Mapping[str, Any]
    source: torch.dtype
    shapes: tuple[Shape, ...]
    dtypes: tuple[torch.dtype, ...]

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def get(self, name: str, default: Any = None) -> Any:
        return self.arguments.get(name, default)

    @property
    def shape(self) -> Shape:
        return self.shapes[0]

    @property
    def dtype(self) -> torch.dtype:
        return self.dtypes[0]


Rule = Callable[[Algebra, Call], Any]
# They take a number, of no shape, for a tensor that is that number everywhere; so do those of `formulas`.
TAKE_NUMBERS = frozenset(
    {
        *("add", "sub", "subtract", "rsub", "mul", "multiply", "div", "divide", "true_divide", "neg", "negative"),
        *("pow", "square", "sqrt", "rsqrt", "reciprocal", "addcmul", "addcdiv"),
        *("exp", "tanh", "erf", "alias", "detach", "clone", "contiguous", "lift_fresh_copy"),
        *("_to_copy", "to", "convert_element_type", "view", "reshape", "_unsafe_view", "unsqueeze", "squeeze"),
        *("expand", "permute", "transpose", "t", "slice", "select"),
    }
)
RULES: dict[str, Rule] = {}
_R = TypeVar("_R")
# What the names of an operator are in the rules: several spellings of one thing.
SAME = {"softmax": "softmax", "_softmax": "softmax", "special_softmax": "softmax", "_log_softmax": "log_softmax"}
SAME |= {"mm": "matmul", "bmm": "matmul", "concat": "cat", "concatenate": "cat", "special_expit": "sigmoid"}


def into(table: dict[str, _R]) -> Callable[..., Callable[[_R], _R]]:
    """A decorator that puts rules into a table, by names of operators."""

    def rule(*names: str) -> Callable[[_R], _R]:
        def register(function: _R) -> _R:
            table.update(dict.fromkeys(names, function))
            return function

        return register

    return rule


rule = into(RULES)


@rule("alias", "detach", "detach_", "clone", "contiguous", "lift_fresh_copy", "lift_fresh", "lift", "positive")
def _same(algebra: Algebra, call: Call) -> Any:
    return call["self"]


@rule("dropout", "feature_dropout", "alpha_dropout")
def _dropout(algebra: Algebra, call: Call) -> Any:
    return call["input"] if not call["train"] else None


@rule("_to_copy", "to", "convert_element_type", "type_as")
def _cast(algebra: Algebra, call: Call) -> Any:
    value = call.get("self") or call["a"]
    return value if value.op == LITERAL else algebra.cast(value, call.source, call.dtype)


@rule("view", "reshape", "_unsafe_view", "unsqueeze", "squeeze", "flatten", "unflatten", "view_as", "reshape_as")
def _view(algebra: Algebra, call: Call) -> Any:
    return view(algebra, call["self"], call.shape, call.dtype) if call.source == call.dtype else None


@rule("permute", "transpose", "t", "swapaxes", "numpy_T", "mT")
def _permute(algebra: Algebra, call: Call) -> Any:
    value = call["self"]
    rank = len(call.shape)
    order = list(range(rank))
    if call.op == "permute":
        order = [dim % rank for dim in call["dims"]]
    elif call.op == "numpy_T" or (call.op == "t" and rank == 2):
        order.reverse()
    elif call.op != "t":
        one, other = (
            (-1, -2) if call.op == "mT" else (call.get("dim0", call.get("axis0")), call.get("dim1", call.get("axis1")))
        )
        if rank:
            order[one], order[other] = order[other], order[one]
    return permute(algebra, value, order, call.dtype)


@rule("slice", "narrow", "select")
def _part(algebra: Algebra, call: Call) -> Any:
    value = call["self"]
    if value.op == LITERAL:
        return value  # a number everywhere, so in each part
    dim = call["dim"] % len(value.shape)
    length = value.shape[dim]
    start = call["index"] if call.op == "select" else call["start"]
    start = 0 if start is None else start
    step = call.get("step", 1)
    if not isinstance(start, int) and not hasattr(start, "free_symbols"):
        return None
    if isinstance(start, int) and start < 0:
        start = start + length
    if isinstance(start, int) and isinstance(length, int):
        start = min(max(start, 0), length)
    if call.op != "select":
        return part(algebra, value, dim, start, step, call.shape[dim], call.dtype)
    return view(algebra, part(algebra, value, dim, start, 1, 1, call.dtype), call.shape, call.dtype)


@rule("split", "split_with_sizes", "chunk", "unbind")
def _parts(algebra: Algebra, call: Call) -> Any:
    value = call["self"]
    dim = call["dim"] % len(value.shape)
    results, start = [], 0
    for shape in call.shapes:
        size = 1 if call.op == "unbind" else shape[dim]
        piece = part(algebra, value, dim, start, 1, size, call.dtype)
        results.append(view(algebra, piece, shape, call.dtype) if call.op == "unbind" else piece)
        start = start + size
    return tuple(results)


@rule("cat")
def _cat(algebra: Algebra, call: Call) -> Any:
    dim = call["dim"] - (len(call.shape) if call["dim"] >= 0 else 0)
    values = [one for one in call["tensors"] if one.op == LITERAL or one.shape[dim] != 0]
    if len(values) == 1 and values[0].shape == call.shape:
        return values[0]
    return algebra.operator("cat", values, (("dim", dim),), call.shape, call.dtype)


@rule("stack")
def _stack(algebra: Algebra, call: Call) -> Any:
    dim = call["dim"] % len(call.shape)
    shape = (*call.shape[:dim], 1, *call.shape[dim + 1 :])
    rows = [view(algebra, one, shape, call.dtype) for one in call["tensors"]]
    return algebra.operator("cat", rows, (("dim", dim - len(call.shape)),), call.shape, call.dtype)


@rule("expand", "expand_as", "broadcast_to")
def _expand(algebra: Algebra, call: Call) -> Any:
    value = call["self"]
    if value.op == LITERAL or value.shape == call.shape:
        return value
    return algebra.operator("expand", (value,), (("sizes", call.shape),), call.shape, call.dtype)


@rule("add", "sub", "subtract", "rsub")
def _add(algebra: Algebra, call: Call) -> Any:
    if call.dtype == torch.bool:
        return None  # it is an "or"
    one, other, alpha = call["self"], call["other"], call.get("alpha", 1)
    if call.op == "rsub":
        one, other = other, one
    if alpha != 1:
        if call.op == "rsub":
            return None
        other = algebra.mul(other, alpha, other.shape if isinstance(other, Value) else (), call.dtype)
    function = algebra.add if call.op == "add" else algebra.sub
    return function(one, other, call.shape, call.dtype)


@rule("mul", "multiply")
def _mul(algebra: Algebra, call: Call) -> Any:
    if call.dtype == torch.bool:
        return None
    return algebra.mul(call["self"], call["other"], call.shape, call.dtype)


@rule("div", "divide", "true_divide")
def _div(algebra: Algebra, call: Call) -> Any:
    if call.get("rounding_mode") is not None:
        return None
    return algebra.div(call["self"], call["other"], call.shape, call.dtype)


@rule("neg", "negative")
def _neg(algebra: Algebra, call: Call) -> Any:
    return algebra.mul(call["self"], -1, call.shape, call.dtype)


@rule("pow")
def _pow(algebra: Algebra, call: Call) -> Any:
    base, exponent = call["self"], call["exponent"]
    if isinstance(exponent, Value) and exponent.op == LITERAL:
        exponent = exponent.number
    if isinstance(base, Value) and isinstance(exponent, (int, float)):
        return algebra.power(base, exponent, call.shape, call.dtype)
    return None


@rule("square", "sqrt", "rsqrt", "reciprocal")
def _root(algebra: Algebra, call: Call) -> Any:
    exponent = {"square": 2, "sqrt": 0.5, "rsqrt": -0.5, "reciprocal": -1}[call.op]
    return algebra.power(call["self"], exponent, call.shape, call.dtype)


@rule("mean", "sum", "amax", "amin", "var")
def _reduce(algebra: Algebra, call: Call) -> Any:
    value = call["self"]
    rank = len(value.shape)
    dims = call.get("dim")
    if isinstance(dims, int):
        dims = (dims,)
    axes = sorted({dim % rank for dim in dims} if dims else range(rank)) if rank else []
    op = call.op
    more: tuple[Any, ...] = ()
    if op == "var":
        correction = call.get("correction", 1 if call.get("unbiased", True) else 0)
        correction = 1 if correction is None else correction
        if algebra.is_real and correction == 0:
            centred = algebra.sub(value, mean(algebra, value, axes, call), value.shape, call.dtype)
            value, op = algebra.power(centred, 2, value.shape, call.dtype), "mean"
        else:
            more = (("correction", float(correction)),)
    kept = reduced(algebra, op, value, axes, more, call.dtype)
    return view(algebra, kept, call.shape, call.dtype)


def reduced(
    algebra: Algebra, op: str, value: Value, axes: list[int], more: tuple[Any, ...], dtype: torch.dtype
) -> Value:
    rank = len(value.shape)
    shape = tuple(1 if axis in axes else size for axis, size in enumerate(value.shape))
    dims = tuple(axis - rank for axis in axes)
    return algebra.operator(op, (value,), (("dims", dims), *more), shape, dtype)


def mean(algebra: Algebra, value: Value, axes: list[int], call: Call) -> Value:
    return reduced(algebra, "mean", value, axes, (), call.dtype)


@rule("addcmul", "addcdiv")
def _addc(algebra: Algebra, call: Call) -> Any:
    if not algebra.is_real:
        return None
    function = algebra.mul if call.op == "addcmul" else algebra.div
    inner = function(call["tensor1"], call["tensor2"], call.shape, call.dtype)
    return algebra.add(call["self"], algebra.mul(inner, call["value"], call.shape, call.dtype), call.shape, call.dtype)


@rule("exp", "tanh", "erf")
def _function(algebra: Algebra, call: Call) -> Any:
    return algebra.operator(call.op, (call["self"],), (), call.shape, call.dtype)


@rule("matmul")
def _matmul(algebra: Algebra, call: Call) -> Any:
    first, second = call["self"], call.get("other", call.get("mat2"))
    return algebra.operator("matmul", (first, second), (), call.shape, call.dtype)


@rule("linear")
def _linear(algebra: Algebra, call: Call) -> Any:
    weight = call["weight"]
    if not algebra.is_real or len(weight.shape) != 2:
        return None
    turned = permute(algebra, weight, [1, 0], call.dtype)
    made = algebra.operator("matmul", (call["input"], turned), (), call.shape, call.dtype)
    bias = call["bias"]
    return made if bias is None else algebra.add(made, bias, call.shape, call.dtype)


@rule("addmm", "baddbmm")
def _addmm(algebra: Algebra, call: Call) -> Any:
    if not algebra.is_real:
        return None
    first, second = ("mat1", "mat2") if call.op == "addmm" else ("batch1", "batch2")
    made = algebra.operator("matmul", (call[first], call[second]), (), call.shape, call.dtype)
    made = algebra.mul(made, call["alpha"], call.shape, call.dtype)
    more = algebra.mul(call["self"], call["beta"], call["self"].shape, call.dtype)
    return algebra.add(made, more, call.shape, call.dtype)


@rule("full", "full_like", "scalar_tensor", "ones", "zeros", "ones_like", "zeros_like")
def _filled(algebra: Algebra, call: Call) -> Any:
    number = {"ones": 1, "ones_like": 1, "zeros": 0, "zeros_like": 0}.get(call.op)
    if number is None:
        number = call["s"] if call.op == "scalar_tensor" else call["fill_value"]
    if algebra.is_real and category(call.dtype) == "float" and isinstance(number, (int, float)):
        return algebra.table.literal(float(number))
    return None
