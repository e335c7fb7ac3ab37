"""Conversion rules for Torch tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.parameter import is_lazy

from layerport.dtypes import DType
from layerport.errors import UsageError
from layerport.foreign import torch_private
from layerport.parameters.arrays import Array
from layerport.parameters.frameworks.torch_arrays import CARRIERS, to_tensor
from layerport.parameters.frameworks.torch_dtypes import from_dtype
from layerport.parameters.steps import Hop, full_name

_BY_TORCH = {from_dtype(dtype): dtype for dtype in CARRIERS}


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


def to_parameter(array: Array, name: str, target: type | None) -> torch.nn.Parameter:
    """As `to_tensor`; a parameter of floating point can be trained."""
    tensor = to_tensor(array, name, target)
    return torch.nn.Parameter(tensor, requires_grad=tensor.is_floating_point())


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
    array: Array = tensor.view(CARRIERS[dtype][0]).numpy()
    return array.view(dtype.to_numpy())
