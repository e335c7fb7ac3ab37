"""Conversion rules for Torch tensors, and the fast casts that Torch has where NumPy is slow.

Only `conversion`, `transforms` (once Torch is loaded) and the Torch side of a layer import it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.parameter import is_lazy

from layerport.dtypes import DType
from layerport.errors import UsageError
from layerport.foreign import torch_private
from layerport.parameters.conversion import Hop, full_name
from layerport.parameters.frameworks.torch_dtypes import from_dtype
from layerport.parameters.standard_form import Array

# NumPy takes no memory of these types from Torch, but does of a type of the same width.
_CARRIERS = {
    DType.BFLOAT16: (torch.int16, np.int16),
    DType.FLOAT8_E4M3FN: (torch.uint8, np.uint8),
    DType.FLOAT8_E5M2: (torch.uint8, np.uint8),
}
_CARRIERS_OF_NUMPY = {dtype.to_numpy(): (numpy, from_dtype(dtype)) for dtype, (_, numpy) in _CARRIERS.items()}
_BY_TORCH = {from_dtype(dtype): dtype for dtype in _CARRIERS}


def from_tensor(tensor: torch.Tensor) -> Hop:
    """The tensor's own memory where it is plain, dense, contiguous and on the CPU; else a copy that is."""
    if type(tensor) in (torch.Tensor, torch.nn.Parameter):
        return _view(tensor) or _from_tensor(tensor.detach())
    with torch.no_grad(), torch_private.without_torch_function():
        return _from_tensor(tensor)


def _view(tensor: torch.Tensor) -> Hop | None:
    """The memory of a tensor that is plain in every way, which is nearly all of them; None for any other."""
    if tensor.is_quantized or tensor.dtype in _BY_TORCH:
        return None
    try:
        array = tensor.detach().numpy()
    except Exception:  # each thing that a tensor can be besides plain has an error of its own
        return None
    return Hop(array, "view") if array.flags.c_contiguous else None


def _from_tensor(tensor: torch.Tensor) -> Hop:
    plain, action = _materialise(tensor)
    plain = plain.detach()
    if plain.device.type != "cpu":
        plain, action = plain.cpu(), "copy"
    if plain.is_conj() or plain.is_neg():
        plain, action = plain.resolve_conj().resolve_neg(), "copy"
    if not plain.is_contiguous():
        plain, action = plain.contiguous(), "copy" if action == "view" else action
    return Hop(_to_numpy(plain), action)


def to_tensor(array: Array, name: str, target: type | None) -> torch.Tensor:
    """A tensor on the array's memory, or on a copy where that is read-only: a tensor is always writable."""
    if not array.flags.writeable:
        array = array.copy()
    carrier = _CARRIERS_OF_NUMPY.get(array.dtype)
    if carrier is not None:
        return torch.from_numpy(array.view(carrier[0])).view(carrier[1])
    try:
        return torch.from_numpy(array)
    except TypeError:
        from_dtype(DType.from_numpy(array.dtype))  # says what Torch lacks
        raise


def to_parameter(array: Array, name: str, target: type | None) -> torch.nn.Parameter:
    """As `to_tensor`; a parameter of floating point can be trained."""
    tensor = to_tensor(array, name, target)
    return torch.nn.Parameter(tensor, requires_grad=tensor.is_floating_point())


# Pairs that Torch casts to the same bits as NumPy and ml_dtypes.  Not from float64 to less than float32: Torch rounds
# twice on that way.
_SMALL = (DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16)
_FAST = frozenset(
    {
        *((source, target) for source in _SMALL for target in (*_SMALL, DType.FLOAT8_E4M3FN, DType.FLOAT8_E5M2)),
        *((source, DType.FLOAT64) for source in _SMALL),
        (DType.FLOAT64, DType.FLOAT32),
    }
)


def fast_cast(array: Array, dtype: DType) -> Array | None:
    """The array in `dtype`; None for a pair of types that Torch does not cast faster and to the same bits."""
    if (DType.from_numpy(array.dtype), dtype) not in _FAST:
        return None
    # NumPy's memory comes in huge pages where Torch's does not: half the time of tensor.to() for a large array.
    result = np.empty(array.shape, dtype.to_numpy())
    to_tensor(result, "", None).copy_(_readable(array))
    return result


