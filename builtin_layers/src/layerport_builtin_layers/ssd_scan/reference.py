"""The layer `layerport_builtin::ssd_scan`: what it computes, and how its kernels are launched."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

import layerport as lp


class Scanned(NamedTuple):
    """What `ssd_scan` returns: its output, of x's shape, and the state after the last position."""

    y: Tensor
    state: Tensor


@lp.layer("layerport_builtin::ssd_scan", version=1, find=False, purpose="not expressible")
def ssd_scan(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    start: Tensor | None = None,
    softplus: bool = False,
    dt_min: float = 0.0,
    dt_max: float | None = None,
) -> Scanned:
    """The scan of Mamba2 over a sequence: Dao and Gu (2024), "Transformers are SSMs", section 6, one rate a head.

    x, z: (batch, length, heads, dim), floating point.  dt: (batch, length, heads).  b, c: (batch, length, groups,
    states), of which each group serves heads / groups neighbouring heads.  All of one dtype.
    a, the negative rates, d, dt_bias: (heads,).  start, the state before the first position, zeros where absent:
    (batch, heads, dim, states).  Of x's dtype or float32.
    At each position, for step = dt + dt_bias, or softplus of that, not below dt_min and not above dt_max:
    state = state * exp(step * a) + step * x * b, and y = (sum over states of state * c + d * x) * silu(z).
    Returns y, of x's shape, and the last state, (batch, heads, dim, states); both, and all between, in float32, which
    sums of float16 may need (float64 for float64).  Raises ValueError for shapes, dtypes and limits that do not fit.
    """
    _refuse(x, dt, a, b, c, d, z, dt_bias, start, dt_min, dt_max)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    steps = _steps(dt.to(wide), dt_bias, softplus).clamp(dt_min, dt_max)
    values = x.to(wide)
    batch, _, heads, dim = x.shape
    groups, states = b.shape[2:]

    def advance(state: Tensor, step: Tensor, value: Tensor, b: Tensor, c: Tensor, a: Tensor) -> tuple[Tensor, ...]:
        decay = torch.exp(step * a)[..., None, None]
        state = state * decay + (step[..., None] * value)[..., None] * b[:, :, None, None]
        return state, (state * c[:, :, None, None]).sum(-1)

    if start is None:
        before = torch.zeros((batch, heads, dim, states), dtype=wide, device=x.device)
    else:
        before = start.to(wide)
    xs = [_grouped(one, groups).transpose(0, 1) for one in (steps, values)]
    xs += [one.to(wide).transpose(0, 1) for one in (b, c)]
    first = before.reshape(batch, groups, heads // groups, dim, states)
    state, sums = lp.scan(advance, [first], xs, (a.to(wide).reshape(groups, heads // groups),))
    result = sums.transpose(0, 1).reshape(x.shape)
    if d is not None:
        result = result + d.to(wide)[:, None] * values
    if z is not None:
        result = result * torch.nn.functional.silu(z.to(wide))
    return Scanned(result, state.reshape(batch, heads, dim, states))


def _steps(dt: Tensor, dt_bias: Tensor | None, softplus: bool) -> Tensor:
    raw = dt if dt_bias is None else dt + dt_bias.to(dt.dtype)
    return torch.nn.functional.softplus(raw) if softplus else raw


def _grouped(one: Tensor, groups: int) -> Tensor:
    """(batch, length, heads, ...) as (batch, length, groups, heads / groups, ...)."""
    return one.reshape(*one.shape[:2], groups, one.shape[2] // groups, *one.shape[3:])


def _refuse(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor | None, z: Tensor | None,
    dt_bias: Tensor | None, start: Tensor | None, dt_min: float, dt_max: float | None,
) -> None:  # fmt: skip
    named = {"x": x, "dt": dt, "a": a, "b": b, "c": c, "d": d, "z": z, "dt_bias": dt_bias, "start": start}
    given = {name: one for name, one in named.items() if one is not None}
    faults = []
    if (
        (x.ndim, b.ndim) != (4, 4)
        or dt.shape != x.shape[:3]
        or b.shape != c.shape
        or b.shape[:2] != x.shape[:2]
        or any(one is not None and one.shape != x.shape[2:3] for one in (a, d, dt_bias))
        or (z is not None and z.shape != x.shape)
        or (start is not None and start.shape != (x.shape[0], *x.shape[2:], b.shape[3]))
        or b.shape[2] < 1
        or x.shape[2] % b.shape[2] != 0
    ):
        shapes = ", ".join(f"{name} {list(one.shape)}" for name, one in given.items())
        faults.append(
            f"shapes do not fit: {shapes}; give x, z: (batch, length, heads, dim), dt: (batch, length, heads), "
            "a, d, dt_bias: (heads,), b, c: (batch, length, groups, states), where groups divide heads, "
            "start: (batch, heads, dim, states)"
        )
    if (
        not x.is_floating_point()
        or any(one is not None and one.dtype != x.dtype for one in (dt, b, c, z))
        or any(one is not None and one.dtype not in (x.dtype, torch.float32) for one in (a, d, dt_bias, start))
    ):
        dtypes = ", ".join(f"{name} {one.dtype}" for name, one in given.items())
        faults.append(
            f"dtypes do not fit: {dtypes}; give dt, b, c, z in x's dtype, a, d, dt_bias, start in that or float32"
        )
    if not dt_min <= (math.inf if dt_max is None else dt_max):
        faults.append(f"dt_min is {dt_min}, dt_max is {dt_max}; give numbers of which the second is not below")
    if faults:
        raise ValueError("ssd_scan: " + "; ".join(faults))


@ssd_scan.backward
def backward(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    start: Tensor | None,
    softplus: bool,
    dt_min: float,
    dt_max: float | None,
    grad_y: Tensor,
    grad_state: Tensor,
) -> tuple[Any, ...]:
    """The states once more, then the recurrence from its end."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    raw = dt.to(wide) if dt_bias is None else dt.to(wide) + dt_bias.to(wide)
    steps, values = _steps(raw, None, softplus), x.to(wide)
    groups = b.shape[2]
    of_state = (x.shape[0], groups, x.shape[2] // groups, x.shape[3], b.shape[3])
    wide_a = a.to(wide).reshape(of_state[1:3])
    by_sum, by_z = grad_y.to(wide), None

    def in_time(one: Tensor) -> Tensor:
        return _grouped(one, groups).transpose(0, 1)

    xs = [in_time(steps.clamp(dt_min, dt_max)), in_time(values), b.to(wide).transpose(0, 1), c.to(wide).transpose(0, 1)]
    first = torch.zeros_like(grad_state, dtype=wide) if start is None else start.to(wide)
    first = first.reshape(of_state)

    def advance(state: Tensor, step: Tensor, value: Tensor, b: Tensor, a: Tensor) -> tuple[Tensor, ...]:
        decay = torch.exp(step * a)[..., None, None]
        state = state * decay + (step[..., None] * value)[..., None] * b[:, :, None, None]
        return state, state.clone()

    _, states = lp.scan(advance, [first], xs[:3], (wide_a,))
    if z is not None:
        gate, share = z.to(wide), torch.sigmoid(z.to(wide))
        result = (states * xs[3][:, :, :, None, None]).sum(-1).transpose(0, 1).reshape(x.shape)
        if d is not None:
            result = result + d.to(wide)[:, None] * values
        by_z = (by_sum * result * share * (1 + gate * (1 - share))).to(z.dtype)
        by_sum = by_sum * gate * share

    def back(
        ahead: Tensor, by_a: Tensor, step: Tensor, value: Tensor, b: Tensor, c: Tensor, before: Tensor, by_sum: Tensor,
        a: Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        by_state = ahead + by_sum[..., None] * c[:, :, None, None]
        decay = torch.exp(step * a)
        by_rate = (by_state * before).sum((-2, -1)) * decay
        by_product = (by_state * b[:, :, None, None]).sum(-1)
        by_step = by_rate * a + (by_product * value).sum(-1)
        by_b = (by_state * (step[..., None] * value)[..., None]).sum((2, 3))
        by_a = by_a + (by_rate * step).sum(0)
        return by_state * decay[..., None, None], by_a, by_step, by_product * step[..., None], by_b

    before = torch.cat((first.unsqueeze(0), states[:-1]))
    backwards = [one.flip(0) for one in (*xs, before, in_time(by_sum))]
    carried = [grad_state.to(wide).reshape(of_state), torch.zeros_like(wide_a)]
    by_first, by_a, *found = lp.scan(back, carried, backwards, (wide_a,))
    by_step, by_value, by_b = (one.flip(0).transpose(0, 1) for one in found)
    by_c = (states * in_time(by_sum)[..., None]).sum((3, 4)).transpose(0, 1)
    by_step = by_step.reshape(dt.shape) * (steps == steps.clamp(dt_min, dt_max))
    if softplus:
        by_step = by_step * torch.where(raw > 20, 1.0, torch.sigmoid(raw))
    by_value = by_value.reshape(x.shape)
    if d is not None:
        by_value = by_value + by_sum * d.to(wide)[:, None]
    return (
        *(by_value.to(x.dtype), by_step.to(dt.dtype), by_a.reshape(a.shape).to(a.dtype)),
        *(by_b.to(b.dtype), by_c.to(c.dtype)),
        None if d is None else (by_sum * values).sum((0, 1, 3)).to(d.dtype),
        by_z,
        None if dt_bias is None else by_step.sum((0, 1)).to(dt_bias.dtype),
        None if start is None else by_first.reshape(start.shape).to(start.dtype),
    )


_THREADS = 128
_LANES = 8  # that share a row of the state
_OF_KERNELS = tuple(
    dict.fromkeys(("a", "d", "dt_bias", "start", "y", "state"), "float32") | {"*": name}
    for name in ("float32", "float16", "bfloat16")
)


def _kernel(name: str, entry: str, when: Any = None, *, rows: int | None = None) -> None:
    """rows: how many rows of the state each lane has; None where a warp has one."""

    @ssd_scan.kernel(lp.cuda("kernel.cu", entry), dtypes=_OF_KERNELS, when=when, name=f"ssd_scan_{name}")
    def launch(
        x: lp.TensorType,
        dt: lp.TensorType,
        a: lp.TensorType,
        b: lp.TensorType,
        c: lp.TensorType,
        d: lp.TensorType | None,
        z: lp.TensorType | None,
        dt_bias: lp.TensorType | None,
        start: lp.TensorType | None,
        softplus: bool,
        dt_min: float,
        dt_max: float | None,
        y: lp.TensorType,
        state: lp.TensorType,
    ) -> lp.Launch:
        batch, length, heads, dim = x.shape
        count, warps = batch * heads * dim, _THREADS // 32
        grid = lp.cdiv(count, warps) if rows is None else batch * heads * lp.cdiv(dim, _THREADS // _LANES * rows)
        return lp.Launch(
            grid=grid,
            block=(32, warps) if rows is None else _THREADS,
            args=(
                *(x, dt, a, b, c, d, z, dt_bias, start, y, state, *([count] if rows is None else [])),
                *(length, heads, b.shape[2], dim, b.shape[3], softplus, dt_min, math.inf if dt_max is None else dt_max),
            ),
        )


def _fixed(states: int) -> Any:
    return lambda b: b.shape[3] == states


_kernel("64", "ssd_scan<{x}, 2, 4, true>", _fixed(64), rows=4)
_kernel("128", "ssd_scan<{x}, 4, 4, true>", _fixed(128), rows=4)
_kernel("256", "ssd_scan<{x}, 8, 2, true>", _fixed(256), rows=2)
_kernel("few", "ssd_scan<{x}, 1, 4, false>", lambda b: b.shape[3] <= 32, rows=4)
_kernel("some", "ssd_scan<{x}, 8, 2, false>", lambda b: b.shape[3] <= 256, rows=2)
_kernel("many", "ssd_scan_many<{x}>")
