"""A layer's reference as patterns: one for each structure that it has, by the optional tensors and attributes given.

Every tensor gets sizes of 8, with which nearly any reference runs; what follows from sizes is found by a second trace.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from layerport.layers.layer import Layer
from layerport.parameters.signature import MISSING, Argument, Kind
from layerport.search.numbering import Numbering
from layerport.search.slots import NAMED_AXES, WILD, ApartError, Slot, Spot, differing, fit
from layerport.search.tracing import Trace, examples, runs, trace
from layerport.search.values import CONSTANT, INPUT, LITERAL, PRODUCT, SUM, Value

_SIZE = 8
_MOST_TRIES = 300
_MOST_PATTERNS = 16
# Values that nothing else in a reference is likely to be.
_SENTINELS = (0.371712, 0.424317, 0.289125)
_WHOLE_SENTINELS = (2, 4, 8)


@dataclass(frozen=True, eq=False)
class Pattern:
    """One structure of a layer's reference, or of another spelling of it.

    outputs: their values.  leaves: the tensor arguments by their value.  fixed: attributes that it holds for at one
    value only.  slots: where the others stand.  operators: how many of them compute something.
    """

    layer: Layer
    function: Callable[..., Any]
    outputs: tuple[Value, ...]
    leaves: Mapping[Value, Argument]
    fixed: Mapping[str, Any]
    slots: Mapping[Spot, Slot]
    operators: int
    root: int

    @property
    def is_spelling(self) -> bool:
        """Whether it is another way to write the layer than its reference."""
        return self.function is not self.layer.reference


@dataclass(frozen=True)
class Found:
    """The patterns of a layer, or why there is none."""

    patterns: tuple[Pattern, ...]
    reason: str | None = None


_known: weakref.WeakKeyDictionary[Layer, tuple[Any, Found]] = weakref.WeakKeyDictionary()


def patterns_of(layer: Layer, *, asked: bool = False) -> Found:
    """The patterns of a layer; traced once in a process.  asked: whether its author's word on `find` does not count."""
    state = (asked or layer.find, layer.spellings)
    known = _known.get(layer)
    if known is None or known[0] != state:
        known = _known[layer] = (state, _patterns(layer, True if asked else layer.find))
    return known[1]


def _patterns(layer: Layer, find: bool | None) -> Found:
    if find is False:
        return Found((), "its author has it not searched (find=False)")
    found: list[Pattern] = []
    reasons: list[str] = []
    for function in (layer.reference, *layer.spellings):
        prints: set[Any] = set()
        for present in _presences(layer):
            for made in _with_tensors(layer, function, present, reasons):
                key = _fingerprint(made)
                if made.operators < 2 and find is not True:
                    reasons.append("its reference is a single operator (find=True searches it all the same)")
                elif key not in prints and len(found) < _MOST_PATTERNS:
                    prints.add(key)
                    found.append(made)
    if not found:
        return Found((), reasons[0] if reasons else "its reference runs with no tensors that were tried")
    return Found(tuple(found))


def _presences(layer: Layer) -> Iterator[tuple[Argument, ...]]:
    """The tensor arguments, with each choice of the optional ones; all of them first."""
    optional = [argument for argument in layer.signature.tensors if argument.optional][:3]
    for count in range(len(optional) + 1):
        for left_out in itertools.combinations(optional, count):
            yield tuple(argument for argument in layer.signature.tensors if argument not in left_out)


def _with_tensors(
    layer: Layer, function: Callable[..., Any], present: tuple[Argument, ...], reasons: list[str]
) -> Iterator[Pattern]:
    absent = {argument.name: None for argument in layer.signature.tensors if argument not in present}
    for fixed, varied in _attribute_choices(layer, reasons):
        constants = {**absent, **fixed, **{name: values[0] for name, values in varied.items()}}
        for shapes, dtypes in _shapes(function, present, constants):
            made = _pattern(layer, function, present, (shapes, dtypes), {**absent, **fixed}, varied, reasons)
            if made is not None:
                yield made


