"""What must hold of the pack, what its plugin computes (on the CPU: no GPU has run it), and a model with it."""

import pytest
import torch
from convolution_pack import long_convolution, spectrum
from convolution_pack.engine_plugin import convolve

import layerport as lp


@pytest.mark.layerport("convolution_pack")
def test_pack(layerport_check):
    layerport_check()


def test_the_plugin_computes_what_the_reference_does():
    torch.manual_seed(0)
    x, filters = torch.randn(2, 3, 50), torch.randn(3, 64)
    got = convolve(x, torch.from_numpy(spectrum(filters.numpy())))
    torch.testing.assert_close(got, long_convolution(x, filters), rtol=1e-4, atol=1e-4)


class LongConvolution(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.filters = torch.nn.Parameter(torch.randn(4, 32))

    def forward(self, x):
        padded = torch.nn.functional.pad(x, (31, 0))
        return torch.nn.functional.conv1d(padded, self.filters.flip(1).unsqueeze(1), groups=4)


def test_a_model(tmp_path):
    torch.manual_seed(0)
    report = lp.build((LongConvolution().eval(), (torch.randn(2, 4, 20),)), tmp_path / "long.lp", target="rtx:sm_89")
    assert report.counts == {"convolution_pack::long_convolution": {"plugin": 1}}
    assert report.verification.passed
    (origin,) = report.layers[0].origins
    assert [step.action for step in origin.steps] == ["view", "layerport_convert_parameters"]
