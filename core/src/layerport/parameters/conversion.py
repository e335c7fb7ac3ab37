"""The one table of framework types: each is converted to the standard form here, and back.

The front half, `layer.bind` and packs with types of their own use it.  A rule's body lives in the adapter of
its library and is imported when a value of that library shows up, never to look whether one did.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np

from layerport.dtypes import DType
from layerport.errors import LayerportError, PackError, UsageError
from layerport.foreign.onnx_ir_private import TENSOR_BASE
from layerport.parameters.arrays import Array, standard_dtype_name, standard_fault
from layerport.parameters.steps import Converted, Hop, Step, full_name
from layerport.parameters.transforms import cast

CORE = "layerport"
_MOST_HOPS = 8

Key: TypeAlias = type | str | Callable[[Any], bool]
"""What a rule is for: a type, its "module.QualName" (so as not to import it), or a predicate on values."""


@dataclass(frozen=True)
class _Rule:
    function: Callable[..., Any] | str
    by: str

    @cached_property
    def loaded(self) -> Callable[..., Any]:
        if callable(self.function):
            return self.function
        module, _, name = self.function.partition(":")
        loaded: Callable[..., Any] = getattr(importlib.import_module(module), name)
        return loaded


class ConversionTable:
    """Rules, found by exact type, then by subclass (nearest first), then by predicate (the core's last)."""

    def __init__(self) -> None:
        self._rules: dict[type | str, _Rule] = {}
        self._predicates: list[tuple[Callable[[Any], bool], _Rule]] = []
        self._found: dict[type, _Rule] = {}

    def register(self, key: Key, rule: Callable[..., Any] | str, *, by: str) -> None:
        """Add a rule.  Raises UsageError where the same type has one already."""
        self._found.clear()
        if not isinstance(key, (type, str)):
            self._predicates.append((key, _Rule(rule, by)))
            return
        name = full_name(key) if isinstance(key, type) else key
        known = self.for_name(name)
        if known is not None:
            raise UsageError(
                f"two conversion rules for {name}: one by {known.by}, one by {by}",
                f"remove one of the two packs, or let {by} convert a type of its own",
            )
        self._rules[key] = _Rule(rule, by)

    def for_type(self, kind: type) -> _Rule | None:
        """The rule for a type or its nearest base."""
        rule = self._found.get(kind)
        if rule is None:
            for base in kind.__mro__:
                rule = self._rules.get(base) or self._rules.get(full_name(base))
                if rule is not None:
                    self._found[kind] = rule
                    break
        return rule

    def for_name(self, name: str) -> _Rule | None:
        """The rule for the type of this full name, registered by it or by the type; None where there is none."""
        rule = self._rules.get(name)
        if rule is None:
            named = (rule for key, rule in self._rules.items() if isinstance(key, type) and full_name(key) == name)
            rule = next(named, None)
        return rule

    def find(self, value: Any) -> _Rule | None:
        """The rule for a value; two predicates of packs that both say yes are an error, never a guess."""
        rule = self._found.get(type(value)) or self.for_type(type(value))
        if rule is not None:
            return rule
        matches = [rule for predicate, rule in self._predicates if self._ask(predicate, rule, value)]
        of_packs = [rule for rule in matches if rule.by != CORE]
        if len(of_packs) > 1:
            raise UsageError(
                f"{full_name(type(value))} is claimed by the conversion rules of "
                f"{', '.join(rule.by for rule in of_packs)}",
                "register a rule for the exact type, or block one pack with LAYERPORT_DISABLE_PACKS",
            )
        return next(iter(of_packs or matches), None)

    def _ask(self, predicate: Callable[[Any], bool], rule: _Rule, value: Any) -> bool:
        try:
            return bool(predicate(value))
        except Exception as error:
            raise PackError(
                f"the predicate of a conversion rule by {rule.by} raised {type(error).__name__}: {error}",
                f"let it answer False for {full_name(type(value))}",
            ) from error


_ROOM = "layerport.parameters"
_TO_STANDARD = {
    "numpy.ndarray": "frameworks.numpy:from_array",
    "numpy.generic": "frameworks.numpy:from_scalar",
    "bool": "frameworks.python:from_python",
    "int": "frameworks.python:from_python",
    "float": "frameworks.python:from_python",
    "list": "frameworks.python:from_python",
    "tuple": "frameworks.python:from_python",
    "range": "frameworks.python:from_python",
    "torch.Tensor": "frameworks.torch:from_tensor",
    "onnx.onnx_ml_pb2.TensorProto": "frameworks.onnx:from_proto",
    "onnx_ir.TensorProtocol": "frameworks.onnx:from_ir",
    TENSOR_BASE: "frameworks.onnx:from_ir",
    "layerport.engine.device_arrays.DeviceArray": "frameworks.dlpack:from_device_array",
    "PySafeSlice": "safetensors:from_slice",
}
_FROM_STANDARD = {
    "numpy.ndarray": "frameworks.numpy:to_array",
    "torch.Tensor": "frameworks.torch:to_tensor",
    "torch.nn.parameter.Parameter": "frameworks.torch:to_parameter",
    "onnx.onnx_ml_pb2.TensorProto": "frameworks.onnx:to_proto",
    "onnx_ir.Tensor": "frameworks.onnx:to_ir",
    "tensorrt.Weights": "frameworks.tensorrt:to_weights",
    "tensorrt.PluginField": "frameworks.tensorrt:to_field",
}
_SHORT = {
    "numpy": "numpy.ndarray",
    "torch": "torch.Tensor",
    "torch.nn.Parameter": "torch.nn.parameter.Parameter",
    "onnx": "onnx.onnx_ml_pb2.TensorProto",
    "onnx.TensorProto": "onnx.onnx_ml_pb2.TensorProto",
    "onnx_ir": "onnx_ir.Tensor",
    "tensorrt": "tensorrt.Weights",
}


def _is_tensorrt(name: str) -> Callable[[Any], bool]:
    # Each flavour has a package of its own, and all of them begin so.
    return lambda value: type(value).__qualname__ == name and type(value).__module__.startswith("tensorrt")


def core_tables() -> tuple[ConversionTable, ConversionTable]:
    """Fresh tables with the core's rules: framework type to standard form, and back."""
    forward, back = ConversionTable(), ConversionTable()
    for key, rule in _TO_STANDARD.items():
        forward.register(key, f"{_ROOM}.{rule}", by=CORE)
    forward.register(_is_tensorrt("Weights"), f"{_ROOM}.frameworks.tensorrt:from_weights", by=CORE)
    forward.register(_is_tensorrt("PluginField"), f"{_ROOM}.frameworks.tensorrt:from_field", by=CORE)
    forward.register(
        lambda value: hasattr(type(value), "__dlpack__"), f"{_ROOM}.frameworks.dlpack:from_dlpack", by=CORE
    )
    for key, rule in _FROM_STANDARD.items():
        back.register(key, f"{_ROOM}.{rule}", by=CORE)
    return forward, back


_forward, _back = core_tables()


def register(key: Key, rule: Callable[[Any], Any], *, by: str) -> None:
    """Add a rule from a type of a pack's own to the standard form.

    rule: a plain function of the value that answers with a NumPy array, or with any value that has a rule
    itself (a Torch tensor, say), or with a `Hop` that also says what was done.  by: the name of the pack.
    """
    _forward.register(key, rule, by=by)


def register_back(key: type | str, rule: Callable[..., Any], *, by: str) -> None:
    """Add a rule from the standard form to a type: called as `rule(array, name, target_type_or_None)`."""
    _back.register(key, rule, by=by)


def to_standard(value: Any, *, path: str = "", dtype: DType | None = None) -> Converted:
    """Any framework's tensor, array or number in the standard form; zero copy where it fits already.

    path: where the value stands in the model, for errors and steps.  dtype: cast to it (see
    `transforms.cast`).
    Python numbers become bool, int64 or float32, as in Torch.
    Raises UsageError for a value that cannot be converted, PackError where a pack's rule is at fault.
    """
    steps: list[Step] = []
    current = value
    try:
        for _ in range(_MOST_HOPS):
            name = full_name(type(current))
            rule = _forward.find(current)
            if rule is None:
                raise _no_rule(name, "register")
            answer = _apply(rule, name, current)
            current, action = answer if isinstance(answer, Hop) else Hop(answer, "convert")
            if not isinstance(current, np.ndarray):
                steps.append(Step(name, "", (), 0, action, rule.by, path))
                continue
            dtype_name = standard_dtype_name(current)
            steps.append(
                Step(name, dtype_name or current.dtype.name, current.shape, current.nbytes, action, rule.by, path)
            )
            if dtype_name is not None:
                break
        else:
            raise PackError(
                f"{full_name(type(value))} is still no array after {_MOST_HOPS} conversion rules",
                "the rules hand the value round in a circle: let one of them answer with a NumPy array",
            )
        if dtype is not None and current.dtype != dtype.to_numpy():
            current = cast(current, dtype)
            steps.append(Step("numpy.ndarray", dtype.value, current.shape, current.nbytes, "cast", CORE, path))
    except LayerportError as error:
        if path and not error.fault.startswith(f"{path}: "):
            raise type(error)(f"{path}: {error.fault}", error.repair, faults=error.faults) from error
        raise
    return Converted(current, tuple(steps))


def from_standard(array: Array, target: type | str, *, name: str = "") -> Any:
    """An array in the standard form as a value of a framework; zero copy where that can share memory.

    target: a type, or "numpy", "torch", "torch.nn.Parameter", "onnx" (TensorProto), "onnx_ir", "tensorrt"
    (Weights), "tensorrt.PluginField", or the full name of a type.  name: the name that tensors of ONNX and
    plugin fields carry.
    A read-only array is copied for Torch, whose tensors are always writable.
    Raises UsageError for a dtype that the framework does not have, or a target without a rule.
    """
    if standard_dtype_name(array) is None:
        fault = standard_fault(array)
        raise UsageError(f"{name or 'the array'}: {fault}", "bring it to the standard form with to_standard first")
    kind = target if isinstance(target, type) else None
    if kind is None:
        label = _SHORT.get(str(target), str(target))
        rule = _back.for_name(label)
    else:
        label = full_name(kind)
        if kind.__module__.startswith("tensorrt"):
            rule = _back.for_name(f"tensorrt.{kind.__qualname__}")
        else:
            rule = _back.for_type(kind)
    if rule is None:
        raise _no_rule(label, "register_back")
    return _apply(rule, label, array, name, kind)


def _apply(rule: _Rule, label: str, *arguments: Any) -> Any:
    try:
        return rule.loaded(*arguments)
    except LayerportError:
        raise
    except Exception as error:
        if rule.by == CORE:
            raise UsageError(
                f"{label} cannot be converted ({type(error).__name__}: {error})",
                "turn it into a plain, dense tensor on the CPU first",
            ) from error
        raise PackError(
            f"the conversion rule for {label} by {rule.by} raised {type(error).__name__}: {error}",
            f"report it to the authors of {rule.by}",
        ) from error


def _no_rule(label: str, function: str) -> UsageError:
    if "." not in label and function == "register":
        return UsageError(f"no array can be made of a {label}", "give a tensor, an array, or numbers")
    return UsageError(
        f"no conversion rule for {label}",
        f"register one with layerport.conversion.{function}({label!r}, rule, by='your pack')",
    )
