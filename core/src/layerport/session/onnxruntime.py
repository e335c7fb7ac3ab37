"""ONNX Runtime: open a portable model on the CPU and run it on NumPy arrays, bfloat16 and fp8 included."""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import layerport.parameters.frameworks
import layerport.session
from layerport.dtypes import DType
from layerport.errors import BuildError, UsageError
from layerport.session.onnxruntime_library import onnxruntime
from layerport.sizes.tensors import TensorType
from layerport.system.plain_files import mentions

_SIMPLE = frozenset(
    ["float32", "float64", "float16", "bool"]
    + [f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)]
)


_ORT_NAMES = {
    "float32": "float",
    "float64": "double",
    "float8_e4m3fn": "float8e4m3fn",
    "float8_e5m2": "float8e5m2",
}


def open_session(model: Path, *, exact: bool = False) -> tuple[Any, str | None]:
    """An inference session for a model file, and what its precision does not show (None where it is the model's own).

    exact: without ONNX Runtime's optimisations where the model is quantised: they quantise more than the model says.
    Raises BuildError where ONNX Runtime does not take the model.
    """
    plain = exact and _is_quantised(model)
    try:
        return _open(model, plain), None
    except Exception as error:
        twin = open_twin(model, exact=exact)
        if twin is None:
            raise _refusal(model, error) from error
        return twin


def open_twin(model: Path, *, exact: bool = False) -> tuple[Any, str] | None:
    """A session of the float32 twin of a bfloat16 model, and what it does not show; None where there is none."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            twin = layerport.session.onnx_widening.write_widened(model, Path(folder))
            session = _open(twin, exact and _is_quantised(model)) if twin is not None else None
        except Exception:  # the fault of the model itself is what the caller reports
            return None
    note = "ONNX Runtime has no bfloat16 arithmetic for this model on the CPU: a float32 twin ran instead"
    return None if session is None else (session, note)


def _is_quantised(model: Path) -> bool:
    # The name of an operator stands in the file as it is; whoever finds it elsewhere only loses speed.
    with model.open("rb") as file:
        return mentions(file, b"QuantizeLinear") or mentions(file, b"DequantizeLinear")


def port_faults(session: Any, inputs: Sequence[TensorType], outputs: Sequence[TensorType]) -> list[str]:
    """What an open model takes and gives otherwise than these ports say.

    An output of another type would be read as what it is not; float32 for bfloat16 is what a float32 twin gives.
    """
    try:
        return _port_faults(session, inputs, outputs)
    except UnicodeDecodeError as error:  # ONNX Runtime hands names out as they stand in the file
        return [f"the model has a name or dim {error.object[:40]!r}, which is no UTF-8 text"]


def _port_faults(session: Any, inputs: Sequence[TensorType], outputs: Sequence[TensorType]) -> list[str]:
    faults = []
    for kind, found, stated in (("input", session.get_inputs(), inputs), ("output", session.get_outputs(), outputs)):
        ports = {port.name: port for port in stated}
        names = [one.name for one in found]
        faults += [f"the model has no {kind} {name}" for name in ports if kind == "output" and name not in names]
        faults += [f"the model has the {kind} {name} twice" for name in {one for one in names if names.count(one) > 1}]
        for one in found:
            port = ports.get(one.name)
            if port is None:
                faults.append(f"the model has the {kind} {one.name}, which the manifest does not list")
                continue
            wanted = f"tensor({_ORT_NAMES.get(port.dtype.value, port.dtype.value)})"
            if one.type != wanted and (wanted, one.type) != ("tensor(bfloat16)", "tensor(float)"):
                faults.append(f"{kind} {one.name} is {one.type} in the model, the manifest says {port.dtype}")
            elif len(one.shape) != port.ndim and one.shape:
                faults.append(f"{kind} {one.name} has {len(one.shape)} dims in the model, the manifest says {port}")
    return faults


def _open(model: Path, plain: bool) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what it would log, it also raises
    if plain:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return make_session(str(model), options)


def make_session(model: str | bytes, options: Any) -> Any:
    """A session on the CPU; ONNX Runtime would print what it raises, and try once more in the same way."""
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"], enable_fallback=0)


def first_line(error: Exception) -> str:
    """The first line of what a library raised; its type where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _refusal(model: Path, error: Exception) -> BuildError:
    return BuildError(
        f"ONNX Runtime cannot open {model.name}: {first_line(error)}",
        "update onnxruntime, or report the operator it names",
    )


def run_session(
    session: Any, inputs: Mapping[str, Any], outputs: Sequence[TensorType]
) -> dict[str, np.ndarray[Any, Any]]:
    """The outputs by name, in the dtype that the model states."""
    wanted = {one.name: one.type for one in session.get_inputs()}
    feed = {name: _value(array, wanted[name]) for name, array in inputs.items() if name in wanted}
    binding = session.io_binding()
    for name, value in feed.items():
        binding.bind_ortvalue_input(name, value)
    names = [one.name for one in session.get_outputs()]
    for name in names:
        binding.bind_output(name)
    try:
        session.run_with_iobinding(binding)
    except Exception as error:
        raise UsageError(
            f"ONNX Runtime fails on these inputs: {first_line(error)}",
            "look at the values: an index may be out of its range",
        ) from error
    stated = {port.name: port.dtype for port in outputs}
    return {name: _array(value, stated[name]) for name, value in zip(names, binding.get_outputs(), strict=True)}


def _value(array: np.ndarray[Any, Any], wanted: str) -> Any:
    if array.dtype.name == "bfloat16" and wanted == "tensor(float)":
        array = array.astype(np.float32)
    if array.dtype.name in _SIMPLE:
        return onnxruntime.OrtValue.ortvalue_from_numpy(np.asarray(array, order="C"))

    number = int(layerport.parameters.frameworks.onnx_dtypes.from_dtype(DType(array.dtype.name)))
    raw = np.asarray(array, order="C").view(np.uint16 if array.dtype.itemsize == 2 else np.uint8)
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(raw, number)


def _array(value: Any, dtype: DType) -> np.ndarray[Any, Any]:
    target = dtype.to_numpy()
    if dtype.value in _SIMPLE or value.data_type() == "tensor(float)":
        array: np.ndarray[Any, Any] = value.numpy()
        return array if array.dtype == target else array.astype(target)
    # ONNX Runtime's numpy() knows NumPy's own dtypes only, so the bytes are copied out.
    shape = tuple(value.shape())
    count = int(np.prod(shape, dtype=np.int64))
    if count == 0:
        return np.empty(shape, target)
    raw = (ctypes.c_char * (count * target.itemsize)).from_address(value.data_ptr())
    return np.frombuffer(bytearray(raw), dtype=target).reshape(shape)
