"""Arrays in the standard form, drawn at random, for the tests of what is made of them."""

from __future__ import annotations

from typing import Any

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import torch

from layerport.dtypes import DType
from layerport.parameters.arrays import Array

TORCH = [dtype for dtype in DType if dtype.bits != 4]


def same(a: Array, b: Array) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tolist() == b.tolist()


def pointer(value: Any) -> int:
    return int(value.data_ptr() if isinstance(value, torch.Tensor) else value.ctypes.data)


@st.composite
def standard(draw: st.DrawFn, dtypes: Any = tuple(DType)) -> Array:
    dtype = DType(draw(st.sampled_from(dtypes)))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5))
    values = draw(hnp.arrays(np.int8, shape, elements=st.integers(-8, 7)))
    return (values if dtype.is_signed else np.asarray(np.abs(values))).astype(dtype.to_numpy())


@st.composite
def laid_out(draw: st.DrawFn, array: Array) -> Array:
    """The same numbers in some other layout."""
    choice = draw(st.sampled_from(["plain", "fortran", "stepped", "reversed", "read-only"]))
    if choice == "fortran":
        return np.asarray(array, order="F")
    if choice == "stepped" and array.ndim:
        return np.repeat(array, 2, axis=-1)[..., ::2]
    if choice == "reversed" and array.ndim:
        return np.flip(np.flip(array, 0).copy(), 0)
    if choice == "read-only":
        array = array.copy()
        array.flags.writeable = False
    return array
