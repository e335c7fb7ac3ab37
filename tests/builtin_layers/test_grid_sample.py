"""Maps read at the places of a grid: against Torch's own function, found where it is asked for, what it refuses."""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional

import layerport as lp
from layerport.errors import UsageError
from layerport.sizes.tensors import sizes_of
from layerport.targets import Target
from layerport.testing import check_spellings, run_kernel
from layerport.testing.specs import plugin_spec
from layerport_builtin_layers.grid_sample import grid_sample as layer
from small_setup import ENGINE

EVERY = bool(os.environ.get("LAYERPORT_TEST_FAMILIES"))
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to run kernels on the CPU with")
NAN, INF = float("nan"), float("inf")
PADDINGS = ("zeros", "border", "reflection")
FORMS = [
    (dims, *form)
    for dims, modes in ((2, ("bilinear", "nearest", "bicubic")), (3, ("bilinear", "nearest")))
    for form in itertools.product(modes, PADDINGS, (False, True))
]
each_form = pytest.mark.parametrize(("dims", "mode", "padding", "align"), FORMS)
# On a pixel, between two, at the edges, and up to six maps away.
PLACES = (0.0, 0.25, 0.3, -0.5, 0.98, 1.0, -1.0, 1.5, 2.0, -2.0, 3.0, -4.2, 7.0, -11.5)
STRANGE = (NAN, INF, -INF, 3e38, -3e38, 1e20)


def grid_of(dims: int, values: tuple[float, ...]) -> Tensor:
    """Each pair of these values as x and y; a volume's z is one of them too."""
    points = torch.tensor(list(itertools.product(values, repeat=2)))
    if dims == 3:
        points = torch.cat((points, points[:, 1:].roll(5, 0)), 1)
    return points.reshape(1, *[1] * (dims - 2), -1, len(values), dims)


def maps(dims: int) -> list[Tensor]:
    """Of several pixels, even and odd, and of one along an axis."""
    sizes = [(3, 4), (1, 5), (6, 1), (2, 2)] if dims == 2 else [(2, 3, 4), (1, 5, 2), (3, 1, 1)]
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(1, 2, *size, generator=generator) for size in sizes]


@each_form
def test_it_is_torchs_own_function(dims: int, mode: str, padding: str, align: bool) -> None:
    grid = grid_of(dims, PLACES).double()
    for x in maps(dims):
        wanted = functional.grid_sample(x.double(), grid, mode, padding, align)
        torch.testing.assert_close(layer(x.double(), grid, mode, padding, align), wanted)


@needs_compiler
@each_form
def test_its_kernel_reads_any_place_as_its_reference(dims: int, mode: str, padding: str, align: bool) -> None:
    # How a place that is far away is reflected is a matter of rounding.
    grid = grid_of(dims, PLACES + STRANGE[: 3 if padding == "reflection" else None])
    for x in maps(dims):
        x[..., -1, 0] = INF
        got = torch.from_numpy(run_kernel(layer, x, grid, mode, padding, align))
        wanted = layer(x, grid, mode, padding, align)
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=2e-5, equal_nan=True)


def strange_at(mode: str, padding: str) -> list[float]:
    """What a map of one to four reads at x = NaN, infinity and minus infinity."""
    x, grid = torch.arange(1.0, 5).reshape(1, 1, 1, 4), torch.zeros(1, 1, 3, 2)
    grid[..., 0] = torch.tensor(STRANGE[:3])
    return layer(x, grid, mode, padding, False).flatten().tolist()


def test_what_a_place_that_is_not_finite_reads() -> None:
    for mode in ("bilinear", "nearest"):
        assert strange_at(mode, "zeros") == [0, 0, 0]
        assert strange_at(mode, "border") == [1, 4, 1]
        assert strange_at(mode, "reflection") == [1, 1, 1]
    for padding in PADDINGS:
        assert np.isnan(strange_at("bicubic", padding)).all()


@needs_compiler
def test_places_in_a_wide_map_are_not_rounded() -> None:
    """In float32 a place in such a map is rounded to a hundredth of a pixel; the kernel keeps what was lost."""
    x = torch.randn(1, 1, 1, 300_001, generator=torch.Generator().manual_seed(4))
    grid = torch.zeros(1, 1, 500, 2)
    grid[..., 0] = 2 * torch.rand(500, generator=torch.Generator().manual_seed(5)) - 1
    exact = layer(x.double(), grid.double())
    got = torch.from_numpy(run_kernel(layer, x, grid, "bilinear", "zeros", False)).double()
    assert (got - exact).abs().max() < 1e-6
    assert (layer(x, grid).double() - exact).abs().max() > 1e-3


