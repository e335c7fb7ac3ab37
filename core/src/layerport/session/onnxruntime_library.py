"""ONNX Runtime itself, without its telemetry.  Whoever needs it takes it from here.

From 1.29 it makes an identifier of this user and a data base under the user's cache folder when it is imported, and
would send to its maker what is run.  A user who has set the variable, or imported it before, has decided.
"""

from __future__ import annotations

import os
import sys

_SWITCH = "ORT_DISABLE_TELEMETRY"

_ours = _SWITCH not in os.environ and "onnxruntime" not in sys.modules
if _ours:
    os.environ[_SWITCH] = "1"
try:
    import onnxruntime
finally:
    # It has been read by now, and the environment is the user's.
    if _ours:
        del os.environ[_SWITCH]

__all__ = ["onnxruntime"]
