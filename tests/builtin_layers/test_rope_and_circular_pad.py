"""`rope` in each of its forms and where groups share tables, and `circular_pad` in packs of 16 bits."""

from __future__ import annotations

import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.export import Dim

import layerport as lp
from layerport.front.exporter import quiet
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
@pytest.mark.parametrize("form", ["interleaved", "interleaved_first", "interleaved_to_halves", "halves_narrow"])
@pytest.mark.parametrize(("width", "rotary"), [(24, 16), (11, 6)])
def test_rows_that_lie_anywhere(width: int, rotary: int, form: Any) -> None:
    columns = rotary // 2 if form == "halves_narrow" else rotary
    x, cos, sin = drawn(2, 3, 5, width).half(), drawn(2, 5, columns).half(), drawn(1, 2, 5, columns)[0].half()
    wanted = rope.reference(x.double(), cos.double(), sin.double(), form)
    for offset in (0, 2, {"x": 4, "cos": 0, "sin": 0, "output": 0}):
        got = run_kernel(rope, x, cos, sin, form, offset=offset, sanitize=True, once=True)
        torch.testing.assert_close(torch.from_numpy(got).double(), wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("form", ["halves_back", "interleaved_narrow", "interleaved_to_halves"])
def test_gradients_of_a_form(form: Any) -> None:
    x, cos, sin = drawn(2, 3, 1, 5).double(), drawn(2, 3, 1, 2, 1)[..., 0].double(), drawn(1, 2, 3, 1, 2)[0].double()
    assert torch.autograd.gradcheck(lambda *args: rope(*args, form), [one.requires_grad_() for one in (x, cos, sin)])


def test_a_table_with_one_row_for_several_positions_broadcasts() -> None:
    x, cos, sin = drawn(2, 3, 5, 8), drawn(3, 1, 8), drawn(1, 3, 1, 8)[0]
    torch.testing.assert_close(rope(x, cos, sin), rope(x, cos[None], sin[None]))
    one = drawn(3, 3, 1, 8)  # of one position, so that both could be meant: a batch
    torch.testing.assert_close(rope(one, cos, sin), rope(one, cos[:, None], sin[:, None]))


def test_neighbours_are_the_complex_product_of_their_definition() -> None:
    x, angles = drawn(2, 3, 5, 8), drawn(2, 5, 4)
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * torch.polar(
        torch.ones(2, 1, 5, 4), angles[:, None]
    )
    expected = torch.view_as_real(turned).flatten(-2)
    each, first = angles.repeat_interleave(2, -1), torch.cat((angles, drawn(2, 5, 4)), -1)
    torch.testing.assert_close(rope(x, each.cos(), each.sin(), "interleaved"), expected)
    torch.testing.assert_close(rope(x, first.cos(), first.sin(), "interleaved_first"), expected)


@pytest.mark.parametrize(
    ("model", "rotary", "form", "dtype"),
    [
        ("llama", 8, "halves", torch.float16),
        ("gpt_neox", 4, "halves", torch.float32),
        ("cohere", 8, "interleaved", torch.float32),
        ("glm4v", 4, "interleaved", torch.float16),
        ("glm", 4, "interleaved_first", torch.float16),
        ("ernie4_5", 8, "interleaved_first", torch.float32),
        ("helium", 8, "interleaved_first", torch.float16),
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


X, COS, SIN = drawn(2, 4, 5, 8), drawn(2, 5, 8), drawn(1, 2, 5, 8)[0]
ALL = ({0: "batch", 2: "positions"}, *({0: "batch", 1: "positions"},) * 2)
PATCHES = drawn(6, 4, 8), drawn(6, 8), drawn(1, 6, 8)[0]
# The file, the function of it and how it is called; x, cos, sin, which of their axes change; the form.
WRITTEN: dict[str, tuple[str, Any, tuple[Tensor, ...], Any, str]] = {
    "gptj": (
        "apply_rotary_pos_emb", lambda f, x, cos, sin: f(x, sin, cos), (X.transpose(1, 2), COS[..., :4], SIN[..., :4]),
        ({0: "batch", 1: "positions"},) * 3, "interleaved",
    ),
    "gpt_oss": (
        "_apply_rotary_emb", lambda f, x, cos, sin: f(x, cos[:, None], sin[:, None]), (X, COS[..., :4], SIN[..., :4]),
        ALL, "halves_narrow",
    ),
    "deepseek_v3": (
        "apply_rotary_pos_emb_interleave", lambda f, x, cos, sin: f(x, x[:, :1] + 1, cos, sin), (X, COS, SIN), ALL,
        "interleaved_to_halves",
    ),
    "nanochat": (
        "apply_rotary_pos_emb", lambda f, x, cos, sin: f(x, x[:, :1] + 1, cos, sin), (X, COS, SIN), ALL, "halves_back",
    ),
    "qwen2_vl": (
        "apply_rotary_pos_emb_vision", lambda f, x, cos, sin: f(x, x + 1, cos, sin), PATCHES, ({0: "positions"},) * 3,
        "halves",
    ),
    "dinov3_vit": (
        "apply_rotary_pos_emb", lambda f, x, cos, sin: f(x, x + 1, cos, sin), (X, COS[0, :4], SIN[0, :4]),
        ({0: "batch"}, None, None), "halves",
    ),
    "vjepa2": (
        "rotate_queries_or_keys", lambda f, x, cos, sin: f(x, cos[0, :, 0]) + sin[0, 0, 0], (X, COS, SIN),
        ({0: "batch"}, None, None), "interleaved",
    ),
    "sam2_video": (
        "apply_rotary_pos_emb_2d", lambda f, x, cos, sin: f(x, x + 1, cos, sin), (X, COS[0], SIN[0]),
        ({0: "batch"}, None, None), "interleaved",
    ),
    "deepseek_v2": (
        "apply_rotary_emb", lambda f, x, cos, sin: f(x, x[:, :1] + 1, torch.complex(cos, sin)),
        (X, COS[..., :4], SIN[..., :4]), ALL, "interleaved_narrow",
    ),
    "llama4": (
        "apply_rotary_emb", lambda f, x, cos, sin: f(x, x + 1, torch.polar(cos.abs(), sin)),
        (X.transpose(1, 2), COS[..., :4], SIN[..., :4]), ({0: "batch", 1: "positions"},) * 3, "interleaved_narrow",
    ),
}  # fmt: skip


@pytest.mark.parametrize("model", WRITTEN)
def test_the_other_rotations_of_transformers_are_found(model: str) -> None:
    name, call, args, axes, form = WRITTEN[model]
    rotate = getattr(import_module(f"transformers.models.{model}.modeling_{model}"), name)
    dims = {"batch": Dim("batch", min=1, max=4), "positions": Dim("positions", min=2, max=16)}
    shapes = (tuple(None if one is None else {axis: dims[dim] for axis, dim in one.items()} for one in axes),)
    dtype = torch.float16 if form in ("halves", "interleaved") else torch.float32
    made = tuple(one.contiguous().to(dtype) for one in args)
    findings, _ = search_in(lambda *given: call(rotate, *given), made, [rope], shapes)
    there = 1 if name in ("_apply_rotary_emb", "rotate_queries_or_keys") or model == "gptj" else 2
    assert [one.attributes for one in findings.places] == [{"form": form}] * there, findings.misses


class Rotated(torch.nn.Module):
    """Neighbours, as they are written by slices and by an axis of pairs."""

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
        by_cos, by_sin = cos[:, None], sin[:, None]
        turned = torch.stack((first * by_cos - second * by_sin, second * by_cos + first * by_sin), -1).flatten(-2)
        each = (one[:, None].repeat_interleave(2, -1) for one in (cos, sin))
        return turned, (x + 1) * next(each) + _neighbours(x + 1) * next(each)


def test_neighbours_are_found_in_a_file_too(tmp_path: Path) -> None:
    args, path = (X, COS[..., :4].contiguous(), SIN[..., :4].contiguous()), tmp_path / "rotated.onnx"
    with quiet():
        torch.onnx.export(Rotated().eval(), args, path, dynamo=True, verbose=False)
    report = lp.build(path, tmp_path / "a.lp", target="portable")
    forms = [one.attributes["form"] for one in report.found if one.layer == rope.name]
    assert sorted(forms) == ["interleaved", "interleaved_narrow"]


OTHERS = {
    "the other way round": lambda x, cos, sin: x * cos[:, None] - _neighbours(x) * sin[:, None],
    "halves by one column of full tables": lambda x, cos, sin: torch.cat(
        (x[..., :4] * cos[:, None, :, :4] - x[..., 4:] * sin[:, None, :, :4],
         x[..., 4:] * cos[:, None, :, :4] + x[..., :4] * sin[:, None, :, 4:]), -1
    ),
    "halves that come out as neighbours": lambda x, cos, sin: torch.stack(
        (x[..., :4] * cos[:, None, :, :4] - x[..., 4:] * sin[:, None, :, :4],
         x[..., 4:] * cos[:, None, :, :4] + x[..., :4] * sin[:, None, :, :4]), -1
    ).flatten(-2),
    "both sines positive": lambda x, cos, sin: torch.cat(
        (x[..., :4] * cos[:, None, :, :4] + x[..., 4:] * sin[:, None, :, :4],
         x[..., 4:] * cos[:, None, :, :4] + x[..., :4] * sin[:, None, :, :4]), -1
    ),
    "tables that widen it": lambda x, cos, sin: x[:, :1] * _of_heads(cos) + _neighbours(x[:, :1]) * _of_heads(sin),
}  # fmt: skip


def _of_heads(table: Tensor) -> Tensor:
    return torch.stack((table, table + 1, table + 2), dim=1)


def _neighbours(x: Tensor) -> Tensor:
    return torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)


@pytest.mark.parametrize("case", OTHERS)
def test_what_rotates_otherwise_is_not_found(case: str) -> None:
    findings, _ = search_in(OTHERS[case], (drawn(2, 3, 5, 8), drawn(2, 5, 8), drawn(2, 5, 8) + 1), [rope])
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
