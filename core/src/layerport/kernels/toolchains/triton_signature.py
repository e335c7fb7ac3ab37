"""Which type each parameter of a Triton function gets from a launch rule, and what may be promised about its value.

Used by `compilation` only, between the traced rule and the compiler.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from layerport.dtypes import DType
from layerport.errors import PackError, UsageError
from layerport.kernels.launch_rules import Arg, LaunchRule, PointerArg, fits
from layerport.kernels.triton_source import Specialisation, TritonSource
from layerport.sizes.expressions import Const, Expr, Operation
from layerport.sizes.tensors import TensorType

_HINT = 16  # the one multiple that Triton makes use of
_TYPES = {
    DType.FLOAT64: "fp64",
    DType.FLOAT32: "fp32",
    DType.FLOAT16: "fp16",
    DType.BFLOAT16: "bf16",
    DType.FLOAT8_E4M3FN: "fp8e4nv",
    DType.FLOAT8_E5M2: "fp8e5",
    DType.INT64: "i64",
    DType.INT32: "i32",
    DType.INT16: "i16",
    DType.INT8: "i8",
    DType.UINT64: "u64",
    DType.UINT32: "u32",
    DType.UINT16: "u16",
    DType.UINT8: "u8",
    DType.BOOL: "u1",
}
_SCALARS = {"int": ("i32", "i64", "u32", "u64"), "float": ("fp32", "fp64"), "bool": ("u1", "i1")}


@dataclass(frozen=True, eq=False)
class TritonCall:
    """How a function is compiled and called.

    signature: Triton's type of each parameter.  constants: values of those that are constexprs.  hints: by position,
    what the compiler may take for granted.  args: of the rule, those that are left at run time, in order.
    """

    rule: LaunchRule
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    hints: Mapping[tuple[int], list[list[Any]]]
    args: tuple[Arg, ...]

    @classmethod
    def of(
        cls,
        fn: Any,
        source: TritonSource,
        rule: LaunchRule,
        made: Specialisation,
        tensors: Mapping[str, TensorType | None],
        label: str,
    ) -> TritonCall:
        """The call of a function with the arguments of a launch rule.  Raises PackError with all faults at once."""
        faults: list[str] = []
        constants = _constants(fn, made, faults)
        names = [param.name for param in fn.params if param.name not in constants]
        if len(names) != len(rule.args) or faults:
            if not faults:
                faults = [f"passed: {', '.join(map(str, rule.args)) or 'nothing'}", f"taken: {', '.join(names)}"]
            raise PackError(
                f"{label}: the launch rule passes {len(rule.args)} arguments, and {source.name} takes {len(names)} "
                "that are no constexprs",
                "pass in args=(...) one value for each parameter that is no constexpr, in order; "
                "give each constexpr a value in lp.triton(..., constexprs={...})",
                faults=faults,
            )
        signature, hints, args = {}, {}, []
        given = iter(rule.args)
        for position, param in enumerate(fn.params):
            if param.name in constants:
                signature[param.name] = "constexpr"
                continue
            arg = next(given)
            kind, multiple = _type(param, arg, tensors, source.alignment, faults)
            signature[param.name] = kind
            if kind == "constexpr":
                constants[param.name] = None
                continue
            if multiple > 1:
                hints[(position,)] = [["tt.divisibility", multiple]]
            args.append(replace(arg, alignment=multiple) if isinstance(arg, PointerArg) else arg)
        if faults:
            raise PackError(
                f"{label}: the arguments of the launch rule do not fit {source.name}",
                "correct args=(...), or the annotations of the function's parameters",
                faults=faults,
            )
        return cls(rule, signature, constants, hints, tuple(args))


def _constants(fn: Any, made: Specialisation, faults: list[str]) -> dict[str, Any]:
    params = {param.name: param for param in fn.params}
    faults += [
        f"constexpr {name} is given, and there is no such parameter, only {', '.join(params)}"
        for name in made.constexprs
        if name not in params
    ]
    constants = {}
    for name, param in params.items():
        if name in made.constexprs:
            constants[name] = triton_value(made.constexprs[name])
        elif param.is_constexpr:
            if param.has_default:
                constants[name] = param.default
            else:
                faults.append(f"constexpr {name} has no value")
                constants[name] = None
    return constants


def triton_value(value: Any) -> Any:
    """A constexpr as the function sees it: a dtype becomes Triton's."""
    if not isinstance(value, DType):
        return value
    import triton.language as tl

    return tl.str_to_ty(triton_type(value), None)


def triton_type(dtype: DType) -> str:
    """Triton's name of a dtype.  Raises UsageError where it has none."""
    if dtype not in _TYPES:
        raise UsageError(f"Triton has no type for {dtype.value}", f"use one of {', '.join(_TYPES)}")
    return _TYPES[dtype]


def _type(
    param: Any, arg: Arg, tensors: Mapping[str, TensorType | None], alignment: int, faults: list[str]
) -> tuple[str, int]:
    """Triton's type of a parameter, and what its value is known to be a multiple of."""
    if isinstance(arg, PointerArg):
        tensor = tensors.get(arg.name) if arg.name else None
        if tensor is None:
            return "constexpr", 1
        if tensor.dtype not in _TYPES:
            faults.append(f"{param.name} is {arg} of {tensor.dtype.value}, which Triton has no type for")
            return "constexpr", 1
        promised = 1 if param.do_not_specialize or param.do_not_specialize_on_alignment else alignment
        return f"*{'k' if param.is_const else ''}{_TYPES[tensor.dtype]}", promised
    allowed, stated = _SCALARS[arg.kind], param.annotation_type
    if stated and stated not in allowed:
        faults.append(f"{param.name} is annotated {stated} and gets {arg}; it may be {' or '.join(allowed)}")
    if arg.kind != "int":
        return stated or allowed[0], 1
    value = arg.value
    assert isinstance(value, Expr)
    narrow = not isinstance(value, Const) or fits(value.value, 4)
    promised = _HINT if multiple_of(value) % _HINT == 0 and not param.do_not_specialize else 1
    return stated or ("i32" if narrow else "i64"), promised


def multiple_of(value: Expr) -> int:
    """A number that divides the value whatever the sizes are; 0 for the value 0."""
    if isinstance(value, Const):
        return abs(value.value)
    if isinstance(value, Operation):
        parts = [multiple_of(arg) for arg in value.args]
        if value.op == "mul":
            return math.prod(parts)
        if value.op in ("add", "min", "max"):
            return math.gcd(*parts)
        if value.op == "where":
            return math.gcd(*parts[1:])
    return 1
