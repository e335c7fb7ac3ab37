"""What a layer's call costs in Torch on a CPU, beside the same operator made by hand with torch.library.

Tiny tensors and a reference of one multiplication, so that the call itself is what is timed.  In inference mode the
other side is a bare `Library.define` + `impl`; elsewhere it is that with `torch.library.register_autograd`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from measuring import Comparison, arguments, environment, interleaved, show
from torch import Tensor

import layerport as lp

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
    ]
    del libraries
    show(
        "a layer's call in Torch on a CPU",
        comparisons,
        as_json=options.json,
        sides=("a layer", "torch.library by hand: bare in inference_mode, else with register_autograd"),
        notes=[
            f"the least of {ROUNDS} interleaved rounds of {CALLS} calls; noise in the JSON is theirs against itself"
        ],
        where=environment(["torch"]),
    )


if __name__ == "__main__":
    main()
