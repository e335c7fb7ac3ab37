"""A layer's reference as patterns: one for each structure that it has, by the optional tensors and attributes given.

Every tensor gets sizes of 8, with which nearly any reference runs; what follows from sizes is found by a second trace.
"""

from __future__ import annotations

import contextlib
import itertools
import weakref
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from layerport.layers.layer import Layer
from layerport.parameters.signature import MISSING, Argument, Kind
from layerport.search.numbering import Numbering
from layerport.search.slots import NAMED_AXES, WILD, ApartError, Slot, Spot, differing, fit
from layerport.search.tracing import Trace, examples, runs, trace
from layerport.search.values import CONSTANT, INPUT, PRODUCT, SUM, Value

_SIZE = 8
_MOST_TRIES = 300
_MOST_PATTERNS = 32  # of the reference, and of each other spelling
_MOST_CHOICES = 32  # of attributes' values
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


_Shapes: TypeAlias = dict[str, tuple[int, ...]]
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
        seen: set[Any] = set()
        most = len(found) + _MOST_PATTERNS
        for present in _presences(layer):
            for made in _with_tensors(layer, function, present, seen, reasons):
                if made.operators < 2 and find is not True:
                    reasons.append("its reference is a single operator (find=True searches it all the same)")
                elif len(found) < most:
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
    layer: Layer, function: Callable[..., Any], present: tuple[Argument, ...], seen: set[Any], reasons: list[str]
) -> Iterator[Pattern]:
    """The patterns with these tensors.  seen: the structures that there are already."""
    absent = {argument.name: None for argument in layer.signature.tensors if argument not in present}
    params = [argument.name for argument in present if argument.kind is Kind.PARAM]
    for fixed, varied in _attribute_choices(layer, reasons):
        maker = _Maker(layer, function, present, {**absent, **fixed}, varied, reasons)
        settled: set[Any] = set()
        for shapes, dtypes in _shapes(function, present, {**absent, **fixed, **maker.first}, settled):
            ranks = tuple(len(shapes[name]) for name in params)
            made, any_rank = maker(shapes, dtypes, seen)
            if any_rank:
                settled.add(ranks)
            if made is not None and any_rank and _is_elementwise(made):
                # The number of axes of such a parameter changes nothing either.
                settled.update(itertools.product((1, 2), repeat=len(params)))
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
        elif listed := argument.choices:
            choices.append([(argument.name, value) for value in listed])
        elif argument.type == "float":
            # No attribute's values follow from another's.
            varied[argument.name] = tuple(value ** (1 + place / 7.3) for value in _SENTINELS)
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
    for chosen in itertools.islice(itertools.product(*choices), _MOST_CHOICES):
        fixed = {name: value for name, value in chosen if value is not MISSING}
        yield fixed, {name: values for name, values in varied.items() if name not in fixed}


def _shapes(
    function: Callable[..., Any], present: tuple[Argument, ...], constants: Mapping[str, Any], settled: Set[Any]
) -> Iterator[tuple[_Shapes, dict[str, torch.dtype]]]:
    """Shapes and dtypes that a reference takes: the plain ones, others only where it takes none of these.

    settled: the ranks of parameters with which nothing more is to be learnt; it grows meanwhile.
    """
    inputs = [argument.name for argument in present if argument.kind is Kind.INPUT]
    params = [argument.name for argument in present if argument.kind is Kind.PARAM]
    kinds = [{}, *({name: dtype} for name in inputs for dtype in (torch.int64, torch.bool))]
    for dtypes in kinds:
        for shapes, most in _tries(inputs, params):
            fitting = (
                one
                for one in shapes
                if tuple(len(one[name]) for name in params) not in settled
                and runs(function, examples(one, dtypes), constants)
            )
            first: _Shapes | None = None
            for one in itertools.islice(fitting, most):
                first = first or one
                yield one, dtypes
            if first is None:
                continue
            # A tensor that is wider than the others may take another way through the reference.
            for name, shape in first.items():
                wider = {**first, name: (*shape[:-1], 2 * shape[-1])} if shape else None
                if wider is not None and runs(function, examples(wider, dtypes), constants):
                    yield wider, dtypes
            return


