"""What bringing Torch parameters to the standard form costs, beside doing it by hand.

Where type and layout fit, `layer.bind(...)` must not copy: its pointers are compared with Torch's, and its time stands
beside `tensor.detach().numpy()`.  A cast, `to_standard(tensor, dtype=...)`, stands beside `tensor.to(...)`.
"""

from __future__ import annotations

from typing import Any

import torch
from measuring import Comparison, arguments, environment, interleaved, show
from torch import Tensor

import layerport as lp
from layerport.conversion import to_standard
from layerport.dtypes import DType

LARGE, MEDIUM, SMALL = 64 << 20, 1 << 20, 4 << 10
CAST_LIMIT = 1.2
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


def main() -> None:
    options = arguments(__doc__).parse_args()
    shown, notes = views()
    show(
        "parameters of Torch in the standard form",
        [*shown, *casts()],
        as_json=options.json,
        sides=("layer.bind(...), to_standard(..., dtype=...)", "tensor.detach().numpy(), tensor.to(...)"),
        notes=[*notes, "the least of up to 300 interleaved rounds; nothing is promised for bind but the pointers"],
        where=environment(["torch", "numpy"]),
    )


if __name__ == "__main__":
    main()
