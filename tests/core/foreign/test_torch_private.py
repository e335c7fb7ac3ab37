"""Torch's private names: each is there, and where one is gone, a layer is made and called all the same."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import layerport as lp
from hidden_names import hide
from layerport.conversion import to_standard
from layerport.dtypes import DType
from layerport.errors import BuildError, LayerportError
from layerport.foreign import names, torch_private
from layerport.front.copies import replace_everywhere
from layerport.layers.derivation import derive
from layerport.packs.torch_writes import unwatched
from layerport.sizes.tensors import TensorType

TESTS = Path(__file__).parents[2]
NAMES = {name.path: name for name in torch_private.NAMES}
FALL_BACK = [path for path, name in NAMES.items() if name.falls_back]


def scaled(name: str) -> lp.Layer:
    def reference(x: Tensor, scale: lp.Param, power: float = 2.0) -> Tensor:
        return x.matmul(x.mT).pow(power) * scale

    return lp.layer(f"lp_private::{name}")(reference)


def test_every_name_is_in_this_torch() -> None:
    assert torch_private.missing() == []


@pytest.mark.parametrize("path", [*NAMES, "all that something is done in place of"])
def test_a_layer_works_where_a_name_is_gone(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, [path] if path in NAMES else FALL_BACK)
    layer = scaled(f"without_{len(path)}_{path.rpartition('.')[2].replace(' ', '_')}")
    x, scale = torch.rand(2, 3).requires_grad_(), torch.rand(2).requires_grad_()
    expected = layer.reference(x, scale)
    with torch.no_grad():
        torch.testing.assert_close(layer(x, scale), expected)
    got = layer(x, scale)
    torch.testing.assert_close(got, expected)
    for one, other in zip(
        torch.autograd.grad(got.sum(), (x, scale)), torch.autograd.grad(expected.sum(), (x, scale)), strict=True
    ):
        torch.testing.assert_close(one, other)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x, scale).dtype is torch.float32
    torch.testing.assert_close(layer.module(scale=scale.detach())(x), expected)


@pytest.mark.parametrize("path", [path for path in FALL_BACK if NAMES[path].gone.startswith("torch.library")])
def test_torch_s_own_registration_is_used_where_a_part_of_ours_is_gone(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "Differentiable" in type(scaled("ours")(torch.ones(1, 1), torch.ones(1).requires_grad_()).grad_fn).__name__
    hide(monkeypatch, [path])
    layer = scaled("public")
    assert "Generated" in type(layer(torch.ones(1, 1), torch.ones(1).requires_grad_()).grad_fn).__name__


def test_the_tests_of_the_operator_pass_through_public_names_alone() -> None:
    """They run once more in a process in which every name is gone that something else is done in place of."""
    files = [
        f"test_{name}.py" for name in ("torch_operator", "torch_autograd", "definitions", "torch_module", "layers")
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "hidden_names", *(f"core/layers/{name}" for name in files)],
        cwd=TESTS,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout[-5000:]


def test_a_call_through_public_names_shares_no_memory() -> None:
    x = torch.arange(6.0)
    parts = x[:2].clone(), x.clone()
    for shares in (torch_private.shares_memory(), torch_private._shares_memory):
        assert shares((x,), None, (x[2:],))
        assert shares((x, 3, None), None, (parts[0], x.view(2, 3)))
        assert shares((), None, (parts[0], parts[0][1:]))
        assert not shares((x, x), None, parts)
        assert not shares((x,), None, (torch.empty(0), torch.empty(0)))


# What needs a name that nothing can be done in place of


class Wrapped(Tensor):
    """A tensor that keeps its numbers elsewhere."""

    @classmethod
    def __torch_dispatch__(cls, function: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError

    def dequantize(self) -> Tensor:
        return torch.ones(1)


class Named(Tensor):
    """A plain tensor with a class of its own."""


def wrapped() -> Tensor:
    return Tensor._make_wrapper_subclass(Wrapped, (1,))  # type: ignore[attr-defined,no-any-return]


def sizes(reference: Callable[..., Any] = lambda x: x[: x.shape[0] // 2]) -> None:
    derive(reference, {"x": TensorType("x", DType.FLOAT32, (None, 4))}, {}, layer="lp_private::sizes")


def branching(x: Tensor) -> Tensor:
    return x if x.sum() > 0 else -x


def exported() -> torch.export.ExportedProgram:
    class Double(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2

    return torch.export.export(Double(), (torch.ones(3, 2),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))


def example() -> Any:
    (node, *_) = exported().graph.nodes
    size = node.meta["val"].shape[0]
    return torch_private.example_size(size, size.node.expr)


def replaced() -> None:
    model = torch.nn.Sequential(torch.nn.ReLU())
    replace_everywhere(model, model[0], torch.nn.Tanh())


ENV = "torch.fx.experimental.symbolic_shapes.ShapeEnv"
CONFIG = "torch.fx.experimental._config"
NEEDS: dict[str, Callable[[], object]] = {
    "torch._ops.OpOverload._schema": lambda: sizes(lambda x: x + torch.rand_like(x)),
    "torch.nn.Module._modules": replaced,
    "torch.Tensor._version": sizes,
    "torch._C.DisableTorchFunctionSubclass": lambda: to_standard(torch.ones(2).as_subclass(Named)),
    "torch._C._EnableTorchFunction": lambda: to_standard(wrapped()),
    "torch._subclasses.fake_tensor.FakeTensorMode": sizes,
    ENV: sizes,
    f"{ENV}.guards": sizes,
    f"{ENV}.deferred_runtime_asserts": sizes,
    f"{ENV}.var_to_range": sizes,
    f"{ENV}.replace": sizes,
    f"{ENV}.backed_var_to_val": example,
    "torch.SymInt.node": sizes,
    "torch.fx.experimental.symbolic_shapes.GuardOnDataDependentSymNode": lambda: sizes(branching),
    f"{CONFIG}.patch": sizes,
    f"{CONFIG}.backed_size_oblivious": sizes,
    f"{CONFIG}.use_duck_shape": sizes,
    "torch.export.ExportedProgram._constants": lambda: torch_private.with_own_constants(exported()),
    "torch.fx.experimental.proxy_tensor.make_fx": lambda: torch_private.make_fx(),
    "torch._ops.OpOverload": lambda: torch_private.is_operator(torch.ops.aten.add.Tensor),
    "torch._subclasses.fake_tensor.FakeTensorMode.cache_enabled": lambda: torch_private.without_cache(
        torch_private.FakeTensorMode()
    ),
    f"{ENV}.error_on_new_guards": lambda: torch_private.without_new_guards(torch_private.ShapeEnv()),
    "torch.ops.higher_order.scan": lambda: lp.scan(lambda total, x: (total + x,), [torch.zeros(2)], [torch.ones(3, 2)]),
    "torch.utils._pytree": lambda: torch_private.pytree,
    "torch.utils._python_dispatch.TorchDispatchMode": lambda: torch_private.TorchDispatchMode,
    "torch.utils._python_dispatch._disable_current_modes": unwatched,
}


def test_each_of_them_has_a_case() -> None:
    assert set(NEEDS) == set(NAMES) - set(FALL_BACK)


@pytest.mark.parametrize("path", NEEDS)
def test_what_needs_a_name_that_is_gone_says_which(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, [path])
    with pytest.raises(LayerportError) as caught:
        NEEDS[path]()
    said = str(caught.value)
    assert f"torch {torch.__version__} has no {path}, which layerport needs for this: {NAMES[path].use}" in said
    assert "layerport is tested with torch up to 2.13" in said


BUILD = """
import sys, pytest, torch
from torch import Tensor
from hidden_names import hide
hide(pytest.MonkeyPatch(), [sys.argv[1]])
import layerport as lp

