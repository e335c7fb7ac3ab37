"""The laws of the ready-made transforms: exact inverses, error bounds, and what is refused."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given

from layerport import transforms
from layerport.conversion import to_standard
from layerport.dtypes import DType
from layerport.errors import UsageError

FLOATS = [dtype for dtype in DType if dtype.is_floating]
INTEGERS = [dtype for dtype in DType if not dtype.is_floating and dtype is not DType.BOOL]
arrays = hnp.arrays(np.int16, hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=6))


@given(arrays, st.data())
def test_permute_has_an_inverse(array: Any, data: st.DataObject) -> None:
    axes = data.draw(st.permutations(range(array.ndim)))
    there = transforms.permute(array, axes)
    assert there.flags.c_contiguous
    np.testing.assert_array_equal(there, array.transpose(axes))
    np.testing.assert_array_equal(transforms.permute(there, transforms.inverse_axes(axes)), array)


@given(arrays, st.data())
def test_pad_has_an_inverse(array: Any, data: st.DataObject) -> None:
    widths = [data.draw(st.tuples(st.integers(0, 3), st.integers(0, 3))) for _ in array.shape]
    there = transforms.pad(array, widths, 7)
    assert there.shape == tuple(s + b + a for s, (b, a) in zip(array.shape, widths, strict=True))
    assert int((there == 7).sum()) - int((array == 7).sum()) == there.size - array.size
    np.testing.assert_array_equal(transforms.crop(there, widths), array)


@given(arrays, st.data())
def test_interleave_has_an_inverse(array: Any, data: st.DataObject) -> None:
    axis = data.draw(st.integers(-array.ndim, array.ndim - 1))
    parts = data.draw(st.integers(1, 4))
    array = np.concatenate([array] * parts, axis=axis)
    there = transforms.interleave(array, parts, axis)
    blocks = np.split(array, parts, axis=axis)
    for part, block in enumerate(blocks):
        every = [slice(None)] * array.ndim
        every[axis] = slice(part, None, parts)
        np.testing.assert_array_equal(there[tuple(every)], block)
    np.testing.assert_array_equal(transforms.deinterleave(there, parts, axis), array)


def test_interleave_example_and_widths() -> None:
    assert transforms.interleave(np.array([1, 2, 10, 20]), 2).tolist() == [1, 10, 2, 20]
    assert transforms.transpose(np.arange(6).reshape(2, 3)).tolist() == [[0, 3], [1, 4], [2, 5]]
    assert transforms.widths_to_multiple((5, 8), (4, 4)) == ((0, 3), (0, 0))


@pytest.mark.parametrize("dtype", [DType.INT4, DType.UINT4])
@given(data=st.data())
def test_pack_int4_has_an_inverse(dtype: DType, data: st.DataObject) -> None:
    low, high = (-8, 7) if dtype is DType.INT4 else (0, 15)
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=5))
    values = data.draw(hnp.arrays(np.int8, (*shape[:-1], shape[-1] * 2), elements=st.integers(low, high)))
    array = values.astype(dtype.to_numpy())
    packed = transforms.pack_int4(array)
    assert packed.dtype == np.uint8 and packed.shape == shape
    back = transforms.unpack_int4(packed, dtype)
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back.astype(np.int8), values)
    np.testing.assert_array_equal(transforms.pack_int4(back), packed)
    carrier = np.int8 if dtype is DType.INT4 else np.uint8
    np.testing.assert_array_equal(transforms.pack_int4(values.astype(carrier)), packed)


def test_pack_int4_puts_the_first_element_low() -> None:
    assert transforms.pack_int4(np.array([1, -1], ml_dtypes.int4)).tolist() == [0xF1]


@pytest.mark.parametrize("source", [DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16, DType.FLOAT64])
@pytest.mark.parametrize(("dtype", "top"), [(DType.INT8, 127), (DType.INT4, 7)])
@given(data=st.data())
def test_quantize_groups_is_within_half_a_scale(source: DType, dtype: DType, top: int, data: st.DataObject) -> None:
    rows, groups, size = (data.draw(st.integers(0, 3)) for _ in range(3))
    size += 1
    limit = 2.0**127 if source is not DType.FLOAT16 else 60000
    elements = st.floats(-limit, limit, width=32)
    array = data.draw(hnp.arrays(np.float32, (rows, groups * size), elements=elements))
    with np.errstate(over="ignore"):
        array = array.astype(source.to_numpy())
    quantized, scales = transforms.quantize_groups(array, size, dtype)
    assert quantized.dtype == dtype.to_numpy() and quantized.shape == array.shape
    assert scales.dtype == np.float32 and scales.shape == (rows, groups)
    plain = quantized.astype(np.int8)
    assert not plain.size or int(np.abs(plain.astype(int)).max()) <= top
    back = transforms.dequantize_groups(quantized, scales)
    error = np.abs(back.astype(np.float64) - array.astype(np.float64))
    bound = np.repeat(scales.astype(np.float64), size, axis=-1)
    # Above a half: float32 has few bits left for a subnormal scale, and rounds the product.
    assert (error <= bound * (0.5 + top * 2**-22) + top * 2.0**-149).all()


def test_quantize_groups_of_zeros_and_refusals() -> None:
    quantized, scales = transforms.quantize_groups(np.zeros((2, 4), np.float32), 2, "int4")
    assert scales.tolist() == [[1, 1], [1, 1]] and not quantized.astype(np.int8).any()
    for array, size, dtype, message in [
        (np.ones(5, np.float32), 2, "int8", r"groups of 2 along the last axis of shape \[5\]\n.*pad"),
        (np.ones(4, np.float32), 2, "uint8", "quantisation to uint8"),
        (np.ones(4, np.int32), 2, "int8", "quantisation of int32"),
        (np.array([1, np.inf], np.float32), 2, "int8", "quantisation of infinities or NaN"),
        (np.array([1e300, 1]), 2, "int8", r"quantisation of values up to 1e\+300"),
    ]:
        with pytest.raises(UsageError, match=message):
            transforms.quantize_groups(array, size, dtype)
    with pytest.raises(UsageError, match=r"scales of shape \[3\] for values of shape \[4\]"):
        transforms.dequantize_groups(np.ones(4, np.int8), np.ones(3, np.float32))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("size", [50, 70_000])
def test_cast_to_float_is_numpys_rounding(dtype: DType, size: int) -> None:
    """The larger size takes the way through Torch: the bits must be the same."""
    array = np.random.default_rng(0).standard_normal(size).astype(np.float32) * 8
    array[:4] = [0.0, -0.0, 2**-20, 2**-140]
    result = transforms.cast(array, dtype)
    assert result.tobytes() == array.astype(dtype.to_numpy()).tobytes()
    assert transforms.cast(result, DType.FLOAT32).tobytes() == result.astype(np.float32).tobytes()
    assert transforms.cast(result, dtype) is result


@pytest.mark.parametrize("size", [3, 70_000])
@pytest.mark.parametrize("dtype", [DType.FLOAT16, DType.FLOAT8_E4M3FN, DType.FLOAT8_E5M2])
def test_cast_never_loses_a_finite_value_in_silence(dtype: DType, size: int) -> None:
    array = np.ones(size, np.float32)
    array[1], array[2] = 1e6, -2e6
    largest = float(ml_dtypes.finfo(dtype.to_numpy()).max)
    with pytest.raises(UsageError) as caught:
        transforms.cast(array, dtype)
    assert str(caught.value) == (
        f"2 of {size} values are beyond {dtype} (-{largest:g}..{largest:g}), the worst -2e+06\n"
        "  to repair: use a wider dtype, or layerport.transforms.cast(..., overflow='saturate')"
    )
    assert transforms.cast(array, dtype, overflow="saturate")[:3].astype(float).tolist() == [
        1,
        largest,
        -largest,
    ]
    assert not np.isfinite(transforms.cast(array, dtype, overflow="allow")[1:3].astype(float)).any()


@pytest.mark.parametrize("size", [4, 70_000])
def test_cast_keeps_infinities_and_nan_and_what_rounds_into_range(size: int) -> None:
    array = np.zeros(size, np.float32)
    array[:4] = [np.inf, -np.inf, np.nan, 65519]
    result = transforms.cast(array, "float16")
    assert np.isinf(result[:2]).all() and np.isnan(result[2]) and result[3] == 65504
    with pytest.raises(UsageError, match=f"2 of {size} values are beyond float8_e4m3fn.*the worst -?inf"):
        transforms.cast(np.where(array == 65519, 0, array), "float8_e4m3fn")


@pytest.mark.parametrize("source", INTEGERS)
@pytest.mark.parametrize("target", INTEGERS)
def test_cast_between_integers_at_the_ends(source: DType, target: DType) -> None:
    ends = {d: (int(ml_dtypes.iinfo(d.to_numpy()).min), int(ml_dtypes.iinfo(d.to_numpy()).max)) for d in INTEGERS}
    (low, high), (least, most) = ends[target], ends[source]
    within = np.array([max(low, least), min(high, most)], object).astype(source.to_numpy())
    assert [int(v) for v in transforms.cast(within, target)] == [max(low, least), min(high, most)]
    carrier = np.int64 if least < 0 else np.uint64
    both = np.array([least, most], carrier).astype(source.to_numpy())
    saturated = [int(v) for v in transforms.cast(both, target, overflow="saturate")]
    assert saturated == [max(low, least), min(high, most)]
    if least < low or most > high:
        with pytest.raises(UsageError, match=f"of 2 values are beyond {target} \\({low}..{high}\\)"):
            transforms.cast(both, target)


@pytest.mark.parametrize("target", INTEGERS)
def test_cast_of_floats_to_integers(target: DType) -> None:
    info = ml_dtypes.iinfo(target.to_numpy())
    low, high = int(info.min), int(info.max)
    assert [int(v) for v in transforms.cast(np.array([float(low), 3.0]), target)] == [low, 3]
    beyond = np.array([-1e30, float(high + 1), 2.0])
    saturated = transforms.cast(beyond, target, overflow="saturate")
    assert [int(v) for v in saturated] == [low, high, 2]
    with pytest.raises(UsageError, match=f"2 of 3 values are beyond {target}"):
        transforms.cast(beyond, target)
    with pytest.raises(UsageError, match=f"2 of 3 values are not whole numbers, such as 0.5: no cast to {target}"):
        transforms.cast(np.array([0.5, 1.0, np.nan], np.float32), target)


def test_cast_of_a_single_number() -> None:
    for dtype in DType:
        result = transforms.cast(np.array(1.0), dtype)
        assert type(result) is np.ndarray and result.shape == () and result.dtype == dtype.to_numpy()
    assert transforms.cast(np.array(1e6), "float16", overflow="saturate") == 65504
    assert transforms.cast(np.array(300), "int8", overflow="saturate") == 127


def test_cast_to_bool_and_wrong_use() -> None:
    assert transforms.cast(np.array([0, 1, 1], np.int8), "bool").tolist() == [False, True, True]
    assert transforms.cast(np.array([True, False]), "int4").astype(int).tolist() == [1, 0]
    with pytest.raises(UsageError, match=r"1 of 2 values are beyond bool \(0..1\), the worst 2"):
        transforms.cast(np.array([1.0, 2.0]), "bool", overflow="saturate")
    with pytest.raises(UsageError, match="overflow='wrap'"):
        transforms.cast(np.ones(2), "float16", overflow="wrap")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="unknown dtype 'half'"):
        transforms.cast(np.ones(2), "half")


def test_cast_leaves_its_source_alone_where_that_is_read_only() -> None:
    array = np.ones(70_000, np.float32)
    array.flags.writeable = False
    assert transforms.cast(array, "float16").sum(dtype=float) == 70_000


def test_cast_through_torch_is_what_torch_does() -> None:
    tensor = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    assert transforms.cast(tensor.numpy(), "float16").tobytes() == tensor.to(torch.float16).numpy().tobytes()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a: transforms.permute(a, (0, 0)), r"axes \[0, 0\] for an array of 2 dims"),
        (lambda a: transforms.transpose(a[0]), "an array of 1 dims has no two axes"),
        (lambda a: transforms.pad(a, [(1, 1)]), r"widths \[\(1, 1\)\] for shape \[2, 3\]"),
        (lambda a: transforms.pad(a, [(1, -1), (0, 0)]), "widths"),
        (lambda a: transforms.pad(a, [(0, 0), (0, 0), (1, 1)]), "widths"),
        (
            lambda a: transforms.crop(a, [(2, 1), (0, 0)]),
            r"cannot crop \[\(2, 1\), \(0, 0\)\] from shape \[2, 3\]",
        ),
        (lambda a: transforms.widths_to_multiple((2, 3), (0, 1)), r"multiples \[0, 1\] for shape \[2, 3\]"),
        (lambda a: transforms.interleave(a, 2, 1), r"2 equal parts of axis 1 of shape \[2, 3\]"),
        (lambda a: transforms.deinterleave(a, 2, 5), "axis 5 of an array of 2 dims"),
        (lambda a: transforms.pack_int4(a.astype(np.int8)), r"odd last axis: shape \[2, 3\]"),
        (lambda a: transforms.pack_int4(a), "packing of int64"),
        (lambda a: transforms.pack_int4(np.array([9, 0], np.int8)), "1 of 2 values are beyond int4"),
        (lambda a: transforms.unpack_int4(a), r"unpacking of int64\[2, 3\]"),
        (lambda a: transforms.unpack_int4(a.astype(np.uint8), "int8"), "unpacking to int8"),
    ],
)
def test_wrong_use_is_said(call: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        call(np.arange(6).reshape(2, 3))
    assert caught.value.repair


@pytest.mark.parametrize("name", ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "int8", "bool", "int4"])
@pytest.mark.parametrize("frozen", [False, True], ids=["writable", "read-only"])
def test_large_arrays_go_through_torch_to_the_same_bits(name: str, frozen: bool, recwarn: Any) -> None:
    """Memory that may not be written is read where it lies, without a copy and without Torch's warning."""
    base = np.random.default_rng(0).integers(0, 2, (3, 80, 70)).astype(DType(name).to_numpy())
    base[0, 0, :5] = np.array([0, 1, 1, 0, 1]).astype(base.dtype)
    base.flags.writeable = not frozen
    for got, wanted in (
        (transforms.permute(base, (2, 0, 1)), np.transpose(base, (2, 0, 1))),
        (transforms.transpose(base), np.swapaxes(base, -1, -2)),
        (transforms.interleave(base, 5, 1), base.reshape(3, 5, 16, 70).swapaxes(1, 2).reshape(base.shape)),
    ):
        assert got.dtype == base.dtype and got.flags.c_contiguous and got.flags.writeable
        assert got.tobytes() == np.ascontiguousarray(wanted).tobytes()
        assert not np.shares_memory(got, base)
    if DType(name).is_floating:
        cast = transforms.cast(base, "float16" if name != "float16" else "float32")
        assert cast.tobytes() == base.astype(cast.dtype).tobytes()
    assert not recwarn.list


