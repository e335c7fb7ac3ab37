"""What is told of a layer that is not found: where in a model it came near, and why it is not there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass

from torch.fx import Node

from layerport.search.model_values import ONNX_NODE
from layerport.search.patterns import Pattern
from layerport.search.values import CONSTANT, INPUT, LITERAL, PRODUCT, SUM, Value
from layerport.system.records import Record

# Operators that say little of a formula.
_PLAIN = frozenset({INPUT, CONSTANT, LITERAL, SUM, PRODUCT, "view", "expand"})
_LINE = re.compile(r'File "([^"]+)", line (\d+)')


@dataclass(frozen=True)
class Miss(Record):
    """A place that nearly is a layer: where in the model, how much of the reference it met, and why it is none."""

    layer: str
    module: str
    line: str
    share: float
    reason: str


def why_absent(patterns: Sequence[Pattern], operators: Set[str], farther: Miss | None, is_within: bool) -> str:
    """Why a layer is nowhere in a model, and nothing came near it.

    operators: those of the model.  farther: the nearest of the places.  is_within: whether some came near that other
    layers have taken.
    """
    if is_within:
        return "what came near it lies within places that other layers have taken"
    lacking = [sorted(operators_of(pattern.outputs) - operators) for pattern in patterns]
    fewest = min(lacking, key=len, default=[])
    if fewest:
        return f"its reference computes {', '.join(fewest)}, which the model does nowhere"
    if farther is None:
        last = {describe(pattern.outputs[pattern.root]): None for pattern in patterns}
        return f"its reference ends with {' or '.join(last)}, which no step of the model is like"
    where = f"{farther.module or '(root)'}{f' ({farther.line})' if farther.line else ''}"
    return f"the nearest place has {farther.share:.0%} of it, {where}: {farther.reason}"


def operators_of(values: Iterable[Value]) -> set[str]:
    """The operators that values are made of, but sums, products and views."""
    found: set[Value] = set()
    waiting = list(values)
    while waiting:
        value = waiting.pop()
        if value not in found:
            found.add(value)
            waiting += value.inner
    return {value.op for value in found} - _PLAIN


def where_parted(own: Value, other: Value) -> str:
    """What a reference has and a model has not, and what it has there."""
    had, has = describe(own), describe(other)
    if had == has and own.args and other.args:
        had, has = (f"{had} of {', '.join(map(describe, one.args))}" for one in (own, other))
    return f"the reference has {had} where the model has {has}"


def describe(value: Value) -> str:
    """A value in a few words."""
    if value.op == LITERAL:
        return f"{value.number:g}"
    if value.parts:
        shown = [
            f"{part.op}{f'^{number:g}' if value.op == PRODUCT and number != 1 else ''}"
            if value.op == PRODUCT or number == 1
            else f"{number:g} {part.op}"
            for part, number in value.parts.items()
        ]
        first = [f"{value.number:g}"] if value.number != (1 if value.op == PRODUCT else 0) else []
        return f"{value.op} of {', '.join([*first, *shown])}"
    dims = [f" over axes {list(entry[1])}" for entry in value.literals if entry and entry[0] == "dims"]
    return f"{value.op}{''.join(dims)}"


def module_of(node: Node) -> str:
    """The path of the module that a node comes from."""
    stack = node.meta.get("nn_module_stack") or {}
    entries = list(stack.values())
    return str(entries[-1][0]) if entries else ""


def line_of(node: Node) -> str:
    """The line of the model's code that a node comes from, as file:line; empty where Torch does not know it.

    Of a node of an ONNX graph its name there.
    """
    if ONNX_NODE in node.meta:
        return f"node {node.meta[ONNX_NODE]}"
    lines = _LINE.findall(node.meta.get("stack_trace") or "")
    return f"{lines[-1][0]}:{lines[-1][1]}" if lines else ""
