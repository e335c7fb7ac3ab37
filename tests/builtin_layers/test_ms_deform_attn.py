"""Multi-scale deformable attention: against transformers' own, in its models, and what it refuses."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.export import Dim
from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention
from transformers.models.mask2former.modeling_mask2former import multi_scale_deformable_attention
from transformers.models.rt_detr_v2.modeling_rt_detr_v2 import multi_scale_deformable_attention_v2

import layerport as lp
from layerport.packs.records import is_rewrite
from layerport.testing import CaseShape, run_kernel
from layerport_builtin_layers import plugin
from layerport_builtin_layers.ms_deform_attn import ms_deform_attn, reference
from layerport_builtin_layers.ms_deform_attn.case import CASE
from small_setup import ENGINE

EVERY = bool(os.environ.get("LAYERPORT_TEST_FAMILIES"))
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to run kernels on the CPU with")
LEVELS = [(5, 7), (3, 4), (2, 2)]
SIZES = torch.tensor(LEVELS)


def drawn(dtype: torch.dtype = torch.float32, seed: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Value, sizes, locations also outside of the maps, weights."""
    generator = torch.Generator().manual_seed(seed)
    value = torch.randn(2, 51, 3, 8, generator=generator, dtype=torch.float64)
    locations = torch.rand(2, 6, 3, 3, 4, 2, generator=generator, dtype=torch.float64) * 1.6 - 0.3
    weights = torch.randn(2, 6, 3, 3, 4, generator=generator, dtype=torch.float64).softmax(-1)
    return value.to(dtype), SIZES, locations.to(dtype), weights.to(dtype)


def test_it_computes_what_transformers_computes() -> None:
    value, sizes, locations, weights = drawn(torch.float64)
    ours = ms_deform_attn(value, sizes, locations, weights)
    theirs = MultiScaleDeformableAttention()(value, sizes, LEVELS, None, locations, weights, 64)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(ours, multi_scale_deformable_attention(value, LEVELS, locations, weights))


