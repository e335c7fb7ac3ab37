"""What `layerport_builtin::ssd_scan` is tested and measured with."""

from __future__ import annotations

from layerport.testing import CaseShape, LayerCase, Tolerance
from layerport_builtin_layers.selective_scan.case import draw_steps
from layerport_builtin_layers.ssd_scan.reference import ssd_scan


def _shape(
    reason: str,
    rows: tuple[int, int, int, int],
    groups: int,
    states: int,
    *,
    absent: tuple[str, ...] = (),
    softplus: bool = True,
    dt_min: float = 0.0,
    dt_max: float | None = None,
    gpu_only: bool = False,
) -> CaseShape:
    """rows: batch, length, heads and dim."""
    batch, length, heads, dim = rows
    of_states = (batch, length, groups, states)
    shapes: dict[str, tuple[int, ...] | None] = {
        "x": rows,
        "dt": (batch, length, heads),
        "a": (heads,),
        "b": of_states,
        "c": of_states,
        "d": (heads,),
        "z": rows,
        "dt_bias": (heads,),
        "start": (batch, heads, dim, states),
    }
    attributes = {"softplus": softplus, "dt_min": dt_min, "dt_max": dt_max}
    return CaseShape(reason, shapes | dict.fromkeys(absent), attributes, gpu_only)


_AS_MODELS = ("z", "start")

CASE = LayerCase(
    layer=ssd_scan,
    shapes=(
        _shape("one of everything", (1, 1, 1, 1), 1, 1),
        _shape("heads in groups, 3 states", (2, 3, 4, 2), 2, 3, dt_min=0.3, dt_max=0.9),
        _shape("nothing optional", (1, 5, 3, 5), 3, 7, absent=("d", "z", "dt_bias", "start"), softplus=False),
        _shape("64 states, more positions than at once", (1, 19, 2, 16), 2, 64, absent=_AS_MODELS),
        _shape("128 states, more rows than a block", (1, 3, 1, 70), 1, 128, absent=("dt_bias",)),
        _shape("256 states", (1, 9, 2, 33), 2, 256, absent=("d",), dt_min=0.01),
        _shape("a group for all heads, 33 states", (1, 9, 6, 3), 1, 33, dt_max=0.5),
        _shape("more states than registers hold", (1, 3, 2, 3), 2, 259),
        _shape("no images", (0, 4, 3, 2), 1, 16),
        _shape("a prompt of Mamba2-2.7B", (1, 2048, 80, 64), 1, 128, absent=_AS_MODELS, gpu_only=True),
        _shape("a prompt of Falcon-H1-7B", (1, 2048, 24, 128), 1, 256, absent=_AS_MODELS, gpu_only=True),
    ),
    dtypes=tuple(
        dict.fromkeys(("a", "d", "dt_bias", "start"), "float32") | {"*": name}
        for name in ("float32", "float16", "bfloat16")
    ),
    # Sums of products may cancel, and what is rounded in a state is kept; nothing is rounded to 16 bits.
    tolerances={"float64": Tolerance(1e-11, 1e-11)}
    | dict.fromkeys(("float32", "float16", "bfloat16"), Tolerance(2e-5, 2e-5)),
    draw=draw_steps,
)
