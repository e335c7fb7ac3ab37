"""`rope` where groups share tables, and `circular_pad` in packs of 16 bits over several blocks."""

from __future__ import annotations

import shutil

import pytest
import torch

from layerport.testing import Case, run_kernel
from layerport_builtin_layers.circular_pad import circular_pad
from layerport_builtin_layers.rope.case import CASE as ROPE

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to run kernels on the CPU with")
SHARED = [
    case
    for case in ROPE.cases()
    if case.choice == "float32" and not case.shape.gpu_only and case.shape.shapes["x"][1] > 1  # type: ignore[index]
]


@pytest.mark.parametrize("most", [1, 12])
@pytest.mark.parametrize("case", SHARED, ids=[case.id for case in SHARED])
def test_heads_share_the_tables_they_read(case: Case, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they do where there are more rows than a GPU holds at once: all heads of a position, and some of them."""
    monkeypatch.setattr("layerport_builtin_layers.rope.reference._GROUPS", most)
    tensors = case.tensors()
    case.check(run_kernel(case.layer, *case.arguments(tensors), order="backward"), case.expected(tensors))


@pytest.mark.parametrize(
    ("shape", "pads"),
    [
        ((3, 2, 37, 61), [1, 1, 1, 1]),
        ((2, 64, 32), [0, 0, 0, 0]),
        ((2, 5, 300), [16, 8, 1, 0]),
        ((700, 2, 3), [1, 0, 0, 1]),
        ((3, 5, 11), [40, 35, 12, 23]),
        ((1, 3000), [1, 2, 0, 2]),
        ((2, 2500, 1), [0, 0, 1, 3]),
        ((0, 4, 5), [1, 1, 1, 1]),
    ],
)
@pytest.mark.parametrize("offset", [{"x": 0, "output": 0}, {"x": 14, "output": 0}, {"x": 6, "output": 10}])
def test_padded_packs_come_from_where_they_lie(shape: tuple[int, ...], pads: list[int], offset: dict[str, int]) -> None:
    count = torch.Size(shape).numel()
    x = torch.arange(count, dtype=torch.int32).to(torch.int16).view(torch.float16).nan_to_num(0.5).reshape(shape)
    got = run_kernel(circular_pad, x, pads, offset=offset, order=13)
    assert torch.equal(torch.from_numpy(got), circular_pad.reference(x, pads))
