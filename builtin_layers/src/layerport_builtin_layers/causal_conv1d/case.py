"""What `layerport_builtin::causal_conv1d` is tested and measured with."""

from __future__ import annotations

from layerport.testing import CaseShape, LayerCase, Tolerance
from layerport_builtin_layers.causal_conv1d.reference import causal_conv1d


def _shape(
    reason: str,
    *x: int,
    width: int = 4,
    bias: bool = True,
    activation: str = "silu",
    gpu_only: bool = False,
) -> CaseShape:
    # As torch.nn.Conv1d has it; without the axis of one, a weight lies in memory just the same.
    shapes = {"x": x, "weight": (x[1], 1, width), "bias": (x[1],) if bias else None}
    return CaseShape(reason, shapes, {"activation": activation}, gpu_only)


CASE = LayerCase(
    layer=causal_conv1d,
    shapes=(
        _shape("shorter than the weight", 2, 3, 2),
        _shape("one position of many channels", 3, 89, 1),
        _shape("whole packs", 2, 3, 64),
        _shape("rows that start anywhere", 2, 5, 37),
        _shape("more than a chunk of odd rows, nothing optional", 1, 2, 2053, bias=False, activation="none"),
        _shape("a weight of two columns", 2, 3, 19, width=2),
        _shape("a weight of three columns, no bias", 1, 5, 24, width=3, bias=False),
        _shape("a weight of seven columns", 2, 3, 21, width=7, activation="none"),
        _shape("a weight of one column", 2, 3, 9, width=1),
        _shape("no sequences", 0, 4, 3),
        _shape("a prompt of Mamba-2.8B", 1, 5120, 2048, gpu_only=True),
        _shape("a prompt of Mamba-2.8B, one position more", 1, 5120, 2049, gpu_only=True),
    ),
    dtypes=(
        "float32",
        {"weight": "float32", "bias": "float32", "*": "float16"},
        "float16",
        "bfloat16",
        {"weight": "float32", "bias": "float32", "*": "bfloat16"},
    ),
    # Half a unit in the last place for the rounding at the end; a sum of products may cancel.
    tolerances={
        "float64": Tolerance(1e-12, 1e-12),
        "float32": Tolerance(2e-6, 2e-6),
        "float16": Tolerance(2e-6, 1e-3),
        "bfloat16": Tolerance(2e-6, 8e-3),
    },
)
