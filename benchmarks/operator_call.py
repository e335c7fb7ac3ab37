"""What a layer's call costs in Torch on a CPU, beside the same operator made by hand with torch.library.

Tiny tensors and a reference of one multiplication, so that the call itself is what is timed.  In inference mode the
other side is a bare `Library.define` + `impl`; elsewhere it is that with `torch.library.register_autograd`.

Then forward with backward of the built-in layers on a few hundred rows, beside an `autograd.Function` written by hand,
with the layer's own backward and with the one that is derived from its reference.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from measuring import Comparison, arguments, environment, interleaved, show
from torch import Tensor

import layerport as lp
from layerport_builtin_layers.rms_norm import rms_norm
from layerport_builtin_layers.silu_mul import silu_mul

ROUNDS, CALLS = 400, 200


@lp.layer("layerport_benchmark::scale", version=1)
def scale(x: Tensor, w: lp.Param) -> Tensor:
    return x * w


def plain(x: Tensor, w: Tensor) -> Tensor:
    return x * w


def by_hand(namespace: str, *, autograd: bool) -> torch.library.Library:
    """The same operator, as one writes it with torch.library."""
    library = torch.library.Library(namespace, "FRAGMENT")
    library.define("scale(Tensor x, Tensor w) -> Tensor")
    library.impl("scale", plain, "CompositeExplicitAutograd")
    if autograd:
        torch.library.register_autograd(f"{namespace}::scale", _backward, setup_context=_setup, lib=library)
    return library


def _setup(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
    x, w = ctx.saved_tensors
    return gradient * w, (gradient * x).sum_to_size(w.shape)


class SiluMul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return torch.nn.functional.silu(gate) * up

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        by_gate = torch.ops.aten.silu_backward(gradient * up, gate)
        return by_gate, gradient * torch.nn.functional.silu(gate)


class RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight, scale)
        return x * scale * weight

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        normal = x * scale
        by_normal = gradient * weight
        by_x = scale * (by_normal - normal * (by_normal * normal).mean(-1, keepdim=True))
        return by_x, (gradient * normal).sum(0), None


def derived(layer: lp.Layer, name: str) -> lp.Layer:
    """The same layer without its written backward."""
    return lp.layer(f"layerport_benchmark::{name}")(layer.reference)


def gradients() -> list[Comparison]:
    rows, columns = 256, 1024
    one, other = (torch.randn(rows, columns).requires_grad_() for _ in range(2))
    weight, wanted = torch.randn(columns).requires_grad_(), torch.randn(rows, columns)
    comparisons = []
    for name, layer, by_hand, args in (
        ("silu_mul", silu_mul, SiluMul.apply, (one, other)),
        ("rms_norm", rms_norm, RmsNorm.apply, (one, weight, 1e-6)),
    ):
        inputs = [value for value in args if isinstance(value, Tensor)]

        def step(function: Any, args: Any = args, inputs: Any = inputs) -> Any:
            return torch.autograd.grad(function(*args), inputs, wanted)

        plain = derived(layer, name)
        for ours, theirs in zip(step(layer), step(by_hand), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        sides = {
            "theirs": lambda step=step, f=by_hand: step(f),
            "written": lambda step=step, f=layer: step(f),
            "derived": lambda step=step, f=plain: step(f),
        }
        times = interleaved(sides, rounds=60, calls=2)
        for kind, limit in (("written", 1.25), ("derived", None)):
            what = f"{name} {rows} x {columns}, forward and backward, {kind}"
            details = {"median_us": {key: round(timing.median * 1e6, 3) for key, timing in times.items()}}
            least = times[kind].least * 1e6
            comparisons.append(Comparison(what, least, times["theirs"].least * 1e6, "us", limit, details=details))
    return comparisons


def compare(mode: str, context: AbstractContextManager[Any], x: Tensor, w: Tensor, theirs: Any, limit: float) -> Any:
    operator = torch.ops.layerport_benchmark.scale
    sides = {
        "theirs": lambda: theirs(x, w),
        "layer": lambda: scale(x, w),
        "operator": lambda: operator(x, w),
        "again": lambda: theirs(x, w),
    }
    with context:
        times = interleaved(sides, rounds=ROUNDS, calls=CALLS)
    least = {name: timing.least * 1e6 for name, timing in times.items()}
    medians = {name: round(timing.median * 1e6, 3) for name, timing in times.items()}
    base = least["theirs"]
    details = {"median_us": medians, "noise": round(least["again"] / base, 4)}
    return [
        Comparison(f"{mode}: layer(x, w)", least["layer"], base, "us", limit, details=details),
        Comparison(f"{mode}: torch.ops.ns.name(x, w)", least["operator"], base, "us", limit, details=details),
    ]


def main() -> None:
    options = arguments(__doc__).parse_args()
    torch.set_num_threads(1)
    libraries = by_hand("layerport_by_hand", autograd=False), by_hand("layerport_by_hand_autograd", autograd=True)
    bare, differentiable = torch.ops.layerport_by_hand.scale, torch.ops.layerport_by_hand_autograd.scale
    x, w = torch.randn(4, 8), torch.randn(8)
    wanted = torch.randn(8).requires_grad_()
    comparisons = [
        *compare("inference_mode", torch.inference_mode(), x, w, bare, 1.2),
        *compare("no_grad", torch.no_grad(), x, w, differentiable, 1.0),
        *compare("grad mode, no gradient wanted", torch.enable_grad(), x, w, differentiable, 1.0),
        *compare("grad mode, gradient wanted", torch.enable_grad(), x, wanted, differentiable, 1.0),
        *gradients(),
    ]
    del libraries
    show(
        "a layer's call in Torch on a CPU",
        comparisons,
        as_json=options.json,
        sides=(
            "a layer",
            "torch.library by hand (with register_autograd but in inference_mode), autograd.Function by hand",
        ),
        notes=[
            f"the least of {ROUNDS} interleaved rounds of {CALLS} calls; noise in the JSON is theirs against itself",
            "forward and backward: the least of 60 interleaved rounds of 2",
        ],
        where=environment(["torch"]),
    )


if __name__ == "__main__":
    main()
