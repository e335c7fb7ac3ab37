"""Where a parameter of a layer came from.  Noted when a pack binds it, kept to the manifest.  Imports no framework."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from layerport.system.records import Record

if TYPE_CHECKING:
    from layerport.parameters.steps import Step


@dataclass(frozen=True)
class Origin(Record):
    """Where a parameter of a layer came from.

    name: the layer's word for it.  dtype, shape: in the standard form.
    sources: the model's parameters and buffers that it is made of; none where it is made of no tensor of the model.
    tied: further names that the model has for these.
    steps: what was done on the way, in order: by the pack, to the standard form, and for a plugin's kernel.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    sources: tuple[str, ...] = ()
    tied: tuple[str, ...] = ()
    steps: tuple[Step, ...] = ()
