"""Compares what a bundle computes with what Torch computed when it was built, and its kernels with their references.

Three things are checked one by one, and none stands for another: the portable model, each plugin's kernels, the engine.
Torch and the packs are imported only where a bundle has plugins, whose kernels are then run.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerport.bundle.bundle import PLUGINS, Bundle
from layerport.checks.kernel_checks import NOT_RUN, WRONG, KernelCheck, check_kernels
from layerport.errors import UsageError
from layerport.packs.host import Packs as Loaded
from layerport.parameters.comparison import OutputCheck, compare, refused
from layerport.session.session import Session
from layerport.system import html

if TYPE_CHECKING:
    import numpy as np

    from layerport.packs.host import Packs


@dataclass(frozen=True)
class Verification:
    """What was checked of a bundle.

    outputs: of the portable model, or of the engine where on_gpu is set, against Torch.  device: what ran, and why.
    note: what that does not show.  kernels: what running each plugin's kernels showed.
    has_engine: whether the bundle holds a plan at all.
    """

    outputs: tuple[OutputCheck, ...]
    device: str
    note: str | None = None
    on_gpu: bool = False
    kernels: tuple[KernelCheck, ...] = ()
    has_engine: bool = False

    @property
    def passed(self) -> bool:
        """Whether every output passed and no kernel is wrong; what did not run has not passed, nor failed."""
        return bool(self.outputs) and all(one.passed for one in self.outputs) and not self.wrong_kernels

    @property
    def wrong_kernels(self) -> tuple[KernelCheck, ...]:
        """The kernels that gave something else than their references."""
        return tuple(one for one in self.kernels if one.answer == WRONG)

    @property
    def engine(self) -> str:
        """What became of the engine: "passed", "failed", "not run", or "none" in a portable bundle."""
        if not self.on_gpu:
            return NOT_RUN if self.has_engine else "none"
        return "passed" if self._outputs_pass else "failed"

    @property
    def portable(self) -> str:
        """What became of the portable model: "passed", "failed", or "not run" where the engine ran."""
        if self.on_gpu:
            return NOT_RUN
        return "passed" if self._outputs_pass else "failed"

    @property
    def _outputs_pass(self) -> bool:
        return bool(self.outputs) and all(one.passed for one in self.outputs)

    def to_json(self) -> dict[str, Any]:
        """The verification as a program reads it."""
        return {
            "passed": self.passed,
            "portable": self.portable,
            "engine": self.engine,
            "device": self.device,
            "note": self.note,
            "on_gpu": self.on_gpu,
            "outputs": [one.to_json() for one in self.outputs],
            "kernels": [one.to_json() for one in self.kernels],
        }

    def _repr_html_(self) -> str:
        outputs = (
            (one.name, one.dtype, f"{one.max_abs:.3g}", f"{one.max_rel:.3g}", one.answer) for one in self.outputs
        )
        kernels = ((one.layer, one.kernel, len(one.nodes), str(one)) for one in self.kernels)
        return "".join(
            (
                html.table(("output", "type", "max abs", "max rel", "answer"), outputs),
                html.table(("kernel of", "kernel", "nodes", "answer"), kernels),
                html.line(f"portable model: {self.portable}; engine: {self.engine} ({self.device})"),
            )
        )


def verify(
    bundle: str | Path | Session,
    *,
    device: str = "auto",
    atol: float | None = None,
    rtol: float | None = None,
    kernels: bool = True,
    packs: Iterable[object] | Packs = (),
    prefer: Iterable[object] = (),
) -> Verification:
    """Compare a bundle's outputs for its samples with Torch's, and each plugin's kernels with their references.

    atol, rtol: absolute and relative tolerance; None takes those of each output's dtype, or of the coarser one that it
    was computed through, which grow with the output's magnitude, and adds what lossy claims were measured to lose.
    kernels: whether to run the plugins' kernels, which needs Torch and the packs of the layers.
    packs, prefer: packs to use besides the installed ones, and which go first, as in `layerport.build`.
    Raises as `load` does, and UsageError for a bundle without samples; a mismatch is an answer.
    """
    if not isinstance(bundle, Session):
        with Session(Bundle.open(bundle), device=device, exact=True) as session:
            return verify(session, atol=atol, rtol=rtol, kernels=kernels, packs=packs, prefer=prefer)
    opened = bundle.bundle
    inputs, expected = opened.samples()
    got = bundle.run(inputs)
    names = [port.name for port in opened.outputs]
    checks = [
        compare(
            *(name, got.get(name), expected[name]),
            atol=atol,
            rtol=rtol,
            loss=opened.losses.get(name),
            precision=opened.precisions.get(name),
        )
        if name in expected
        else _without_sample(name, got.get(name))
        for name in dict.fromkeys([*names, *expected])
    ]
    if not checks:
        raise UsageError(f"{opened.folder} has no outputs to compare", "build the bundle again")
    found: tuple[KernelCheck, ...] = ()
    if kernels and PLUGINS in opened.manifest["files"]:
        more = {"packs": packs} if isinstance(packs, Loaded) else {"extra": tuple(packs), "prefer": tuple(prefer)}
        found = check_kernels(opened, **more)
    return Verification(
        tuple(checks), bundle.why, bundle.precision_note, bundle.on_gpu, found, bool(opened.manifest["targets"])
    )


def _without_sample(name: str, got: np.ndarray[Any, Any] | None) -> OutputCheck:
    import numpy as np

    return refused(name, np.empty(0) if got is None else got, "the samples lack this output, so nothing was compared")
