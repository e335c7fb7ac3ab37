"""Which modules of a model are layers of a pack: asked of the packs, proven on the modules' real inputs.

The pass over the example inputs that records the samples also proves the claims, inside forward hooks, and keeps only
figures.  A wrong claim can therefore never change the numbers.
"""

from __future__ import annotations

import functools
import inspect
import math
import types
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils import _pytree as pytree

from layerport.adapters.torch_module import LayerModule
from layerport.errors import UsageError
from layerport.front.copies import replace_everywhere, structural_copy
from layerport.front.sources import Source
from layerport.layers import BoundLayer
from layerport.pack_discovery import PackInfo
from layerport.packs import Packs
from layerport.records import Rewrite

# How far a claim may be from the module, relative to the value plus the mean magnitude of its tensor.  Two kernels that
# round once more or less on the way differ by one or two units in the last place.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}


@dataclass(frozen=True)
class Candidate:
    """One answer of one pack for one module."""

    pack: str
    answer: BoundLayer | Rewrite
    number: int

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the layers it would use."""
        if isinstance(self.answer, BoundLayer):
            return (self.answer.layer.name,)
        return tuple(layer.name for layer in self.answer.layers)

    def __str__(self) -> str:
        return f"{' + '.join(self.layers)} of {self.pack}, candidate {self.number}"


@dataclass
class Claim:
    """What became of one module that packs answered for.

    status: "claimed", "refused", "ambiguous", "conflict", "not reached" or "inside another claim".
    errors: per candidate its largest relative error against the module, and why it missed.
    """

    path: str
    module_class: str
    candidates: tuple[Candidate, ...]
    status: str = "not reached"
    reason: str = "the example inputs do not run this module"
    chosen: Candidate | None = None
    calls: int = 0
    errors: dict[int, float] = field(default_factory=dict)
    faults: dict[int, str] = field(default_factory=dict)
    proves_nothing: bool = False

    def _error(self, candidate: Candidate) -> float | None:
        """None where it was not measured or is infinite, which JSON cannot say."""
        error = self.errors.get(candidate.number)
        return error if error is not None and math.isfinite(error) else None

    def to_json(self) -> dict[str, Any]:
        """The claim as a report shows it."""
        return {
            "module": self.path,
            "class": self.module_class,
            "status": self.status,
            "reason": self.reason,
            "layers": list(self.chosen.layers) if self.chosen else [],
            "pack": self.chosen.pack if self.chosen else None,
            "max_relative_error": self._error(self.chosen) if self.chosen else None,
            "candidates": [
                {
                    "layers": list(candidate.layers),
                    "pack": candidate.pack,
                    "max_relative_error": self._error(candidate),
                    "fault": self.faults.get(candidate.number),
                }
                for candidate in self.candidates
            ],
        }


@dataclass(frozen=True)
class ClaimedModel:
    """The structural copy with its claimed modules replaced, the outputs of the untouched model, and the claims."""

    model: torch.nn.Module
    outputs: Any
    claims: tuple[Claim, ...]


def claim_layers(
    source: Source,
    packs: Packs,
    *,
    required: Collection[str] = (),
    refused: Collection[str] = (),
    strict: bool = False,
) -> ClaimedModel:
    """Replace what packs claim in a structural copy of the model, each claim proven on the module's real inputs.

    required: layers whose every claim must hold (`--claim`).  refused: layers that are not claimed (`--no-claim`).
    Raises UsageError for a conflict between packs, and for a miss where one is required.
    """
    assert isinstance(source.model, torch.nn.Module)
    for name in (*required, *refused):
        packs.layer(name)
    model = structural_copy(source.model)
    asked = _ask(model, packs, refused)
    outputs = _prove(model, source, asked)
    for claim, _ in asked:
        _decide(claim)
    _raise_for_conflicts(claim for claim, _ in asked)
    _raise_for_misses((claim for claim, _ in asked), required, strict)
    model = _apply(model, asked)
    return ClaimedModel(model, outputs, tuple(claim for claim, _ in asked))


def _ask(model: torch.nn.Module, packs: Packs, refused: Collection[str]) -> list[tuple[Claim, torch.nn.Module]]:
    asked = []
    for path, module in model.named_modules():
        candidates: list[Candidate] = []
        with torch.no_grad():  # what a pack computes from a weight is a constant here, not a step of training
            offers = packs.export_parameters(module, path)
        for pack, answers in offers:
            for answer in answers:
                candidate = Candidate(_pack_text(pack.info), answer, len(candidates) + 1)
                if not set(candidate.layers) & set(refused):
                    candidates.append(candidate)
        if candidates:
            asked.append((Claim(path, type(module).__name__, tuple(candidates)), module))
    return asked


def _pack_text(info: PackInfo) -> str:
    """The pack without its path, because a manifest holds this."""
    return f"{info.name} ({info.distribution} {info.version})" if info.distribution else info.name


def _prove(model: torch.nn.Module, source: Source, asked: Iterable[tuple[Claim, torch.nn.Module]]) -> Any:
    proving = False
    handles = []
    for claim, module in asked:

        def check(module: torch.nn.Module, args: Any, kwargs: Any, output: Any, *, claim: Claim = claim) -> None:
            nonlocal proving
            if proving:  # a rewrite runs the module's children, whose own hooks must not count that
                return
            proving = True
            try:
                _check(claim, module, args, kwargs, output)
            finally:
                proving = False

        handles.append(module.register_forward_hook(check, with_kwargs=True))
    try:
        with torch.no_grad():
            outputs = model(*source.args, **source.kwargs)
    except Exception as error:
        raise UsageError(
            f"the model {type(source.model).__name__} fails on its own example inputs: {type(error).__name__}: {error}",
            "run model(*args) by itself in Python and mend the example inputs",
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return outputs


def _check(claim: Claim, module: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> None:
    claim.calls += 1
    expected = [leaf for leaf in pytree.tree_leaves(output) if leaf is not None]
    if not any(isinstance(leaf, torch.Tensor) and leaf.is_floating_point() and bool(leaf.any()) for leaf in expected):
        claim.proves_nothing = True
    for candidate in claim.candidates:
        if candidate.number in claim.faults:
            continue
        try:
            got = pytree.tree_leaves(run_candidate(candidate.answer, module, args, kwargs))
            error, fault = _compare(expected, got)
        except Exception as raised:
            error, fault = float("inf"), f"{type(raised).__name__}: {raised}"
        claim.errors[candidate.number] = max(error, claim.errors.get(candidate.number, 0.0))
        if fault:
            claim.faults[candidate.number] = fault


def run_candidate(answer: BoundLayer | Rewrite, module: torch.nn.Module, args: Any, kwargs: Any) -> Any:
    """What the module would give if it were this candidate: the layer's reference on the same inputs."""
    if isinstance(answer, Rewrite):
        return answer.forward(module, *args, **kwargs)
    return ClaimedLayer(answer, module)(*args, **kwargs)


