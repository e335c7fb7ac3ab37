"""What a layer is compared with: eager, compiled, and what others offer for the same, where it is installed.

Each takes the layer's arguments in its order.  One that does not take a case is a blank in the table.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional
from torch.utils.weak import WeakTensorKeyDictionary

Call = Callable[..., Any]


def rivals_of(layer: Any) -> dict[str, Call]:
    """The rivals of a layer by name."""
    torch.compiler.reset()  # each size is compiled for itself, however many there were
    rivals: dict[str, Call] = {"eager": layer.reference, "torch.compile": torch.compile(layer.reference, dynamic=False)}
    if layer.namespace != "layerport_builtin":
        return rivals
    return (
        rivals
        | _TORCH.get(layer.short_name, {})
        | _vision(layer.short_name)
        | _liger(layer.short_name)
        | _mamba(layer.short_name)
    )


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise TimeoutError within a block that takes longer; in the main thread only."""

    def end(*_: Any) -> None:
        raise TimeoutError(f"not ready within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _grouped(x: Any, index: Any, weight: Any, bias: Any) -> Any:
    """Tokens sorted by expert, one product of groups, and the way back, as transformers does it."""
    if bias is not None:
        raise ValueError("it has no bias")
    tokens, chosen = index.shape
    flat = index.reshape(-1)
    order = flat.argsort()
    rows = x[order // chosen] if x.ndim == 2 else x.reshape(-1, x.shape[-1])[order]
    ends = torch.bincount(flat, minlength=weight.shape[0]).cumsum(0, dtype=torch.int32)
    made = torch._grouped_mm(rows, weight.transpose(-2, -1), offs=ends)
    return torch.empty_like(made).index_copy_(0, order, made).reshape(tokens, chosen, weight.shape[1])


_wide: Any = WeakTensorKeyDictionary()


def _plain_linear(x: Any, codes: Any, scales: Any, *_: Any) -> Any:
    """The same product with weights that are not packed, which are other numbers of the same shape."""
    weight = _wide.get(codes)
    if weight is None:
        weight = _wide[codes] = torch.randn(codes.shape[0], x.shape[-1], dtype=x.dtype, device=x.device)
    return functional.linear(x, weight)


def _padded(x: Any, pads: list[int]) -> Any:
    return functional.pad(x, pads, mode="circular")


_TORCH: dict[str, dict[str, Call]] = {
    "rms_norm": {"torch rms_norm": lambda x, weight, eps: functional.rms_norm(x, x.shape[-1:], weight, eps)},
    "layer_norm": {"torch": lambda x, weight, bias, eps: functional.layer_norm(x, x.shape[-1:], weight, bias, eps)},
    "add_layer_norm": {
        "torch": lambda x, r, weight, bias, eps: (functional.layer_norm(x + r, x.shape[-1:], weight, bias, eps), x + r)
    },
    "add_rms_norm": {"torch": lambda x, r, weight, eps: (functional.rms_norm(x + r, x.shape[-1:], weight, eps), x + r)},
    "silu_mul": {"torch": lambda gate, up: functional.silu(gate) * up},
    "gelu_mul": {"torch": lambda gate, up, how: functional.gelu(gate, approximate=how) * up},
    "group_norm_silu": {
        "torch": lambda x, groups, weight, bias, eps: functional.silu(
            functional.group_norm(x, groups, weight, bias, eps)
        )
    },
    "circular_pad": {"torch": _padded},
    "grid_sample": {"torch": functional.grid_sample},
    "index_add": {"torch": lambda base, index, source: torch.index_add(base, 0, index, source)},
    "experts_linear": {"torch grouped_mm": _grouped},
    "weight_only_linear": {"linear, not packed": _plain_linear},
}


def _averaged(roi_align: Call) -> Call:
    def call(*args: Any) -> Any:
        if args[6] != "avg":
            raise ValueError("it averages only")
        return roi_align(*args[:6])

    return call


def _vision(name: str) -> dict[str, Call]:
    try:
        from torchvision import ops
    except ImportError:
        return {}
    known: dict[str, Call] = {
        "roi_align": _averaged(ops.roi_align),
        "deform_conv2d": lambda x, offset, weight, bias, mask, stride, padding, dilation: ops.deform_conv2d(
            x, offset, weight, bias, stride, padding, dilation, mask
        ),
        "nms": lambda boxes, scores, classes, threshold: ops.nms(boxes, scores, threshold),
    }
    return {"torchvision": known[name]} if name in known else {}


def _liger(name: str) -> dict[str, Call]:
    try:
        from liger_kernel.ops.fused_add_rms_norm import LigerFusedAddRMSNormFunction
        from liger_kernel.ops.geglu import LigerGELUMulFunction
        from liger_kernel.ops.layer_norm import LigerLayerNormFunction
        from liger_kernel.ops.rms_norm import LigerRMSNormFunction
        from liger_kernel.ops.swiglu import LigerSiLUMulFunction
    except ImportError:
        return {}

    def gelu(gate: Any, up: Any, how: str) -> Any:
        if how != "tanh":
            raise ValueError("it has the tanh form only")
        return LigerGELUMulFunction.apply(gate, up)

    known: dict[str, Call] = {
        "rms_norm": lambda x, weight, eps: LigerRMSNormFunction.apply(x, weight, eps),
        "add_rms_norm": lambda x, r, weight, eps: LigerFusedAddRMSNormFunction.apply(x, r, weight, eps),
        "layer_norm": lambda x, weight, bias, eps: LigerLayerNormFunction.apply(x, weight, bias, eps),
        "silu_mul": LigerSiLUMulFunction.apply,
        "gelu_mul": gelu,
    }
    return {"liger": known[name]} if name in known else {}


def _mamba(name: str) -> dict[str, Call]:
    """The scan of Mamba2 in chunks, of 256 positions as its models say: in Torch, and the kernels of its authors."""
    if name != "ssd_scan":
        return {}
    rivals: dict[str, Call] = {}
    try:
        from transformers.models.mamba2.modeling_mamba2 import mamba2_chunk_scan
    except ImportError:
        pass
    else:
        rivals["transformers"] = _in_chunks(mamba2_chunk_scan, has_gate=False)
    try:
        from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined
    except ImportError:
        pass
    else:
        rivals["mamba_ssm"] = _in_chunks(mamba_chunk_scan_combined, has_gate=True)
    return rivals


def _in_chunks(scan: Call, *, has_gate: bool) -> Call:
    def call(
        x: Any, dt: Any, a: Any, b: Any, c: Any, d: Any, z: Any, dt_bias: Any, start: Any, softplus: bool,
        dt_min: float, dt_max: float | None,
    ) -> Any:  # fmt: skip
        if z is not None and not has_gate:
            raise ValueError("it has no gate")
        return scan(
            *(x, dt, a, b, c),
            chunk_size=256,
            D=d,
            z=z,
            dt_bias=dt_bias,
            initial_states=start,
            dt_softplus=softplus,
            dt_limit=(dt_min, float("inf") if dt_max is None else dt_max),
            return_final_states=True,
        )

    return call
