"""The formulas of Torch's normalisations and norms, over the real numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from layerport.search.algebras import Algebra, Operand, view
from layerport.search.rules import Call, Rule, into, mean, reduced
from layerport.search.values import Value

RULES: dict[str, Rule] = {}
rule = into(RULES)


@rule("rms_norm", "layer_norm", "native_layer_norm")
def _norm(algebra: Algebra, call: Call) -> Any:
    if not algebra.is_real:
        return None
    x, rank = call["input"], len(call.shape)
    axes = list(range(rank - len(call["normalized_shape"]), rank))
    eps = call["eps"]
    if eps is None:
        eps = torch.finfo(torch.float64 if call.source == torch.float64 else torch.float32).eps
    scaled, scale = _scaled(algebra, call, x, axes, eps, centred=call.op != "rms_norm")
    result = _affine(algebra, call, scaled, call["weight"], call.get("bias"))
    if call.op != "native_layer_norm":
        return result
    return (result, mean(algebra, x, axes, call), scale)


@rule("group_norm")
def _group_norm(algebra: Algebra, call: Call) -> Any:
    if not algebra.is_real:
        return None
    x, groups = call["input"], call["num_groups"]
    channels = 1
    for size in x.shape[1:]:
        channels = channels * size
    inner = (x.shape[0], groups, channels // groups)
    grouped, _ = _scaled(algebra, call, view(algebra, x, inner, call.dtype), [2], call["eps"])
    weight, bias = (_by_channel(algebra, call, call[name]) for name in ("weight", "bias"))
    return _affine(algebra, call, view(algebra, grouped, call.shape, call.dtype), weight, bias)


@rule("instance_norm")
def _instance_norm(algebra: Algebra, call: Call) -> Any:
    if not algebra.is_real:
        return None
    if not call["use_input_stats"]:
        return _of_statistics(algebra, call)
    scaled, _ = _scaled(algebra, call, call["input"], list(range(2, len(call.shape))), call["eps"])
    return _affine(algebra, call, scaled, *(_by_channel(algebra, call, call[name]) for name in ("weight", "bias")))


@rule("batch_norm", "_native_batch_norm_legit_no_training")
def _batch_norm(algebra: Algebra, call: Call) -> Any:
    if not algebra.is_real or call.get("training") or call["running_mean"] is None:
        return None
    result = _of_statistics(algebra, call)
    if call.op == "batch_norm":
        return result
    # What is kept for training: no layer takes it.
    kept = [
        algebra.operator(call.op, (call["input"],), (("output", str(place)),), call.shapes[place], call.dtype)
        for place in (1, 2)
    ]
    return (result, *kept)


@rule("linalg_vector_norm", "norm")
def _vector_norm(algebra: Algebra, call: Call) -> Any:
    order = call.get("ord", call.get("p", 2))
    order = 2 if order is None else order
    value, rank = call["self"], len(call["self"].shape)
    if not algebra.is_real or order not in (1, 2) or not rank:
        return None
    dims = call.get("dim")
    dims = (dims,) if isinstance(dims, int) else dims
    axes = sorted({dim % rank for dim in dims} if dims else range(rank))
    return view(algebra, _length(algebra, call, value, axes, order), call.shape, call.dtype)


@rule("cosine_similarity")
def _cosine_similarity(algebra: Algebra, call: Call) -> Any:
    one, other = call["x1"], call["x2"]
    if not algebra.is_real or one.shape != other.shape:
        return None
    rank = len(one.shape)
    axes = [call["dim"] % rank]
    units = []
    for value in (one, other):
        length = _length(algebra, call, value, axes, 2)
        bounded = algebra.operator("maximum", (length, algebra.number(call["eps"])), (), length.shape, call.dtype)
        units.append(algebra.div(value, bounded, value.shape, call.dtype))
    product = algebra.mul(units[0], units[1], one.shape, call.dtype)
    return view(algebra, reduced(algebra, "sum", product, axes, (), call.dtype), call.shape, call.dtype)


def _length(algebra: Algebra, call: Call, value: Value, axes: list[int], order: int) -> Value:
    """The norm of a value over some axes, which are kept."""
    if order == 1:
        size = algebra.operator("abs", (value,), (), value.shape, call.dtype)
        return reduced(algebra, "sum", size, axes, (), call.dtype)
    squares = reduced(algebra, "sum", algebra.power(value, 2, value.shape, call.dtype), axes, (), call.dtype)
    return algebra.power(squares, 0.5, squares.shape, call.dtype)


def _scaled(
    algebra: Algebra, call: Call, value: Value, axes: list[int], eps: float, *, centred: bool = True
) -> tuple[Value, Value]:
    """A value over its root mean square, centred before; and what it was multiplied with."""
    if centred:
        value = algebra.sub(value, mean(algebra, value, axes, call), value.shape, call.dtype)
    variance = mean(algebra, algebra.power(value, 2, value.shape, call.dtype), axes, call)
    bounded = algebra.add(variance, eps, variance.shape, call.dtype)
    scale = algebra.power(bounded, -0.5, variance.shape, call.dtype)
    return algebra.mul(value, scale, value.shape, call.dtype), scale


def _of_statistics(algebra: Algebra, call: Call) -> Value:
    """A value normalised by a mean and a variance that are known."""
    names = ("running_mean", "running_var", "weight", "bias")
    middle, variance, weight, bias = (_by_channel(algebra, call, call[name]) for name in names)
    value = algebra.sub(call["input"], middle, call.shape, call.dtype)
    bounded = algebra.add(variance, call["eps"], variance.shape, call.dtype)
    scale = algebra.power(bounded, -0.5, variance.shape, call.dtype)
    return _affine(algebra, call, algebra.mul(value, scale, call.shape, call.dtype), weight, bias)


def _affine(algebra: Algebra, call: Call, value: Value, weight: Operand | None, bias: Operand | None) -> Value:
    value = value if weight is None else algebra.mul(value, weight, call.shape, call.dtype)
    return value if bias is None else algebra.add(value, bias, call.shape, call.dtype)


def _by_channel(algebra: Algebra, call: Call, value: Any) -> Any:
    """A tensor of a number for each channel, so that it meets axis 1."""
    if value is None:
        return None
    spatial: Sequence[int] = (1,) * (len(call.shape) - 2)
    return view(algebra, value, (*value.shape, *spatial), call.dtype)
