"""Bundles of a few bytes, for tests of what happens to a bundle as a folder of files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from layerport.bundle import bundle as bundles


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
    from layerport.dtypes import DType
    from layerport.parameters.frameworks.onnx_dtypes import from_dtype
    from layerport.parameters.standard_form import Parameters

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


def external(name: str, *, dims: tuple[int, ...] = (4,), kind: int = TensorProto.FLOAT, **entries: str) -> TensorProto:
    """A tensor that keeps its data elsewhere: the entries say where."""
    tensor = TensorProto(name=name, dims=dims, data_type=kind, data_location=TensorProto.EXTERNAL)
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def place(where: str, tensor: TensorProto) -> onnx.ModelProto:
    """A model with a tensor at some place of it, which hands `x` (three numbers) to `y`."""
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [3]) for name in ("x", "y")]
    inner = helper.make_graph([], "inner", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3])])
    nodes, functions, initializers = [], [], []
    sparse = onnx.SparseTensorProto(dims=[4])
    if where == "initializer":
        initializers.append(tensor)
    elif where == "attribute":
        nodes.append(helper.make_node("Constant", [], ["c"], value=tensor))
    elif where == "attribute list":
        node = helper.make_node("Other", [], ["c"], domain="d")
        node.attribute.add(name="all", type=onnx.AttributeProto.TENSORS).tensors.append(tensor)
        nodes.append(node)
    elif where.startswith("subgraph"):
        inner.initializer.append(tensor)
        node = helper.make_node("If", ["x"], ["c"], then_branch=inner)
        if where == "subgraph in a subgraph":
            outer = helper.make_graph([node], "outer", [], [])
            node = helper.make_node("If", ["x"], ["c"], else_branch=outer)
        nodes.append(node)
    elif where == "function":
        body = [helper.make_node("Constant", [], ["c"], value=tensor)]
        functions.append(helper.make_function("d", "F", [], ["c"], body, [helper.make_opsetid("", 20)]))
    elif where == "sparse values":
        sparse.values.CopyFrom(tensor)
    elif where == "sparse indices":
        sparse.indices.CopyFrom(tensor)
    nodes.append(helper.make_node("Identity", ["x"], ["y"]))
    if where == "sparse attribute":
        sparse.values.CopyFrom(tensor)
        node = helper.make_node("Constant", [], ["s"])
        node.attribute.add(name="sparse_value", type=onnx.AttributeProto.SPARSE_TENSOR).sparse_tensor.CopyFrom(sparse)
        nodes.append(node)
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], initializers)
    if where in ("sparse values", "sparse indices"):
        graph.sparse_initializer.append(sparse)
    model = helper.make_model(graph, functions=functions, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    if where == "training":
        model.training_info.add().algorithm.initializer.append(tensor)
    return model