def _compare(expected: list[Any], got: list[Any]) -> tuple[float, str | None]:
    if len(expected) != len(got):
        return float("inf"), f"gives {len(got)} outputs where the module gives {len(expected)}"
    worst, fault = 0.0, None
    for place, (want, have) in enumerate(zip(expected, got, strict=True)):
        if not isinstance(want, torch.Tensor) or not isinstance(have, torch.Tensor):
            if want is not have and want != have:
                return float("inf"), f"output {place} is {have!r} where the module gives {want!r}"
            continue
        if want.shape != have.shape or want.dtype != have.dtype:
            return (
                float("inf"),
                f"output {place} is {_describe(have)} where the module gives {_describe(want)}",
            )
        error, allowed = relative_error(want, have)
        worst = max(worst, error)
        if not error <= allowed:
            fault = f"output {place} is off by {error:.3g} (relative), {allowed:.1g} is allowed"
    return worst, fault


def relative_error(want: torch.Tensor, have: torch.Tensor) -> tuple[float, float]:
    """The largest error relative to the value plus the tensor's mean magnitude, and what its dtype allows."""
    if want.numel() == 0:
        return 0.0, 0.0
    allowed = TOLERANCES.get(want.dtype)
    if allowed is None:
        return (0.0 if torch.equal(want, have) else float("inf")), 0.0
    wide = torch.float64 if want.dtype == torch.float64 else torch.float32
    want, have = want.to(wide), have.to(wide)
    magnitude = want.abs()
    same = (want == have) | (want.isnan() & have.isnan())  # infinities and NaN that agree
    error = (want - have).abs() / (magnitude + magnitude[magnitude.isfinite()].mean())
    return float(torch.where(same, torch.zeros_like(error), error).nan_to_num(nan=float("inf")).max()), allowed


