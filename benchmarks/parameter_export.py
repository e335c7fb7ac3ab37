"""What bringing Torch parameters to the standard form costs, beside doing it by hand.

Where type and layout fit, `layer.bind(...)` must not copy: its pointers are compared with Torch's, and its time stands
beside `tensor.detach().numpy()`.  A cast, `to_standard(tensor, dtype=...)`, stands beside `tensor.to(...)`, many small
ones beside a loop, and `transforms` beside Torch.
"""

from __future__ import annotations

from typing import Any

import torch
from measuring import Comparison, arguments, environment, interleaved, show
from torch import Tensor

import layerport as lp
from layerport import transforms
from layerport.conversion import to_standard
from layerport.dtypes import DType

LARGE, MEDIUM, SMALL = 64 << 20, 1 << 20, 4 << 10
CAST_LIMIT, LOOP_LIMIT = 1.2, 3.0
CASTS = (
    (torch.float32, torch.float16, DType.FLOAT16),
    (torch.float32, torch.bfloat16, DType.BFLOAT16),
    (torch.float16, torch.float32, DType.FLOAT32),
    (torch.bfloat16, torch.float32, DType.FLOAT32),
    (torch.float32, torch.float64, DType.FLOAT64),
    (torch.float64, torch.float32, DType.FLOAT32),
)


@lp.layer("layerport_benchmark::weighted", version=1)
def weighted(x: Tensor, weight: lp.Param, bias: lp.Param | None = None, beta: float = 1.0) -> Tensor:
    return x * weight * beta if bias is None else x * weight * beta + bias


def tensor_of(size: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(size // dtype.itemsize, generator=torch.Generator().manual_seed(0)).to(dtype)


def size_text(size: int) -> str:
    return f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"


def views() -> tuple[list[Comparison], list[str]]:
    comparisons, notes = [], []
    for size in (LARGE, SMALL):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            weight = torch.nn.Parameter(tensor_of(size, dtype))
            carrier = weight.detach().view(torch.int16) if dtype is torch.bfloat16 else weight
            sides = {
                "ours": lambda weight=weight: weighted.bind(weight=weight),
                "theirs": lambda carrier=carrier: carrier.detach().numpy(),
            }
            times = interleaved(sides, rounds=300, calls=20, seconds=5)
            bound = weighted.bind(weight=weight)
            shared = bound.parameters["weight"].ctypes.data == weight.data_ptr()
            name = f"{size_text(size)} {str(dtype).removeprefix('torch.')}"
            details = {"same_pointer": shared, "steps": [step.action for step in bound.steps]}
            ours, theirs = times["ours"].least * 1e6, times["theirs"].least * 1e6
            comparisons.append(Comparison(f"bind {name}", ours, theirs, "us", details=details))
            notes.append(f"bind {name}: {'same pointer' if shared else 'COPIED'}, {', '.join(details['steps'])}")
    return comparisons, notes


def casts() -> list[Comparison]:
    comparisons = []
    for size in (LARGE, MEDIUM, SMALL):
        for source, target, name in CASTS:
            weight = tensor_of(size, source)
            sides: dict[str, Any] = {
                "ours": lambda weight=weight, name=name: to_standard(weight, dtype=name),
                "theirs": lambda weight=weight, target=target: weight.to(target),
            }
            calls = 1 if size == LARGE else 5 if size == MEDIUM else 50
            times = interleaved(sides, rounds=200, calls=calls, seconds=6 if size == LARGE else 2)
            unit, scale = ("ms", 1e3) if size == LARGE else ("us", 1e6)
            what = f"cast {size_text(size)} {str(source).removeprefix('torch.')} to {name}"
            details = {"median": {side: round(timing.median * scale, 3) for side, timing in times.items()}}
            ours, theirs = times["ours"].least * scale, times["theirs"].least * scale
            comparisons.append(Comparison(what, ours, theirs, unit, CAST_LIMIT, details=details))
    return comparisons


def loops() -> list[Comparison]:
    """Many small tensors, beside the loop that one would write."""
    comparisons = []
    tensors = [torch.randn(SMALL // 4) for _ in range(1000)]
    carried = {DType.BFLOAT16: (torch.int16, DType.BFLOAT16.to_numpy())}

    def by_hand(target: torch.dtype, name: DType) -> list[Any]:
        if name in carried:
            carrier, dtype = carried[name]
            return [one.detach().to(target).view(carrier).numpy().view(dtype) for one in tensors]
        return [one.detach().to(target).numpy() for one in tensors]

    for target, name in (
        (torch.float32, DType.FLOAT32),
        (torch.float16, DType.FLOAT16),
        (torch.bfloat16, DType.BFLOAT16),
    ):
        times = interleaved(
            {
                "ours": lambda name=name: [to_standard(one, dtype=name).array for one in tensors],
                "theirs": lambda target=target, name=name: by_hand(target, name),
            },
            rounds=60,
            seconds=15,
        )
        for figure in ("least", "median"):
            ours, theirs = (getattr(times[side], figure) * 1e3 for side in ("ours", "theirs"))
            what = f"1,000 float32 of 4 KiB to {name.value}, {figure}"
            comparisons.append(Comparison(what, ours, theirs, "us a tensor", LOOP_LIMIT))
    return comparisons


def layouts() -> list[Comparison]:
    """A large array in another order, and one that may not be written."""
    tensor = torch.randn(2048, 2048)
    array, frozen = tensor.numpy(), tensor.numpy().copy()
    frozen.flags.writeable = False
    comparisons = []
    for what, ours, theirs in (
        ("transpose 16 MiB", lambda: transforms.transpose(array), lambda: tensor.T.contiguous()),
        (
            "cast read-only 16 MiB to float16",
            lambda: transforms.cast(frozen, "float16"),
            lambda: tensor.to(torch.float16),
        ),
    ):
        times = interleaved({"ours": ours, "theirs": theirs}, rounds=100, seconds=6)
        for figure in ("least", "median"):
            mine, other = (getattr(times[side], figure) * 1e3 for side in ("ours", "theirs"))
            comparisons.append(Comparison(f"{what}, {figure}", mine, other, "ms"))
    return comparisons


def main() -> None:
    options = arguments(__doc__).parse_args()
    shown, notes = views()
    show(
        "parameters of Torch in the standard form",
        [*shown, *casts(), *loops(), *layouts()],
        as_json=options.json,
        sides=("layer.bind(...), to_standard(..., dtype=...)", "tensor.detach().numpy(), tensor.to(...)"),
        notes=[*notes, "the least of up to 300 interleaved rounds; nothing is promised for bind but the pointers"],
        where=environment(["torch", "numpy"]),
    )


if __name__ == "__main__":
    main()