class Sampling(nn.Module):
    """One that calls a function, as Mask2Former's does."""

    def forward(self, value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        result: Tensor = multi_scale_deformable_attention(value, LEVELS, locations, weights)
        return result


class SamplingV2(nn.Module):
    """As RT-DETR v2's: the points of all levels on one axis."""

    def __init__(self, points: list[int], method: str = "default") -> None:
        super().__init__()
        self.points, self.method = points, method

    def forward(self, value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        locations, weights = locations.flatten(3, 4), weights.flatten(3, 4)
        return multi_scale_deformable_attention_v2(value, LEVELS, locations, weights, self.points, self.method)


class Holding(nn.Module):
    """As D-FINE's: the function is an attribute, and levels have unlike points."""

    def __init__(self, points: list[int]) -> None:
        super().__init__()
        self.core, self.points = multi_scale_deformable_attention_v2, points

    def forward(self, value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return self.core(value, LEVELS, locations.flatten(3, 4), weights.flatten(3, 4), self.points)


class Sampler(nn.Module):
    """A class of one's own, with the inputs named as everywhere, in another order."""

    def forward(
        self, value: Tensor, sampling_locations: Tensor, *, attention_weights: Tensor, value_spatial_shapes: Tensor
    ) -> Tensor:
        raise NotImplementedError


class Attention(nn.Module):
    def forward(self, value: Tensor, attention_weights: Tensor) -> Tensor:
        return value * attention_weights


def test_modules_that_sample_are_claimed_and_no_others() -> None:
    value, sizes, locations, weights = drawn()
    expected = ms_deform_attn(value, sizes, locations, weights)
    calls: list[tuple[nn.Module, tuple[Any, ...], dict[str, Any]]] = [
        (MultiScaleDeformableAttention(), (value, sizes, LEVELS, None, locations, weights, 64), {}),
        (Sampling(), (value, locations, weights), {}),
        (SamplingV2([4, 4, 4]), (value, locations, weights), {}),
        (Holding([4, 4, 4]), (value, locations, weights), {}),
        (Sampler(), (value, locations), {"attention_weights": weights, "value_spatial_shapes": sizes}),
    ]
    for module, args, kwargs in calls:
        answer = plugin.layerport_export_parameters(module=module, name="it")
        assert is_rewrite(answer) and answer.layers == (ms_deform_attn,)
        assert torch.equal(answer.forward(module, *args, **kwargs), expected)
    for other in (Attention(), nn.MultiheadAttention(8, 2), nn.Identity(), nn.Sequential()):
        assert plugin.layerport_export_parameters(module=other, name="it") is None


@pytest.mark.parametrize("make", [SamplingV2, Holding])
def test_levels_of_unlike_points(make: Callable[[list[int]], nn.Module]) -> None:
    value, _, locations, weights = drawn()
    module = make([3, 7, 2])
    answer = plugin.layerport_export_parameters(module=module, name="it")
    torch.testing.assert_close(answer.forward(module, value, locations, weights), module(value, locations, weights))


def test_points_read_in_another_way_are_no_such_layer() -> None:
    value, _, locations, weights = drawn()
    module = SamplingV2([4, 4, 4], "discrete")
    answer = plugin.layerport_export_parameters(module=module, name="it")
    with pytest.raises(ValueError, match="ms_deform_attn: method is 'discrete'; it reads points between their four"):
        answer.forward(module, value, locations, weights)


RESNET = {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "layer_type": "basic"}
DETR = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "num_queries": 5,
    "num_labels": 3,
}


def deformable_detr() -> nn.Module:
    backbone = transformers.ResNetConfig(**RESNET, out_features=["stage3", "stage4"])
    config = transformers.DeformableDetrConfig(**DETR, backbone_config=backbone, num_feature_levels=2)
    return transformers.DeformableDetrForObjectDetection(config)


def mask2former() -> nn.Module:
    swin = transformers.SwinConfig(
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 2, 2, 4],
        window_size=4,
        image_size=64,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = transformers.Mask2FormerConfig(
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=64,
        encoder_layers=2,
        decoder_layers=3,
        num_attention_heads=4,
        dim_feedforward=64,
        num_queries=8,
        num_labels=5,
        backbone_config=swin,
    )
    return transformers.Mask2FormerModel(config)


def rt_detr(name: str) -> nn.Module:
    """With a head for the queries to choose that is no constant: equal scores would be chosen by chance."""
    sizes = {"encoder_hidden_dim": 32, "d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    sizes |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_layers": 1, "decoder_layers": 2}
    resnet = {**RESNET, "hidden_sizes": [8, 16, 24, 32], "out_features": ["stage2", "stage3", "stage4"]}
    config = getattr(transformers, f"{name}Config")(
        **sizes,
        backbone_config=transformers.RTDetrResNetConfig(**resnet),
        encoder_in_channels=[16, 24, 32],
        decoder_in_channels=[32, 32, 32],
        num_queries=8,
        num_labels=5,
    )
    model: nn.Module = getattr(transformers, f"{name}ForObjectDetection")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


class Outputs(nn.Module):
    """Some outputs of a model."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, pixel_values: Tensor) -> Any:
        got = self.model(pixel_values)
        return tuple(got[name] for name in self.names)


BOXES, PIXELS = ("logits", "pred_boxes"), ("pixel_decoder_last_hidden_state",)
MODELS: dict[str, tuple[Callable[[], nn.Module], int, tuple[str, ...]]] = {
    "Deformable DETR": (deformable_detr, 3, BOXES),
    "Mask2Former": (mask2former, 2, (*PIXELS, "transformer_decoder_last_hidden_state")),
    "Mask2Former's maps": (mask2former, 2, PIXELS),
    "RT-DETR": (lambda: rt_detr("RTDetr"), 2, BOXES),
    "RT-DETR v2": (lambda: rt_detr("RTDetrV2"), 2, BOXES),
}
# In 16 bits an RT-DETR and a whole Mask2Former choose by comparing numbers, some of which are equal with these weights.
CASES = [
    ("Deformable DETR", torch.float16),
    ("Mask2Former's maps", torch.float16),
    *((name, torch.float32) for name in MODELS if name != "Mask2Former's maps"),
]


@needs_compiler
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "dtype"), CASES if EVERY else CASES[:1])
def test_models_build_with_each_sampling_as_a_plugin(
    name: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, count, outputs = MODELS[name]
    monkeypatch.setenv("TRANSFORMERS_DISABLE_TORCH_CHECK", "1")  # RT-DETR v2 checks values, which has no ONNX form
    torch.manual_seed(0)
    model = Outputs(make(), outputs).eval().to(dtype)
    args = (torch.randn(1, 3, 64, 64, dtype=dtype),)
    report = lp.build((model, args), tmp_path / "a.lp", target=ENGINE)
    assert report.counts[ms_deform_attn.name] == {"plugin": count}
    assert report.verification is not None and report.verification.passed
    kernels = [one for one in report.verification.kernels if one.layer == ms_deform_attn.name]
    assert kernels and {one.answer for one in kernels} == {"right"}
    assert list((tmp_path / "a.lp").glob("*.plan"))


class Called(nn.Module):
    def forward(self, value: Tensor, sizes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        result: Tensor = ms_deform_attn(value, sizes, locations, weights)
        return result


@needs_compiler
def test_maps_of_other_sizes_run_in_one_bundle(tmp_path: Path) -> None:
    batch, pixels, queries = Dim("batch", min=1, max=4), Dim("pixels", min=1, max=99), Dim("queries", min=1, max=9)
    shapes = ({0: batch, 1: pixels}, {}, {0: batch, 1: queries}, {0: batch, 1: queries})
    report = lp.build((Called(), drawn(), shapes), tmp_path / "a.lp", target=ENGINE)
    assert report.counts == {ms_deform_attn.name: {"plugin": 1}}
    assert report.verification is not None and report.verification.passed
    value, _, locations, weights = (one[:1] for one in drawn(seed=2))
    sizes = torch.tensor([[3, 9], [1, 4], [5, 2]])
    given = (value[:, :41], sizes, locations[:, :5], weights[:, :5])
    names = ("value", "sizes", "locations", "weights")
    with lp.load(tmp_path / "a.lp") as session:
        (got,) = session.run(dict(zip(names, (one.numpy() for one in given), strict=True))).values()
    torch.testing.assert_close(torch.from_numpy(got), ms_deform_attn(*given))


SHAPES = "ms_deform_attn: shapes do not fit: value "
DTYPES = "ms_deform_attn: dtypes do not fit: value "
VALUE, LOCATIONS, WEIGHTS = drawn()[0], drawn()[2], drawn()[3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((VALUE[0], SIZES, LOCATIONS, WEIGHTS), SHAPES),
        ((VALUE, SIZES[0], LOCATIONS, WEIGHTS), SHAPES),
        ((VALUE, SIZES[:, :1], LOCATIONS, WEIGHTS), SHAPES),
        ((VALUE, SIZES[:2], LOCATIONS, WEIGHTS), SHAPES),
        ((VALUE[:1], SIZES, LOCATIONS, WEIGHTS), SHAPES),
        ((VALUE[:, :, :2], SIZES, LOCATIONS, WEIGHTS), SHAPES),
        ((VALUE, SIZES, LOCATIONS[..., :1], WEIGHTS), SHAPES),
        ((VALUE, SIZES, LOCATIONS, WEIGHTS[:, :5]), SHAPES),
        ((VALUE, SIZES, LOCATIONS, WEIGHTS[..., :1]), SHAPES),
        ((VALUE, SIZES.int(), LOCATIONS, WEIGHTS), DTYPES),
        ((VALUE, SIZES, LOCATIONS.half(), WEIGHTS.half()), DTYPES),
        ((VALUE.half(), SIZES, LOCATIONS.half(), WEIGHTS), DTYPES),
        ((VALUE.long(), SIZES, LOCATIONS, WEIGHTS), DTYPES),
    ],
)
def test_what_does_not_fit_is_refused(arguments: tuple[Tensor, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ms_deform_attn(*arguments)


WRONG_SIZES = ([[5, 7], [3, 4], [2, 1]], [[5, 7], [3, 4], [2, 90]], [[-5, -7], [3, 4], [2, 2]])


@pytest.mark.parametrize("sizes", WRONG_SIZES)
def test_sizes_that_do_not_add_up_are_refused_on_the_cpu(sizes: list[list[int]]) -> None:
    with pytest.raises(RuntimeError, match="ms_deform_attn: sizes do not add up to the pixels of value; give"):
        ms_deform_attn(VALUE, torch.tensor(sizes), LOCATIONS, WEIGHTS)


@lp.layer("builtin_tests::unchecked_sampling")
def unchecked(value: Tensor, sizes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """The kernel alone, as an engine runs it: with no reference that refuses its sizes."""
    return value.new_zeros(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])


unchecked.kernel(
    lp.cuda(str(Path(reference.__file__).with_name("kernel.cu")), "ms_deform_attn<{value}, {weights}>"),
    dtypes=({"sizes": "int64", "*": "float32"},),
)(reference.launch)


@needs_compiler
@pytest.mark.parametrize("sizes", [*WRONG_SIZES, [[-5, 7], [3, 4], [2, 2]], [[2**40, 2**40], [3, 4], [2, 2]]])
def test_a_kernel_reads_nothing_past_the_pixels(sizes: list[list[int]]) -> None:
    got = run_kernel(unchecked, VALUE, torch.tensor(sizes), LOCATIONS, WEIGHTS)
    assert torch.from_numpy(got).isfinite().all()


UNUSUAL = (float("nan"), float("inf"), -float("inf"))


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_what_is_not_finite_stays_so_and_spoils_no_other(dtype: torch.dtype) -> None:
    value, sizes, locations, weights = (one.clone() for one in drawn(dtype))
    value[0, [0, 20, 50], 1, 3] = torch.tensor(UNUSUAL).to(dtype)
    locations[1, [0, 1, 2], 0, 1, 2, 1] = torch.tensor(UNUSUAL).to(dtype)
    weights[1, [3, 4, 5], 2, 0, 1] = torch.tensor(UNUSUAL).to(dtype)
    weights[1, 3, 1, 1, 1], locations[1, 3, 1, 1, 1] = float("nan"), 7.0  # of a point far outside
    expected = ms_deform_attn(value, sizes, locations, weights)
    assert expected[1, :3].isfinite().all() and expected[1, 3, 8:].isnan().all()
    got = torch.from_numpy(run_kernel(ms_deform_attn, value, sizes, locations, weights).astype("float64"))
    torch.testing.assert_close(got, expected.double(), rtol=8e-3, atol=1e-3, equal_nan=True)


def test_gradients_of_locations_that_are_not_finite_are_zero() -> None:
    value, sizes, locations, weights = drawn(torch.float64)
    locations[0, 0, 0, 0, 0] = float("inf")
    inputs = [one.requires_grad_() for one in (value, locations, weights)]
    result = ms_deform_attn(value, sizes, locations, weights).sum()
    gradients = torch.autograd.grad(result, inputs)
    assert all(one.isfinite().all() for one in gradients) and not gradients[1][0, 0, 0, 0, 0].any()


def test_its_cases_reach_points_with_none_to_four_pixels() -> None:
    case = next(one for one in CASE.cases() if one.shape.reason == "heads of 32")
    tensors = case.tensors()
    locations, sizes = tensors["locations"], tensors["sizes"]
    assert locations is not None and sizes is not None
    column = (locations[..., 0] * sizes[:, 1:] - 0.5).floor()
    inside = [((column + step >= 0) & (column + step < sizes[:, 1:])).sum() for step in (0, 1)]
    assert all(0 < count < column.numel() for count in inside)


@needs_compiler
def test_kernel_is_right_far_from_the_origin_of_a_wide_map() -> None:
    """Where the reference in float32 is off by more than the kernel may be."""
    shapes = {"value": (1, 6000, 1, 4), "sizes": (1, 2), "locations": (1, 13, 1, 1, 4, 2), "weights": (1, 13, 1, 1, 4)}
    shape = CaseShape("a wide map", shapes, values={"sizes": [(2, 3000)]})
    (case,) = replace(CASE, shapes=(shape,), dtypes=({"sizes": "int64", "*": "float32"},)).cases()
    tensors = case.tensors()
    case.check(run_kernel(ms_deform_attn, *case.arguments(tensors)), case.expected(tensors))


@needs_compiler
def test_kernel_reads_between_the_right_pixels_where_a_product_rounds_to_a_centre() -> None:
    """Locations within a few units in the last place of a pixel's centre, on either side."""
    width = 3000
    centre = (torch.arange(0, width, 7) + 0.5) / width
    x = torch.cat((centre, *(torch.nextafter(centre, torch.tensor(to)) for to in (0.0, 1.0))))
    locations = torch.stack((x, torch.full_like(x, 0.5)), -1).reshape(1, -1, 1, 1, 1, 2)
    value = torch.randn(1, width, 1, 1, generator=torch.Generator().manual_seed(5))
    given = (value, torch.tensor([[1, width]]), locations, torch.ones(locations.shape[:-1]))
    expected = ms_deform_attn(*(one.double() if one.is_floating_point() else one for one in given))
    got = torch.from_numpy(run_kernel(ms_deform_attn, *given)).double()
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
