"""What must hold of the pack, and that a model which never heard of it gets its layer."""

import pytest
import torch

import layerport as lp


@pytest.mark.layerport("softcap_pack")
def test_pack(layerport_check):
    layerport_check()


class Head(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.projection = torch.nn.Linear(16, 24)

    def forward(self, x):
        return torch.tanh(self.projection(x) / 20.0) * 20.0


def test_a_model(tmp_path):
    torch.manual_seed(0)
    report = lp.build((Head().eval(), (torch.randn(3, 16),)), tmp_path / "head.lp", target="rtx:sm_89")
    assert report.counts == {"softcap_pack::softcap": {"plugin": 1}}
    assert report.found[0].attributes == {"cap": 20.0}
    assert report.verification.passed
