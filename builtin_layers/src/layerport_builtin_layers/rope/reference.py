"""The layer `layerport_builtin::rope`: what it computes, and how its kernel is launched.

No claim goes with it: it is a few lines in the forward of an attention, and found there by its reference.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

import layerport as lp
from layerport_builtin_layers.refused import refuse_other_than_floats

_THREADS = 64  # few, so that the rows of one token spread over many multiprocessors
_NARROW_BYTES = 512  # a row for 8 lanes: pairs of packs of 16 bytes, two rounds at most
_GROUPS = 2**15  # of 8 lanes: about what a large GPU holds at once; fewer groups would leave parts of it idle
_MOST_BLOCKS = 2**31 - 1


_DTYPES = (
    "float32",
    "float16",
    "bfloat16",
    {"cos": "float32", "sin": "float32", "*": "float16"},
    {"cos": "float32", "sin": "float32", "*": "bfloat16"},
)


Form = Literal[
    "halves",
    "halves_back",
    "halves_narrow",
    "interleaved",
    "interleaved_first",
    "interleaved_narrow",
    "interleaved_to_halves",
]
_NARROW = ("halves_narrow", "interleaved_narrow")


@lp.layer("layerport_builtin::rope", version=1)
def rope(x: Tensor, cos: Tensor, sin: Tensor, form: Form = "halves") -> Tensor:
    """The rotary position embedding of Su et al. (2021), "RoFormer".

    x: (..., width) of 3 or 4 axes, floating point.  cos, sin: of one shape, of x's dtype or float32; each axis before
    the last is x's or 1, and first axes may be left out, as Torch broadcasts.  Beside an x that is (batch, heads,
    positions, width) they may be (batch or 1, positions, columns) as well.  The first `rotary` elements of each row, an
    even number, become x * cos + turned * sin; the others stay as they are.
    form: which elements are rotated against each other, and by which columns.  halves: turned is (-second half, first
    half).  halves_back: the other way round, (second half, -first half).  interleaved: neighbours are, turned is
    (-x1, x0, -x3, x2, ...).  In these each of `rotary` elements has a column of its own.  interleaved_first: both of
    the neighbours 2i and 2i + 1 have the angle of column i; of the `rotary` columns the second half is not read.
    interleaved_to_halves: the same, and what becomes of them comes out as halves, all of 2i before all of 2i + 1.
    halves_narrow, interleaved_narrow: there are half as many columns as `rotary`, and both of a pair have the same.
    Computed in float32 (float64 for float64) and rounded once, at the end.  Returns a tensor like x.
    Raises ValueError for shapes and dtypes that do not fit.
    """
    refuse_other_than_floats("rope", x=x, cos=cos, sin=sin)
    rotary = cos.shape[-1] * (2 if form in _NARROW else 1) if cos.ndim else 0
    if (
        x.ndim not in (3, 4)
        or not 1 <= cos.ndim <= x.ndim
        or cos.shape != sin.shape
        or not _broadcasts(_beside(cos, x)[:-1], x.shape[:-1])
        or rotary % 2 != 0
        or rotary > x.shape[-1]
    ):
        raise ValueError(
            f"rope: shapes do not fit: x {list(x.shape)}, cos {list(cos.shape)}, sin {list(sin.shape)}; give x: "
            "(batch, heads, positions, width), cos and sin: (batch or 1, positions, an even number up to the width), "
            f"or all three with axes that broadcast{'; half that number in this form' if form in _NARROW else ''}"
        )
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    half = rotary // 2
    part = x[..., :rotary].to(wide)
    if form.startswith("halves"):
        one, other = part[..., :half], part[..., half:]
    else:
        one, other = part[..., ::2], part[..., 1::2]
    by_cos, by_sin = (_table(table, x, form, half).to(wide) for table in (cos, sin))
    if form in ("halves", "halves_back", "interleaved", "interleaved_first"):
        turned = _joined(other, -one, form) if form == "halves_back" else _joined(-other, one, form)
        result = part * by_cos + turned * by_sin
    else:
        result = _joined(one * by_cos - other * by_sin, other * by_cos + one * by_sin, form)
    if rotary == x.shape[-1]:
        return result.to(x.dtype)
    return torch.cat((result.to(x.dtype), x[..., rotary:]), dim=-1)


def _is_one(size: Any) -> bool:
    """Whether a size is 1.  A symbolic one is not asked: the answer would hold for some sizes only."""
    return isinstance(size, int) and size == 1


def _broadcasts(sizes: tuple[Any, ...], wanted: tuple[Any, ...]) -> bool:
    return all(_is_one(size) or size == own for size, own in zip(sizes, wanted, strict=True))


def _lacks_heads(table: Any, x: Any) -> bool:
    """Whether a table is (batch or 1, positions, columns), which it cannot be with one row for several positions."""
    if (len(x.shape), len(table.shape)) != (4, 3):
        return False
    return not _is_one(table.shape[1]) or _is_one(x.shape[2])


def _beside(table: Any, x: Any) -> tuple[Any, ...]:
    """The sizes of a table with as many axes as x."""
    shape = tuple(table.shape)
    if _lacks_heads(table, x):
        return shape[0], 1, *shape[1:]
    return (*(1,) * (len(x.shape) - len(shape)), *shape)


def _table(table: Tensor, x: Tensor, form: str, half: int) -> Tensor:
    """The columns that a form reads, so that they meet the elements."""
    if form in ("interleaved_first", "interleaved_to_halves"):
        table = table[..., :half]
    if _lacks_heads(table, x):
        table = table.unsqueeze(1)
    return table.repeat_interleave(2, dim=-1) if form == "interleaved_first" else table


def _joined(one: Tensor, other: Tensor, form: str) -> Tensor:
    """Both of each pair in one row."""
    if form.startswith("interleaved") and form != "interleaved_to_halves":
        return torch.stack((one, other), dim=-1).flatten(-2)
    return torch.cat((one, other), dim=-1)


def _kernel(name: str, is_interleaved: bool) -> None:
    @rope.kernel(
        lp.cuda("kernel.cu", f"{name}<{{x}}, {{cos}}>"),
        dtypes=_DTYPES,
        when=lambda form: form.startswith("interleaved") == is_interleaved,
        name=name,
    )
    def launch(x: lp.TensorType, cos: lp.TensorType, sin: lp.TensorType, form: str, y: lp.TensorType) -> lp.Launch:
        width, columns = x.shape[-1], cos.shape[-1]
        first, second, third = (1, *x.shape[:-1])[-3:]
        tables = (1, *_beside(cos, x)[:-1])[-3:]
        # The axis of the heads is that along which the tables are one: the middle one, the last one, or none.
        middle, last = tables[1] <= 1, tables[2] <= 1
        heads = lp.where(middle, second, lp.where(last, third, 1))
        positions = lp.where(middle, third, lp.where(last, second, second * third))
        head_step = lp.where(middle, third * width, width)
        position_step = lp.where(middle, width, heads * width)
        angle_step = lp.where(middle, lp.where(last, 0, columns), columns)
        batch_angle_step = lp.where(tables[0] <= 1, 0, tables[1] * tables[2] * columns)

        lanes = lp.where(width * x.itemsize <= _NARROW_BYTES, 8, 32)
        groups_of_block = _THREADS // lanes
        part = lp.maximum(lp.minimum(first * second * third // _GROUPS, heads), 1)
        parts = lp.cdiv(heads, part)
        groups = first * parts * positions
        steps = (head_step, position_step, batch_angle_step, angle_step)
        rotary = 2 * columns if form in _NARROW else columns
        has_own_columns = form in ("halves", "halves_back", "interleaved")
        told = form == "interleaved_to_halves" if is_interleaved else -1 if form == "halves_back" else 1
        return lp.Launch(
            grid=lp.minimum(lp.cdiv(groups, groups_of_block), _MOST_BLOCKS),
            block=(lanes, groups_of_block),
            args=(x, cos, sin, y, groups, parts, part, heads, positions, *steps, width, rotary, has_own_columns, told),
        )


_kernel("rope", False)
_kernel("rope_interleaved", True)
