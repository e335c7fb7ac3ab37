"""Several kernels for one layer: which of them a plan holds, as tactics, and why each other one is left out."""

from __future__ import annotations

from pathlib import Path

import torch
from click.testing import CliRunner

import layerport as lp
from layerport.bundle.plugin_spec import from_bytes
from layerport.cli import main

PACK = '''
import layerport as lp
from torch import Tensor

SOURCE = """
template <int WIDTH> __global__ void twice(const float* x, float* y, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  for (int k = 0; k < WIDTH; ++k) if (i * WIDTH + k < n) y[i * WIDTH + k] = 2 * x[i * WIDTH + k];
}
"""

@lp.layer("lp_choice::twice")
def twice(x: Tensor) -> Tensor:
    return x * 2

def rule(x, y, width):
    n = x.numel()
    return lp.Launch(grid=lp.cdiv(n, 128 * width), block=128, args=(x, y, n))

@twice.kernel(lp.cuda(SOURCE, "twice<1>"), dtypes=("float16",))
def halves(x, y):
    return rule(x, y, 1)

@twice.kernel(lp.cuda(SOURCE, "twice<2>"), dtypes=("float32",), when=lambda x: x.shape[-1] % 3 == 0)
def threes(x, y):
    return rule(x, y, 2)

@twice.kernel(lp.cuda(SOURCE, "twice<4>"), dtypes=("float32",), when=lambda x: x.shape[0] >= 32)
def many_rows(x, y):
    return rule(x, y, 4)

@twice.kernel(lp.cuda(SOURCE, "twice<1>"), dtypes=("float32",))
def any_shape(x, y):
    return rule(x, y, 1)

@twice.kernel(lp.cuda(SOURCE, "twice<8>"), dtypes=("float32",))
def wide(x, y):
    return rule(x, y, 8)

@lp.hookimpl
def layerport_layers():
    return (twice,)

@lp.hookimpl
def layerport_export_parameters(module):
    return twice.bind() if type(module).__name__ == "ChoiceTwice" else None
'''


class ChoiceTwice(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.twice = ChoiceTwice()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.twice(x) + 1


def built(pack: str, folder: Path) -> lp.BuildReport:
    (folder / "pack.py").write_text(pack)
    return lp.build(
        Model(),
        folder / "b.lp",
        args=(torch.randn(5, 16),),
        dynamic_shapes=({0: torch.export.Dim("rows", min=1, max=64)},),
        target="rtx:sm_89",
        packs=[str(folder / "pack.py")],
    )


def test_what_fits_is_held_and_what_does_not_has_its_reason(tmp_path: Path) -> None:
    reasons = (
        "twice_0 takes float16, here are float32",
        "twice_1: its predicate is false for x [x.0, 16], output [x.0, 16]",
        "twice_4: twice_3 takes every shape before it, and no GPU compares them",
    )
    (layer,) = built(PACK, tmp_path).layers
    assert layer.realised == "plugin"
    assert list(layer.kernels) == ["twice_2", "twice_3"]
    assert tuple(layer.kernels_left_out) == reasons
    (spec,) = from_bytes((tmp_path / "b.lp" / "plugins.safetensors").read_bytes()).specs.values()
    assert [kernel.name for kernel in spec.kernels] == list(layer.kernels)
    assert [kernel.guard is None for kernel in spec.kernels] == [False, True]
    shown = CliRunner().invoke(main, ["inspect", str(tmp_path / "b.lp")])
    assert shown.exit_code == 0
    for reason in reasons:
        assert f"kernel left out of lp_choice::twice: {reason}" in shown.output


def test_no_kernel_for_every_shape(tmp_path: Path) -> None:
    every = PACK.index('@twice.kernel(lp.cuda(SOURCE, "twice<1>"), dtypes=("float32",))')
    pack = (PACK[:every] + PACK[PACK.index("@lp.hookimpl") :]).replace("lp_choice::", "lp_no_choice::")
    (layer,) = built(pack, tmp_path).layers
    assert (layer.realised, list(layer.kernels), list(layer.kernels_left_out)) == ("decomposed", [], [])
    assert "no kernel takes every shape: twice_2 only where " in layer.reason
