"""Keeps a damaged distribution from stopping `import torch`, or says that it does.

Torch (2.5 and later) and Triton read the entry points of every installed distribution while they are imported, to find
backends, and fail or wait for ever where the file of one of them is damaged.  Imports nothing of theirs.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, MutableMapping

from layerport.errors import LayerportError, PackError
from layerport.foreign.torch_modules import DYNAMO
from layerport.packs.discovery import PackInfo, discover
from layerport.system.foreign_text import reason

SWITCH = "TORCH_DEVICE_BACKEND_AUTOLOAD"
_WAITS = ("it is no plain file", "it has ")


def spare_torch(infos: Iterable[PackInfo], environ: MutableMapping[str, str]) -> None:
    """Switch Torch's own search off where a pack's entry points cannot be read; the user's setting stays.

    environ: of the process that is about to import Torch.  Triton's search has no switch.
    """
    if _damaged(infos):
        environ.setdefault(SWITCH, "0")


@contextlib.contextmanager
def importing_torch() -> Iterator[None]:
    """Import Torch within the block; raises PackError where a pack's damaged metadata makes that fail, or wait."""
    damaged = [] if DYNAMO in sys.modules else _damaged(discover())
    if not damaged:
        yield
        return
    spare_torch(damaged, os.environ)
    if any(text in str(info.fault) for info in damaged for text in _WAITS):
        raise _in_the_way(damaged, "would wait for ever")
    try:
        yield
    except LayerportError:
        raise
    except Exception as error:
        raise _in_the_way(damaged, f"fails with {reason(error)}") from error


def _damaged(infos: Iterable[PackInfo]) -> list[PackInfo]:
    return [info for info in infos if info.fault and "its entry_points.txt" in info.fault]


def _in_the_way(damaged: list[PackInfo], what: str) -> PackError:
    return PackError(
        f"importing Torch {what}, because it reads the entry points of every installed distribution",
        "repair or uninstall these packs",
        faults=[f"pack {info.label}: {info.fault}" for info in damaged],
    )
