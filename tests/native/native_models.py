"""Models whose plans hold what a plugin can have: optional inputs, data-dependent sizes, several dtypes and kernels."""

from __future__ import annotations

from pathlib import Path

import torch

from layerport import building
from layerport_builtin_layers.add_layer_norm import add_layer_norm
from layerport_builtin_layers.add_rms_norm import add_rms_norm
from layerport_builtin_layers.causal_conv1d import causal_conv1d
from layerport_builtin_layers.circular_pad import circular_pad
from layerport_builtin_layers.deform_conv2d import deform_conv2d
from layerport_builtin_layers.experts_linear import experts_linear
from layerport_builtin_layers.gated_rms_norm import gated_rms_norm
from layerport_builtin_layers.gelu_mul import gelu_mul
from layerport_builtin_layers.grid_sample import grid_sample
from layerport_builtin_layers.group_norm_silu import group_norm_silu
from layerport_builtin_layers.index_add import index_add
from layerport_builtin_layers.layer_norm import layer_norm
from layerport_builtin_layers.local_correlation import local_correlation
from layerport_builtin_layers.ms_deform_attn import ms_deform_attn
from layerport_builtin_layers.nms import nms
from layerport_builtin_layers.packed_gate_mul import packed_gate_mul
from layerport_builtin_layers.rms_norm.reference import rms_norm
from layerport_builtin_layers.roi_align import roi_align
from layerport_builtin_layers.rope import rope
from layerport_builtin_layers.scatter_pillars import scatter_pillars
from layerport_builtin_layers.selective_scan import selective_scan
from layerport_builtin_layers.silu_mul.reference import silu_mul
from layerport_builtin_layers.ssd_scan import ssd_scan
from layerport_builtin_layers.weight_only_linear import weight_only_linear
from small_models import net
from small_setup import ENGINE, SMALL
from stepped_layer import Pack, centred

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class Norms(torch.nn.Module):
    """In each of three dtypes a norm with weight, one without, and a gated product."""

    def __init__(self) -> None:
        super().__init__()
        weights = [torch.linspace(0.5, 1.5, 256, dtype=dtype) for dtype in DTYPES]
        self.weights = torch.nn.ParameterList(weights)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        pairs = zip(inputs, self.weights, strict=True)
        return tuple(silu_mul(rms_norm(x, weight, 1e-6), rms_norm(x, None, 1e-5)) for x, weight in pairs)


