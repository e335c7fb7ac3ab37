"""Layers with every kind of argument and output through the whole path: ONNX Runtime, and a TensorRT plan."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import layerport as lp
from layerport import building
from layerport.bundle.plugin_spec import from_bytes
from small_models import ROWS, WIDTH, sample
from small_setup import ENGINE, SMALL


def build(model: nn.Module, out: Path, *args: Any, **options: Any) -> building.BuildReport:
    source = (model.eval(), args or (sample(),), ROWS * max(1, len(args)))
    return building.build(source, out, **{"target": ENGINE, "packs": [SMALL], **options})


class Many(nn.Module):
    """The layer twice, with different attributes and with and without its optional tensors."""

    def __init__(self, small: ModuleType) -> None:
        super().__init__()
        self.many = small.many
        self.weight = nn.Parameter(torch.rand(WIDTH) + 0.5)
        self.bias = nn.Parameter(torch.rand(WIDTH))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, positive = self.many(
            x,
            self.weight,
            self.bias,
            None,
            0.5,
            times=3,
            mode='mul "é"',
            flip=True,
            steps=[3, -1],
            weights=[0.25, 1e-7],
            flags=[False, True],
            names=["a", ""],
            limit=4,
        )
        z, _ = self.many(y, self.weight, shift=x)
        return y, positive, z


def test_every_kind_of_attribute_and_optional_tensors(tmp_path: Path, small: ModuleType) -> None:
    torch.manual_seed(2)
    model = Many(small)
    report = build(model, tmp_path / "a.lp")
    assert report.counts == {"lp_small::many": {"plugin": 2}}
    assert report.verification is not None and report.verification.passed, report.verification
    assert [one.dtype for one in report.verification.outputs] == ["float32", "bool", "float32"]
    specs = list(from_bytes((tmp_path / "a.lp" / "plugins.safetensors").read_bytes()).specs.values())
    one_eps = pytest.approx(1e-7)
    first = next(one for one in specs if one.attributes["flip"])
    assert dict(first.attributes) == {
        "factor": 0.5,
        "times": 3,
        "mode": 'mul "é"',
        "flip": True,
        "steps": [3, -1],
        "weights": [0.25, one_eps],
        "flags": [False, True],
        "names": ["a", ""],
        "limit": 4,
    }
    assert [slot.name for slot in first.inputs] == ["x", "weight", "bias"]
    assert [(slot.name, slot.dtype) for slot in first.outputs] == [("scaled", "float32"), ("positive", "bool")]
    second = next(one for one in specs if not one.attributes["flip"])
    assert second.attributes["names"] is None and second.attributes["limit"] is None
    assert [slot.name for slot in second.inputs] == ["x", "weight", "shift"]
    assert {spec.version for spec in specs} == {2}
    with lp.load(tmp_path / "a.lp") as session:
        x = sample(9, seed=5)
        with torch.no_grad():
            want = model(x)
        for got, expected in zip(session(x=x).values(), want, strict=True):
            np.testing.assert_allclose(got, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_an_output_size_that_depends_on_the_data(tmp_path: Path, small: ModuleType) -> None:
    class Places(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return small.keep_positive(x) * 2

    report = build(Places(), tmp_path / "a.lp")
    assert report.counts == {"lp_small::keep_positive": {"plugin": 1}}, report.layers
    assert report.verification is not None and report.verification.passed
    (spec,) = from_bytes((tmp_path / "a.lp" / "plugins.safetensors").read_bytes()).specs.values()
    assert [str(dim) for dim in spec.outputs[0].dims] == ["u0", "2"]
    assert [(size.name, str(size.upper_bound)) for size in spec.sizes] == [("u0", f"{WIDTH}*x.0")]
    with lp.load(tmp_path / "a.lp") as session:
        for rows in (1, 6):
            x = sample(rows, seed=rows)
            np.testing.assert_array_equal(session(x=x)["output"], torch.nonzero(x > 0).numpy() * 2)


def test_parameters_that_a_pack_converts(tmp_path: Path) -> None:
    """The portable model keeps the standard form; the plugin gets the converted one."""
    (tmp_path / "pack.py").write_text(
        "import layerport as lp\nimport numpy as np\nfrom torch import Tensor\n\n"
        "@lp.layer('lp_converting::project')\ndef project(x: Tensor, weight: lp.Param) -> Tensor:\n"
        "    return x @ weight\n\n"
        "CODE = 'template <class T> __global__ void p(const T* x, const signed char* w, T* y, int k, int c) {\\n'"
        "'  T sum = 0; int column = threadIdx.x;\\n'"
        "'  for (int i = 0; i < k; ++i) sum += x[blockIdx.x * k + i] * (w[column * k + i] * T(0.25));\\n'"
        "'  y[blockIdx.x * c + column] = sum; }\\n'\n\n"
        "@project.kernel(lp.cuda(CODE, 'p<{x}>'), dtypes=({'weight': 'int8', '*': 'float32'},))\n"
        "def launch(x, weight, y):\n    k, c = weight.shape[1], weight.shape[0]\n"
        "    return lp.Launch(x.numel() // k, c, (x, weight, y, k, c))\n\n"
        "@lp.hookimpl\ndef layerport_layers():\n    return (project,)\n\n"
        "@lp.hookimpl\ndef layerport_export_parameters(module):\n"
        "    return project.bind(weight=module.weight) if type(module).__name__ == 'Project' else None\n\n"
        "@lp.hookimpl\ndef layerport_convert_parameters(parameters):\n"
        "    return parameters.replace(weight=np.ascontiguousarray(parameters['weight'].T * 4).astype(np.int8))\n"
    )

    class Project(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randint(-3, 4, (WIDTH, WIDTH)).float())

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project = Project()

        def forward(self, x: Tensor) -> Tensor:
            return self.project(x)

    model = Model()
    report = build(model, tmp_path / "a.lp", packs=[str(tmp_path / "pack.py")])
    assert report.counts == {"lp_converting::project": {"plugin": 1}}, report.layers
    assert report.verification is not None and report.verification.passed
    (origin,) = report.layers[0].origins
    assert origin.sources == ("project.weight",) and (origin.dtype, origin.shape) == ("float32", (WIDTH, WIDTH))
    assert [(one.action, one.by, one.dtype) for one in origin.steps] == [
        ("view", "layerport", "float32"),
        ("layerport_convert_parameters", "pack", "int8"),
    ]
    plugins = from_bytes((tmp_path / "a.lp" / "plugins.safetensors").read_bytes())
    (converted,) = (arrays["weight"] for arrays in plugins.parameters.values())
    weight = model.project.weight.detach().numpy()
    np.testing.assert_array_equal(converted, (weight.T * 4).astype(np.int8))
    stored = [onnx.numpy_helper.to_array(one) for one in onnx.load(tmp_path / "a.lp" / "model.onnx").graph.initializer]
    assert any(one.shape == weight.shape and np.array_equal(one, weight) for one in stored)
    assert not any(one.dtype == np.int8 for one in stored)


def test_a_kernel_for_some_types_only(tmp_path: Path, small: ModuleType) -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.rand(WIDTH, dtype=torch.float16))

        def forward(self, x: Tensor) -> Tensor:
            return small.many(x, self.weight)[0]

    report = build(Half(), tmp_path / "a.lp", sample(dtype=torch.float16))
    assert report.counts == {"lp_small::many": {"decomposed": 1}}
    (reason,) = {one.reason for one in report.layers}
    assert reason.startswith("many_0 takes (") and "float16" in reason
    assert report.verification is not None and report.verification.passed
