"""The folder that a build writes, and a layer compiled for targets as data."""

from typing import TYPE_CHECKING

from layerport.late import parts

if TYPE_CHECKING:
    from layerport.bundle import external_data as external_data

__getattr__ = parts(__name__)
