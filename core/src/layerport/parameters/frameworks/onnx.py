"""Conversion rules for ONNX: `TensorProto`, and the tensors of onnx-ir."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from layerport.dtypes import DType
from layerport.errors import UsageError
from layerport.parameters import transforms
from layerport.parameters.arrays import Array
from layerport.parameters.frameworks.onnx_dtypes import from_dtype, to_dtype
from layerport.parameters.steps import Hop


def from_proto(proto: TensorProto) -> Hop:
    """A copy: protobuf hands its bytes out as a copy anyway."""
    if proto.data_location == TensorProto.EXTERNAL:
        where = next((entry.value for entry in proto.external_data if entry.key == "location"), "another file")
        raise UsageError(
            f"tensor {proto.name!r} keeps its data in {where!r}, which is not loaded",
            "load it first: onnx.load(path), or onnx.external_data_helper.load_external_data_for_model",
        )
    if proto.HasField("segment"):
        raise UsageError(f"tensor {proto.name!r} is one segment of a larger one", "join the segments first")
    dtype = to_dtype(proto.data_type)
    if any(dim < 0 for dim in proto.dims):
        raise UsageError(f"tensor {proto.name!r} has dims {list(proto.dims)}", "write the model again")
    if proto.HasField("raw_data"):
        wanted = (math.prod(proto.dims) * dtype.bits + 7) // 8
        if len(proto.raw_data) != wanted:
            raise UsageError(
                f"tensor {proto.name!r}: {len(proto.raw_data)} bytes for {dtype}{list(proto.dims)}, "
                f"which takes {wanted}",
                "write the model again",
            )
    try:
        return Hop(numpy_helper.to_array(proto), "copy")
    except ValueError as error:
        raise UsageError(f"tensor {proto.name!r} is not sound ({error})", "write the model again") from error


def from_ir(tensor: Any) -> Hop:
    """onnx-ir's own array, without a copy where it holds one."""
    to_dtype(int(tensor.dtype))
    if type(tensor).__name__ == "ExternalTensor" and tensor.raw is None:
        raise UsageError(
            f"tensor {tensor.name!r} keeps its data in {str(tensor.location)!r}, which is not loaded",
            "load it first: onnx_ir.external_data.load_to_model(model)",
        )
    raw = getattr(tensor, "raw", None)
    array = tensor.numpy()
    same = isinstance(raw, np.ndarray) and np.shares_memory(raw, array)
    return Hop(array, "view" if same or array.size == 0 else "convert")


def to_proto(array: Array, name: str, target: type | None) -> TensorProto:
    """A TensorProto with raw data (a copy: protobuf owns its bytes)."""
    dtype = DType.from_numpy(array.dtype)
    proto = onnx.TensorProto(name=name, dims=array.shape, data_type=from_dtype(dtype))
    proto.raw_data = (_packed(array) if dtype.bits == 4 else array).tobytes()
    return proto


def to_ir(array: Array, name: str, target: type | None) -> Any:
    """An onnx-ir tensor on the array's own memory."""
    import onnx_ir

    dtype = onnx_ir.DataType(from_dtype(DType.from_numpy(array.dtype)))
    return onnx_ir.Tensor(array, dtype=dtype, name=name or None)


def _packed(array: Array) -> Array:
    """ONNX packs across rows, and fills the last byte up with zero."""
    flat = array.reshape(-1)
    return transforms.pack_int4(np.concatenate([flat, np.zeros(flat.size % 2, flat.dtype)]))
