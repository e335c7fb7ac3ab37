"""What an engine is built for, and the GPU on which Torch runs a kernel.  Anyone may import it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from layerport.errors import UsageError

RTX_ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_120", "sm_121")
FLAVOURS = ("rtx", "tensorrt", "portable")
_ARCHITECTURE = re.compile(r"sm_\d{2,3}")


@dataclass(frozen=True)
class Target:
    """A flavour (`rtx`, `tensorrt`, `portable`) and the GPU architectures an engine is for, in ascending order."""

    flavour: str
    architectures: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.flavour not in FLAVOURS:
            raise UsageError(
                f"target flavour {self.flavour!r} is not known",
                f"use one of {', '.join(FLAVOURS)}, for example rtx:sm_89,sm_120",
            )
        if self.flavour == "portable" and self.architectures:
            raise UsageError(
                f"target portable takes no architectures, got {','.join(self.architectures)}",
                "write --target portable, or --target rtx:" + ",".join(self.architectures),
            )
        faults = [
            f"{name!r} is not a GPU architecture" for name in self.architectures if not _ARCHITECTURE.fullmatch(name)
        ]
        if self.flavour == "rtx":
            faults += [
                f"{name} is not built by TensorRT for RTX"
                for name in self.architectures
                if _ARCHITECTURE.fullmatch(name) and name not in RTX_ARCHITECTURES
            ]
        if len(set(self.architectures)) < len(self.architectures):
            faults.append("an architecture is named twice")
        if self.flavour == "rtx" and not self.architectures:
            faults.append("no architecture is named")
        if faults:
            raise UsageError(
                f"target {self.flavour}:{','.join(self.architectures)} cannot be built",
                f"choose from {', '.join(RTX_ARCHITECTURES)}" if self.flavour == "rtx" else "write them like sm_89",
                faults=faults,
            )
        object.__setattr__(self, "architectures", tuple(sorted(self.architectures, key=lambda name: int(name[3:]))))

    @classmethod
    def parse(cls, text: str) -> Target:
        """The target of an engine from its text, `flavour[:sm_NN,sm_NN]`.  Raises UsageError."""
        flavour, _, rest = text.partition(":")
        return cls(flavour.strip(), tuple(name.strip() for name in rest.split(",") if name.strip()))

    def __str__(self) -> str:
        return f"{self.flavour}:{','.join(self.architectures)}" if self.architectures else self.flavour

    @property
    def measures(self) -> bool:
        """Whether a build measures kernels and takes the fastest; one without a GPU takes the first that fits."""
        return self.flavour == "tensorrt"

    @property
    def plan_name(self) -> str:
        """The file name of the engine in a bundle."""
        return f"{self.flavour}-{'+'.join(self.architectures) or 'native'}.plan"


@dataclass(frozen=True)
class TorchTarget:
    """A GPU on which the Torch operator runs a layer's kernel.  No engine is built for it.

    It stands where a `Target` does when a pack converts parameters; its flavour is "torch".
    """

    architecture: str

    @property
    def flavour(self) -> str:
        """What tells it from a `Target`, none of which has this flavour."""
        return "torch"

    @property
    def architectures(self) -> tuple[str, ...]:
        """The one architecture."""
        return (self.architecture,)

    def __str__(self) -> str:
        return f"torch:{self.architecture}"
