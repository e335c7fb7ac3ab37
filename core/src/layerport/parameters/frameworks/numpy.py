"""Conversion rules for NumPy, which is the standard form's own library."""

from __future__ import annotations

import numpy as np

from layerport.dtypes import DType
from layerport.errors import UsageError
from layerport.parameters.arrays import Array
from layerport.parameters.steps import Hop


def from_array(array: Array) -> Hop:
    """The same memory where byte order, layout and alignment fit; a copy that fits otherwise."""
    # NumPy loads np.ma at the first look at it, which a plain array needs not wait for.
    if type(array) is not np.ndarray and isinstance(array, np.ma.MaskedArray):
        if np.ma.is_masked(array):
            raise UsageError(
                f"a masked array with {int(np.sum(np.ma.getmaskarray(array)))} values masked",
                "fill them first: array.filled(value)",
            )
        array = np.ma.getdata(array)
    plain = array.view(np.ndarray)
    dtype = DType.from_numpy(plain.dtype).to_numpy()
    fits = plain.dtype.isnative and plain.flags.c_contiguous and plain.flags.aligned
    return Hop(plain, "view") if fits else Hop(plain.astype(dtype, order="C"), "copy")


def from_scalar(value: np.generic) -> Hop:
    return Hop(np.asarray(value), "copy")


def to_array(array: Array, name: str, target: type | None) -> Array:
    return array
