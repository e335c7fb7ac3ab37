"""What must hold of the pack, and that a module of that name becomes its layer."""

import pytest
import torch

import layerport as lp


@pytest.mark.layerport("normalize_pack")
def test_pack(layerport_check):
    layerport_check()


class Normalize(torch.nn.Module):
    def forward(self, x):
        return torch.nn.functional.normalize(x, p=2, dim=-1)


def test_a_model(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 24), Normalize()).eval()
    report = lp.build((model, (torch.randn(3, 16),)), tmp_path / "encoder.lp", target="rtx:sm_89")
    assert report.counts == {"normalize_pack::normalize": {"plugin": 1}}
    assert report.verification.passed
