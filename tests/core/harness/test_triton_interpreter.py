"""Triton kernels under the interpreter: what is right gives the right numbers, what is wrong is caught."""

from __future__ import annotations

import math
import signal
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from torch import Tensor

import layerport as lp
from layerport import harness as host
from layerport.dtypes import DType
from layerport.errors import LayerportError, PackError, UsageError
from layerport.harness import triton_interpreter, triton_worker
from layerport.system import processes
from layerport.system.disk_cache import DiskCache
from layerport.testing import run_kernel
from triton_setup import (  # noqa: F401
    BLOCK,
    FUNCTIONS,
    build,
    kernel,
    launch_many,
    line_of,
    many,
    pack_fixture,
    passing,
    reference,
    shift_kernel,
    store_fixture,
    tensors,
)


def layer_of(name: str, number: list[int] = [0], **options: Any) -> lp.Layer:  # noqa: B006 - counts the layers
    number[0] += 1
    launch = options.pop("launch", None)

    def clone(x: Tensor) -> Tensor:
        return x.clone()

    layer = lp.layer(f"triton_runs::layer_{number[0]}")(clone)
    made = kernel(name, launch, **options)
    layer.kernel(*made.sources, dtypes=("float32",), name=name)(made.launch)
    return layer


def run_fault(name: str, count: int = 100, *, kind: type[LayerportError] = PackError, **options: Any) -> str:
    run = {key: options.pop(key) for key in ("order", "offset") if key in options}
    with pytest.raises(kind) as caught:
        run_kernel(layer_of(name, **options), np.arange(1, count + 1, dtype=np.float32), **run)
    return str(caught.value)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5, 200), (2, 1024), (7, 97)])
@pytest.mark.parametrize("order", ["forward", 1])
def test_numbers_agree_with_float64(pack: Any, dtype: Any, shape: tuple[int, ...], order: str | int) -> None:
    random = np.random.default_rng(0)
    x, weight = random.standard_normal(shape).astype(dtype), random.standard_normal(shape[-1]).astype(dtype)
    got = run_kernel(pack.rms_norm, x, weight, 1e-5, order=order, offset=16)
    assert got.dtype == x.dtype
    wide = x.astype(np.float64)
    expected = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-5) * weight.astype(np.float64)
    allowed = {np.float32: 2e-6, np.float16: 2e-3, ml_dtypes.bfloat16: 1.6e-2}[dtype]
    assert np.all(np.abs(got.astype(np.float64) - expected) <= allowed * (1e-3 + np.abs(expected)) + allowed * 1e-2)


@pytest.mark.parametrize("absent", [True, False])
@pytest.mark.parametrize("flag", [True, False])
def test_every_kind_of_argument(absent: bool, flag: bool) -> None:
    layer = lp.layer(f"triton_runs::many_{absent}_{flag}")(many)
    made = shift_kernel()
    layer.kernel(*made.sources, dtypes=made.dtypes, name="shift")(launch_many)  # type: ignore[arg-type]
    x = np.arange(100, dtype=np.float32)
    bias = None if absent else x * 3
    got = run_kernel(layer, x, bias, flag, 2.5, 7)
    values = x if bias is None else x + bias
    assert np.array_equal(got, (values * 2.5 if flag else values) + 7)


def test_numbers_have_the_types_that_they_have_when_compiled(store: DiskCache) -> None:
    layer = lp.layer("triton_runs::scaled")(reference)
    made = kernel("scaled", lambda x, y: lp.Launch(grid=1, args=(x, y, x.numel(), 1.0009765625)))
    layer.kernel(*made.sources, dtypes=("float16",))(made.launch)
    x = np.full(3, 1000, np.float16)
    # In float16, 1000 * 1.0009765625 + 1 would be 1001.5 or 1002, and 3 * 2000000000 in 32 bits is below 3.
    assert run_kernel(layer, x).tolist() == [np.float16(1000 * 1.0009765625 + 1)] * 3
    build(layer.kernels[0], store, of=tensors(3, dtype=DType.FLOAT16))


