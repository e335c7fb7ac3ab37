"""What a bundle's files are called, and the format of its manifest.  Imports nothing."""

from __future__ import annotations

import re

FORMAT = 1
MANIFEST = "manifest.json"
MODEL = "model.onnx"
MODEL_DATA = "model.onnx.data"
PLUGINS = "plugins.safetensors"
SAMPLES = "samples.safetensors"
MANIFEST_LIMIT = 64 << 20
# Every file that a build writes, beside the manifest: whatever else lies in the folder is somebody's own.
BUNDLE_FILE = re.compile(
    r"model\.onnx(\.data)?|(plugins|samples)\.safetensors|report\.html|[A-Za-z0-9][A-Za-z0-9_+.-]{0,200}\.plan"
)
