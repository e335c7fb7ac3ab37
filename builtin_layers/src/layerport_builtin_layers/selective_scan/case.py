"""What `layerport_builtin::selective_scan` is tested and measured with."""

from __future__ import annotations

import torch

from layerport.testing import CaseShape, LayerCase, Tolerance
from layerport_builtin_layers.selective_scan.reference import selective_scan


def _shape(
    reason: str,
    batch: int,
    channels: int,
    length: int,
    states: int,
    *,
    absent: tuple[str, ...] = (),
    softplus: bool = True,
    gpu_only: bool = False,
) -> CaseShape:
    rows, of_states = (batch, channels, length), (batch, states, length)
    shapes: dict[str, tuple[int, ...] | None] = {
        "x": rows,
        "dt": rows,
        "a": (channels, states),
        "b": of_states,
        "c": of_states,
        "d": (channels,),
        "z": rows,
        "dt_bias": (channels,),
    }
    return CaseShape(reason, shapes | dict.fromkeys(absent), {"softplus": softplus}, gpu_only)


def draw_steps(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Normal values, but rates below 0 and steps above, so that no state grows without end."""
    wide = torch.float64 if generator.device.type == "cpu" else torch.float32
    values = torch.randn(shape, generator=generator, dtype=wide, device=generator.device)
    if name == "a":
        return -0.1 - values.abs()
    return values.abs() if name in ("dt", "dt_bias") else values


CASE = LayerCase(
    layer=selective_scan,
    shapes=(
        _shape("one of everything", 1, 1, 1, 1),
        _shape("16 states", 2, 5, 7, 16),
        _shape("a prime of states, nothing optional", 1, 3, 11, 7, absent=("d", "z", "dt_bias"), softplus=False),
        _shape("more than a block", 3, 7, 5, 16, absent=("z",)),
        _shape("whole packs of steps, 8 states", 2, 3, 24, 8),
        _shape("packs of steps and a rest, 32 states", 1, 3, 19, 32, absent=("d",)),
        _shape("18 states", 2, 3, 6, 18),
        _shape("more states than lanes", 2, 3, 6, 37),
        _shape("65 states", 1, 2, 3, 65, absent=("dt_bias",)),
        _shape("no images", 0, 4, 3, 16),
        _shape("a prompt of Mamba-2.8B", 1, 5120, 2048, 16, gpu_only=True),
    ),
    dtypes=tuple(
        {"a": "float32", "d": "float32", "dt_bias": "float32", "*": name} for name in ("float32", "float16", "bfloat16")
    ),
    # Sums of products may cancel, and what is rounded in a state is kept.
    tolerances={
        "float64": Tolerance(1e-11, 1e-11),
        "float32": Tolerance(2e-5, 2e-5),
        "float16": Tolerance(1e-4, 1e-3),
        "bfloat16": Tolerance(1e-4, 8e-3),
    },
    draw=draw_steps,
)
