"""What becomes of `torch.nn.functional.grid_sample` without a layer, form by form.

Whether torch.onnx exports it, whether ONNX Runtime (CPU) then agrees with Torch, for places in and around the map and
for such that are not finite, and whether TensorRT for RTX builds it, into how many kernels.  Needs tensorrt_rtx.
"""

from __future__ import annotations

import itertools
import json
import warnings
from collections import Counter
from typing import Any

import onnxruntime
import torch
from measuring import arguments, environment
from torch import Tensor
from torch.export import Dim

from layerport.engine import alone_build, configuring, flavours
from layerport.errors import BuildError

FLAVOUR, ARCHITECTURE = "rtx", "sm_89"
MODES = {4: ("bilinear", "nearest", "bicubic"), 5: ("bilinear", "nearest")}
PADDINGS = ("zeros", "border", "reflection")
# Of the map and of the grid; where they differ, Torch computes both in float32, since it takes only one dtype.
DTYPES = (
    *((one, one) for one in (torch.float32, torch.float16, torch.bfloat16)),
    (torch.float16, torch.float32),
)
BOUND = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 1e-1}


class Sample(torch.nn.Module):
    """A model that is nothing else."""

    def __init__(self, *form: Any) -> None:
        super().__init__()
        self.form = form

    def forward(self, x: Tensor, grid: Tensor) -> Tensor:
        mode, padding, align = self.form
        values = x.to(grid.dtype)
        return torch.nn.functional.grid_sample(values, grid, mode, padding, align).to(x.dtype)


def inputs(dims: int, dtypes: tuple[torch.dtype, torch.dtype], kind: str) -> tuple[Tensor, Tensor]:
    """A map and places: "inside" of it, "around" it up to its own size, or not "finite"."""
    generator = torch.Generator().manual_seed(5)
    sizes, places = ((6, 7), (5, 4)) if dims == 4 else ((4, 6, 7), (3, 5, 4))
    x = torch.randn(2, 3, *sizes, generator=generator)
    reach = 0.8 if kind == "inside" else 3.0
    grid = (torch.rand(2, *places, dims - 2, generator=generator) * 2 - 1) * reach
    if kind == "not finite":
        grid.flatten()[::7] = torch.nan
        grid.flatten()[1::7] = torch.inf
        grid.flatten()[2::7] = -torch.inf
    return x.to(dtypes[0]), grid.to(dtypes[1])


def agreement(model: Sample, data: bytes, dims: int, dtypes: tuple[torch.dtype, torch.dtype]) -> dict[str, str]:
    """By kind of places: "agrees", or how ONNX Runtime and Torch differ."""
    try:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        return dict.fromkeys(("inside", "around", "not finite"), f"refused: {str(error).splitlines()[0]}")
    found = {}
    for kind in ("inside", "around", "not finite"):
        x, grid = inputs(dims, dtypes, kind)
        expected = model(x, grid).float()
        got = torch.from_numpy(session.run(None, {"x": x.numpy(), "grid": grid.numpy()})[0]).float()
        bound = BOUND[dtypes[0]]
        near = torch.isclose(got, expected, rtol=bound, atol=bound, equal_nan=True)
        found[kind] = "agrees" if near.all() else f"differs in {int((~near).sum())} of {near.numel()}"
    return found


def kernels(model: Any) -> str:
    """How many kernels the plan runs, by TensorRT's own list; or why there is none."""
    trt = flavours.load(FLAVOUR)
    logger = alone_build._listening(trt)
    builder = configuring.make_builder(trt, logger)
    request = {
        "flavour": FLAVOUR,
        "architectures": [ARCHITECTURE],
        "dims": dict.fromkeys(("b", "c", "d", "h", "w", "p", "q", "r"), (1, 8, 64)),
    }
    try:
        return str(len(alone_build._kernels(trt, builder, logger, model, request)))
    except BuildError as error:
        return ": ".join([error.fault, *error.faults[:1]])


def measure(dims: int, mode: str, padding: str, align: bool, dtypes: tuple[torch.dtype, torch.dtype]) -> dict[str, Any]:
    model = Sample(mode, padding, align)
    names = ("h", "w") if dims == 4 else ("d", "h", "w")
    places = ("p", "q") if dims == 4 else ("r", "p", "q")
    free = {one: Dim(one, min=2, max=64) for one in ("b", "c", *names, *places)}
    shapes = (
        {0: free["b"], 1: free["c"], **{2 + axis: free[one] for axis, one in enumerate(names)}},
        {0: free["b"], **{1 + axis: free[one] for axis, one in enumerate(places)}},
    )
    row: dict[str, Any] = {
        "dims": f"{dims - 2}-D",
        "mode": mode,
        "padding": padding,
        "align_corners": align,
        "dtypes": "map {}, grid {}".format(*(str(one).removeprefix("torch.") for one in dtypes)),
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                model, inputs(dims, dtypes, "inside"), dynamic_shapes=shapes, dynamo=True, verbose=False
            )
    except Exception as error:
        return row | {"exports": f"no: {str(error).splitlines()[0]}"}
    assert program is not None
    proto = program.model_proto
    row["exports"] = ", ".join(
        f"{number} {name}" for name, number in Counter(n.op_type for n in proto.graph.node).items()
    )
    if torch.bfloat16 in dtypes:  # which NumPy has not
        row["agreement"] = dict.fromkeys(("inside", "around", "not finite"), "not tried")
    else:
        row["agreement"] = agreement(model, proto.SerializeToString(), dims, dtypes)
    row["kernels"] = kernels(proto)
    return row


def main() -> None:
    options = arguments(__doc__).parse_args()
    rows = [
        measure(dims, mode, padding, align, dtypes)
        for dims in (4, 5)
        for mode, padding, align, dtypes in itertools.product(MODES[dims], PADDINGS, (False, True), DTYPES)
    ]
    if options.json:
        print(json.dumps({"environment": environment(["tensorrt_rtx"]), "forms": rows}, indent=1))
        return
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