def fast_permute(array: Array, axes: Sequence[int]) -> Array:
    """The axes in another order, in memory too."""
    carrier = f"i{array.dtype.itemsize}"
    source = _readable(array.view(carrier)).permute(*axes)
    result = np.empty(tuple(source.shape), carrier)
    torch.from_numpy(result).copy_(source)
    return result.view(array.dtype)


def fast_magnitude(array: Array) -> float | None:
    """The largest magnitude, NaN where there is one, in one pass; None for types that Torch does not compare."""
    if DType.from_numpy(array.dtype) not in (*_SMALL, DType.FLOAT64):
        return None
    low, high = _readable(array).aminmax()
    return max(-float(low), float(high))


class _Alias:
    """The memory of an array, said to be writable: Torch has no tensors that are not, and warns of those that are."""

    def __init__(self, array: Array) -> None:
        self.array = array
        interface = array.__array_interface__
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}


def _readable(array: Array) -> torch.Tensor:
    """A tensor on the array's memory that is only read, so that a read-only array needs no copy."""
    if array.flags.writeable:
        return to_tensor(array, "", None)
    carrier = _CARRIERS_OF_NUMPY.get(array.dtype)
    alias = torch.from_numpy(np.asarray(_Alias(array if carrier is None else array.view(carrier[0]))))
    return alias if carrier is None else alias.view(carrier[1])


def _materialise(tensor: torch.Tensor) -> tuple[torch.Tensor, str]:
    """A plain dense tensor of the same numbers, and what was done for it."""
    kind = type(tensor)
    if any(base.__name__ == "FakeTensor" for base in kind.__mro__):
        raise UsageError("a fake tensor, which has no data", "give the real tensor (outside FakeTensorMode and export)")
    if is_lazy(tensor):
        raise UsageError("a lazy parameter that has no shape yet", "run the module once on example inputs first")
    if tensor.is_meta:
        raise UsageError(
            f"a tensor on the meta device, which has no data: shape {list(tensor.shape)}",
            "load the model's weights first",
        )
    if tensor.is_nested:
        raise UsageError("a nested tensor, which has no one shape", "pad it first: torch.nested.to_padded_tensor")
    if torch_private.is_within_transform(tensor):
        raise UsageError("a tensor inside vmap or grad, which has no data of its own", "convert it outside")
    # A class without a dispatch of its own inherits Torch's, which is one object.
    if getattr(kind, "__torch_dispatch__", None) is not torch.Tensor.__torch_dispatch__:
        return _unwrap(tensor)
    if tensor.is_quantized:
        return tensor.dequantize(), "dequantize"
    if tensor.layout != torch.strided:
        return tensor.to_dense(), "densify"
    return tensor, "view"


def _unwrap(tensor: Any) -> tuple[torch.Tensor, str]:
    """Ask a subclass that keeps its numbers elsewhere (DTensor, quantised weights) for the plain tensor."""
    own = [base for base in type(tensor).__mro__ if base not in torch.Tensor.__mro__]
    for method in ("full_tensor", "dequantize"):
        if any(method in vars(base) for base in own):
            # The subclass's own methods may rely on __torch_function__.
            with torch_private.with_torch_function():
                plain = getattr(tensor, method)()
            if type(plain) is torch.Tensor:
                return plain, method
    raise UsageError(
        f"{full_name(type(tensor))} cannot be made a plain tensor",
        f"convert it first, or register a rule for it: conversion.register({full_name(type(tensor))!r}, ...)",
    )


def _to_numpy(tensor: torch.Tensor) -> Array:
    dtype = _BY_TORCH.get(tensor.dtype)
    if dtype is None:
        try:
            return tensor.numpy()
        except TypeError:
            raise UsageError(f"{tensor.dtype} has no standard form", f"cast to one of {', '.join(DType)}") from None
    array: Array = tensor.view(_CARRIERS[dtype][0]).numpy()
    return array.view(dtype.to_numpy())
