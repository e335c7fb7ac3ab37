"""What is said of packs that fail, and of the layers that are missing for it.  For `packs` and `loading` only."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from layerport.errors import LayerportError, PackError
from layerport.packs.discovery import DISABLE_VARIABLE, PackInfo
from layerport.packs.loading import Pack
from layerport.packs.metadata import canonical
from layerport.packs.records import Candidate
from layerport.system.foreign_text import frames, reason


@dataclass(frozen=True)
class DroppedPack:
    """A pack that is left out of one build because its export hook failed, and the failure."""

    pack: Pack
    error: PackError

    @property
    def warning(self) -> str:
        """What a report says about it."""
        faults = f" ({'; '.join(self.error.faults)})" if self.error.faults else ""
        return f"{self.error.fault}{faults}; the pack claims no module in this build"

    def needed_by(self, layer: str, place: str) -> PackError:
        """The error where one of its layers is needed all the same."""
        error = PackError(
            f"layer {layer} is called at {place}, but its pack fails: {self.error.fault}",
            self.error.repair,
            faults=self.error.faults,
        )
        error.__cause__ = self.error
        return error


@dataclass(frozen=True)
class ModelClaims:
    """The candidates for a model by module path, in the model's order, and the packs that could not be asked."""

    found: Mapping[str, list[tuple[Pack, tuple[Candidate, ...]]]]
    dropped: tuple[DroppedPack, ...]


def missing_line(pack: Pack) -> str:
    """One line on a pack that is not loaded."""
    if pack.info.disabled:
        return f"pack {pack.info.label} is disabled by {DISABLE_VARIABLE}"
    return f"pack {pack.info.label} is not loaded: {pack.failure}"


def may_provide(info: PackInfo, identity: str) -> bool:
    """Whether a pack that cannot be asked has a layer: its code defined it, or it is called like the namespace."""
    operators = sys.modules.get("layerport.layers.operator")
    layer = operators.registered_layer(identity) if operators is not None else None
    if layer is not None and layer.reference.__module__.partition(".")[0] == info.package:
        return True
    names = (info.name, info.distribution or "", info.package)
    return canonical(identity.partition("::")[0]) in {canonical(name) for name in names}


@contextlib.contextmanager
def blamed(packs: Iterable[Pack]) -> Iterator[None]:
    """Raise PackError for what a pack's code raises within the block outside its hooks: a reference, a forward.

    So an exception that nobody expects there, such as SystemExit, comes out with the pack's name.  What did not pass
    through a pack's files comes out as it is, and so does KeyboardInterrupt.
    """
    try:
        yield
    except (LayerportError, KeyboardInterrupt):
        raise
    except BaseException as error:
        places = {place: pack for pack in packs for place in _places(pack)}
        for frame, line in reversed(frames(error)):
            file = frame.f_code.co_filename
            for place, pack in places.items():
                if file == place or file.startswith(place + os.sep):
                    raise PackError(
                        f"pack {pack.info.label}: {frame.f_code.co_name} ({file}:{line}) raised {reason(error)}",
                        f"report it to the pack's author, or block the pack with {DISABLE_VARIABLE}={pack.info.name}",
                    ) from error
        raise


def _places(pack: Pack) -> list[str]:
    """The files and folders of a pack's code."""
    if pack.info.distribution is None:
        return [pack.info.entry_point_value]
    module = sys.modules.get(pack.info.package)
    folders = [str(place) for place in getattr(module, "__path__", ())]
    file = getattr(module, "__file__", None)
    return folders or ([str(Path(file))] if file else [])
