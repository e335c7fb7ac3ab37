"""Every condition on sizes that an export relied on: proven over the ranges, shown to be mere caution, or refused.

A reference that branches on a size is exported for the branch of the example.  What is neither proven nor refuted goes
into the manifest, for the session to check.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from layerport.errors import BuildError, UsageError
from layerport.front.bodies import Bodies
from layerport.front.evidence import AGREES, DIFFERS, REJECTED, Outcome, compare, random_tensor
from layerport.front.guards import Guards
from layerport.front.nodes import LayerNode, in_model_dims
from layerport.layers.derivation import Derivation
from layerport.parameters.frameworks.torch_dtypes import from_dtype
from layerport.sizes.conditions import Condition, readable
from layerport.sizes.dims import DimRange
from layerport.sizes.expressions import Expr, Symbol
from layerport.sizes.proofs import Finding, prove
from layerport.sizes.tensors import Dim

# An example for a size that no dim tells.
_ANY_SIZE = 3
_TRIED = 32

Try = Callable[[Mapping[str, int]], Outcome]


@dataclass
class Checked:
    """What became of the conditions.

    conditions: those that a session has to check.  unfit: by node, why a plugin with its derived output rule would be
    wrong.  notes: conditions that were dropped, each with its evidence.  warnings: those that nobody can check.
    """

    conditions: list[Condition] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    unfit: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def check_layers(nodes: Sequence[LayerNode], bodies: Bodies, dims: Mapping[str, DimRange]) -> Checked:
    """Check what the layers' references need.  Raises BuildError that names every condition that does not hold."""
    checked = Checked()
    faults: list[str] = []
    done: dict[int, str | None] = {}
    for node in nodes:
        derivation = bodies.derivation(node)
        if id(derivation) not in done:
            done[id(derivation)] = _check_node(node, derivation, dims, checked, faults)
        if (unfit := done[id(derivation)]) is not None:
            checked.unfit[node.name] = unfit
    if faults:
        raise _refusal(faults)
    return checked


def leave_out_size_one(dims: Mapping[str, DimRange], tried: Try) -> tuple[dict[str, DimRange], list[str]]:
    """The dims, those from 2 where the model at size 1 is another one; and what is to be said of it.

    Torch traces with sizes from 2 and notes no condition where the model asks whether a size is 1.
    """
    result, said = dict(dims), []
    for name, dim in dims.items():
        if dim.min == 1 and dim.opt > 1 and (outcome := tried({name: 1})).verdict == DIFFERS:
            result[name] = replace(dim, min=2)
            said.append(f"dim {name} starts at 2: at 1 the model takes another way, and {outcome.text}")
    return result, said


def check_model(guards: Guards, tried: Try | None, dims: Mapping[str, DimRange], checked: Checked) -> None:
    """Check what the model's own forward needs, and add to `checked`.

    tried: runs model and program at some sizes; None where there is no model to run.  Sizes that nobody stated, that
    the model itself refuses, or that are too large to be tried, are left to the session, which refuses them.  Raises
    as `check_layers` does.
    """
    faults: list[str] = []
    if guards.unread:
        _check_unread("the model", guards.unread, tried, dims, checked, faults)
    for condition in guards.conditions:
        verdict, reason = _judge(condition, prove(condition, _ranges(condition, dims)), tried, dims)
        made = Condition(readable(condition), "", "")
        if verdict in ("rejected", "untried") or (verdict == "false" and not _bounded(condition, dims)):
            verdict = "outside"
            checked.warnings.append(f"a session will take sizes where {made.text} only: {reason}")
        _settle(made, verdict, reason, "the model", dims, checked, faults)
    if faults:
        raise _refusal(faults)


def _check_unread(
    who: str,
    unread: Sequence[str],
    tried: Try | None,
    dims: Mapping[str, DimRange],
    checked: Checked,
    faults: list[str],
) -> None:
    """Try a condition that cannot be evaluated at the ends of the ranges and beside the example."""
    for text in unread:
        outcomes = [tried({name: pick(dim) for name, dim in dims.items()}) for pick in _PICKS] if tried else []
        wrong = next((one for one in outcomes if one.verdict in (DIFFERS, REJECTED)), None)
        if wrong is not None:
            faults.append(f"{who} is exported for sizes where {text} only: {wrong.text}")
        else:
            checked.warnings.append(f"{who} is exported for sizes where {text} only, which was tried at a few sizes")