@needs_compiler
def test_coordinates_of_float32_beside_a_map_of_16_bits() -> None:
    x = torch.randn(1, 3, 4, 900, generator=torch.Generator().manual_seed(6)).half()
    grid = 2 * torch.rand(1, 8, 9, 2, generator=torch.Generator().manual_seed(7)) - 1
    exact = layer(x.double(), grid.double())
    for got in (layer(x, grid), torch.from_numpy(run_kernel(layer, x, grid, "bilinear", "zeros", False))):
        assert got.dtype == torch.float16 and (got.double() - exact).abs().max() < 2e-3
    assert (layer(x, grid.half()).double() - exact).abs().max() > 0.1


@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
def test_gradients_are_those_of_torch(mode: str) -> None:
    x, grid = torch.randn(2, 2, 4, 5, dtype=torch.float64), torch.randn(2, 3, 2, 2, dtype=torch.float64)
    found = []
    for function in (layer, functional.grid_sample):
        given = [one.clone().requires_grad_() for one in (x, grid)]
        function(*given, mode, "border", True).square().sum().backward()
        found.append([one.grad for one in given])
    torch.testing.assert_close(*found)


def test_a_place_that_is_not_finite_spoils_no_gradient() -> None:
    for mode, padding in itertools.product(("bilinear", "nearest"), PADDINGS):
        x = torch.randn(1, 1, 3, 4, requires_grad=True)
        grid = torch.tensor([[[[NAN, 0.2], [INF, 0.1], [0.3, 0.4]]]], requires_grad=True)
        layer(x, grid, mode, padding).sum().backward()
        assert x.grad is not None and grid.grad is not None
        assert x.grad.isfinite().all() and grid.grad.isfinite().all()


@pytest.mark.parametrize("dims", [2, 3])
def test_its_spelling_is_its_reference(dims: int) -> None:
    for x, padding in itertools.product(maps(dims), PADDINGS):
        check_spellings(layer, x, grid_of(dims, PLACES), "bilinear", padding, True)


class Warp(nn.Module):
    """Features moved by a flow, as optical flow and registration do it."""

    def __init__(self, dims: int, *form: Any, wide: bool = False) -> None:
        super().__init__()
        self.features = (nn.Conv2d if dims == 2 else nn.Conv3d)(3, 4, 1)
        self.form, self.wide = form, wide

    def forward(self, image: Tensor, grid: Tensor) -> Tensor:
        mode, padding, align = self.form
        x = self.features(image)
        if self.wide:
            return functional.grid_sample(x.float(), grid.float(), mode, padding, align).to(x.dtype).relu()
        return functional.grid_sample(x, grid, mode=mode, padding_mode=padding, align_corners=align).relu()