def _describe(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def _decide(claim: Claim) -> None:
    if claim.calls == 0:
        return
    agreeing = [candidate for candidate in claim.candidates if candidate.number not in claim.faults]
    if not agreeing:
        claim.status = "refused"
        claim.reason = "; ".join(f"{candidate}: {claim.faults[candidate.number]}" for candidate in claim.candidates)
    elif claim.proves_nothing:
        claim.status = "ambiguous"
        claim.reason = "its output on the example inputs is all zeros, which proves nothing"
    elif len({candidate.pack for candidate in agreeing}) > 1:
        claim.status = "conflict"
        claim.reason = " and ".join(str(candidate) for candidate in agreeing) + " agree"
    elif len(agreeing) > 1 and not _equivalent(agreeing):
        claim.status = "ambiguous"
        claim.reason = "several candidates agree on the example inputs: " + ", ".join(map(str, agreeing))
    else:
        claim.status, claim.chosen = "claimed", agreeing[0]
        error = claim.errors[agreeing[0].number]
        claim.reason = f"agrees within {error:.2g} (relative) over {claim.calls} call{'s'[: claim.calls > 1]}"


def _equivalent(candidates: list[Candidate]) -> bool:
    answers = [candidate.answer for candidate in candidates]
    bound = [answer for answer in answers if isinstance(answer, BoundLayer)]
    return len(bound) == len(answers) and len({(one.layer.name, one.parameters.digest) for one in bound}) == 1


def _raise_for_conflicts(claims: Iterable[Claim]) -> None:
    conflicts = [claim for claim in claims if claim.status == "conflict"]
    if conflicts:
        layers = sorted({name for claim in conflicts for one in claim.candidates for name in one.layers})
        raise UsageError(
            f"two packs claim the same module ({len(conflicts)} such)",
            f"choose with --no-claim LAYER for one of {', '.join(layers)}, "
            "or disable a pack with LAYERPORT_DISABLE_PACKS",
            faults=[f"{claim.path} ({claim.module_class}): {claim.reason}" for claim in conflicts[:20]],
        )


def _raise_for_misses(claims: Iterable[Claim], required: Collection[str], strict: bool) -> None:
    claims = list(claims)
    faults = [
        f"{claim.path or '(root)'} ({claim.module_class}): {claim.status}: {claim.reason}"
        for claim in claims
        if claim.status != "claimed"
        and (strict or any(set(candidate.layers) & set(required) for candidate in claim.candidates))
    ]
    offered = {name for claim in claims for candidate in claim.candidates for name in candidate.layers}
    faults += [f"{name}: its pack claims no module of this model" for name in required if name not in offered]
    if faults:
        raise UsageError(
            f"claims that must hold do not: {len(faults)}",
            "mend the pack's export hook, or build without --claim and strict mode: such modules then stay as they are",
            faults=faults[:20],
        )


def _apply(model: torch.nn.Module, asked: list[tuple[Claim, torch.nn.Module]]) -> torch.nn.Module:
    gone: set[torch.nn.Module] = set()
    for claim, module in asked:
        if claim.status != "claimed":
            continue
        assert claim.chosen is not None
        if module in gone:
            claim.status, claim.reason, claim.chosen = "inside another claim", "a module around it is claimed", None
            continue
        answer = claim.chosen.answer
        if isinstance(answer, Rewrite):
            # The module belongs to the structural copy, so this changes nothing that the user owns.
            module.forward = types.MethodType(answer.forward, module)
            continue
        gone.update(module.modules())
        claimed = ClaimedLayer(answer, module)
        if module is model:
            model = claimed
        else:
            replace_everywhere(model, module, claimed)
    return model


class ClaimedLayer(LayerModule):
    """A layer in the place of a module: takes the module's arguments, by position or name, as the layer's inputs."""

    def __init__(self, bound: BoundLayer, module: torch.nn.Module) -> None:
        super().__init__(bound)
        self.__dict__["_replaced"] = module  # not a child: its parameters are not this module's
        try:
            self._names: tuple[str, ...] | None = tuple(inspect.signature(module.forward).parameters)
        except (TypeError, ValueError):
            self._names = None
        self.__dict__["forward"] = _like(module.forward, self.forward)

    def __getattr__(self, name: str) -> Any:
        # Modules around it may read its attributes (`self.norm.variance_epsilon`).
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "_replaced" not in self.__dict__:  # still being made
                raise
            return getattr(self.__dict__["_replaced"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs:
            args = (*args, *_in_order(self._names, args, kwargs))
        if len(args) > self._most_inputs and any(value is not None for value in args[self._most_inputs :]):
            raise UsageError(
                f"the module takes {len(args)} inputs, layer {self.layer.name} {self._most_inputs}",
                "claim it with layerport.rewrite(forward, layers=...)",
            )
        return super().forward(*args[: self._most_inputs])


def _like(original: Callable[..., Any], forward: Callable[..., Any]) -> Callable[..., Any]:
    """A forward with the signature of the module's own, by which torch.export matches dynamic shapes to inputs."""

    @functools.wraps(original)
    def run(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    return run


def _in_order(names: tuple[str, ...] | None, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    order = list(names or ())[len(args) :]
    unknown = set(kwargs) - set(order)
    if unknown:
        raise UsageError(
            f"inputs {', '.join(sorted(unknown))} have no place in the layer", "claim with layerport.rewrite"
        )
    last = max(order.index(name) for name in kwargs)
    return [kwargs.get(name) for name in order[: last + 1]]
