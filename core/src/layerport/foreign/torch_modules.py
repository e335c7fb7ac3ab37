"""Private modules of Torch by name, for code that must not import it, and for logging.  Imports nothing."""

from __future__ import annotations

# Reads the entry points of all distributions while it is imported.
DYNAMO = "torch._dynamo"
# Who writes half-made graphs to the log when an export fails.  A name that is gone quiets nobody.
EXPORT_LOGGERS = (
    "torch._subclasses.fake_tensor",
    "torch.fx.experimental.symbolic_shapes",
    "torch.export._trace",
    "torch._export.non_strict_utils",
)
# Who remarks on packages that an export does not need.
ONNX_LOGGER = "torch.onnx._internal.exporter._registration"
