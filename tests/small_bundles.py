"""Bundles of a few bytes, for tests of what happens to a bundle as a folder of files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from layerport import bundle as bundles


def write_small(folder: Path, text: str, *, more: tuple[str, ...] = (), **content: Any) -> Path:
    """A folder with a manifest that reads, and files that hold `text`; `content` goes into the manifest."""
    folder.mkdir(exist_ok=True)
    for name in (bundles.MODEL, bundles.PLUGINS, *more):
        (folder / name).write_text(text)
    files = {
        name: {"bytes": len(text), "sha256": bundles.digest(folder / name)}
        for name in (bundles.MODEL, bundles.PLUGINS, *more)
    }
    manifest = {
        "format": bundles.FORMAT,
        "layerport": "1.0",
        "inputs": [],
        "outputs": [],
        "dims": [],
        "layers": [],
        "claims": [],
        "samples": None,
        "targets": [],
        "tools": {},
        "files": files,
    }
    (folder / bundles.MANIFEST).write_text(json.dumps({**manifest, **content}))
    return folder


def identity_bundle(folder: Path, names: Sequence[str], *, dtype: str = "float32") -> Path:
    """A bundle whose model hands its input `x` (three numbers) to outputs of these names; samples are in it."""
    import numpy as np
    import onnx
    from onnx import helper

    from layerport.adapters.onnx_dtypes import from_dtype
    from layerport.dtypes import DType
    from layerport.parameters import Parameters

    folder.mkdir()
    kind = int(from_dtype(DType(dtype)))
    values = [helper.make_tensor_value_info(name, kind, [3]) for name in ("x", *names)]
    nodes = [helper.make_node("Identity", ["x"], [name]) for name in names]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, str(folder / bundles.MODEL))
    array = np.arange(3).astype(DType(dtype).to_numpy())
    samples = Parameters({"input.x": array} | {f"output.{name}": array for name in names})
    samples.save(folder / bundles.SAMPLES)
    ports = [{"name": name, "dtype": dtype, "dims": [3]} for name in ("x", *names)]
    write_small(folder, "", inputs=ports[:1], outputs=ports[1:], samples={"reference": "torch", "version": "1"})
    (folder / bundles.PLUGINS).unlink()
    model_bytes = model.SerializeToString()
    (folder / bundles.MODEL).write_bytes(model_bytes)
    return sign(folder)


def sign(folder: Path, **content: Any) -> Path:
    """Make the manifest list the files as they are now, as whoever forges a bundle would; `content` goes into it."""
    manifest = json.loads((folder / bundles.MANIFEST).read_text())
    manifest["files"] = {
        path.name: {"bytes": path.stat().st_size, "sha256": bundles.digest(path)}
        for path in sorted(folder.iterdir())
        if path.name != bundles.MANIFEST
    }
    (folder / bundles.MANIFEST).write_text(json.dumps({**manifest, **content}))
    return folder
