"""What NVRTC is asked for, and how its errors name it."""

from __future__ import annotations

import os
from dataclasses import dataclass

_DEFAULT_STANDARD = "--std=c++17"


@dataclass(frozen=True)
class CudaJob:
    """One cubin to make.

    text: the source.  name: of the file, without folders.  folder: where the file lies; quoted includes start
    there. include: more include folders, absolute.  entry: a name expression, such as "scaled_swish<float>".
    label: what to call it in errors.  time_limit: seconds.
    """

    text: str
    name: str
    folder: str
    entry: str
    architecture: str
    label: str
    options: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    time_limit: float = 120.0

    @property
    def compiler_options(self) -> tuple[str, ...]:
        """The options as NVRTC gets them, without the folders of the CUDA headers."""
        chosen = any(option.startswith(("--std", "-std")) for option in self.options)
        folders = (f"-I{os.path.relpath(path, self.folder)}" for path in (self.folder, *self.include))
        return (
            f"-arch={self.architecture}",
            *(() if chosen else (_DEFAULT_STANDARD,)),
            *self.options,
            *folders,
        )
