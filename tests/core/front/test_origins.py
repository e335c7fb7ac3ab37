"""Where a layer's parameters came from: by a pack's hook, by a rewrite, by the model itself; as the manifest has it."""

from __future__ import annotations

import json
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import layerport as lp
from layerport.cli import main
from layerport.front.origins import read_origins
from layerport.packs.hookspecs import hookimpl


@lp.layer("lp_origins::project")
def project(x: Tensor, weight: lp.Param, bias: lp.Param | None = None) -> Tensor:
    """x @ weight, and a bias."""
    y = x @ weight.to(x.dtype)
    return y if bias is None else y + bias


class Part(nn.Module):
    """A projection whose weight is kept in the way that `bind` undoes."""

    def __init__(self, bind: Any, weight: Tensor, forward: Any, *, buffer: bool = False) -> None:
        super().__init__()
        if buffer:
            self.register_buffer("weight", weight)
        else:
            self.weight = nn.Parameter(weight)
        self.bind, self.compute = bind, forward

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.compute(self, x)
        return result


@hookimpl
def layerport_layers() -> tuple[lp.Layer, ...]:
    return (project,)


@hookimpl
def layerport_export_parameters(module: nn.Module, name: str) -> Any:
    return module.bind(module) if isinstance(module, Part) and module.bind is not None else None


PACK = SimpleNamespace(
    __name__="lp_origins",
    layerport_layers=layerport_layers,
    layerport_export_parameters=layerport_export_parameters,
)


def weight(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.rand(shape or (6, 6), generator=torch.Generator().manual_seed(sum(shape))) + 0.5).to(dtype)


def plain(self: Any, x: Tensor) -> Tensor:
    return x @ self.weight.to(x.dtype)


def turned(self: Any, x: Tensor) -> Tensor:
    return x @ self.weight.T.to(x.dtype)


def more(self: Any, x: Tensor) -> Tensor:
    return x @ (1 + self.weight)


def rewriting(part: Part) -> Part:
    """The part with its rewrite's forward, as the copy of a model has it."""
    part.forward = MethodType(part.bind(part).forward, part)  # type: ignore[method-assign]
    return part


X = torch.randn(2, 6, generator=torch.Generator().manual_seed(1))


def origins(*parts: nn.Module, folder: Path, **options: Any) -> dict[str, list[dict[str, Any]]]:
    """The origins in the manifest of a build, by the path of the layer's module."""
    options = {"target": "portable", "packs": [PACK], "verify": False, **options}
    report = lp.build((nn.Sequential(*parts).eval(), (X,)), folder / "a.lp", **options)
    manifest = json.loads((folder / "a.lp" / "manifest.json").read_text())
    assert [one.to_json() for one in report.layers] == manifest["layers"]
    assert lp.Bundle.open(folder / "a.lp").manifest["layers"] == manifest["layers"]
    return {one["module"]: one["origins"] for one in manifest["layers"]}


def way(origin: dict[str, Any]) -> tuple[list[str], list[tuple[str, str]]]:
    """The sources, and by whom what was done."""
    return origin["sources"], [(step["action"], step["by"]) for step in origin["steps"]]


@pytest.mark.parametrize(
    ("bind", "forward", "tensor", "steps"),
    [
        (lambda m: project.bind(weight=m.weight), plain, weight(), [("view", "layerport")]),
        (lambda m: project.bind(weight=m.weight.T), turned, weight(), [("T", "pack"), ("copy", "layerport")]),
        (lambda m: project.bind(weight=m.weight.t()), turned, weight(), [("t", "pack"), ("copy", "layerport")]),
        (lambda m: project.bind(weight=m.weight.detach().data), plain, weight(), [("view", "layerport")]),
        (
            lambda m: project.bind(weight=m.weight.float()),
            plain,
            weight(dtype=torch.float16),
            [("float", "pack"), ("view", "layerport")],
        ),
        (
            lambda m: project.bind(weight=m.weight.transpose(0, 1).to(torch.float64)),
            turned,
            weight(),
            [("transpose", "pack"), ("to", "pack"), ("copy", "layerport")],
        ),
        (lambda m: project.bind(weight=1 + m.weight), more, weight(), [("add", "pack"), ("view", "layerport")]),
        (
            lambda m: project.bind(weight=m.weight.detach().numpy().T),
            turned,
            weight(),
            [("view", "pack"), ("copy", "layerport")],
        ),
    ],
)
def test_what_a_hook_does_to_a_weight(bind: Any, forward: Any, tensor: Tensor, steps: Any, tmp_path: Path) -> None:
    for buffer in (False, True):
        found = origins(nn.Identity(), Part(bind, tensor, forward, buffer=buffer), folder=tmp_path, force=True)
        (origin,) = found["1"]
        assert (origin["name"], origin["shape"], origin["tied"]) == ("weight", [6, 6], [])
        by = {"pack": "lp_origins", "layerport": "layerport"}
        assert way(origin) == (["1.weight"], [(action, by[who]) for action, who in steps])
        last = origin["steps"][-1]
        assert (last["dtype"], last["shape"]) == (origin["dtype"], origin["shape"])
        assert {step["path"] for step in origin["steps"]} == {"lp_origins::project.weight"}


def test_a_tied_weight_has_the_name_within_the_module_and_the_others(tmp_path: Path) -> None:
    shared = nn.Linear(6, 6, bias=False)
    part = Part(lambda m: project.bind(weight=m.weight.T), weight(), turned)
    part.weight = shared.weight
    (origin,) = origins(shared, part, folder=tmp_path)["1"]
    assert way(origin)[0] == ["1.weight"] and origin["tied"] == ["0.weight"]


