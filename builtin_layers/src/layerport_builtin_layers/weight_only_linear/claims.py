"""Which modules hold a quantised weight, and what a linear layer becomes where the user names it for that.

Quantised are those with the buffers of GPTQ or AWQ checkpoints, by their names and shapes.

Both keep `scales` (G, N) and words of 32 bits with zero points, `qzeros` (G, N / codes of a word).  GPTQ packs
`qweight` along K, (K / codes, N); files of its first format hold zero points less one.  AWQ packs along N, (K, N / 8),
in an order of its own.  Which of them a module means is proven on its own inputs.

A `torch.nn.Linear` is offered with a loss, first with codes of 4 bits, then with bytes.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

import layerport as lp
from layerport_builtin_layers.module_looks import held
from layerport_builtin_layers.weight_only_linear.reference import weight_only_linear

# How far an output may be off, relative to its own magnitude plus the mean: normal weights in 4 bits come to 0.4.
_BOUNDS = {4: 0.6, 8: 0.04}
_GROUP_SIZES = (64, 32, 16)
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # which of eight neighbouring columns each four bits of a word are


def claim_quantised(module: torch.nn.Module) -> Any:
    """The layer in each form that the buffers may have, None for a module without them."""
    words, zeros, scales = (held(module, name) for name in ("qweight", "qzeros", "scales"))
    if not all(isinstance(one, Tensor) and one.ndim == 2 for one in (words, zeros, scales)):
        return None
    if words.dtype != torch.int32 or zeros.dtype != torch.int32 or not scales.is_floating_point():
        return None
    (groups, width), of_zeros = scales.shape, zeros.shape
    if not width or not of_zeros[1] or of_zeros[0] != groups or width % of_zeros[1]:
        return None
    of_word = width // of_zeros[1]
    bits = 32 // of_word
    if bits not in (4, 8) or bits * of_word != 32:
        return None
    if words.shape[1] == width:
        if not _in_order(held(module, "g_idx"), words.shape[0] * of_word, groups):
            return None
        codes, low = _unpacked(words.T, bits), _unpacked(zeros, bits).T
        middles = [low + 1, low, low + 1 & 2**bits - 1]
    elif bits == 4 and words.shape[1] == of_zeros[1]:
        codes, low = _in_awq_order(_unpacked(words, bits)).T, _in_awq_order(_unpacked(zeros, bits)).T
        middles = [low]
    else:
        return None
    bias = held(module, "bias")
    scale = scales.T.contiguous()
    kept: list[Tensor] = []
    for one in middles:
        if not any(torch.equal(one, other) for other in kept):
            kept.append(one)
    codes = codes.contiguous()
    return tuple(
        weight_only_linear.bind(
            codes=codes,
            scales=scale,
            zeros=one.contiguous(),
            bias=bias if isinstance(bias, Tensor) else None,
            bits=bits,
        )
        for one in kept
    )


def claim_linear(module: torch.nn.Module) -> Any:
    """A linear layer with its weight quantised, in 4 bits or in 8; None for any other module."""
    if (
        not isinstance(module, nn.Linear)
        or type(module).forward is not nn.Linear.forward
        or not isinstance(held(module, "weight"), Tensor)
    ):
        return None
    return tuple(
        lp.lossy(weight_only_linear, functools.partial(_quantised, module, bits), bound=bound)
        for bits, bound in _BOUNDS.items()
    )


def _quantised(module: nn.Linear, bits: int) -> lp.BoundLayer:
    """Each group from its least to its greatest value, which both are met, and 0 with them."""
    weight = module.weight.detach().float()
    k = weight.shape[1]
    size = next((one for one in _GROUP_SIZES if k % one == 0), k)
    groups = weight.unflatten(1, (-1, size))
    low, high = groups.amin(-1).clamp(max=0.0), groups.amax(-1).clamp(min=0.0)
    steps = 2**bits - 1
    scales = (high - low) / steps
    scales = torch.where(scales > 0, scales, 1.0)
    zeros = (-low / scales).round().clamp(0, steps)
    codes = (groups / scales.unsqueeze(-1)).round() + zeros.unsqueeze(-1)
    return weight_only_linear.bind(
        codes=codes.clamp(0, steps).to(torch.uint8).flatten(1),
        scales=scales,
        zeros=zeros.to(torch.uint8),
        bias=module.bias,
        bits=bits,
    )


def _in_order(index: Any, length: int, groups: int) -> bool:
    """Whether neighbouring codes share a group: codes that GPTQ has sorted by activation do not."""
    if length % groups:
        return False
    return index is None or torch.equal(index.long().cpu(), torch.arange(length) // (length // groups))


def _unpacked(words: Tensor, bits: int) -> Tensor:
    """The codes of 32-bit words along the last axis, the lowest bits first, as uint8."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32, device=words.device)
    codes: Tensor = words.unsqueeze(-1) >> shifts & (2**bits - 1)
    return codes.to(torch.uint8).flatten(1)


def _in_awq_order(codes: Tensor) -> Tensor:
    """Each eight columns in their own order."""
    places = torch.tensor(_AWQ_ORDER, device=codes.device).argsort()
    return codes.reshape(codes.shape[0], -1, 8)[..., places].flatten(1)
