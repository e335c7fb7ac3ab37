"""The compiled kernels of a plugin spec, as pure data: their launches, images, predicates and scratch memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from layerport.bundle.spec_values import ARCHITECTURE, DIGEST, IDENTIFIER, items_of, list_of, match
from layerport.dtypes import DType
from layerport.kernels.launch_rules import LaunchRule, LaunchSequence
from layerport.kernels.workspace import MOST_SCRATCH, MOST_STEPS, Scratch
from layerport.sizes.expressions import Expr, parse


@dataclass(frozen=True)
class KernelStep:
    """One launch of compiled code: its symbol, launch rule and the digest of its image for each architecture."""

    symbol: str
    launch: LaunchRule
    images: Mapping[str, str]


@dataclass(frozen=True)
class KernelCode:
    """A compiled kernel: its launches, one after the other, their scratch memory, and where it may run.

    One kernel stands several times, under one name, where its launches differ between architectures.
    """

    name: str
    steps: tuple[KernelStep, ...]
    guard: Expr | None = None
    scratch: tuple[Scratch, ...] = ()

    @property
    def architectures(self) -> frozenset[str]:
        """Those for which every step has an image."""
        return frozenset.intersection(*(frozenset(step.images) for step in self.steps))

    def to_json(self) -> dict[str, Any]:
        """As a spec holds it; what is one launch without scratch memory, as format 1 has it."""
        steps = [
            {"symbol": step.symbol, "launch": step.launch.to_json(), "images": dict(step.images)} for step in self.steps
        ]
        head = {"name": self.name, "guard": None if self.guard is None else str(self.guard)}
        if len(steps) == 1 and not self.scratch:
            return {**head, **steps[0]}
        return {**head, "steps": steps, "scratch": [[one.dtype.value, str(one.nbytes)] for one in self.scratch]}


def launches_of(kernel: KernelCode) -> LaunchSequence:
    """The launches of a kernel, with their scratch memory."""
    return LaunchSequence(tuple(step.launch for step in kernel.steps), kernel.scratch)


def kernel_from_json(value: Mapping[str, Any]) -> KernelCode:
    """What `KernelCode.to_json` wrote.  Raises BuildError, and ValueError or the like for other content."""
    steps = tuple(
        KernelStep(
            symbol=match(IDENTIFIER, step["symbol"], limit=4096),
            launch=LaunchRule.from_json(step["launch"]),
            images={match(ARCHITECTURE, arch): match(DIGEST, digest) for arch, digest in items_of(step["images"])},
        )
        for step in (list_of(value["steps"]) if "steps" in value else [value])
    )
    scratch = list_of(value["scratch"]) if "steps" in value else []
    if not 1 <= len(steps) <= MOST_STEPS or len(scratch) > MOST_SCRATCH:
        raise ValueError(f"a kernel has {len(steps)} launches and {len(scratch)} scratch tensors")
    return KernelCode(
        name=match(IDENTIFIER, value["name"]),
        steps=steps,
        guard=None if value["guard"] is None else parse(value["guard"]),
        scratch=tuple(Scratch(DType(dtype), parse(nbytes)) for dtype, nbytes in (list_of(row, 2) for row in scratch)),
    )
