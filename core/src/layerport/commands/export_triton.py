"""A model in a repository of Triton Inference Server: its `config.pbtxt`, and the place of its next version."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from layerport.dtypes import DType
from layerport.errors import UsageError
from layerport.sizes.tensors import TensorType

REPOSITORY, CONFIG = "models", "config.pbtxt"
_TYPES = {
    DType.FLOAT32: "TYPE_FP32",
    DType.FLOAT16: "TYPE_FP16",
    DType.BFLOAT16: "TYPE_BF16",
    DType.INT64: "TYPE_INT64",
    DType.INT32: "TYPE_INT32",
    DType.INT8: "TYPE_INT8",
    DType.UINT8: "TYPE_UINT8",
    DType.BOOL: "TYPE_BOOL",
}


def type_faults(ports: Sequence[TensorType]) -> list[str]:
    """The inputs and outputs of types that Triton does not have."""
    return [f"{one.name} is {one.dtype}, which Triton does not have" for one in ports if one.dtype not in _TYPES]


def config_text(name: str, inputs: Sequence[TensorType], outputs: Sequence[TensorType]) -> str:
    """The model's `config.pbtxt`: all versions are served, by the plan's one optimization profile."""
    lines = [
        f"name: {_quoted(name)}",
        'platform: "tensorrt_plan"',
        # The dims below are whole shapes: which of them is a batch, the model does not say.
        "max_batch_size: 0",
    ]
    for kind, ports in (("input", inputs), ("output", outputs)):
        entries = ",\n".join(_port(one) for one in ports)
        lines.append(f"{kind} [\n{entries}\n]")
    lines += [
        'instance_group [\n  {\n    kind: KIND_GPU\n    count: 1\n    profile: [ "0" ]\n  }\n]',
        "version_policy: { all: { } }",
    ]
    return "\n".join(lines) + "\n"


def _port(port: TensorType) -> str:
    sizes = [str(size) if isinstance(size, int) else "-1" for size in port.shape]
    lines = [
        f"name: {_quoted(port.name)}",
        f"data_type: {_TYPES[port.dtype]}",
        f"dims: [ {', '.join(sizes or ['1'])} ]",
    ]
    if not sizes:  # Triton has no tensor without dims
        lines.append("reshape: { shape: [ ] }")
    return "  {\n" + "\n".join(f"    {line}" for line in lines) + "\n  }"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def next_version(folder: Path, name: str, config: str) -> int:
    """The number of the version that a model gets in an export that may be there already.

    Raises UsageError where something else is there, or the model with other inputs or outputs.
    """
    if not os.path.lexists(folder):
        return 1
    if folder.is_symlink() or not (folder / REPOSITORY).is_dir():
        raise UsageError(
            f"{folder} is there already, kept: it has no {REPOSITORY}/ of an earlier export for Triton",
            "choose another folder with -o",
        )
    model = folder / REPOSITORY / name
    if not os.path.lexists(model):
        return 1
    try:
        found = (model / CONFIG).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{model / CONFIG} cannot be read: {error}", "choose another folder with -o") from error
    if found != config:
        old, new = found.splitlines(), config.splitlines()
        faults = [f"there: {line.strip()}" for line in old if line not in new]
        faults += [f"now: {line.strip()}" for line in new if line not in old]
        raise UsageError(
            f"{model} is a model with another {CONFIG}; versions of one model have the same inputs and outputs",
            "choose another folder with -o, or rename the bundle",
            faults=faults[:20],
        )
    # Triton passes over what is no number, and over one that begins with 0.
    return 1 + max((int(one.name) for one in model.iterdir() if one.name.isdecimal()), default=0)
