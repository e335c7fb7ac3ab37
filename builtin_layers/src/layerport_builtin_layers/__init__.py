"""The layers that come with layerport, as a pack like any other; the core never imports it.

`INCLUDE` is the folder of `layerport_kernels.h`, for `lp.cuda(..., include=(INCLUDE,))` in any pack.
"""

from __future__ import annotations

from pathlib import Path

__version__ = "0.1.0"
INCLUDE = str(Path(__file__).with_name("include"))
