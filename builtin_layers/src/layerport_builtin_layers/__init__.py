"""The layers that come with layerport, as a pack like any other; the core never imports it."""

from __future__ import annotations

__version__ = "0.1.0"
