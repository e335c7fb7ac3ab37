"""What `layerport_builtin::gated_rms_norm` is tested and measured with."""

from __future__ import annotations

from typing import Any

from layerport.testing import CaseShape, LayerCase, Tolerance
from layerport_builtin_layers.gated_rms_norm.reference import gated_rms_norm


def _shape(reason: str, *x: int, weight: bool = True, gpu_only: bool = False, **attributes: Any) -> CaseShape:
    return CaseShape(reason, {"x": x, "gate": x, "weight": x[-1:] if weight else None}, attributes, gpu_only)


CASE = LayerCase(
    layer=gated_rms_norm,
    shapes=(
        _shape("one element", 1),
        _shape("groups of an odd width", 2, 3, 15, groups=3),
        _shape("tokens, the gate at the end", 2, 9, 64, gate_first=False),
        _shape("a prime of narrow rows", 7, 129),
        _shape("wide", 2, 2304),
        _shape("wide and odd, the gate at the end", 3, 1031, gate_first=False),
        _shape("wide groups, no weight", 2, 2200, weight=False, groups=2),
        _shape("no weight, a large eps", 5, 32, weight=False, eps=0.5),
        _shape("more than the largest block keeps", 1, 16400),
        _shape("no rows", 0, 64),
        _shape("a prompt of Mamba2-2.7B", 2048, 5120, gpu_only=True),
    ),
    dtypes=(
        "float32",
        {"weight": "float32", "*": "float16"},
        "float16",
        "bfloat16",
        {"weight": "float32", "*": "bfloat16"},
        {"gate": "float16", "weight": "float16", "*": "float32"},
        {"gate": "bfloat16", "weight": "bfloat16", "*": "float32"},
    ),
    tolerances={
        "float64": Tolerance(1e-12, 1e-12),
        "float32": Tolerance(1e-7, 2e-6),
        "float16": Tolerance(1e-7, 1e-3),
        "bfloat16": Tolerance(1e-7, 8e-3),
    },
)
