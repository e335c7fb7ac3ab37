"""The hooks: each has one sentence and one example that runs, and all are those of design section 4."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from asked_packs import export_parameters
from layerport.dtypes import DType
from layerport.layers.derivation import derive
from layerport.layers.layer import BoundLayer, Place
from layerport.packs import hookspecs
from layerport.packs.host import Packs, load
from layerport.packs.records import Rewrite
from layerport.sizes.dims import port
from layerport.sizes.tensors import TensorType
from layerport.targets import Target
from packs.installer import Site

RTX = Target("rtx", ("sm_89",))


def example_of(hook: str) -> str:
    """The code after `Example::` in the docstring of a hook."""
    text = inspect.getdoc(getattr(hookspecs, hook)) or ""
    _, mark, example = text.partition("Example::\n")
    assert mark, f"{hook} has no example"
    return textwrap.dedent(example)


def run_example(hook: str, folder: Path) -> ModuleType:
    file = folder / f"{hook}_example.py"
    file.write_text(example_of(hook))
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def example(request: pytest.FixtureRequest, site: Site, tmp_path: Path) -> tuple[Packs, Any]:
    """The packs of a process whose only pack is the example of one hook, and its module."""
    module = run_example(request.param, tmp_path)
    return load(module), module


def test_the_hooks_are_those_of_the_design() -> None:
    declared = [name for name in vars(hookspecs) if name.startswith("layerport_")]
    assert declared == list(hookspecs.HOOKS)
    assert declared == [
        "layerport_layers",
        "layerport_export_parameters",
        "layerport_convert_parameters",
        "layerport_create_plugin",
    ]


@pytest.mark.parametrize("hook", hookspecs.HOOKS)
def test_every_hook_is_typed_and_starts_with_one_full_sentence(hook: str) -> None:
    specification = getattr(hookspecs, hook)
    signature = inspect.signature(specification)
    assert tuple(signature.parameters) == hookspecs.HOOKS[hook]
    annotations = [parameter.annotation for parameter in signature.parameters.values()]
    assert inspect.Signature.empty not in [*annotations, signature.return_annotation]
    sentence = (inspect.getdoc(specification) or "").split("\n\n")[0]
    assert sentence.startswith("Return ") and sentence.endswith(".") and "\n" not in sentence


@pytest.mark.parametrize("hook", hookspecs.HOOKS)
def test_first_result_is_not_used(hook: str) -> None:
    assert not getattr(hookspecs, hook).layerport_spec["firstresult"]


@pytest.mark.parametrize("example", ["layerport_layers"], indirect=True)
def test_the_example_of_layers(example: tuple[Packs, Any]) -> None:
    packs, module = example
    assert packs.layers == (module.scaled_swish,)
    x = torch.randn(3, 8)
    result = packs.layer("hook_layers_example::scaled_swish")(x, torch.full((8,), 2.0), 1.0)
    torch.testing.assert_close(result, torch.nn.functional.silu(x) * 2.0)


@pytest.mark.parametrize("example", ["layerport_export_parameters"], indirect=True)
def test_the_example_of_export_parameters(example: tuple[Packs, Any]) -> None:
    packs, module = example
    ((_, (bound,)),) = export_parameters(packs, module.ScaledSwish(), "act")
    assert isinstance(bound, BoundLayer)
    assert bound.layer is module.scaled_swish
    assert bound.parameters.attributes["beta"] == 1.5
    block = module.GatedBlock()
    ((_, (rewrite,)),) = export_parameters(packs, block, "block")
    assert isinstance(rewrite, Rewrite)
    x = torch.randn(2, 8)
    torch.testing.assert_close(rewrite.forward(block, x), block(x))
    assert export_parameters(packs, torch.nn.Linear(2, 2), "other") == []


@pytest.mark.parametrize("example", ["layerport_convert_parameters"], indirect=True)
def test_the_example_of_convert_parameters(example: tuple[Packs, Any]) -> None:
    packs, module = example
    weight = torch.arange(6.0).reshape(2, 3)
    standard = module.project.bind(weight=weight).parameters
    converted = packs.convert_parameters(module.project, standard, RTX)
    assert converted["weight"].tolist() == weight.T.tolist()
    assert converted["weight"].flags.c_contiguous


@pytest.mark.parametrize("example", ["layerport_create_plugin"], indirect=True)
def test_the_example_of_create_plugin(example: tuple[Packs, Any]) -> None:
    packs, module = example
    tensors = {"x": port("x", "float16", ("batch", 8))}
    derivation = derive(module.halve.reference, tensors, {}, layer=module.halve.name)
    bound = dataclasses.replace(module.halve.bind(), place=Place(tensors, derivation, "model.halve"))
    spec = packs.create_plugin(module.halve, bound, RTX)
    assert spec is not None
    assert (spec.layer, spec.plugin_class) == (
        "hook_create_example::halve",
        "halve_pack.engine_plugin:make_halve_plugin",
    )
    assert spec.inputs == (TensorType.symbolic("x", DType.FLOAT16, 2),)
    assert [(slot.dtype, [str(dim) for dim in slot.dims]) for slot in spec.outputs] == [(DType.FLOAT16, ["x.0", "8"])]
