"""The portable model in ONNX Runtime: what it cannot compute itself, and what it would compute otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

import layerport as lp
from fuzz.subjects import Ground
from layerport.bundle.bundle import MODEL, Bundle
from layerport.errors import BuildError, UsageError
from layerport.session import onnxruntime as onnxruntime_session
from layerport.session.session import Session
from small_setup import Built


@pytest.fixture(autouse=True)
def no_installed_pack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAYERPORT_DISABLE_PACKS", "builtin_layers")


class Filtered(torch.nn.Module):
    """A convolution, which ONNX does not even allow for bfloat16 at this opset."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = torch.nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.filter(x))


def test_a_bfloat16_convolution(tmp_path: Path) -> None:
    model = Filtered().to(torch.bfloat16).eval()
    x = torch.randn(2, 3, 8, 8).bfloat16()
    report = lp.build(model, tmp_path / "conv.lp", args=(x,), target="portable")
    assert report.verification is not None and report.verification.passed
    assert "a float32 twin ran instead" in str(report.verification.note)


def test_what_is_missed_only_at_the_first_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Filtered().to(torch.bfloat16).eval()
    x = torch.randn(2, 3, 8, 8).bfloat16()
    lp.build(model, tmp_path / "conv.lp", args=(x,), target="portable", verify=False)
    real = onnxruntime_session.run_session
    tried: list[Any] = []

    def fails_once(session: Any, inputs: Any, outputs: Any) -> Any:
        tried.append(session)
        if len(tried) == 1:
            raise UsageError("ONNX Runtime fails on these inputs: not implemented")
        return real(session, inputs, outputs)

    twin = onnxruntime_session.open_twin(tmp_path / "conv.lp" / "model.onnx")
    assert twin is not None
    monkeypatch.setattr(onnxruntime_session, "run_session", fails_once)
    monkeypatch.setattr(onnxruntime_session, "open_session", lambda model, **_: (twin[0], None))
    with lp.load(tmp_path / "conv.lp", device="cpu") as session:
        assert session.precision_note is None
        got = session(x=x)["output"]
        assert "a float32 twin ran instead" in str(session.precision_note)
        with pytest.raises(UsageError, match="do not fit"):
            session(x=x.float())
    with torch.no_grad():
        np.testing.assert_allclose(got.astype(np.float32), model(x).float(), atol=0.02, rtol=0.02)


def quantised(path: Path) -> None:
    """A product with weights of 8 bits, which ONNX Runtime would compute with inputs of 8 bits too."""
    random = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(random.integers(-7, 7, (64, 32)).astype(np.int8), "w"),
        numpy_helper.from_array((random.random((2, 32)) * 0.01 + 0.005).astype(np.float32), "scale"),
    ]
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "scale"], ["wide"], axis=0, block_size=32),
        helper.make_node("MatMul", ["x", "wide"], ["y"]),
    ]
    port = helper.make_tensor_value_info
    ports = [port("x", TensorProto.FLOAT, ["n", 64])], [port("y", TensorProto.FLOAT, ["n", 32])]
    graph = helper.make_graph(nodes, "graph", *ports, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)


def test_a_quantised_model_is_verified_as_it_is_written(tmp_path: Path) -> None:
    quantised(tmp_path / "model.onnx")
    report = lp.build(str(tmp_path / "model.onnx"), tmp_path / "a.lp", target="portable", ranges=["n=1..16..64"])
    assert report.verification is not None and report.verification.passed
    assert lp.verify(tmp_path / "a.lp").passed
    inputs, wanted = Bundle.open(tmp_path / "a.lp").samples()
    for exact in (True, False):
        with Session(Bundle.open(tmp_path / "a.lp"), exact=exact) as session:
            error = np.abs(session.run(inputs)["y"] - wanted["y"]).max()
        assert bool(error < 1e-5) is exact, error


def test_a_dim_whose_name_is_no_text_is_refused(engine_bundle: Built, tmp_path: Path) -> None:
    ground = Ground(engine_bundle.path, tmp_path / "b.lp")
    data = ground.sound[MODEL]
    assert data.count(b"rows") > 1
    ground.put(MODEL, data.replace(b"rows", b"\xf2ows"))
    with pytest.raises(BuildError) as caught:
        lp.load(ground.folder, device="cpu")
    assert "which is no UTF-8 text" in str(caught.value)
