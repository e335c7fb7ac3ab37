"""The layer `layerport_builtin::selective_scan`: what it computes, and how its kernels are launched."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

import layerport as lp

_THREADS = 128
_LANES = 32
_OF_KERNELS = tuple(
    {"a": "float32", "d": "float32", "dt_bias": "float32", "state": "float32", "*": name}
    for name in ("float32", "float16", "bfloat16")
)


class Scanned(NamedTuple):
    """What `selective_scan` returns: its output, like x, and the state after the last position."""

    y: Tensor
    state: Tensor


@lp.layer("layerport_builtin::selective_scan", version=1, find=False, purpose="not expressible")
def selective_scan(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    softplus: bool = False,
) -> Scanned:
    """The selective state space of Gu and Dao (2023), "Mamba", algorithm 2, over a sequence from a state of zeros.

    x, dt, z: (batch, channels, length), floating point.  b, c: (batch, states, length).  All of one dtype.
    a: (channels, states), the negative rates.  d, dt_bias: (channels,).  Of x's dtype or float32.
    At each position, for step = dt + dt_bias, or softplus of that: state = state * exp(step * a) + step * x * b, and
    y = (sum over states of state * c + d * x) * silu(z).
    Returns y, like x, and the last state, (batch, channels, states), in float32; computed in float32 (float64 for
    float64).  Raises ValueError for shapes and dtypes that do not fit.
    """
    _refuse(x, dt, a, b, c, d, z, dt_bias)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    steps = dt.to(wide) if dt_bias is None else dt.to(wide) + dt_bias.to(wide).unsqueeze(-1)
    if softplus:
        steps = torch.nn.functional.softplus(steps)
    values = x.to(wide)

    def advance(state: Tensor, step: Tensor, value: Tensor, b: Tensor, c: Tensor, a: Tensor) -> tuple[Tensor, ...]:
        state = state * torch.exp(step.unsqueeze(-1) * a) + (step * value).unsqueeze(-1) * b.unsqueeze(1)
        return state, (state * c.unsqueeze(1)).sum(-1)

    start = torch.zeros((*x.shape[:2], a.shape[1]), dtype=wide, device=x.device)
    xs = [one.to(wide).permute(2, 0, 1) for one in (steps, values, b, c)]
    state, sums = lp.scan(advance, [start], xs, (a.to(wide),))
    result = sums.permute(1, 2, 0)
    if d is not None:
        result = result + d.to(wide).unsqueeze(-1) * values
    if z is not None:
        result = result * torch.nn.functional.silu(z.to(wide))
    return Scanned(result.to(x.dtype), state)


def _refuse(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor | None, z: Tensor | None, dt_bias: Tensor | None
) -> None:
    named = {"x": x, "dt": dt, "a": a, "b": b, "c": c, "d": d, "z": z, "dt_bias": dt_bias}
    given = {name: one for name, one in named.items() if one is not None}
    if (
        (x.ndim, a.ndim, b.ndim) != (3, 2, 3)
        or any(one is not None and one.shape != x.shape for one in (dt, z))
        or any(one is not None and one.shape != x.shape[1:2] for one in (d, dt_bias))
        or a.shape[0] != x.shape[1]
        or b.shape != c.shape
        or (b.shape[0], b.shape[2]) != (x.shape[0], x.shape[2])
        or b.shape[1] != a.shape[1]
    ):
        shapes = ", ".join(f"{name} {list(one.shape)}" for name, one in given.items())
        raise ValueError(
            f"selective_scan: shapes do not fit: {shapes}; give x, dt, z: (batch, channels, length), "
            "a: (channels, states), b, c: (batch, states, length), d, dt_bias: (channels,)"
        )
    if (
        not x.is_floating_point()
        or any(one is not None and one.dtype != x.dtype for one in (dt, b, c, z))
        or any(one is not None and one.dtype not in (x.dtype, torch.float32) for one in (a, d, dt_bias))
    ):
        dtypes = ", ".join(f"{name} {one.dtype}" for name, one in given.items())
        raise ValueError(
            f"selective_scan: dtypes do not fit: {dtypes}; "
            "give dt, b, c, z in x's dtype, a, d, dt_bias in that or float32"
        )


@selective_scan.backward
def backward(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    softplus: bool,
    grad_y: Tensor,
    grad_state: Tensor,
) -> tuple[Any, ...]:
    """The states once more, then the recurrence from its end."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    raw = dt.to(wide) if dt_bias is None else dt.to(wide) + dt_bias.to(wide).unsqueeze(-1)
    wide_a, values = a.to(wide), x.to(wide)
    steps = torch.nn.functional.softplus(raw) if softplus else raw
    xs = [one.to(wide).permute(2, 0, 1) for one in (steps, values, b, c)]
    start = torch.zeros_like(grad_state, dtype=wide)

    def advance(state: Tensor, step: Tensor, value: Tensor, b: Tensor, a: Tensor) -> tuple[Tensor, ...]:
        state = state * torch.exp(step.unsqueeze(-1) * a) + (step * value).unsqueeze(-1) * b.unsqueeze(1)
        return state, state.clone()

    _, states = lp.scan(advance, [start], xs[:3], (wide_a,))
    by_sum, by_z = grad_y.to(wide), None
    if z is not None:
        gate, share = z.to(wide), torch.sigmoid(z.to(wide))
        result = (states * xs[3].unsqueeze(2)).sum(-1).permute(1, 2, 0)
        if d is not None:
            result = result + d.to(wide).unsqueeze(-1) * values
        by_z = (by_sum * result * share * (1 + gate * (1 - share))).to(z.dtype)
        by_sum = by_sum * gate * share

    def back(
        ahead: Tensor, by_a: Tensor, step: Tensor, value: Tensor, b: Tensor, c: Tensor, before: Tensor, by_sum: Tensor,
        a: Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        by_state = ahead + by_sum.unsqueeze(-1) * c.unsqueeze(1)
        decay = torch.exp(step.unsqueeze(-1) * a)
        by_rate = by_state * before * decay
        by_product = (by_state * b.unsqueeze(1)).sum(-1)
        by_step = (by_rate * a).sum(-1) + by_product * value
        by_b = (by_state * (step * value).unsqueeze(-1)).sum(1)
        by_a = by_a + (by_rate * step.unsqueeze(-1)).sum(0)
        return by_state * decay, by_a, by_step, by_product * step, by_b

    before = torch.cat((start.unsqueeze(0), states[:-1]))
    backwards = [one.flip(0) for one in (*xs, before, by_sum.permute(2, 0, 1))]
    carried = [grad_state.to(wide), torch.zeros_like(wide_a)]
    _, by_a, *found = lp.scan(back, carried, backwards, (wide_a,))
    by_step, by_value, by_b = (one.flip(0).permute(1, 2, 0) for one in found)
    by_c = (states * by_sum.permute(2, 0, 1).unsqueeze(-1)).sum(2).permute(1, 2, 0)
    if softplus:
        by_step = by_step * torch.where(raw > 20, 1.0, torch.sigmoid(raw))
    if d is not None:
        by_value = by_value + by_sum * d.to(wide).unsqueeze(-1)
    return (
        *(by_value.to(x.dtype), by_step.to(dt.dtype), by_a.to(a.dtype), by_b.to(b.dtype), by_c.to(c.dtype)),
        None if d is None else (by_sum * values).sum((0, 2)).to(d.dtype),
        by_z,
        None if dt_bias is None else by_step.sum((0, 2)).to(dt_bias.dtype),
    )


def _kernel(file: str, entry: str, name: str, when: Any = None, *, fixed: int | None = None) -> None:
    """fixed: the number of states that the kernel is compiled for, and takes alone; None where it is told."""
    takes = when if fixed is None else lambda a: a.shape[1] == fixed

    @selective_scan.kernel(lp.cuda(file, entry), dtypes=_OF_KERNELS, when=takes, name=f"selective_scan_{name}")
    def launch(
        x: lp.TensorType,
        dt: lp.TensorType,
        a: lp.TensorType,
        b: lp.TensorType,
        c: lp.TensorType,
        d: lp.TensorType | None,
        z: lp.TensorType | None,
        dt_bias: lp.TensorType | None,
        softplus: bool,
        y: lp.TensorType,
        state: lp.TensorType,
    ) -> lp.Launch:
        batch, channels, length = x.shape
        lanes = _lanes(a.shape[1]) if fixed is None else fixed
        rows = _THREADS // lanes
        sizes = (batch * channels, channels, length, *([a.shape[1]] if fixed is None else []))
        return lp.Launch(
            grid=lp.cdiv(batch * channels, rows),
            block=(lanes, rows),
            args=(x, dt, a, b, c, d, z, dt_bias, y, state, *sizes, softplus),
        )


def _lanes(states: Any) -> Any:
    half = lp.where(states <= 8, 8, lp.where(states <= 16, 16, _LANES))
    return lp.where(states <= 2, 2, lp.where(states <= 4, 4, half))


for _states in (8, 16, 32):
    _kernel("chunks.cu", f"selective_scan_chunks<{{x}}, {_states}>", str(_states), fixed=_states)
_kernel("kernel.cu", "selective_scan<{x}, true>", "few", lambda a: a.shape[1] <= _LANES)
_kernel("kernel.cu", "selective_scan<{x}, false>", "many")