def _attribute_choices(
    layer: Layer, reasons: list[str]
) -> Iterator[tuple[dict[str, Any], dict[str, tuple[float, ...]]]]:
    """The attributes at fixed values, and those that are varied with the values they take."""
    choices: list[list[tuple[str, Any]]] = []
    varied: dict[str, tuple[float, ...]] = {}
    for place, argument in enumerate(layer.signature.attributes):
        if argument.type == "bool":
            choices.append([(argument.name, value) for value in (True, False)])
        elif argument.type == "float":
            varied[argument.name] = tuple(value * (1 + place / 7) for value in _SENTINELS)
            if argument.optional:
                choices.append([(argument.name, None), (argument.name, MISSING)])
        elif argument.default is not MISSING:
            choices.append([(argument.name, argument.default)])
            if argument.type == "int":
                choices[-1].insert(0, (argument.name, MISSING))
                varied[argument.name] = _WHOLE_SENTINELS
        elif argument.type == "int":
            varied[argument.name] = _WHOLE_SENTINELS
        else:
            reasons.append(f"its attribute {argument.name} ({argument.schema_type}) has no default to search with")
            return
    for chosen in itertools.islice(itertools.product(*choices), 8):
        fixed = {name: value for name, value in chosen if value is not MISSING}
        yield fixed, {name: values for name, values in varied.items() if name not in fixed}


def _shapes(
    function: Callable[..., Any], present: tuple[Argument, ...], constants: Mapping[str, Any]
) -> Iterator[tuple[dict[str, tuple[int, ...]], dict[str, torch.dtype]]]:
    """Shapes and dtypes that a reference takes: the plain ones, others only where it takes none of these."""
    inputs = [argument for argument in present if argument.kind is Kind.INPUT]
    params = [argument for argument in present if argument.kind is Kind.PARAM]
    names = [argument.name for argument in (*inputs, *params)]
    plain = [
        (*itertools.repeat(rank, len(inputs)), *ranks)
        for rank in (3, 4, 2)
        for ranks in itertools.product((1, 2), repeat=min(len(params), 3))
        if len(ranks) == len(params)
    ]
    every = itertools.product(*([(3, 4, 2, 1)] * len(inputs) + [(1, 2, 3, 0)] * len(params)))
    kinds = [{}, *({one.name: dtype} for one in inputs for dtype in (torch.int64, torch.bool))]
    for dtypes in kinds:
        for ranks in (plain, itertools.islice(every, _MOST_TRIES)):
            taken = [
                shapes for one in ranks if runs(function, examples(shapes := _all_sizes(names, one), dtypes), constants)
            ]
            if taken:
                for shapes in taken[:6]:
                    yield shapes, dtypes
                # A tensor that is wider than the others may take another way through the reference.
                for name in names:
                    if (shape := taken[0][name]) and runs(
                        function, examples(wider := {**taken[0], name: (*shape[:-1], 2 * _SIZE)}, dtypes), constants
                    ):
                        yield wider, dtypes
                return


def _all_sizes(names: list[str], ranks: tuple[int, ...], size: int = _SIZE) -> dict[str, tuple[int, ...]]:
    return {name: (size,) * rank for name, rank in zip(names, ranks, strict=True)}


class _Tracer:
    """Traces of one reference, each numbered in tables of its own."""

    def __init__(self, function: Callable[..., Any], present: tuple[Argument, ...], fixed: Mapping[str, Any]) -> None:
        self._function, self._fixed = function, fixed
        self._kinds = {one.name: CONSTANT if one.kind is Kind.PARAM else INPUT for one in present}

    def __call__(
        self, shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, torch.dtype], varied: Mapping[str, float]
    ) -> tuple[Trace, tuple[Value, ...]]:
        """The trace and the values of its outputs; raises what the reference raises."""
        made = trace(self._function, examples(shapes, dtypes), {**self._fixed, **varied}, symbolic=False)
        numbering = Numbering()
        leaves = {node: numbering.leaf(self._kinds[name], name, node.meta["val"]) for name, node in made.inputs.items()}
        numbers = numbering.graph(made.graph, leaves)
        if not all(isinstance(node, torch.fx.Node) and node in numbers for node in made.outputs):
            raise ApartError
        return made, tuple(numbers[node].real for node in made.outputs)


