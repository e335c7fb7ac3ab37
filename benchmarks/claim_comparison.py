"""What comparing a claim's output with its module's costs, beside the largest absolute difference written by hand.

Time, and the memory that the comparison takes on top of the two tensors: the growth of the process's greatest resident
size, each side in a process of its own.
"""

from __future__ import annotations

import resource
import subprocess
import sys

import torch
from measuring import Comparison, arguments, environment, interleaved, show

from layerport.front.comparison import relative_error

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
SIZES = {"64 MiB": 64 << 20, "1 MiB": 1 << 20}
TIME_LIMIT, MEMORY_LIMIT = 2.0, 0.1
KIB_PER_MIB = 1024


def pair(size: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Two tensors of `size` bytes that differ a little."""
    one = torch.empty(size // dtype.itemsize, dtype=dtype)
    one.normal_(generator=torch.Generator().manual_seed(0))
    other = one.clone()
    other[::1000] *= 1.001
    return one, other


def by_hand(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


def growth(side: str, dtype: str, size: int) -> float:
    """MiB by which the greatest resident size grows."""
    command = [sys.executable, __file__, "--one", side, dtype, str(size)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _one(side: str, dtype: str, size: str) -> None:
    run = relative_error if side == "ours" else by_hand
    run(*pair(1 << 16, DTYPES[dtype]))
    one, other = pair(int(size), DTYPES[dtype])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run(one, other)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / KIB_PER_MIB)


def main() -> None:
    if "--one" in sys.argv:
        _one(*sys.argv[sys.argv.index("--one") + 1 :])
        return
    options = arguments(__doc__).parse_args()
    comparisons = []
    for size_name, size in SIZES.items():
        for name, dtype in DTYPES.items():
            one, other = pair(size, dtype)
            calls = 1 if size == SIZES["64 MiB"] else 20
            times = interleaved(
                {
                    "ours": lambda one=one, other=other: relative_error(one, other),
                    "theirs": lambda one=one, other=other: by_hand(one, other),
                },
                rounds=50,
                calls=calls,
                seconds=6,
            )
            details = {"median": {side: round(timing.median * 1e3, 4) for side, timing in times.items()}}
            ours, theirs = times["ours"].least * 1e3, times["theirs"].least * 1e3
            comparisons.append(Comparison(f"time, {size_name} {name}", ours, theirs, "ms", TIME_LIMIT, details=details))
    for name in DTYPES:
        size = SIZES["64 MiB"]
        comparisons.append(
            Comparison(
                f"memory beside an output of 64 MiB {name}",
                growth("ours", name, size),
                size / 2**20,
                "MiB",
                MEMORY_LIMIT,
                details={"by_hand": growth("theirs", name, size)},
            )
        )
    show(
        "a claim's comparison",
        comparisons,
        as_json=options.json,
        sides=("relative_error", "(a - b).abs().max(); for memory, the output"),
        notes=["the least of up to 50 interleaved rounds"],
        where=environment(["torch"]),
    )


if __name__ == "__main__":
    main()
