"""How much a further node of a layer adds to a plan, and what the same network without plugins takes.

A chain of RMS norms, each a plugin of the built-in pack, at two lengths; beside it the same chain decomposed.
Needs tensorrt_rtx.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from measuring import Comparison, arguments, environment, show

import layerport as lp

FEW, MANY, WIDTH, LIMIT_BYTES = 16, 128, 64, 4096


def plan_bytes(count: int, folder: str, decompose: tuple[str, ...] = ()) -> int:
    """The size of the plan of a chain."""
    chain = torch.nn.Sequential(*(torch.nn.RMSNorm(WIDTH, eps=1e-6) for _ in range(count))).eval()
    rows = ({0: torch.export.Dim("rows", min=1, max=64)},)
    report = lp.build(
        chain,
        Path(folder, "chain.lp"),
        args=(torch.randn(4, WIDTH),),
        dynamic_shapes=rows,
        target="rtx:sm_89",
        decompose=decompose,
        verify=False,
        force=True,
    )
    assert report.plan_bytes is not None
    return report.plan_bytes


def main() -> None:
    options = arguments(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ours = [plan_bytes(count, folder) for count in (FEW, MANY)]
        theirs = [plan_bytes(count, folder, ("layerport_builtin::rms_norm",)) for count in (FEW, MANY)]
    further = (ours[1] - ours[0]) / (MANY - FEW)
    comparisons = [
        Comparison(f"{MANY} norms", ours[1] / 1024, theirs[1] / 1024, "KiB"),
        Comparison("a further norm, beside the limit", further, LIMIT_BYTES, "bytes", 1.0),
    ]
    show(
        "the size of a plan of RMS norms",
        comparisons,
        as_json=options.json,
        sides=("each norm a plugin", "decomposed"),
        where=environment(["tensorrt_rtx"]),
    )


if __name__ == "__main__":
    main()