@pytest.mark.parametrize(
    ("name", "line", "said"),
    [
        (
            "without_mask",
            "    tl.store(y + places, tl.load(x + places), mask=places < n)",
            "reads 28 elements out of bounds, the first at x[100], which has 100 elements",
        ),
        (
            "store_without_mask",
            "    tl.store(y + places, tl.load(x + places, mask=places < n))",
            "writes 28 elements out of bounds, the first at output[100], which has 100 elements",
        ),
        (
            "count",
            "    tl.atomic_add(y + places * 0 + n, tl.load(x + places, mask=places < n, other=0.0))",
            "writes 64 elements out of bounds, the first at output[100], which has 100 elements",
        ),
    ],
)
def test_an_access_out_of_bounds_is_caught_at_its_line(name: str, line: str, said: str) -> None:
    text = run_fault(name)
    assert f"kernel {name}: {FUNCTIONS}:{line_of(line)}: {said}" in text


def test_an_output_that_is_left_unwritten_is_caught() -> None:
    text = run_fault("copy", launch=lambda x, y: lp.Launch(grid=x.numel() // BLOCK, args=(x, y, x.numel())))
    assert "kernel copy leaves elements of its outputs unwritten" in text
    assert "output: 36 of 100 elements, the first at [64]" in text


def test_an_input_that_is_written_is_caught() -> None:
    text = run_fault("overwrite")
    assert f"{FUNCTIONS}:{line_of('    tl.store(x + places, 0.0, mask=places < n)')}: writes its input x[0]" in text


def test_masked_lanes_without_a_value_are_poisoned() -> None:
    x = np.ones(10, np.float32)
    launch = passing("x", "y", 10)
    assert np.isnan(run_kernel(layer_of("total_of_undefined", launch=launch), x, strict=False)).all()
    with pytest.raises(PackError, match="depend on memory that nothing has written"):
        run_kernel(layer_of("total_of_undefined", launch=launch), x)
    assert np.array_equal(run_kernel(layer_of("copy", launch=launch), x), x)


def test_programs_run_in_the_order_that_is_asked_for() -> None:
    layer = layer_of("last_program_wins", launch=lambda x, y: lp.Launch(grid=(2, 3), args=(x, y, x.numel())))
    x = np.ones(8, np.float32)
    assert set(run_kernel(layer, x, strict=False)) == {1.0}
    assert set(run_kernel(layer, x, order="backward", strict=False)) == {0.0}
    assert {float(run_kernel(layer, x, order=seed, strict=False)[0]) for seed in range(6)} == {0.0, 1.0}
    with pytest.raises(UsageError, match="order 'sideways' is unknown"):
        run_kernel(layer, x, order="sideways")


@pytest.mark.parametrize("order", ["forward", "backward", 3])
@pytest.mark.parametrize("grid", [(2, 3, 5), (5, 2, 3), (3, 5, 2), (7, 2), 4])
def test_every_program_of_a_grid_runs_once(grid: Any, order: str | int) -> None:
    x = np.arange(math.prod(grid) if isinstance(grid, tuple) else grid, dtype=np.float32) + 1
    layer = layer_of("numbered", launch=lambda x, y: lp.Launch(grid=grid, args=(x, y, x.numel())))
    assert np.array_equal(run_kernel(layer, x, order=order), x)


def test_a_file_runs_as_it_is_written(tmp_path: Path) -> None:
    """Without what the worker's own file imports from the future, so that an annotation is a value."""
    file = tmp_path / "kernels.py"
    file.write_text("def function(x: 1 + 1): ...\nfound = function.__annotations__['x']\n")
    assert triton_worker.load_file(str(file), file.read_bytes()).found == 2


def test_a_constant_of_a_parameter_without_an_annotation_is_one_all_the_same() -> None:
    """Under the interpreter it would else become a tensor."""
    import triton.language as tl

    function = SimpleNamespace(
        fn=SimpleNamespace(__annotations__={"A": "tl.constexpr"}), arg_names=["x", "A", "B", "C"]
    )
    request = {"constexprs": {"A": 1, "B": 2, "C": None}, "args": [["tensor", "x"]]}
    made = triton_worker.arguments(function, request, {"x": "the tensor"})
    assert made["x"] == "the tensor" and made["C"] is None
    assert (type(made["A"]), made["A"]) == (int, 1)
    assert isinstance(made["B"], tl.constexpr) and made["B"].value == 2


def test_a_number_without_a_type_is_of_32_bits_where_it_fits() -> None:
    for value, name in ((5, "int32"), (-(2**31), "int32"), (2**31 - 1, "int32"), (2**31, "int64"), (-(2**40), "int64")):
        assert str(triton_worker.scalar(value, None).dtype) == name
    for value, name in ((2.5, "fp32"), (True, "int1")):
        assert str(triton_worker.scalar(value, None).dtype) == name
    assert str(triton_worker.scalar(5, "i64").dtype) == "int64"
    assert str(triton_worker.scalar(2.5, "fp64").dtype) == "fp64"


def test_a_function_that_fails_under_the_interpreter_shows_its_line() -> None:
    text = run_fault("does_not_compile", launch=passing("x", "y", 64), count=64)
    line = "    tl.store(y + places, tl.load(x + places) + tl.arange(0, BLOCK * 2))"
    assert f"{FUNCTIONS}:{line_of(line)}: ValueError" in text


def test_arguments_are_counted_under_the_interpreter_too() -> None:
    assert "it takes 3 arguments that are no constexprs (x, y, n), 2 are passed" in run_fault(
        "copy", launch=passing("x", "y")
    )
    assert "it has no constexpr BLOK, its parameters are x, y, n, BLOCK" in run_fault("copy", constexprs={"BLOK": 1})


def test_an_address_that_the_launcher_refuses_is_refused() -> None:
    assert "offset 4 is no multiple of 16 bytes" in run_fault("copy", offset=4, kind=UsageError)
    x = np.arange(100, dtype=np.float32)
    assert np.array_equal(run_kernel(layer_of("copy", alignment=4), x, offset=4), x)


def test_what_a_kernel_prints_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    x = np.arange(10, dtype=np.float32)
    assert np.array_equal(run_kernel(layer_of("prints", launch=passing("x", "y", 10)), x), x)
    assert "from the kernel" in capsys.readouterr().out


def test_a_function_made_in_a_function_cannot_be_found_by_the_interpreter() -> None:
    namespace: dict[str, Any] = {}
    local = FUNCTIONS.parent / "triton_local.py"
    exec(compile(local.read_text(), str(local), "exec"), namespace)
    layer = lp.layer("triton_runs::local")(reference)
    layer.kernel(lp.triton(namespace["make"](), constexprs={"BLOCK": 64}), dtypes=("float32",))(
        lambda x, y: lp.Launch(grid=1, args=(x, y, 10))
    )
    with pytest.raises(PackError, match=r"make.<locals>.inner is made inside another function") as caught:
        run_kernel(layer, np.ones(10, np.float32))
    assert "define it at the top of a module" in str(caught.value)


def test_a_run_that_does_not_end_is_ended_and_the_next_one_works(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.ones(10, np.float32)
    layer = layer_of("copy", launch=passing("x", "y", 10))
    run_kernel(layer, x)
    triton_interpreter._worker().process.send_signal(signal.SIGSTOP)  # or it may be done before anyone looks
    with monkeypatch.context() as patch:
        patch.setattr(host, "RUN_LIMIT", 0.2)
        with pytest.raises(PackError, match=r"kernel copy did not end within 0.2 s"):
            run_kernel(layer, x)
    assert np.array_equal(run_kernel(layer, x), x)


def test_an_interpreter_that_dies_at_work_is_an_error_and_the_next_one_works() -> None:
    x = np.ones(10, np.float32)
    layer = layer_of("copy", launch=passing("x", "y", 10))
    run_kernel(layer, x)
    process = triton_interpreter._worker().process
    process.send_signal(signal.SIGSTOP)  # or it may be done before it is killed
    timer = threading.Timer(0.3, process.kill)
    timer.start()
    with pytest.raises(PackError, match="kernel copy: the interpreter's process ended with -9"):
        run_kernel(layer, x)
    timer.join()
    assert np.array_equal(run_kernel(layer, x), x)


def test_an_interpreter_that_died_idle_is_made_again() -> None:
    x = np.ones(10, np.float32)
    layer = layer_of("copy", launch=passing("x", "y", 10))
    run_kernel(layer, x)
    # Nobody waits for it any more: the number of the thread that did may be another's by now.
    processes.kill_those_of({threading.get_ident()})
    process = triton_interpreter._worker().process
    assert process.poll() is None
    process.kill()
    process.wait()
    assert np.array_equal(run_kernel(layer, x), x)
