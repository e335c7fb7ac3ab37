"""Narrow floating types under Triton's interpreter, as a GPU computes with them.

The interpreter of Triton 3.7 (`triton/runtime/interpreter.py`) keeps bfloat16 and float8 as whole numbers: it computes
with bit patterns where a kernel computes in bfloat16, cuts off where a GPU rounds, and loses the carry where rounding
to float8 fills the mantissa (125.97 becomes 64 and not 128).  Here they are types of `ml_dtypes`.  For `triton_worker`
only.
"""

from __future__ import annotations

from typing import Any

from layerport.foreign import triton_private


def install() -> None:
    """Make the interpreter compute with these types."""
    known = _narrow()

    def holding(as_it_was: Any) -> Any:
        def numpy_dtype(kind: Any) -> Any:
            return (None if kind.is_ptr() else known.get(str(getattr(kind.scalar, "name", "")))) or as_it_was(kind)

        return numpy_dtype

    triton_private.compute_with(holding, convert_float)


def convert_float(data: Any, source: Any, target: Any, rounding: Any) -> Any:
    """The values as the other type: rounded to the nearest even, or towards zero where that is asked for.

    As NVIDIA's conversions to float8 do, what is too large becomes the largest finite value, and NaN stays NaN.
    """
    import numpy as np

    values = np.ascontiguousarray(data).view(_numpy(source))
    wide = values.astype(np.float64)
    with np.errstate(all="ignore"):
        made = values.astype(_numpy(target))
        towards_zero = rounding == triton_private.towards_zero()
        if made.itemsize == 1 or towards_zero:
            greatest = _greatest(made.dtype)
            over = (np.abs(wide) > greatest) & ((made.itemsize == 1) | np.isfinite(wide))
            made[over] = np.copysign(greatest, wide[over]).astype(made.dtype)
        if towards_zero:
            bits = np.dtype(f"u{made.itemsize}")
            made.view(bits)[np.abs(made.astype(np.float64)) > np.abs(wide)] -= np.array(1, bits)
    return made


def _narrow() -> dict[str, Any]:
    import ml_dtypes
    import numpy as np

    return {
        "bf16": np.dtype(ml_dtypes.bfloat16),
        "fp8e4nv": np.dtype(ml_dtypes.float8_e4m3fn),
        "fp8e5": np.dtype(ml_dtypes.float8_e5m2),
    }


def _numpy(kind: Any) -> Any:
    import numpy as np

    known = {"fp64": np.dtype(np.float64), "fp32": np.dtype(np.float32), "fp16": np.dtype(np.float16), **_narrow()}
    if kind.scalar.name not in known:
        raise TypeError(f"{kind.scalar.name} cannot be converted on the CPU, only {', '.join(known)}")
    return known[kind.scalar.name]


def _greatest(dtype: Any) -> float:
    import ml_dtypes

    return float(ml_dtypes.finfo(dtype).max)
