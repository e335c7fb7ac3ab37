"""The layer `layerport_builtin::roi_align`: what it computes, and how its kernel is launched."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

import layerport as lp

_THREADS, _CHANNELS = 256, 4  # as in kernel.cu


@lp.layer("layerport_builtin::roi_align", version=1, find=False, purpose="not expressible")
def roi_align(
    x: Tensor,
    boxes: Tensor,
    output_size: list[int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
    pool_mode: Literal["avg", "max"] = "avg",
) -> Tensor:
    """Boxes of a map, pooled to one size: the RoIAlign of He et al. (2017), "Mask R-CNN", section 3.

    x: (batch, channels, height, width), floating point.  boxes: (boxes, 5), of x's dtype or float32: the image, then
    left, top, right and bottom, which spatial_scale brings to pixels of x.
    output_size: the rows and columns of bins into which each box is cut.  sampling_ratio: along each axis of a bin so
    many points are read between their four pixels and averaged; below 1 as many as the bin has pixels, rounded up.
    A point more than a pixel outside of x reads zero.
    aligned: whether coordinates are moved by half a pixel, so that they mean the centres of pixels; without it boxes
    are at least one pixel large.
    pool_mode: the average of a bin's points, or the largest of them, as mmcv's `roi_align` has both; a bin without
    points gives zero.
    Computed in float32 (float64 for float64) and rounded once, at the end, as torchvision's `roi_align` does in
    float32; boxes that are not finite give zeros, and boxes have no gradient.
    Returns (boxes, channels, rows, columns) of x's dtype.  Raises ValueError for shapes, dtypes and attributes that do
    not fit; on the CPU also RuntimeError for an image that there is not, for which a kernel writes zeros.
    """
    _refuse(x, boxes, output_size)
    image, starts, bins, points, index = _cut(x, boxes, output_size, spatial_scale, sampling_ratio, aligned)
    lp.check_values(
        ((image >= 0) & (image < x.shape[0])).all(),
        "roi_align: boxes name images that x does not have; give numbers from 0 to its batch - 1",
    )

    def step(
        number: Tensor, image: Tensor, start: Tensor, bin: Tensor, points: Tensor, x: Tensor, index: Tensor
    ) -> tuple[Tensor, ...]:
        values = x.index_select(0, image.reshape(1)).squeeze(0).to(bin.dtype)
        rows, columns = (
            _Axis(start[axis], bin[axis], points[axis], output_size[axis], values.shape[axis + 1], index)
            for axis in (0, 1)
        )
        if pool_mode == "max":
            return number + 1, _largest(values, rows, columns)
        return number + 1, _read(values, rows.shares(), columns.shares()) / points.prod().clamp(min=1.0)

    _, result = lp.scan(step, [bins.new_zeros(())], [image, starts, bins, points], (x, index))
    return result.to(x.dtype)


def _cut(
    x: Tensor, boxes: Tensor, output_size: list[int], spatial_scale: float, sampling_ratio: int, aligned: bool
) -> tuple[Tensor, ...]:
    """Of each box its image, and along y and x where it starts, how large a bin is and how many points it has.

    Then the numbers of a bin's points, as many as may lie in the map: they are at least half a pixel apart.
    """
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    image, values = boxes[:, 0].to(torch.int64), boxes[:, 1:].detach().to(wide)
    shift = 0.5 if aligned else 0.0
    starts, ends = values[:, [1, 0]] * spatial_scale - shift, values[:, [3, 2]] * spatial_scale - shift
    sizes = ends - starts
    if not aligned:
        sizes = torch.where(sizes.isfinite(), sizes.clamp(min=1.0), sizes)
    bins = sizes / torch.tensor(output_size, dtype=wide, device=x.device)
    if sampling_ratio > 0:
        points, most = torch.full_like(bins, sampling_ratio), sampling_ratio
    else:
        points = torch.where(bins.isfinite(), bins.ceil(), 0.0).clamp(min=0.0)
        most = 2 * torch.sym_max(x.shape[2], x.shape[3]) + 3
    return image, starts, bins, points, torch.arange(most, dtype=wide, device=x.device)


class _Axis:
    """The points of each bin along an axis that may lie in the map.

    inside: which of them do, (bins, points).  low, high: the pixels on both sides; part: the share of the latter.
    some_outside: of which bins other points lie outside of the map, (bins,).
    """

    def __init__(self, start: Tensor, bin: Tensor, points: Tensor, bins: int, size: int, index: Tensor) -> None:
        start = start + torch.arange(bins, device=index.device).unsqueeze(1) * bin
        # A bin may begin far outside of the map: its points before the map are passed over.
        first = ((-1 - start) * points / bin - 0.5).ceil().clamp(min=0.0)
        number = torch.where((bin > 0) & (points > 0), first, 0.0) + index
        place = start + (number + 0.5) * bin / points
        self.inside = (number < points) & (place >= -1) & (place <= size)
        place = torch.where(self.inside, place, 0.0).clamp(0, size - 1)
        self.low = place.floor()
        self.high = (self.low + 1).clamp(max=size - 1)
        self.part = place - self.low
        self.points, self.size, self.index = points, size, index

    @property
    def some_outside(self) -> Tensor:
        return self.inside.to(self.index.dtype).sum(1) < self.points

    def shares(self) -> tuple[Tensor, ...]:
        """What share of each pixel the points of each bin read, (bins, size).

        Then how often they read it, and how often with a share above zero, which is another thing where it is not
        finite.
        """
        sums: list[Tensor] = []
        for met, taken in self._met():
            sums += [taken.sum(1), met.to(taken.dtype).sum(1), (taken > 0).to(taken.dtype).sum(1)]
        return sums[0] + sums[3], sums[1] + sums[4], sums[2] + sums[5]

    def of_points(self) -> Tensor:
        """What share of each pixel each point reads, (bins, points, size)."""
        (_, first), (_, second) = self._met()
        return first + second

    def _met(self) -> list[tuple[Tensor, Tensor]]:
        pixel = torch.arange(self.size, dtype=self.index.dtype, device=self.index.device)
        found = []
        for near, share in ((self.low, 1 - self.part), (self.high, self.part)):
            met = self.inside.unsqueeze(2) & (near.unsqueeze(2) == pixel)
            found.append((met, torch.where(met, share.unsqueeze(2), 0.0)))
        return found


def _largest(values: Tensor, rows: _Axis, columns: _Axis) -> Tensor:
    """The largest point of each bin, (channels, rows, columns): one row of points of every bin after another."""
    bins = values.shape[0], rows.inside.shape[0], columns.inside.shape[0]

    def step(
        best: Tensor, top: Tensor, bottom: Tensor, down: Tensor, inside: Tensor, values: Tensor, *of_columns: Tensor
    ) -> tuple[Tensor, ...]:
        read = _row_of_points(values, (top, bottom, down, inside), of_columns)
        return torch.maximum(best, read.amax(3)), down.sum()

    best, _ = lp.scan(step, [values.new_full(bins, -torch.inf)], _of_rows(rows), (values, *_of_columns(columns)))
    outside = rows.some_outside.unsqueeze(1) | columns.some_outside
    best = torch.maximum(best, torch.where(outside, 0.0, -torch.inf))
    return torch.where((rows.points > 0) & (columns.points > 0), best, 0.0)


def _of_rows(rows: _Axis) -> list[Tensor]:
    """What changes from one row of points to the next."""
    return [one.T for one in (rows.low.to(torch.int64), rows.high.to(torch.int64), rows.part, rows.inside)]


def _of_columns(columns: _Axis) -> tuple[Tensor, ...]:
    return columns.low.to(torch.int64), columns.high.to(torch.int64), columns.part, columns.inside


def _row_of_points(values: Tensor, row: tuple[Tensor, ...], columns: tuple[Tensor, ...]) -> Tensor:
    """The points of one row of every bin, (channels, rows, columns, points); minus infinity where there is none."""
    (top, bottom, down, inside), (left, right, across, inside_too) = row, columns
    shape = values.shape[0], top.shape[0], *left.shape
    upper, lower = (
        values.index_select(1, near).index_select(2, left.flatten()).reshape(shape) * (1 - across)
        + values.index_select(1, near).index_select(2, right.flatten()).reshape(shape) * across
        for near in (top, bottom)
    )
    down, inside = down.reshape(-1, 1, 1), inside.reshape(-1, 1, 1)
    return torch.where(inside & inside_too, upper * (1 - down) + lower * down, -torch.inf)


def _read(values: Tensor, rows: tuple[Tensor, ...], columns: tuple[Tensor, ...]) -> Tensor:
    """The sums of all bins; a pixel that is not finite reaches those bins whose points read it, and no others."""

    def times(values: Tensor, kind: int) -> Tensor:
        return rows[kind] @ values.to(rows[kind].dtype) @ columns[kind].T

    finite = values.isfinite()
    result = times(torch.where(finite, values, 0.0), 0)
    above, below = times(values == torch.inf, 2), times(values == -torch.inf, 2)
    # A NaN, or an infinity with a share of zero.
    unknown = times(~finite, 1) > above + below
    result = result + torch.where(above > 0, torch.inf, 0.0) + torch.where(below > 0, -torch.inf, 0.0)
    return torch.where(unknown, torch.nan, result)


@roi_align.backward
def backward(
    x: Tensor,
    boxes: Tensor,
    output_size: list[int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
    pool_mode: str,
    grad_output: Tensor,
) -> tuple[Tensor, None]:
    """Box by box, where the recomputed reference would keep tables of all boxes."""
    image, starts, bins, points, index = _cut(x, boxes, output_size, spatial_scale, sampling_ratio, aligned)

    def step(
        total: Tensor,
        image: Tensor,
        start: Tensor,
        bin: Tensor,
        points: Tensor,
        gradient: Tensor,
        x: Tensor,
        index: Tensor,
    ) -> tuple[Tensor, ...]:
        rows, columns = (
            _Axis(start[axis], bin[axis], points[axis], output_size[axis], total.shape[axis + 2], index)
            for axis in (0, 1)
        )
        if pool_mode == "max":
            values = x.index_select(0, image.reshape(1)).squeeze(0).to(bin.dtype)
            spread = _to_the_largest(values, rows, columns, gradient)
        else:
            spread = rows.shares()[0].T @ (gradient / points.prod().clamp(min=1.0)) @ columns.shares()[0]
        return (total.index_add(0, image.reshape(1), spread.unsqueeze(0)),)

    start = torch.zeros_like(x, dtype=bins.dtype)
    (total,) = lp.scan(step, [start], [image, starts, bins, points, grad_output.to(bins.dtype)], (x.detach(), index))
    return total.to(x.dtype), None


def _to_the_largest(values: Tensor, rows: _Axis, columns: _Axis, gradient: Tensor) -> Tensor:
    """The gradient of a box's pixels: that of each bin goes to its largest point, of several equal ones to the first.

    gradient: (channels, rows, columns).
    """
    best = _largest(values, rows, columns)
    of_columns = columns.of_points().flatten(0, 1)  # (columns * points, width)

    def step(
        spread: Tensor,
        open: Tensor,
        top: Tensor,
        bottom: Tensor,
        down: Tensor,
        inside: Tensor,
        shares: Tensor,
        values: Tensor,
        best: Tensor,
        gradient: Tensor,
        of_columns: Tensor,
        *columns: Tensor,
    ) -> tuple[Tensor, ...]:
        read = _row_of_points(values, (top, bottom, down, inside), columns)
        hit = (read == best.unsqueeze(3)) & (read > -torch.inf)
        hit = hit & (hit.to(torch.int64).cumsum(3) == 1) & (open.unsqueeze(3) > 0)
        given = torch.where(hit, gradient.unsqueeze(3), 0.0).flatten(2) @ of_columns
        return spread + shares.T @ given, torch.where(hit.any(3), 0.0, open)

    spread, _ = lp.scan(
        step,
        [torch.zeros_like(values), torch.ones_like(best)],
        [*_of_rows(rows), rows.of_points().transpose(0, 1)],
        (values, best, gradient, of_columns, *_of_columns(columns)),
    )
    return spread


def _refuse(x: Tensor, boxes: Tensor, output_size: list[int]) -> None:
    # A symbolic size is not asked whether it is 0: the answer would hold for some sizes only.
    is_empty = x.ndim == 4 and any(isinstance(size, int) and size == 0 for size in x.shape[2:])
    if (x.ndim, boxes.ndim) != (4, 2) or boxes.shape[1] != 5 or is_empty:
        raise ValueError(
            f"roi_align: shapes do not fit: x {list(x.shape)}, boxes {list(boxes.shape)}; "
            "give x: (batch, channels, height, width) with at least one pixel, "
            "boxes: (boxes, 5), image, left, top, right, bottom"
        )
    if len(output_size) != 2 or min(output_size) < 1:
        raise ValueError(f"roi_align: output_size is {list(output_size)}; give rows and columns, each from 1")
    if not x.is_floating_point() or boxes.dtype not in (x.dtype, torch.float32):
        raise ValueError(
            f"roi_align: dtypes do not fit: x {x.dtype}, boxes {boxes.dtype}; "
            "give x in a floating-point dtype, boxes in the same or in float32"
        )


def launch(
    x: lp.TensorType,
    boxes: lp.TensorType,
    y: lp.TensorType,
    output_size: list[int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> lp.Launch:
    count = lp.cdiv(x.shape[1], _CHANNELS) * output_size[0] * output_size[1]
    return lp.Launch(
        grid=(boxes.shape[0], lp.cdiv(count, _THREADS)),
        block=_THREADS,
        args=(x, boxes, y, *x.shape, *output_size, spatial_scale, sampling_ratio, aligned),
    )


_DTYPES = (
    "float32",
    "float16",
    "bfloat16",
    {"boxes": "float32", "*": "float16"},
    {"boxes": "float32", "*": "bfloat16"},
)
roi_align.kernel(
    lp.cuda("kernel.cu", "roi_align<{x}, {boxes}, false>"),
    dtypes=_DTYPES,
    when=lambda pool_mode: pool_mode == "avg",
    name="roi_align",
)(launch)
roi_align.kernel(
    lp.cuda("kernel.cu", "roi_align<{x}, {boxes}, true>"),
    dtypes=_DTYPES,
    when=lambda pool_mode: pool_mode == "max",
    name="roi_align_max",
)(launch)