@given(st.lists(st.floats(width=32, allow_nan=True), min_size=1, max_size=40), st.sampled_from(["float16", "bfloat16"]))
def test_what_does_not_fit_is_seen_however_many_there_are(values: list[float], name: str) -> None:
    array = np.array(values, np.float32)
    largest = float(ml_dtypes.finfo(DType(name).to_numpy()).max)
    finite = array[np.isfinite(array)]
    with np.errstate(all="ignore"):
        rounded = finite.astype(DType(name).to_numpy()).astype(np.float32)
    if np.isfinite(rounded).all():
        wanted = array.astype(DType(name).to_numpy()).astype(np.float32)
        np.testing.assert_array_equal(transforms.cast(array, name).astype(np.float32), wanted)
    else:
        assert np.abs(finite).max() > largest
        with pytest.raises(UsageError, match="are beyond"):
            transforms.cast(array, name)


def ratio(ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int = 15) -> float:
    """How many times as long one takes: the least of rounds in turn, so that other work meets both."""
    best = [float("inf"), float("inf")]
    for _ in range(rounds):
        for side, call in enumerate((ours, theirs)):
            begun = time.perf_counter()
            call()
            best[side] = min(best[side], time.perf_counter() - begun)
    return best[0] / best[1]


@pytest.mark.parametrize("worst", [-1e6, 1e6])
@pytest.mark.parametrize("size", [3, 70_000])
def test_one_value_of_either_sign_that_does_not_fit(size: int, worst: float) -> None:
    array = np.ones(size, np.float32)
    array[1] = worst
    with pytest.raises(UsageError, match=f"1 of {size} values are beyond float16"):
        transforms.cast(array, "float16")
    assert float(transforms.cast(array, "float16", overflow="saturate")[1]) == np.sign(worst) * 65504
    assert float(transforms.cast(array, "bfloat16")[1]) == float(ml_dtypes.bfloat16(worst))


