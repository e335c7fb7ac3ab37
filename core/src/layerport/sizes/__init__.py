"""Sizes as whole-number expressions: evaluated, printed, parsed, proven."""

from typing import TYPE_CHECKING

from layerport.late import parts

if TYPE_CHECKING:
    from layerport.sizes import text as text

__getattr__ = parts(__name__)