def test_a_parameter_that_a_pack_computes_of_several_or_of_none(tmp_path: Path) -> None:
    def halves(module: Any) -> lp.BoundLayer:
        top, low = module.weight[:3], module.weight[3:]
        made = torch.zeros(6)
        made[0] = module.weight[0, 0] * 0
        return project.bind(weight=torch.cat([top, low]), bias=made)

    first = Part(halves, weight(), plain)
    second = Part(
        lambda m: project.bind(weight=torch.eye(6), bias=np.zeros(6, np.float32)), weight(), lambda s, x: x * 1
    )
    found = origins(first, second, folder=tmp_path)
    joined, made = found["0"]
    assert joined["sources"] == ["0.weight"]
    assert [step["action"] for step in joined["steps"]] == ["getitem", "getitem", "cat", "view"]
    assert made["name"] == "bias" and [step["action"] for step in made["steps"]][-1] == "view"
    assert [(one["name"], one["sources"]) for one in found["1"]] == [("weight", []), ("bias", [])]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_values_that_are_no_plain_arrays_stop_nothing(tmp_path: Path) -> None:
    def odd(module: Any) -> lp.BoundLayer:
        rows = torch.nested.nested_tensor([module.weight[:2], module.weight[2:]])
        module.weight.to_sparse()
        torch.empty(3, device="meta") * 2
        torch.view_as_complex(module.weight.reshape(18, 2))
        return project.bind(weight=torch.cat(list(rows.unbind())).to_sparse().to_dense())

    (origin,) = origins(Part(odd, weight(), plain), folder=tmp_path)["0"]
    assert [step["action"] for step in origin["steps"]][-3:] == ["to_sparse", "to_dense", "view"]
    assert [step["shape"] for step in origin["steps"]][-3:] == [[], [6, 6], [6, 6]]


def test_a_complex_weight_on_the_way_in_a_forward() -> None:
    def rewritten(module: Any, x: Tensor) -> Tensor:
        made = torch.view_as_real(torch.view_as_complex(module.weight.reshape(18, 2))).reshape(6, 6)
        result: Tensor = project(x, made)
        return result

    part = Part(lambda m: lp.rewrite(rewritten, layers=(project,)), weight(), plain)
    found = read_origins(torch.export.export(rewriting(part), (X,)), part, [project])
    ((origin,),) = found.calls.values()
    assert origin.sources == ("weight",) and [step.dtype for step in origin.steps] == [
        "float32",
        "complex64",
        "float32",
        "float32",
    ]
    assert [step.nbytes for step in origin.steps] == [144] * 4


def test_a_rewrite_and_a_layer_that_the_model_calls_itself(tmp_path: Path) -> None:
    def rewritten(module: Any, x: Tensor) -> Tensor:
        result: Tensor = project(x, module.weight.T.contiguous())
        return result

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Module()
            self.inner.w = nn.Parameter(weight())
            self.made = project.module(weight=weight(), bias=weight(6))

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.made(project(x, self.inner.w))
            return result

    part = Part(lambda m: lp.rewrite(rewritten, layers=(project,)), weight(), turned)
    report = lp.build(
        (nn.Sequential(part, Own()).eval(), (X,)), tmp_path / "a.lp", packs=[PACK], target="portable", verify=False
    )
    rewrite, called, made = report.layers
    (origin,) = rewrite.origins
    assert origin.sources == ("0.weight",) and origin.steps[0].by == "the model"
    assert origin.steps[0].action in ("permute", "t", "transpose", "numpy_T")
    assert origin.steps[0].nbytes == 6 * 6 * 4
    assert [one.sources for one in called.origins] == [("1.inner.w",)] and called.origins[0].steps == ()
    assert [(one.name, one.sources) for one in made.origins] == [
        ("weight", ("1.made.weight",)),
        ("bias", ("1.made.bias",)),
    ]


def test_of_an_onnx_file_the_names_of_its_constants(tmp_path: Path) -> None:
    origins(Part(lambda m: project.bind(weight=m.weight), weight(), plain), folder=tmp_path)
    again = lp.build(str(tmp_path / "a.lp"), tmp_path / "b.lp", packs=[PACK], target="portable", verify=False)
    names = {one.name for one in onnx.load(tmp_path / "a.lp" / "model.onnx").graph.initializer}
    (origin,) = again.layers[0].origins
    assert origin.name == "weight" and set(origin.sources) <= names and len(origin.sources) == 1


SOURCE = """
import torch
from test_origins import PACK, Part, X, project, turned, weight
from layerport.front.origins import read_origins
from layerport.packs.hookspecs import hookimpl

layerport_layers = PACK.layerport_layers
layerport_export_parameters = PACK.layerport_export_parameters


def model():
    shared = torch.nn.Linear(6, 6, bias=False)
    part = Part(lambda m: project.bind(weight=m.weight.T), weight(), turned)
    part.weight = shared.weight
    return torch.nn.Sequential(shared, part).eval(), (X,)
"""


def test_explain_says_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "tied.py"
    file.write_text(SOURCE)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    arguments = ["explain", f"{file}:model", "--pack", str(file)]
    shown = CliRunner().invoke(main, arguments)
    assert shown.exit_code == 0, shown.output
    assert "1: weight: from 1.weight, tied to 0.weight\n" in shown.stdout
    assert "to float32[6, 6], T of 144 bytes by tied" in shown.stdout
    (claim,) = json.loads(CliRunner().invoke(main, [*arguments, "--json"]).stdout)["claims"]
    assert claim["parameters"][0]["sources"] == ["1.weight"] and claim["parameters"][0]["tied"] == ["0.weight"]
    assert [step["action"] for step in claim["steps"]] == ["T", "copy"]
