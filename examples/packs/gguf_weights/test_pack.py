"""What must hold of the pack, and a model whose weights come from a GGUF file, quantised and not."""

import gguf
import numpy as np
import pytest
import torch
from gguf_pack import blocks, q8_0_linear

import layerport as lp
from layerport.conversion import to_standard


@pytest.mark.layerport("gguf_pack")
def test_pack(layerport_check):
    layerport_check()


@pytest.fixture
def tensors(tmp_path):
    """The tensors of a GGUF file, by name: a weight in Q8_0, a bias in float32."""
    random = np.random.default_rng(0)
    weight = random.standard_normal((24, 64), dtype=np.float32)
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "example")
    kind = gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor("weight", gguf.quantize(weight, kind), raw_dtype=kind)
    writer.add_tensor("bias", random.standard_normal(24, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {one.name: one for one in gguf.GGUFReader(tmp_path / "model.gguf").tensors}


def test_the_rule(tensors):
    converted = to_standard(tensors["weight"])
    assert converted.array.shape == (24, 64)
    assert [step.by for step in converted.steps] == ["gguf_pack"]
    module = q8_0_linear.module(**blocks(tensors["weight"]))
    x = torch.randn(3, 64)
    torch.testing.assert_close(module(x), x @ torch.from_numpy(converted.array).T, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="bias is F32"):
        blocks(tensors["bias"])


def test_a_model(tensors, tmp_path):
    linear = q8_0_linear.module(**blocks(tensors["weight"]))
    report = lp.build((linear.eval(), (torch.randn(3, 64),)), tmp_path / "linear.lp", target="rtx:sm_89")
    assert report.counts == {"gguf_pack::q8_0_linear": {"plugin": 1}}
    assert report.verification.passed
