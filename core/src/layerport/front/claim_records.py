"""What is known of one module that packs answered for: the candidates, the evidence, the verdict.

Made by `claims`, filled by `proving`, shown by the commands.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from layerport.layers.layer import BoundLayer
from layerport.packs.records import Rewrite
from layerport.system.records import Record

STRUCTURE, EXAMPLES = "structure", "examples"
# What the evidence of a claim is called.
EVIDENCE = {STRUCTURE: "proven by structure", EXAMPLES: "agrees on examples"}


@dataclass(frozen=True)
class Candidate:
    """One answer of one pack for one module.  address, rank: of the pack, how early it goes where several agree."""

    pack: str
    answer: BoundLayer | Rewrite
    number: int
    address: str = ""
    rank: int = 0

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the layers it would use."""
        if isinstance(self.answer, BoundLayer):
            return (self.answer.layer.name,)
        return tuple(layer.name for layer in self.answer.layers)

    @property
    def loss(self) -> float | None:
        """The error that it declares, None where it declares none."""
        return self.answer.loss if isinstance(self.answer, BoundLayer) else None

    def __str__(self) -> str:
        return f"{' + '.join(self.layers)} of {self.pack}, candidate {self.number}"


@dataclass(frozen=True)
class Probe(Record):
    """One trial beside the example inputs: made-up floating-point inputs of one magnitude.

    error: the largest relative error of the candidates that agree, None where the trial proves nothing.
    nothing: why it proves nothing, None where it proves something.
    """

    magnitude: float
    error: float | None = None
    nothing: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The trial as a program reads it."""
        return {"magnitude": self.magnitude, "max_relative_error": self.error, "proves_nothing": self.nothing}


@dataclass(frozen=True)
class EvidenceRecord(Record):
    """What a claim rests on.

    kind: "structure" where the module computes, operator by operator, what the layer's reference computes, which holds
    for all inputs of these ranks; "examples" where only numbers agree.
    calls: how often the example inputs run the module.  telling_calls: how many of these calls prove anything.
    probes: the trials at other magnitudes.  probed_at: the path of the module whose trials stand for this one's.
    summary: the same in a few words.
    """

    kind: str
    calls: int
    telling_calls: int
    probes: tuple[Probe, ...]
    probed_at: str | None
    summary: str


@dataclass(frozen=True)
class CandidateRecord(Record):
    """One answer of one pack for a module: how far it was from the module, and why it missed."""

    layers: tuple[str, ...]
    pack: str
    max_relative_error: float | None
    fault: str | None


@dataclass(frozen=True)
class ClaimRecord(Record):
    """What became of one module that packs answered for, as reports and manifests say it.

    status: "claimed", "refused", "ambiguous", "conflict", "not reached" or "inside another claim"; reason: why.
    layers, pack, max_relative_error: of the candidate that was chosen; of none where none was.
    bound: the error that it declares, where it is a lossy one.
    """

    module: str
    module_class: str
    status: str
    reason: str
    layers: tuple[str, ...]
    pack: str | None
    max_relative_error: float | None
    evidence: EvidenceRecord
    candidates: tuple[CandidateRecord, ...]
    bound: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The claim as a program reads it."""
        return {name.removeprefix("module_"): value for name, value in super().to_json().items()}


@dataclass
class Claim:
    """The same while it is proven.

    status: as in `ClaimRecord`.
    errors: per candidate its largest relative error against the module, and why it missed.
    calls: how often the example inputs run the module.  telling: how many of these calls prove anything.
    nothing: why the others prove nothing.  module_fault: why the module can be no layer.
    keeps_state: whether a call of the module writes to its own parameters or buffers.
    probes: the trials at other magnitudes.  probed_at: the path of the module whose trials stand for this one's.
    structure: per candidate that computes the same as the module does, "exact" or "formula".
    """

    path: str
    module_class: str
    candidates: tuple[Candidate, ...]
    status: str = "not reached"
    reason: str = "the example inputs do not run this module"
    chosen: Candidate | None = None
    calls: int = 0
    telling: int = 0
    nothing: str | None = None
    module_fault: str | None = None
    keeps_state: bool = False
    errors: dict[int, float] = field(default_factory=dict)
    faults: dict[int, str] = field(default_factory=dict)
    probes: tuple[Probe, ...] = ()
    probed_at: str | None = None
    probe_faults: dict[int, str] = field(default_factory=dict)
    structure: dict[int, str] = field(default_factory=dict)

    @property
    def agreeing(self) -> list[Candidate]:
        """The candidates that nothing speaks against so far."""
        return [candidate for candidate in self.candidates if candidate.number not in self.faults]

    @property
    def evidence(self) -> str:
        """What the verdict rests on, in a few words."""
        if not self.calls:
            return "none"
        calls = f"{self.telling} of {self.calls} example call{'s'[: self.calls > 1]}"
        if not self.probes:
            return f"{calls}, no probe"
        told = [f"{probe.magnitude:g}" for probe in self.probes if probe.nothing is None]
        place = f" (made at {self.probed_at or 'the root'})" if self.probed_at is not None else ""
        return f"{calls}, probes at magnitude {', '.join(told) or 'none that tells'}{place}"

    @property
    def kind(self) -> str:
        """Whether the chosen candidate is proven by structure, for all inputs, or agrees on examples."""
        return STRUCTURE if self.chosen is not None and self.chosen.number in self.structure else EXAMPLES

    def _error(self, candidate: Candidate) -> float | None:
        """None where it was not measured or is infinite, which JSON cannot say."""
        error = self.errors.get(candidate.number)
        return error if error is not None and math.isfinite(error) else None

    def record(self) -> ClaimRecord:
        """What is known by now, without the candidates themselves."""
        return ClaimRecord(
            module=self.path,
            module_class=self.module_class,
            status=self.status,
            reason=self.reason,
            layers=self.chosen.layers if self.chosen else (),
            pack=self.chosen.pack if self.chosen else None,
            max_relative_error=self._error(self.chosen) if self.chosen else None,
            evidence=EvidenceRecord(self.kind, self.calls, self.telling, self.probes, self.probed_at, self.evidence),
            candidates=tuple(
                CandidateRecord(one.layers, one.pack, self._error(one), self.faults.get(one.number))
                for one in self.candidates
            ),
            bound=self.chosen.loss if self.chosen else None,
        )
