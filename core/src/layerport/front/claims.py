"""Which modules of a model are layers of a pack: asked of the packs, proven by `proving`, and put into a copy.

A wrong claim can never change the numbers: what is not proven stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from layerport.errors import UsageError
from layerport.front.claim_records import Candidate, Claim
from layerport.front.claimed_layers import ClaimedLayer, rewritten
from layerport.front.copies import replace_everywhere, structural_copy
from layerport.front.lookalikes import Lookalike, find_lookalikes
from layerport.front.proving import prove
from layerport.front.samples import record_outputs
from layerport.front.sources import Source
from layerport.layers.layer import BoundLayer
from layerport.packs.discovery import PackInfo
from layerport.packs.host import DroppedPack, Pack, Packs
from layerport.packs.lossy import LossyWish
from layerport.packs.ownership import how_to_choose
from layerport.packs.records import Candidate as Answer
from layerport.packs.records import Rewrite


@dataclass(frozen=True)
class ClaimedModel:
    """The structural copy with its claimed modules replaced, the outputs of the untouched model, and the claims.

    lookalikes: what looks like a layer and no pack answers for.  dropped: the packs whose export hook failed.
    """

    model: torch.nn.Module
    outputs: Any
    claims: tuple[Claim, ...]
    lookalikes: tuple[Lookalike, ...] = ()
    dropped: tuple[DroppedPack, ...] = ()


def claim_layers(
    source: Source,
    packs: Packs,
    *,
    required: Collection[str] = (),
    refused: Collection[str] = (),
    strict: bool = False,
    lossy: Sequence[LossyWish] = (),
) -> ClaimedModel:
    """Replace what packs claim in a structural copy of the model, each claim proven on the module's real inputs.

    required: layers whose every claim must hold (`--claim`).  refused: layers that are not claimed (`--no-claim`).
    strict: whether a claim that does not hold is an error, and a pack whose hook fails.
    lossy: the modules for which lossy claims are made; one that holds its bound goes before claims that lose nothing.
    Raises UsageError for a conflict between packs, for a miss where one is required, and for a wish that meets no
    lossy claim; PackError for a pack that fails though one of its layers is required.
    """
    assert isinstance(source.model, torch.nn.Module)
    for name in (*required, *refused, *(one.layer for one in lossy)):
        packs.layer(name)
    outputs = record_outputs(source)
    model = structural_copy(source.model)
    with torch.no_grad():  # what a pack computes from a weight is a constant here, not a step of training
        offers = packs.export_model(model, required=required, strict=strict, lossy=lossy)
    asked = _candidates(model, offers.found, refused, packs.rank)
    _raise_for_wishes(lossy, [claim for claim, _ in asked])
    if asked:
        # Every pass has a copy of its own: a forward may leave something in its modules.
        prove(structural_copy(source.model), source, [claim for claim, _ in asked])
    for claim, _ in asked:
        _decide(claim)
    _raise_for_conflicts(claim for claim, _ in asked)
    _raise_for_misses((claim for claim, _ in asked), required, strict)
    unasked = {layer.name for one in offers.dropped for layer in one.pack.layers}
    lookalikes = find_lookalikes(model, packs, [module for _, module in asked], {*refused, *unasked})
    model = _apply(model, asked)
    return ClaimedModel(model, outputs, tuple(claim for claim, _ in asked), lookalikes, offers.dropped)


def _candidates(
    model: torch.nn.Module,
    found: Mapping[str, list[tuple[Pack, tuple[Answer, ...]]]],
    refused: Collection[str],
    rank: Callable[[Pack], int],
) -> list[tuple[Claim, torch.nn.Module]]:
    asked = []
    modules = dict(model.named_modules())
    for path, offers in found.items():
        module = modules[path]
        candidates: list[Candidate] = []
        for pack, answers in offers:
            for answer in answers:
                number = len(candidates) + 1
                candidate = Candidate(_pack_text(pack.info), answer, number, pack.info.address, rank(pack))
                if not set(candidate.layers) & set(refused):
                    candidates.append(candidate)
        if candidates:
            asked.append((Claim(path, type(module).__name__, tuple(candidates)), module))
    return asked


def _pack_text(info: PackInfo) -> str:
    """The pack without its path, because a manifest holds this."""
    return f"{info.name} ({info.distribution} {info.version})" if info.distribution else info.name


def _decide(claim: Claim) -> None:
    if claim.calls == 0:
        return
    everyone = claim.agreeing
    agreeing = [one for one in everyone if one.rank == min(other.rank for other in everyone)]
    # The user has named this module for what loses something.
    agreeing = [one for one in agreeing if one.loss is not None] or agreeing
    if claim.module_fault is not None:
        claim.status, claim.reason = "refused", claim.module_fault
    elif not agreeing:
        claim.status = "refused"
        claim.reason = "; ".join(f"{candidate}: {claim.faults[candidate.number]}" for candidate in claim.candidates)
    elif not claim.telling:
        claim.status = "ambiguous"
        claim.reason = f"its output on the example inputs {claim.nothing}, which proves nothing"
    elif len({candidate.pack for candidate in agreeing}) > 1:
        claim.status = "conflict"
        claim.reason = " and ".join(str(candidate) for candidate in agreeing) + " agree"
    elif len(agreeing) > 1 and agreeing[0].loss is None and not _equivalent(agreeing):
        claim.status = "ambiguous"
        claim.reason = "several candidates agree on the example inputs: " + ", ".join(map(str, agreeing))
    else:
        claim.status, claim.chosen = "claimed", agreeing[0]
        error = claim.errors[agreeing[0].number]
        claim.reason = f"agrees within {error:.2g} (relative) over {claim.calls} call{'s'[: claim.calls > 1]}"
        if (loss := agreeing[0].loss) is not None:
            claim.reason = f"lossy: {claim.reason}, {loss:g} is declared"
        if others := sorted({one.pack for one in everyone} - {agreeing[0].pack}):
            claim.reason += f", and goes before {', '.join(others)}"


def _equivalent(candidates: list[Candidate]) -> bool:
    answers = [candidate.answer for candidate in candidates]
    bound = [answer for answer in answers if isinstance(answer, BoundLayer)]
    return len(bound) == len(answers) and len({(one.layer, one.parameters.digest) for one in bound}) == 1


def _raise_for_wishes(wishes: Sequence[LossyWish], claims: Sequence[Claim]) -> None:
    def is_met(wish: LossyWish) -> bool:
        named = [one for claim in claims if wish.names(wish.layer, claim.path) for one in claim.candidates]
        return any(one.loss is not None and wish.layer in one.layers for one in named)

    # A wish with a limit of 0 takes modules out.
    if missed := [one for one in wishes if one.limit > 0 and not is_met(one)]:
        raise UsageError(
            "no module is there to be claimed with a loss",
            "name modules that the layer's pack answers for with lp.lossy, and a limit that its bound keeps to",
            faults=[str(one) for one in missed],
        )


def _raise_for_conflicts(claims: Iterable[Claim]) -> None:
    conflicts = [claim for claim in claims if claim.status == "conflict"]
    if conflicts:
        layers = sorted({name for claim in conflicts for one in claim.candidates for name in one.layers})
        raise UsageError(
            f"two packs claim the same module ({len(conflicts)} such)",
            f"{how_to_choose(conflicts[0].agreeing[0].address)}, or leave one out with --no-claim LAYER for one of "
            f"{', '.join(layers)}",
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
            module.forward = rewritten(answer, module)
            continue
        gone.update(module.modules())
        claimed = ClaimedLayer(answer, module)
        if module is model:
            model = claimed
        else:
            replace_everywhere(model, module, claimed)
    return model
