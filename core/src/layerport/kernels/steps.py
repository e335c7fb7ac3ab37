"""The launches of one kernel, one after the other, prepared as one: of an engine's plugin and of the Torch operator.

Imports nothing foreign; the launchers come from the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from layerport.errors import UsageError
from layerport.kernels.workspace import WORKSPACE, Scratch, lay_out

Launch = Callable[[Mapping[str, int], int], None]


class Steps:
    """The launchers of a kernel, in order, with the scratch memory that they share."""

    def __init__(self, launchers: Sequence[Any], scratch: Sequence[Scratch] = ()) -> None:
        self.launchers = tuple(launchers)
        self._scratch = tuple(scratch)

    @property
    def alignments(self) -> dict[str, int]:
        """For each tensor whose address must be a multiple of more than one byte, of how many."""
        made: dict[str, int] = {}
        for launcher in self.launchers:
            for name, bytes_ in launcher.rule.alignments.items():
                made[name] = max(bytes_, made.get(name, 1))
        return made

    def prepare(self, sizes: Mapping[str, int]) -> tuple[Launch, int]:
        """What launches for these sizes, and the bytes of workspace that it needs, at a multiple of 256.

        It is called with the device addresses by tensor name, that of the workspace as WORKSPACE, and the stream.
        Raises UsageError where sizes break a limit.
        """
        launches = tuple(launcher.prepare(sizes).launch for launcher in self.launchers)
        offsets, nbytes = lay_out(self._scratch, sizes)
        if len(launches) == 1 and not offsets:
            return launches[0], 0

        def launch(pointers: Mapping[str, int], stream: int) -> None:
            if offsets:
                start = pointers[WORKSPACE] if nbytes else 0  # sizes may be such that no launch has any memory
                if nbytes and not start:
                    raise UsageError("a kernel needs a workspace, and there is none", "build the bundle again")
                pointers = {**pointers, **{name: start + offset for name, offset in offsets.items()}}
            for one in launches:
                one(pointers, stream)

        return launch, nbytes
