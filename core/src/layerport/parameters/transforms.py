"""Ready-made pieces for packs that bring parameters into the form their kernel wants.

Plain functions: each takes and returns NumPy arrays in the standard form, and one that loses nothing names
its exact inverse.  Packs may import it; so may the `frameworks`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

import layerport.parameters.frameworks
from layerport.dtypes import DType
from layerport.errors import UsageError

Array: TypeAlias = NDArray[Any]
Overflow: TypeAlias = Literal["error", "saturate", "allow"]

_WORTH_TORCH = 1 << 12  # elements: below, a call of Torch costs more than the work


def cast(array: Array, dtype: DType | str, *, overflow: Overflow = "error") -> Array:
    """The array in another dtype; the array itself where it has that already.

    To a floating type: rounds to nearest even.  Infinities and NaN stay; a finite value that the type cannot
    hold is an error ("error"), becomes the largest that it can ("saturate"), or what IEEE or ml_dtypes make
    of it ("allow").
    To an integer: values must be whole, as nothing here rounds in silence; one beyond the range is an error,
    or the nearest end with "saturate".  To bool: 0 and 1 only.
    Raises UsageError with the number of values at fault and the worst of them.
    """
    dtype = dtype if type(dtype) is DType else DType.of(dtype)
    if overflow not in ("error", "saturate", "allow"):
        raise UsageError(f"overflow={overflow!r}", "use 'error', 'saturate' or 'allow'")
    if DType.from_numpy(array.dtype) is dtype:
        return array
    if dtype.is_floating:
        with np.errstate(all="ignore"):
            return _cast_to_float(array, dtype, overflow)
    return _cast_to_integer(array, dtype, overflow)


def _cast_to_float(array: Array, dtype: DType, overflow: Overflow) -> Array:
    largest = _largest(dtype)
    fits = not array.size or _largest(DType.from_numpy(array.dtype)) <= largest or _is_within(array, largest)
    # Only what fits: of values that do not, each library makes something else.
    if fits and array.size >= _WORTH_TORCH and "torch" in sys.modules:
        fast = layerport.parameters.frameworks.torch_arrays.fast_cast(array, dtype)
        if fast is not None:
            return fast
    result = array.astype(dtype.to_numpy(), order="C")
    if fits or overflow == "allow":
        return result
    values, rounded = _plain(array), _plain(result)
    lost = np.isfinite(values) & ~np.isfinite(rounded) | np.isinf(values) & np.isnan(rounded)
    if not lost.any():
        return result
    if overflow == "error":
        raise _beyond(values, lost, dtype, f"-{largest:g}..{largest:g}")
    result[lost] = np.where(values[lost] < 0, -largest, largest).astype(dtype.to_numpy())
    return result


def _cast_to_integer(array: Array, dtype: DType, overflow: Overflow) -> Array:
    low, high = (0, 1) if dtype is DType.BOOL else _integer_range(dtype)
    values = _plain(array)
    if values.dtype.kind == "f":
        broken = ~np.isfinite(values) | (values != np.rint(values))
        if broken.any():
            raise UsageError(
                f"{int(broken.sum())} of {array.size} values are not whole numbers, such as "
                f"{values[broken].flat[0]:g}: no cast to {dtype}",
                "round them first (numpy.rint), or quantise with layerport.transforms.quantize_groups",
            )
        # high + 1 is a power of two and so exact in every float; high itself is not (2**63 - 1).
        above, below = values >= float(high + 1), values < float(low)
    elif values.dtype == bool:
        above = below = np.zeros(values.shape, bool)
    else:
        own = np.iinfo(values.dtype)  # bounds beyond the source's own range cannot be compared with, nor exceeded
        above, below = values > min(high, int(own.max)), values < max(low, int(own.min))
    beyond = above | below
    carrier = np.int8 if dtype is DType.INT4 else np.uint8 if dtype is DType.UINT4 else dtype.to_numpy()
    if beyond.any():
        if overflow != "saturate" or dtype is DType.BOOL:
            raise _beyond(values, beyond, dtype, f"{low}..{high}")
        values = np.where(beyond, values.dtype.type(0), values)
    result = values.astype(carrier, order="C")
    result[above], result[below] = high, low
    return result.astype(dtype.to_numpy(), copy=False)


def permute(array: Array, axes: Sequence[int]) -> Array:
    """Axes in another order, in memory too.  Inverse: `permute(result, inverse_axes(axes))`."""
    return _permuted(array, _checked_axes(axes, array.ndim))


def inverse_axes(axes: Sequence[int]) -> tuple[int, ...]:
    """The order that undoes `axes`."""
    checked = _checked_axes(axes, len(axes))
    return tuple(checked.index(axis) for axis in range(len(checked)))


def transpose(array: Array) -> Array:
    """The last two axes swapped, in memory too: (..., K, N) to (..., N, K).  Its own inverse."""
    if array.ndim < 2:
        raise UsageError(f"an array of {array.ndim} dims has no two axes to swap", "use permute")
    return _permuted(array, _swapped(array.ndim, array.ndim - 2))


def pad(array: Array, widths: Sequence[tuple[int, int]], value: float = 0) -> Array:
    """`widths[i]` = (before, after) elements of `value` on axis i.  Inverse: `crop(result, widths)`."""
    _check_widths(array, widths)
    return np.pad(array, list(widths), constant_values=np.asarray(value).astype(array.dtype))


def crop(array: Array, widths: Sequence[tuple[int, int]]) -> Array:
    """What `pad` put around, taken away."""
    _check_widths(array, widths)
    if any(before + after > size for (before, after), size in zip(widths, array.shape, strict=True)):
        raise UsageError(f"cannot crop {list(widths)} from shape {list(array.shape)}", "give the widths that pad got")
    slices = [slice(before, size - after) for (before, after), size in zip(widths, array.shape, strict=True)]
    return np.asarray(array[tuple(slices)], order="C")


def widths_to_multiple(shape: Sequence[int], multiples: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """The widths for `pad` (all after) that bring each axis to a multiple of its number."""
    if len(shape) != len(multiples) or any(multiple < 1 for multiple in multiples):
        raise UsageError(f"multiples {list(multiples)} for shape {list(shape)}", "give one number from 1 per axis")
    return tuple((0, -size % multiple) for size, multiple in zip(shape, multiples, strict=True))


def interleave(array: Array, parts: int, axis: int = 0) -> Array:
    """`parts` equal blocks along an axis, element by element: [a0 a1 b0 b1] to [a0 b0 a1 b1] for 2 parts.

    Inverse: `deinterleave(result, parts, axis)`.
    """
    before, size, after = _around(array, parts, axis)
    split = array.reshape(*before, parts, size // parts, *after)
    return _permuted(split, _swapped(split.ndim, len(before))).reshape(array.shape)


def deinterleave(array: Array, parts: int, axis: int = 0) -> Array:
    """What `interleave` did, undone."""
    before, size, after = _around(array, parts, axis)
    split = array.reshape(*before, size // parts, parts, *after)
    return _permuted(split, _swapped(split.ndim, len(before))).reshape(array.shape)


def quantize_groups(array: Array, group_size: int, dtype: DType | str = DType.INT8) -> tuple[Array, Array]:
    """Symmetric quantisation by groups along the last axis: (quantised, scales).

    array: (..., K) of a floating type, K a multiple of group_size.  quantised: int8 in -127..127 or int4 in
    -7..7, the array's shape.  scales: float32 (..., K / group_size), the largest magnitude of the group over
    127 or 7, and 1 for a group of zeros.  Each value comes back from `dequantize_groups` within half a scale
    (and float32 rounding).
    """
    dtype = DType.of(dtype)
    if dtype not in (DType.INT8, DType.INT4):
        raise UsageError(f"quantisation to {dtype}", "use int8 or int4")
    values = _plain(array)
    if values.dtype.kind != "f":
        raise UsageError(f"quantisation of {array.dtype.name}", "give an array of a floating type")
    if not np.isfinite(values).all():
        raise UsageError("quantisation of infinities or NaN", "replace them first: numpy.nan_to_num")
    groups = _grouped(values.astype(np.float32 if values.dtype.itemsize <= 4 else np.float64), group_size)
    top = 127 if dtype is DType.INT8 else 7
    largest = np.abs(groups).max(axis=-1, initial=0)
    with np.errstate(over="ignore", under="ignore"):
        scales = (largest / top).astype(np.float32)
    if not np.isfinite(scales).all():
        raise UsageError(f"quantisation of values up to {largest.max():g}", "scale them into the range of float32")
    scales[scales == 0] = 1
    quantized = np.clip(np.rint(groups / scales[..., None]), -top, top).astype(np.int8)
    return quantized.reshape(array.shape).astype(dtype.to_numpy(), copy=False), scales


def dequantize_groups(quantized: Array, scales: Array, dtype: DType | str = DType.FLOAT32) -> Array:
    """quantised times the scale of its group, computed in float32; see `quantize_groups`."""
    groups = scales.shape[-1] if scales.ndim else 0
    size = quantized.shape[-1] if quantized.ndim else 0
    if scales.shape[:-1] != quantized.shape[:-1] or (groups == 0) != (size == 0) or (groups and size % groups):
        raise UsageError(
            f"scales of shape {list(scales.shape)} for values of shape {list(quantized.shape)}",
            "give the two that quantize_groups returned",
        )
    values = _grouped(_plain(quantized).astype(np.float32), size // groups if groups else 1)
    return cast((values * scales.astype(np.float32)[..., None]).reshape(quantized.shape), dtype)


def pack_int4(array: Array) -> Array:
    """Two elements per byte along the last axis, the first in the low half: (..., K) to uint8 (..., K / 2).

    array: int4, uint4, or int8 / uint8 of values that fit four bits.  Inverse: `unpack_int4`.
    """
    if array.dtype.name not in ("int4", "uint4", "int8", "uint8"):
        raise UsageError(f"packing of {array.dtype.name}", "cast to int4 or uint4 first")
    if array.ndim == 0 or array.shape[-1] % 2:
        raise UsageError(f"packing along an odd last axis: shape {list(array.shape)}", "pad it by one first")
    if array.dtype.name in ("int8", "uint8"):
        array = cast(array, DType.INT4 if array.dtype.name == "int8" else DType.UINT4)
    halves = array.astype(np.int8).view(np.uint8) & 0xF
    return np.asarray(halves[..., 0::2] | halves[..., 1::2] << 4, order="C")


def unpack_int4(packed: Array, dtype: DType | str = DType.INT4) -> Array:
    """What `pack_int4` packed: uint8 (..., K) to int4 or uint4 (..., 2 K), one element per byte."""
    dtype = DType.of(dtype)
    if dtype.bits != 4:
        raise UsageError(f"unpacking to {dtype}", "use int4 or uint4")
    if packed.dtype != np.uint8 or packed.ndim == 0:
        raise UsageError(f"unpacking of {packed.dtype.name}[{', '.join(map(str, packed.shape))}]", "give uint8[..., K]")
    halves = np.stack([packed & 0xF, packed >> 4], axis=-1).reshape(*packed.shape[:-1], packed.shape[-1] * 2)
    if dtype is DType.INT4:
        # Shifting up and back down as signed bytes copies the sign.
        halves = (halves << 4).view(np.int8) >> 4
    return halves.astype(dtype.to_numpy())


def _permuted(array: Array, axes: tuple[int, ...]) -> Array:
    if array.size >= _WORTH_TORCH and "torch" in sys.modules and array.flags.c_contiguous:
        return layerport.parameters.frameworks.torch_arrays.fast_permute(array, axes)
    return np.asarray(np.transpose(array, axes), order="C")


def _swapped(ndim: int, axis: int) -> tuple[int, ...]:
    """The order of axes in which this one and the next change places."""
    return (*range(axis), axis + 1, axis, *range(axis + 2, ndim))


def _plain(array: Array) -> Array:
    """The same numbers in a dtype that NumPy computes with."""
    dtype = DType.from_numpy(array.dtype)
    if dtype.bits == 4:
        return array.astype(np.int8)
    small = dtype.is_floating and (dtype is DType.BFLOAT16 or dtype.bits == 8)
    return array.astype(np.float32) if small else array


def _is_within(array: Array, largest: float) -> bool:
    """Whether all values are finite and their magnitudes at most this."""
    if array.dtype.char in "fd" and array.size < 1 << 20:
        # No value is greater than the root of the sum of squares, which is one quick call; half is for its rounding.
        flat = array.reshape(-1)
        if float(np.dot(flat, flat)) <= min(largest * largest / 2, 1e38):
            return True
    return _magnitude(array) <= largest


def _magnitude(array: Array) -> float:
    """The largest magnitude; infinite or NaN where one of the values is."""
    if array.size >= _WORTH_TORCH and "torch" in sys.modules:
        fast = layerport.parameters.frameworks.torch_arrays.fast_magnitude(array)
        if fast is not None:
            return fast
    values = _plain(array)
    return max(-float(values.min()), float(values.max()))


@cache
def _largest(dtype: DType) -> float:
    """The largest finite value of the type."""
    if dtype.is_floating:
        return float(_finfo(dtype).max)
    return 1.0 if dtype is DType.BOOL else float(_integer_range(dtype)[1])


def _finfo(dtype: DType) -> Any:
    import ml_dtypes

    return ml_dtypes.finfo(dtype.to_numpy())


def _integer_range(dtype: DType) -> tuple[int, int]:
    return (-(1 << dtype.bits - 1), (1 << dtype.bits - 1) - 1) if dtype.is_signed else (0, (1 << dtype.bits) - 1)


def _beyond(values: Array, beyond: Array, dtype: DType, span: str) -> UsageError:
    found = values[beyond]
    worst = max(found.flat, key=lambda value: abs(float(value)))
    return UsageError(
        f"{found.size} of {values.size} values are beyond {dtype} ({span}), the worst {worst:g}",
        "use a wider dtype, or layerport.transforms.cast(..., overflow='saturate')",
    )


def _checked_axes(axes: Sequence[int], ndim: int) -> tuple[int, ...]:
    wanted = tuple(axis + ndim if axis < 0 else axis for axis in axes)
    if sorted(wanted) != list(range(ndim)):
        raise UsageError(f"axes {list(axes)} for an array of {ndim} dims", "name each axis once")
    return wanted


def _check_widths(array: Array, widths: Sequence[tuple[int, int]]) -> None:
    if len(widths) != array.ndim or any(width < 0 for pair in widths for width in pair):
        raise UsageError(
            f"widths {list(widths)} for shape {list(array.shape)}",
            "give (before, after), from 0, for each axis",
        )


def _around(array: Array, parts: int, axis: int) -> tuple[tuple[int, ...], int, tuple[int, ...]]:
    if not -array.ndim <= axis < array.ndim:
        raise UsageError(f"axis {axis} of an array of {array.ndim} dims", "name an axis that it has")
    axis %= array.ndim
    if parts < 1 or array.shape[axis] % parts:
        raise UsageError(
            f"{parts} equal parts of axis {axis} of shape {list(array.shape)}",
            "pad the axis first, or name its parts",
        )
    return array.shape[:axis], array.shape[axis], array.shape[axis + 1 :]


def _grouped(values: Array, group_size: int) -> Array:
    if values.ndim == 0 or group_size < 1 or values.shape[-1] % group_size:
        raise UsageError(
            f"groups of {group_size} along the last axis of shape {list(values.shape)}",
            "pad the axis to a multiple of the group size, or choose another",
        )
    return values.reshape(*values.shape[:-1], values.shape[-1] // group_size, group_size)