def _pattern(
    layer: Layer,
    function: Callable[..., Any],
    present: tuple[Argument, ...],
    example: tuple[dict[str, tuple[int, ...]], dict[str, torch.dtype]],
    fixed: Mapping[str, Any],
    varied: Mapping[str, tuple[float, ...]],
    reasons: list[str],
) -> Pattern | None:
    tracer = _Tracer(function, present, fixed)
    shapes, dtypes = example
    first = {name: values[0] for name, values in varied.items()}
    try:
        made, outputs = tracer(shapes, dtypes, first)
    except Exception as error:
        reasons.append(f"its reference cannot be traced: {type(error).__name__}: {str(error).partition(chr(10))[0]}")
        return None
    numbers: dict[Spot, list[float]] = {}
    slots: dict[Spot, Slot] = {}
    try:
        if varied:
            rounds = [
                differing(outputs, tracer(shapes, dtypes, {name: values[turn] for name, values in varied.items()})[1])
                for turn in (1, 2)
            ]
            for spot in {**rounds[0], **rounds[1]}:
                base = next(one[spot][0] for one in rounds if spot in one)
                numbers[spot] = [base, *(one[spot][1] if spot in one else base for one in rounds)]
        slots = {spot: fit(values, varied) for spot, values in numbers.items()}
    except Exception:  # the attributes change its structure, or it takes no such values
        return None
    for spot in _by_size(tracer, shapes, dtypes, first, outputs):
        slots.setdefault(spot, WILD)
    leaves = _leaves(outputs, {argument.name: argument for argument in present})
    if any(value.op not in (SUM, PRODUCT) and not value.inner for value in outputs):
        reasons.append("its reference hands an argument on, or a number, as an output")
        return None
    root = max(range(len(outputs)), key=lambda place: (len(_leaves(outputs[place : place + 1], {})), -place))
    if len(leaves) < len(present) or len(_leaves(outputs[root : root + 1], {})) < len(leaves):
        reasons.append("no output of its reference depends on all of its tensors")
        return None
    unread = [name for name in varied if not any(slot.attribute == name for slot in slots.values())]
    defaults = {one.name: one.default for one in layer.signature.attributes}
    if lacking := [name for name in unread if defaults[name] is MISSING]:
        reasons.append(f"its attribute {lacking[0]} cannot be read from what its reference computes")
        return None
    fixed = {name: value for name, value in fixed.items() if name in defaults}
    return Pattern(
        layer,
        function,
        outputs,
        leaves,
        {**fixed, **{name: defaults[name] for name in unread}},
        slots,
        made.operators,
        root,
    )


def _by_size(
    tracer: _Tracer,
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, torch.dtype],
    varied: Mapping[str, float],
    outputs: tuple[Value, ...],
) -> Iterator[Spot]:
    """The numbers that follow from the sizes."""
    twice = {name: tuple(2 * size for size in shape) for name, shape in shapes.items()}
    try:
        yield from differing(outputs, tracer(twice, dtypes, varied)[1])
    except Exception:  # it takes one size, or another way at another one
        return


def _leaves(outputs: tuple[Value, ...], arguments: Mapping[str, Argument]) -> dict[Value, Any]:
    found: dict[Value, Any] = {}
    seen: set[Value] = set()
    waiting = list(outputs)
    while waiting:
        value = waiting.pop()
        if value in seen:
            continue
        seen.add(value)
        if value.op in (INPUT, CONSTANT):
            found[value] = arguments.get(value.literals[0])
        waiting += value.inner
    return found


def _fingerprint(pattern: Pattern) -> Any:
    """What is equal for patterns that find the same."""
    known: dict[Value, Any] = {}
    slots = pattern.slots

    def number(value: Value, key: Any, own: float) -> Any:
        return slots.get((value, key), own)

    def literals(value: Value, one: Any, path: tuple[Any, ...] = ()) -> Any:
        if isinstance(one, tuple):
            if "sizes" in path:
                return "sizes"
            names = [a[0] if not path and isinstance(a, tuple) and a else place for place, a in enumerate(one)]
            return tuple(literals(value, a, (*path, name)) for name, a in zip(names, one, strict=True))
        if isinstance(one, int) and not isinstance(one, bool) and not NAMED_AXES & set(path):
            return slots.get((value, path), "whole")
        return slots.get((value, path), one)

    def of(value: Value) -> Any:
        if value not in known:
            if value.op == LITERAL:
                known[value] = (LITERAL, number(value, "number", value.number))
            elif value.parts:
                parts = enumerate(value.parts.items())
                inner = frozenset((of(part), number(value, place, own)) for place, (part, own) in parts)
                known[value] = (value.op, number(value, "number", value.number), inner)
            else:
                known[value] = (value.op, literals(value, value.literals), tuple(map(of, value.args)))
        return known[value]

    return (tuple(map(of, pattern.outputs)), tuple(sorted((k, str(v)) for k, v in pattern.fixed.items())))