def _tries(inputs: list[str], params: list[str]) -> Iterator[tuple[Iterator[_Shapes], int]]:
    """Shapes to try, and how many of them to take.

    Of one size, of any ranks, of several sizes in the last axis, with places in a map of two or three axes.
    """
    names = [*inputs, *params]
    plain = [
        (*itertools.repeat(rank, len(inputs)), *ranks)
        for rank in (3, 4, 2)
        for ranks in itertools.product((1, 2), repeat=len(params))
    ]
    any_rank = itertools.product(*([(3, 4, 2, 1)] * len(inputs) + [(1, 2, 3, 0)] * len(params)))
    yield (_sized(names, ranks) for ranks in plain[:_MOST_TRIES]), 6
    yield (_sized(names, ranks) for ranks in itertools.islice(any_rank, _MOST_TRIES)), 4  # axes may count from the end
    lasts = itertools.product((_SIZE, _SIZE // 2, 2 * _SIZE), repeat=len(names))
    any_size = itertools.product(plain[:6], lasts)
    yield (_sized(names, ranks, last) for ranks, last in itertools.islice(any_size, _MOST_TRIES)), 1
    places = itertools.product((4, 5, 3, 2), itertools.product((_SIZE, 2, 3), repeat=len(names)))
    yield (_sized(names, (rank,) * len(names), last) for rank, last in itertools.islice(places, _MOST_TRIES)), 2


def _sized(names: list[str], ranks: tuple[int, ...], lasts: tuple[int, ...] | None = None) -> _Shapes:
    sizes = lasts or (_SIZE,) * len(names)
    pairs = zip(names, ranks, sizes, strict=True)
    return {name: (*(_SIZE,) * (rank - 1), last) if rank else () for name, rank, last in pairs}


class _Maker:
    """Makes patterns of one reference with some tensors and attributes."""

    def __init__(
        self,
        layer: Layer,
        function: Callable[..., Any],
        present: tuple[Argument, ...],
        fixed: Mapping[str, Any],
        varied: Mapping[str, tuple[float, ...]],
        reasons: list[str],
    ) -> None:
        self._layer, self._function, self._present = layer, function, present
        self._fixed, self._varied, self._reasons = fixed, varied, reasons
        self.first = self._turn(0)

    def _turn(self, place: int) -> dict[str, float]:
        return {name: values[place] for name, values in self._varied.items()}

    def __call__(
        self, shapes: _Shapes, dtypes: Mapping[str, torch.dtype], seen: set[Any]
    ) -> tuple[Pattern | None, bool]:
        """The pattern for such tensors, None where it is none or a known one; whether it is the same for any rank."""
        try:
            made, outputs = self._traced(shapes, dtypes, self.first)
        except Exception as error:
            text = str(error).partition("\n")[0]
            self._reasons.append(f"its reference cannot be traced: {type(error).__name__}: {text}")
            return None, False
        structure = _fingerprint(outputs, self._fixed)
        if structure in seen:
            return None, True
        seen.add(structure)
        try:
            slots, any_rank = self._slots(shapes, dtypes, outputs)
        except Exception:  # the attributes change its structure, or it takes no such values
            self._reasons.append("its attributes change what its reference computes in more than numbers")
            return None, False
        return self._pattern(made, outputs, slots), any_rank

    def _traced(
        self, shapes: _Shapes, dtypes: Mapping[str, torch.dtype], varied: Mapping[str, float]
    ) -> tuple[Trace, tuple[Value, ...]]:
        """The trace and the values of its outputs, in tables of their own; raises what the reference raises."""
        made = trace(self._function, examples(shapes, dtypes), {**self._fixed, **varied}, symbolic=False)
        kinds = {one.name: CONSTANT if one.kind is Kind.PARAM else INPUT for one in self._present}
        numbering = Numbering()
        leaves = {node: numbering.leaf(kinds[name], name, node.meta["val"]) for name, node in made.inputs.items()}
        numbers = numbering.graph(made.graph, leaves)
        if not all(isinstance(node, torch.fx.Node) and node in numbers for node in made.outputs):
            raise ApartError
        return made, tuple(numbers[node].real for node in made.outputs)

    def _slots(
        self, shapes: _Shapes, dtypes: Mapping[str, torch.dtype], outputs: tuple[Value, ...]
    ) -> tuple[dict[Spot, Slot], bool]:
        """Where attributes stand, and what follows from sizes; whether more axes, and longer ones, change no more.

        Most attributes show in a second trace, which has other sizes too; the others in a third.
        """
        inputs = {one.name for one in self._present if one.kind is Kind.INPUT}
        # Not twice as large, as attributes that are whole numbers are.
        larger = {name: tuple(3 * size for size in shape) for name, shape in shapes.items()}
        more_axes = {name: (*shape[:1], *shape) if name in inputs else shape for name, shape in larger.items()}
        sized: dict[Spot, Slot] = {}
        any_rank = True
        try:
            rounds = [self._compared(more_axes, dtypes, outputs, 1)]
        except Exception:  # it has another structure there
            any_rank = False
            rounds = [self._compared(shapes, dtypes, outputs, 1)] if self._varied else []
            with contextlib.suppress(Exception):  # it takes one size, or another way at another one
                sized = dict.fromkeys(self._compared(larger, dtypes, outputs, 0), WILD)
        slots = {**sized, **self._fitted(rounds)}
        if set(self._varied) - {slot.attribute for slot in slots.values()}:
            slots = {**slots, **self._fitted([*rounds, self._compared(shapes, dtypes, outputs, 2)])}
        return slots, any_rank

    def _fitted(self, rounds: list[dict[Spot, tuple[float, float]]]) -> dict[Spot, Slot]:
        slots = {}
        for spot in {spot: None for one in rounds for spot in one}:
            base = next(one[spot][0] for one in rounds if spot in one)
            numbers = [base, *(one[spot][1] if spot in one else base for one in rounds)]
            slots[spot] = fit(numbers, self._varied)
        return slots

    def _compared(
        self, shapes: _Shapes, dtypes: Mapping[str, torch.dtype], outputs: tuple[Value, ...], turn: int
    ) -> dict[Spot, tuple[float, float]]:
        return differing(outputs, self._traced(shapes, dtypes, self._turn(turn))[1])

    def _pattern(self, made: Trace, outputs: tuple[Value, ...], slots: Mapping[Spot, Slot]) -> Pattern | None:
        leaves = _leaves(outputs, {argument.name: argument for argument in self._present})
        if any(value.op not in (SUM, PRODUCT) and not value.inner for value in outputs):
            self._reasons.append("its reference hands an argument on, or a number, as an output")
            return None
        # Of several outputs of all leaves, a step on the way to another one says less: it holds no attribute, say.
        root = max(range(len(outputs)), key=lambda place: (*_extent(outputs[place]), -place))
        if len(leaves) < len(self._present) or len(_leaves(outputs[root : root + 1], {})) < len(leaves):
            self._reasons.append("no output of its reference depends on all of its tensors")
            return None
        defaults = {one.name: one.default for one in self._layer.signature.attributes}
        read = {slot.attribute for slot in slots.values()}
        unread = [name for name in self._varied if name not in read]
        if lacking := [name for name in unread if defaults[name] is MISSING]:
            self._reasons.append(f"its attribute {lacking[0]} cannot be read from what its reference computes")
            return None
        fixed = {name: value for name, value in self._fixed.items() if name in defaults}
        fixed |= {name: defaults[name] for name in unread}
        return Pattern(self._layer, self._function, outputs, leaves, fixed, slots, made.operators, root)


def _is_elementwise(pattern: Pattern) -> bool:
    """Whether each parameter is a term or a factor only."""
    params = {leaf for leaf, argument in pattern.leaves.items() if argument.kind is Kind.PARAM}
    seen: set[Value] = set()
    waiting = list(pattern.outputs)
    while waiting:
        value = waiting.pop()
        if value not in seen:
            seen.add(value)
            if not params.isdisjoint(value.args):
                return False
            waiting += value.inner
    return True


def _leaves(outputs: tuple[Value, ...], arguments: Mapping[str, Argument]) -> dict[Value, Any]:
    inner = _inner(outputs)
    return {value: arguments.get(value.literals[0]) for value in inner if value.op in (INPUT, CONSTANT)}


def _extent(output: Value) -> tuple[int, int]:
    """How many leaves a value has, and how many values it is made of."""
    return len(_leaves((output,), {})), len(_inner((output,)))


def _inner(outputs: tuple[Value, ...]) -> list[Value]:
    """What the outputs are made of, and they themselves, each once."""
    found: dict[Value, None] = {}
    waiting = list(outputs)
    while waiting:
        value = waiting.pop()
        if value not in found:
            found[value] = None
            waiting += value.inner
    return list(found)


def _fingerprint(outputs: tuple[Value, ...], fixed: Mapping[str, Any]) -> Any:
    """What is equal for traces of one structure, with the same attributes."""
    known: dict[Value, Any] = {}

    def literals(one: Any, path: tuple[Any, ...] = ()) -> Any:
        if isinstance(one, tuple):
            if "sizes" in path:
                return "sizes"
            names = [a[0] if not path and isinstance(a, tuple) and a else place for place, a in enumerate(one)]
            return tuple(literals(a, (*path, name)) for name, a in zip(names, one, strict=True))
        is_whole = isinstance(one, int) and not isinstance(one, bool)
        return "whole" if is_whole and not NAMED_AXES & set(path) else one

    def of(value: Value) -> Any:
        if value not in known:
            if value.parts:
                inner: Any = frozenset((of(part), own) for part, own in value.parts.items())
            else:
                inner = (literals(value.literals), tuple(map(of, value.args)))
            known[value] = (value.op, value.number, inner)
        return known[value]

    return tuple(map(of, outputs)), tuple(sorted((name, str(value)) for name, value in fixed.items()))