def _check_node(
    node: LayerNode, derivation: Derivation, dims: Mapping[str, DimRange], checked: Checked, faults: list[str]
) -> str | None:
    """Check one use of a layer; returns why its output rule does not fit a plugin."""
    needed = [
        *derivation.constraints,
        *(Symbol(one) == Symbol(other) for one, other in derivation.equalities),
        *(Symbol(place) == size for place, size in derivation.fixed.items()),
    ]
    module = node.module or node.name
    unfit: list[str] = []

    def tried(point: Mapping[str, int]) -> Outcome:
        return _run_node(node, derivation, dims, point, unfit)

    who = f"layer {node.layer.name} ({module})"
    if derivation.unread:
        _check_unread(who, derivation.unread, tried, dims, checked, faults)
    before = len(faults)
    for condition in needed:
        made = in_model_dims(condition, node)
        finding = prove(made, _ranges(made, dims))
        verdict, reason = _judge(made, finding, tried, dims)
        _settle(Condition(readable(made), node.layer.name, module), verdict, reason, who, dims, checked, faults)
    if len(faults) == before:
        faults += _at_size_one(node, who, tried, dims)
    return unfit[0] if unfit else None


def _at_size_one(node: LayerNode, who: str, tried: Try, dims: Mapping[str, DimRange]) -> list[str]:
    """Where the reference is another one at size 1, of which Torch may note nothing."""
    found = []
    places = [
        f"{name}.{axis}"
        for name, tensor in node.tensors.items()
        for axis, dim in enumerate(tensor.shape if tensor is not None else ())
        if not isinstance(dim, int)
    ]
    for made in {one.text: one for one in (in_model_dims(Symbol(place) != 1, node) for place in places)}.values():
        counterexamples = prove(made, _ranges(made, dims)).counterexamples
        outcome = tried(counterexamples[0]) if counterexamples else None
        if outcome is not None and outcome.verdict == DIFFERS:
            found.append(f"{who} is exported for sizes where {readable(made)} only: {outcome.text}")
    return found


_PICKS: tuple[Callable[[DimRange], int], ...] = (
    lambda dim: dim.min,
    lambda dim: dim.min + 1 if dim.max is None else min(dim.min + 1, dim.max),
    lambda dim: dim.opt,
    lambda dim: dim.opt + 1 if dim.max is None else dim.max,
)


def _judge(condition: Expr, finding: Finding, tried: Try | None, dims: Mapping[str, DimRange]) -> tuple[str, str]:
    """("proven" | "open" | "caution" | "outside" | "rejected" | "untried" | "false", why)."""
    if finding.proven:
        return "proven", ""
    if not finding.counterexamples:
        return "open", ""
    smallest = finding.counterexamples[0]
    at = ", ".join(f"{name}={size}" for name, size in smallest.items())
    bounded = _bounded(condition, dims)
    if tried is None:
        return ("false" if bounded else "outside"), f"{at} is within its range"
    agreed, rejected = 0, ""
    for point in _some(finding.counterexamples):
        outcome = tried(point)
        here = ", ".join(f"{name}={size}" for name, size in point.items())
        if outcome.verdict == DIFFERS:
            return "false", f"{here} is within its range, and {outcome.text}"
        if outcome.verdict == REJECTED:
            rejected = rejected or f"{here} is within its range, and {outcome.text}"
        agreed += outcome.verdict == AGREES
    if rejected:
        return ("rejected" if bounded else "outside"), rejected
    if agreed:
        others = "" if finding.complete and agreed == len(finding.counterexamples) else " tried"
        return "caution", f"at all {agreed} sizes{others} without it, such as {at}, the numbers are the same"
    return (
        "untried" if bounded else "outside"
    ), f"{at} is within its range, and what it gives there could not be tried"