def test_large_arrays_take_about_as_long_as_torch_itself_takes() -> None:
    """Three to ten times what is measured on a machine that does nothing else, and far below NumPy's own way."""
    tensor = torch.randn(1024, 1024)
    array, frozen = tensor.numpy(), tensor.numpy().copy()
    frozen.flags.writeable = False
    assert ratio(lambda: transforms.transpose(array), lambda: tensor.T.contiguous()) < 5
    assert ratio(lambda: transforms.cast(frozen, "float16"), lambda: tensor.to(torch.float16)) < 8


def test_small_tensors_cost_a_few_times_a_bare_loop() -> None:
    tensors = [torch.randn(1024) for _ in range(200)]
    ours = ratio(
        lambda: [to_standard(one, dtype=DType.BFLOAT16) for one in tensors],
        lambda: [one.detach().to(torch.bfloat16).view(torch.int16).numpy().view(ml_dtypes.bfloat16) for one in tensors],
        60,
    )
    assert ours < 4.5


@pytest.mark.parametrize("factor", [1.13, 1.2, -1.3, 1.41])
def test_one_value_a_little_beyond_the_largest(factor: float) -> None:
    for dtype in ("float16", "float8_e4m3fn", "float8_e5m2"):
        largest = float(ml_dtypes.finfo(DType(dtype).to_numpy()).max)
        inside = np.array([largest, -largest, 0.5], np.float32)
        assert transforms.cast(inside, dtype).astype(float).tolist()[:2] == [largest, -largest]
        with pytest.raises(UsageError, match=f"1 of 3 values are beyond {dtype}"):
            transforms.cast(np.array([0.5, largest * factor, 0], np.float32), dtype)


@pytest.mark.parametrize("source", ["int32", "uint16", "float64", "float32", "bfloat16"])
def test_many_values_of_any_type_are_looked_at(source: str) -> None:
    array = np.full(70_000, 7).astype(DType(source).to_numpy())
    assert (transforms.cast(array, "float16") == 7).all()
    array[-1] = 65_535
    with pytest.raises(UsageError, match="1 of 70000 values are beyond float16 .*, the worst 65536|65535"):
        transforms.cast(array, "float16")


def test_widths_that_bring_axes_to_multiples() -> None:
    assert transforms.widths_to_multiple((2, 8, 0, 5), (1, 8, 4, 3)) == ((0, 0), (0, 0), (0, 0), (0, 1))
    with pytest.raises(UsageError, match=r"multiples \[2\] for shape \[2, 3\]"):
        transforms.widths_to_multiple((2, 3), (2,))