@lp.layer("lp_private::doubled")
def doubled(x: Tensor) -> Tensor:
    return x * 2

assert doubled(torch.ones(2)).tolist() == [2, 2]
try:
    lp.build(doubled.module(), sys.argv[2], args=(torch.ones(2),), target="portable")
except lp.LayerportError as error:
    print(error)
"""


@pytest.mark.parametrize("path", ["torch.utils._pytree", "torch.utils._python_dispatch.TorchDispatchMode"])
def test_a_build_says_which_name_is_gone(path: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BUILD, path, str(tmp_path / "made.lp")],
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert f"has no {path}, which layerport needs" in done.stdout
    assert not (tmp_path / "made.lp").exists()


# The launch of a kernel


def test_a_launch_through_public_names(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, [path for path in NAMES if "cuda" in path])

    class Stream:
        cuda_stream = 77

    monkeypatch.setattr(torch.cuda, "current_stream", lambda index: Stream() if index == 1 else None)
    assert torch_private.current_stream()(1) == 77
    assert torch_private.current_device() is torch.cuda.current_device
    made: list[Any] = []
    monkeypatch.setattr(torch, "empty_strided", lambda *args, **kwargs: made.append((args, kwargs)))
    torch_private.empty_strided_cuda()((2, 3), (3, 1), torch.float16)
    assert made == [(((2, 3), (3, 1)), {"dtype": torch.float16, "device": "cuda"})]


def test_a_name_that_is_not_listed_cannot_be_asked_for() -> None:
    with pytest.raises(KeyError):
        torch_private.NAMES.find("torch.nothing")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        torch_private.nothing
    with pytest.raises(LookupError):
        names.look_up("torch._C.nothing")
    with pytest.raises(BuildError, match="has no torch.utils._pytree"):
        raise torch_private.NAMES.error("torch.utils._pytree")


def test_operators_are_listed_once_and_new_ones_too(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = torch._export.utils._materialize_cpp_cia_ops
    times: list[None] = []

    def counted() -> None:
        times.append(None)
        listed()

    monkeypatch.setattr(torch._export.utils, "_materialize_cpp_cia_ops", counted)
    with torch_private.operators_listed_once():
        first = torch._export.utils._collect_all_valid_cia_ops()
        assert len(times) == 1
        library = torch.library.Library("listed_once", "DEF")
        library.define("double(Tensor x) -> Tensor")
        library.impl("double", lambda x: x * 2, "CompositeImplicitAutograd")
        torch.ops.listed_once.double
        second = torch._export.utils._collect_all_valid_cia_ops()
    assert len(times) == 2
    assert second - first == {torch.ops.listed_once.double.default}
    assert torch._export.utils._materialize_cpp_cia_ops is counted