def inputs(dims: int, batch: int, *, height: int = 5, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    sizes = (height, 6) if dims == 2 else (3, height, 6)
    image, grid = torch.randn(batch, 3, *sizes), torch.randn(batch, *sizes, dims) * 0.7
    return image.to(dtype), grid.to(dtype)


FOUND = [*FORMS[::5], (3, "nearest", "reflection", True)]


@pytest.mark.parametrize(("dims", "mode", "padding", "align"), FORMS if EVERY else FOUND)
def test_torchs_function_is_found_where_it_is_asked_for(
    dims: int, mode: str, padding: str, align: bool, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    model, args = Warp(dims, mode, padding, align).eval(), inputs(dims, 2)
    report = lp.build((model, args), tmp_path / "a.lp", target="portable", find=(layer.name,))
    assert [place.attributes for place in report.found] == [
        {"mode": mode, "padding_mode": padding, "align_corners": align}
    ]
    assert report.verification is not None and report.verification.passed


def test_nothing_is_found_where_nobody_asks(tmp_path: Path) -> None:
    report = lp.build((Warp(2, *FORMS[0][1:]).eval(), inputs(2, 2)), tmp_path / "a.lp", target="portable")
    assert report.found == () and not report.counts


def test_sixteen_bits_are_found_where_torch_computes_places_in_float32(tmp_path: Path) -> None:
    torch.manual_seed(1)
    args = inputs(2, 2, dtype=torch.float16)
    model = Warp(2, "bilinear", "zeros", False, wide=True).eval().half()
    report = lp.build((model, args), tmp_path / "a.lp", target="portable", find=(layer.name,))
    assert [place.layer for place in report.found] == [layer.name]
    # Torch's own places of 16 bits are so coarse that the numbers are others.
    plain = Warp(2, "bilinear", "zeros", False).eval().half()
    with pytest.raises(UsageError, match="not found in the model: layerport_builtin::grid_sample") as caught:
        lp.build((plain, args), tmp_path / "b.lp", target="portable", find=(layer.name,))
    assert any("its numbers differ" in fault for fault in caught.value.faults)


@pytest.mark.parametrize(("opset", "names"), [(16, ("bilinear", "bicubic")), (20, ("linear", "cubic"))])
def test_onnx_files_of_others_are_searched(opset: int, names: tuple[str, str], tmp_path: Path) -> None:
    nodes = [
        helper.make_node("GridSample", ["x", "grid"], ["z"], mode=names[0], padding_mode="reflection"),
        helper.make_node("GridSample", ["z", "grid"], ["y"], mode=names[1], align_corners=1),
    ]
    port = helper.make_tensor_value_info
    ports = [port("x", TensorProto.FLOAT, [1, 2, 4, 4]), port("grid", TensorProto.FLOAT, [1, 4, 4, 2])]
    graph = helper.make_graph(nodes, "graph", ports, [port("y", TensorProto.FLOAT, [1, 2, 4, 4])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.save(model, tmp_path / "a.onnx")
    report = lp.build(tmp_path / "a.onnx", tmp_path / "a.lp", target="portable", find=(layer.name,))
    assert [place.attributes for place in report.found] == [
        {"mode": "bilinear", "padding_mode": "reflection", "align_corners": False},
        {"mode": "bicubic", "padding_mode": "zeros", "align_corners": True},
    ]


@needs_compiler
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", FORMS[::7] if EVERY else [FORMS[3], FORMS[-6]])
def test_a_plan_holds_it(form: tuple[Any, ...], tmp_path: Path) -> None:
    torch.manual_seed(0)
    dims = form[0]
    model, height = Warp(*form).eval(), dims  # the axis of images and of grids is one further behind
    batch, rows = Dim("batch", min=1, max=4), Dim("rows", min=2, max=64)
    shapes = ({0: batch, height: rows}, {0: batch, height - 1: rows})
    report = lp.build((model, inputs(dims, 2), shapes), tmp_path / "a.lp", target=ENGINE, find=(layer.name,))
    assert report.counts == {layer.name: {"plugin": 1}}
    assert report.verification is not None and report.verification.passed
    assert {one.answer for one in report.verification.kernels} == {"right"}
    assert list((tmp_path / "a.lp").glob("*.plan"))
    args = inputs(dims, 3, height=9)
    with lp.load(tmp_path / "a.lp") as session, torch.no_grad():
        (got,) = session.run({"image": args[0].numpy(), "grid": args[1].numpy()}).values()
        torch.testing.assert_close(torch.from_numpy(got), model(*args), rtol=1e-4, atol=1e-4)


def test_a_spec_of_tensors_takes_no_two_axes_for_one_that_differ() -> None:
    x, grid = torch.randn(2, 5, 6, 7), torch.randn(2, 5, 3, 2)
    spec = plugin_spec(layer, Target("tensorrt", ("sm_90",)), x, grid, "bilinear", "zeros", False)
    assert spec is not None
    sizes = dict(sizes_of({"x": tuple(x.shape), "grid": tuple(grid.shape)}))
    assert spec.outputs[0].resolve(sizes) == (2, 5, 5, 3)


X, GRID = torch.randn(2, 3, 4, 5), torch.randn(2, 6, 7, 2)
SHAPES = r"grid_sample: shapes do not fit: x \["


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X[0], GRID), SHAPES),
        ((X, GRID[0]), SHAPES),
        ((X, GRID[:1]), SHAPES),
        ((X, GRID[..., :1]), SHAPES),
        ((X[:, :, :0], GRID), SHAPES),
        ((X.unsqueeze(2), GRID), SHAPES),
        ((X, GRID, "linear"), "grid_sample.mode: expected str one of 'bilinear', 'nearest', 'bicubic', got str"),
        (
            (X, GRID, "bilinear", "wrap"),
            "grid_sample.padding_mode: expected str one of 'zeros', 'border', 'reflection'",
        ),
        ((X.unsqueeze(2), torch.randn(2, 1, 6, 7, 3), "bicubic"), "grid_sample: mode is 'bicubic', x "),
        ((X, GRID.half()), "grid_sample: dtypes do not fit: x torch.float32, grid torch.float16"),
        ((X.half(), GRID.bfloat16()), "grid_sample: dtypes do not fit: x torch.float16, grid torch.bfloat16"),
        ((X.long(), GRID), "grid_sample: dtypes do not fit: x torch.int64"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises((ValueError, UsageError), match=message):
        layer(*arguments)
