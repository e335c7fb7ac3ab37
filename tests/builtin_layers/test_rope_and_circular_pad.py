"""`rope` in each of its forms and where groups share tables, and `circular_pad` in packs of 16 bits."""

from __future__ import annotations

import shutil
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.export import Dim

import layerport as lp
from layerport.testing import Case, run_kernel
from layerport_builtin_layers.circular_pad import circular_pad
from layerport_builtin_layers.rope import rope
from layerport_builtin_layers.rope.case import CASE as ROPE
from searched import search_in

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to run kernels on the CPU with")
SHARED = [
    case
    for case in ROPE.cases()
    if case.choice == "float32" and not case.shape.gpu_only and case.shape.shapes["x"][1] > 1  # type: ignore[index]
]


@needs_compiler
@pytest.mark.parametrize("most", [1, 12])
@pytest.mark.parametrize("case", SHARED, ids=[case.id for case in SHARED])
def test_heads_share_the_tables_they_read(case: Case, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they do where there are more rows than a GPU holds at once: all heads of a position, and some of them."""
    monkeypatch.setattr("layerport_builtin_layers.rope.reference._GROUPS", most)
    tensors = case.tensors()
    case.check(run_kernel(case.layer, *case.arguments(tensors), order="backward"), case.expected(tensors))


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


@needs_compiler
@pytest.mark.parametrize("form", ["interleaved", "interleaved_first"])
@pytest.mark.parametrize(("width", "rotary"), [(16, 16), (24, 16), (11, 6), (2, 2)])
def test_neighbours_that_lie_anywhere(width: int, rotary: int, form: Any) -> None:
    x, cos, sin = drawn(2, 3, 5, width).half(), drawn(2, 5, rotary).half(), drawn(1, 2, 5, rotary)[0].half()
    wanted = rope.reference(x.double(), cos.double(), sin.double(), form)
    for offset in (0, 2, {"x": 4, "cos": 0, "sin": 0, "output": 0}):
        got = run_kernel(rope, x, cos, sin, form, offset=offset, sanitize=True, once=True)
        torch.testing.assert_close(torch.from_numpy(got).double(), wanted, rtol=1e-3, atol=1e-5)


def test_neighbours_are_the_complex_product_of_their_definition() -> None:
    x, angles = drawn(2, 3, 5, 8), drawn(2, 5, 4)
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * torch.polar(
        torch.ones(2, 1, 5, 4), angles[:, None]
    )
    expected = torch.view_as_real(turned).flatten(-2)
    each, first = angles.repeat_interleave(2, -1), torch.cat((angles, drawn(2, 5, 4)), -1)
    torch.testing.assert_close(rope(x, each.cos(), each.sin(), "interleaved"), expected)
    torch.testing.assert_close(rope(x, first.cos(), first.sin(), "interleaved_first"), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("model", "rotary", "form"),
    [
        ("llama", 8, "halves"),
        ("gpt_neox", 4, "halves"),
        ("cohere", 8, "interleaved"),
        ("glm4v", 4, "interleaved"),
        ("glm", 4, "interleaved_first"),
        ("ernie4_5", 8, "interleaved_first"),
        ("helium", 8, "interleaved_first"),
    ],
)
def test_the_rotations_of_transformers_are_found(model: str, rotary: int, form: str, dtype: torch.dtype) -> None:
    rotate = import_module(f"transformers.models.{model}.modeling_{model}").apply_rotary_pos_emb
    args = tuple(
        one.to(dtype) for one in (drawn(2, 4, 5, 8), drawn(2, 2, 5, 8), drawn(2, 5, rotary), drawn(1, 2, 5, 8))
    )
    args = (*args[:3], args[3][0, ..., :rotary].contiguous())
    batch, positions = Dim("batch", min=1, max=4), Dim("positions", min=1, max=16)
    shapes = ((*({0: batch, 2: positions},) * 2, *({0: batch, 1: positions},) * 2),)
    findings, _ = search_in(rotate, args, [rope], shapes)
    assert [one.attributes for one in findings.places] == [{"form": form}] * 2


OTHERS = {
    "the other way round": lambda x, cos, sin: x * cos[:, None] - _neighbours(x) * sin[:, None],
    "heads behind positions": lambda x, cos, sin: x * cos[:, :, None] + _neighbours(x) * sin[:, :, None],
}


def _neighbours(x: Tensor) -> Tensor:
    return torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)


@pytest.mark.parametrize("case", OTHERS)
def test_what_rotates_otherwise_is_not_found(case: str) -> None:
    positions = 3 if case == "heads behind positions" else 5
    findings, _ = search_in(
        OTHERS[case], (drawn(2, 3, 5, 8), drawn(2, positions, 8), drawn(2, positions, 8) + 1), [rope]
    )
    assert findings.places == []


def test_a_form_that_it_has_not_is_refused() -> None:
    with pytest.raises(lp.UsageError, match="form"):
        rope(drawn(1, 1, 2, 4), drawn(1, 2, 4), drawn(1, 2, 4), "pairs")  # type: ignore[arg-type]


@needs_compiler
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