def _bounded(condition: Expr, dims: Mapping[str, DimRange]) -> bool:
    """Whether somebody stated how far each of its sizes goes, and so asked for all of them."""
    return all(name in dims and dims[name].max is not None for name in condition.symbols())


def _some(points: Sequence[dict[str, int]]) -> list[dict[str, int]]:
    """The first ones and the last ones; all of them where they are few."""
    return list(points) if len(points) <= _TRIED else [*points[: _TRIED // 2], *points[-_TRIED // 2 :]]


def _settle(
    condition: Condition,
    verdict: str,
    reason: str,
    who: str,
    dims: Mapping[str, DimRange],
    checked: Checked,
    faults: list[str],
) -> None:
    if verdict in ("false", "rejected", "untried"):
        faults.append(f"{who} is exported for sizes where {condition.text} only: {reason}")
    elif verdict == "caution":
        checked.notes.append(f"{who}: Torch's condition {condition.text} was dropped: {reason}")
    elif verdict in ("open", "outside"):
        if not condition.expression.symbols() <= dims.keys():
            checked.warnings.append(
                f"{who} is exported for sizes where {condition.text} only, which depends on data and is not checked"
            )
        elif all(condition.text != one.text for one in checked.conditions):
            checked.conditions.append(condition)


def _refusal(faults: Sequence[str]) -> BuildError:
    return BuildError(
        "an export holds for a part of the range of sizes only, because something branches on a size",
        "leave the other sizes out with --range or torch.export.Dim(min=, max=), make the dim static, or write the "
        "branch as torch.where of both results",
        faults=tuple(dict.fromkeys(faults)),
    )


def _ranges(condition: Expr, dims: Mapping[str, DimRange]) -> dict[str, tuple[int, int | None]]:
    return {name: (dims[name].min, dims[name].max) if name in dims else (0, None) for name in condition.symbols()}


def _run_node(
    node: LayerNode, derivation: Derivation, dims: Mapping[str, DimRange], point: Mapping[str, int], unfit: list[str]
) -> Outcome:
    usual = {name: dim.opt for name, dim in dims.items()}
    places: dict[str, int] = {}
    inputs: list[torch.Tensor] = []
    for name, tensor in derivation.example[0].items():
        sizes = []
        for axis, dim in enumerate(tensor.shape):
            place = f"{name}.{axis}"
            made = as_size(dim, point.get(place), {**usual, **point})
            if made < 0:
                return Outcome(AGREES, "there is no such size")
            sizes.append(made)
            places[place] = made
        inputs.append(random_tensor(sizes, from_dtype(tensor.dtype), len(inputs)))
    outcome = compare(lambda: derivation.body(*(one.clone() for one in inputs)), derivation.program, inputs)
    if outcome.verdict == AGREES and outcome.shapes:
        _check_rule(node, derivation, places, outcome, unfit)
    return outcome


def as_size(dim: Dim, known: int | None, sizes: Mapping[str, int]) -> int:
    if isinstance(dim, int):
        return dim
    if dim is None:
        return _ANY_SIZE if known is None else known
    return dim.evaluate({**dict.fromkeys(dim.symbols(), _ANY_SIZE), **sizes})


def _check_rule(
    node: LayerNode, derivation: Derivation, places: Mapping[str, int], outcome: Outcome, unfit: list[str]
) -> None:
    for index, (rule, shape) in enumerate(zip(derivation.outputs, outcome.shapes, strict=False)):
        try:
            stated: list[int | str | None] = [
                dim.evaluate(places) if dim.symbols() <= places.keys() else None for dim in rule.dims
            ]
        except UsageError as error:
            stated = [error.fault]
        if len(stated) != len(shape) or any(
            one is not None and one != size for one, size in zip(stated, shape, strict=True)
        ):
            sizes = ", ".join(f"{place}={size}" for place, size in places.items())
            whose, name = ("derived", "write") if node.layer.shapes_override is None else ("own", "correct")
            unfit.append(
                f"its {whose} output rule {rule.form} is wrong at {sizes} within the ranges, where output {index} is "
                f"{list(shape)}; {name} the sizes with @{node.layer.short_name}.shape_rule"
            )