class Others(torch.nn.Module):
    """Each other layer of the built-in pack, and one of several launches, in two dtypes, one after the other.

    Of branches that do not depend on each other, TensorRT for RTX writes now one and now the other first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(0.5, 1.5, 16))
        self.experts = torch.nn.Parameter(torch.linspace(-1, 1, 3 * 16 * 16).reshape(3, 16, 16))
        self.filters = torch.nn.Parameter(torch.linspace(-1, 1, 16).reshape(4, 4, 1, 1))
        self.register_buffer("boxes", torch.tensor([[0.0, 1, 2, 12, 7], [1.0, 0, 0, 15, 8]]))
        self.register_buffer("maps", torch.linspace(-1, 1, 2 * 4 * 8 * 16).reshape(2, 4, 8, 16))
        self.register_buffer("middles", torch.linspace(0, 8, 2 * 2 * 8 * 16).reshape(2, 2, 8, 16))
        self.register_buffer("places", torch.arange(256).reshape(64, 4) % torch.tensor([2, 1, 8, 16]))
        self.register_buffer("chosen", torch.tensor([[0], [2], [1], [0], [1]]))
        self.register_buffer("codes", torch.arange(16 * 16, dtype=torch.uint8).reshape(16, 16) % 16)
        self.register_buffer("sizes", torch.tensor([[2, 3], [1, 2]]))
        self.register_buffer("table", torch.linspace(-1, 1, 128).reshape(1, 8, 16))
        self.register_buffer("locations", torch.linspace(0, 1, 240).reshape(2, 5, 2, 2, 3, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for dtype in (torch.float32, torch.float16):
            x = self.in_dtype(x.to(dtype), dtype)
        return x

    def in_dtype(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        weight, table, locations = self.weight.to(dtype), self.table.to(dtype), self.locations.to(dtype)
        x = centred(rope(x, table, table))
        total, normalised = add_rms_norm(layer_norm(x, weight, weight), x, weight, 1e-5)
        padded: torch.Tensor = circular_pad(gelu_mul(normalised, total, "tanh"), [1, 2, 0, 5])
        value = padded[:, :2, :8, :8].reshape(2, 8, 2, 8)
        sampled: torch.Tensor = ms_deform_attn(value, self.sizes, locations, locations[..., 0])
        rows = sampled.reshape(10, 16)
        sampled = experts_linear(rows, self.chosen.repeat(2, 1), self.experts.to(dtype))
        rows = sampled.reshape(2, 5, 16)
        sampled, _ = selective_scan(rows, rows, self.table[0, :5, :4], rows[:, :4], rows[:, 1:], softplus=True)
        sampled = weight_only_linear(sampled, self.codes, weight[:, None])
        sampled, _ = add_layer_norm(sampled, gated_rms_norm(sampled, sampled, weight), weight, weight)
        sampled = group_norm_silu(sampled.mT, 4, weight, weight)
        sampled = packed_gate_mul(torch.cat((sampled.mT, sampled.mT), -1))
        sampled = causal_conv1d(sampled, table[0, :5, :2], activation="silu")
        heads = sampled.reshape(2, 5, 2, 8)
        sampled = ssd_scan(heads, heads[..., 0], self.table[0, 0, :2], heads, heads, softplus=True)[0].to(dtype)
        sampled = index_add(sampled.reshape(10, 16), self.chosen.reshape(5).repeat(2), sampled.reshape(10, 16))
        return self.of_images(sampled.reshape(2, 1, 5, 16).expand(2, 4, 5, 16).repeat(1, 1, 2, 1)[:, :, :8])

    def of_images(self, x: torch.Tensor) -> torch.Tensor:
        offset = x[:, :2]
        deformed = deform_conv2d(x, offset, self.filters.to(x.dtype), mask=offset[:, :1])
        pooled: torch.Tensor = roi_align(deformed, self.boxes.to(x.dtype), [8, 16], sampling_ratio=1)
        pooled = grid_sample(pooled, self.middles.to(x.dtype).permute(0, 2, 3, 1) / 4 - 1)
        found = local_correlation(pooled, self.maps.to(x.dtype), self.middles.to(x.dtype), 0)
        pillars: torch.Tensor = scatter_pillars(found.reshape(64, 4), self.places, 2, 8, 16)
        return pillars


class Kept(torch.nn.Module):
    """The layer whose size depends on data, by itself: with others TensorRT for RTX varies the order."""

    def forward(self, boxes: torch.Tensor) -> torch.Tensor:
        kept: torch.Tensor = nms(boxes, boxes.sum(1), iou_threshold=0.4)
        return kept


def build_all(folder: Path) -> list[Path]:
    """The bundles of all of them."""
    made = [folder / "net.lp", folder / "norms.lp", folder / "others.lp", folder / "kept.lp"]
    building.build((Others(), (torch.randn(2, 4, 8, 16),), None), made[2], target=ENGINE, packs=[Pack()], verify=False)
    building.build((Kept(), (torch.randn(16, 4),), None), made[3], target=ENGINE, verify=False)
    building.build(net(), made[0], target=ENGINE, packs=[SMALL])
    rows = torch.export.Dim("rows", min=1, max=64)
    inputs = tuple(torch.randn(4, 256).to(dtype) for dtype in DTYPES)
    shapes = {"inputs": tuple({0: rows} for _ in inputs)}
    building.build((Norms(), inputs, shapes), made[1], target=ENGINE, verify=False)
    return made
