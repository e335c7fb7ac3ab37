"""The logic of `benchmarks/gpu`, without a GPU: what it gathers, what it catches, what it prints.

The kernels run on the CPU behind the stand-ins of `test_torch_cuda`; no figure of a GPU comes out of this.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_torch_cuda import HostCuda, cuda, scaled  # noqa: F401

import layerport as lp
from layerport import packs
from layerport.testing import CaseShape, LayerCase, Tolerance

FOLDER = Path(__file__).parents[2] / "benchmarks" / "gpu"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The modules of the benchmark."""
    from types import SimpleNamespace

    monkeypatch.syspath_prepend(str(FOLDER))
    import checks
    import run
    import timing

    yield SimpleNamespace(checks=checks, run=run, timing=timing)
    for name in ("checks", "run", "timing", "behaviour"):
        sys.modules.pop(name, None)


def case_of(layer: lp.Layer) -> LayerCase:
    return LayerCase(
        layer=layer,
        shapes=(
            CaseShape("a tail", {"x": (7, 41), "weight": (41,)}),
            CaseShape("too narrow", {"x": (4, 2), "weight": (2,)}),
        ),
        dtypes=("float32", "float16"),
        tolerances={"float32": Tolerance(1e-6, 1e-6)},
    )


def records(gpu: Any, environment: HostCuda, layer: lp.Layer, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    known = {
        name: lambda tensor, change=change: environment.know(change(tensor))
        for name, change in gpu.checks.VARIANTS.items()
    }
    monkeypatch.setattr(gpu.checks, "VARIANTS", known)
    return list(gpu.checks.check_layer(case_of(layer), lambda: environment, device="cpu", seed=5, large=False))


def test_both_built_in_layers_are_found(gpu: Any, site: Any) -> None:
    from layerport_builtin_layers import plugin

    found, without = gpu.checks.layer_cases(packs.load(plugin))
    assert list(found) == ["layerport_builtin::rms_norm", "layerport_builtin::silu_mul"]
    assert without == []


def test_a_layer_without_a_case_is_named(gpu: Any) -> None:
    from types import SimpleNamespace

    assert gpu.checks.layer_cases(SimpleNamespace(layers=(scaled("no_case"),))) == ({}, ["lp_cuda::no_case"])


def test_a_right_kernel_is_right_in_each_variant(
    gpu: Any,
    cuda: HostCuda,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = records(gpu, cuda, scaled("right"), monkeypatch)
    assert [one["fault"] for one in found] == [None] * 3
    assert {one["variant"] for one in found} == {"contiguous", "misaligned", "strided"}
    assert {one["case"] for one in found} == {"right-a_tail-float32"}  # no kernel takes the others


def test_a_wrong_kernel_is_caught(gpu: Any, cuda: HostCuda, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    layer = scaled("wrong")

    @layer.kernel(
        lp.cuda(
            """
template <typename T> __global__ void short_by_one(const T* x, const T* w, T* y, long long n, long long c, float f) {
    long long i = blockIdx.x * 256ll + threadIdx.x;
    if (i < n - 1) y[i] = x[i] * w[i % c] * f;
}
""",
            "short_by_one<{x}>",
        ),
        dtypes=("float32",),
        name="short",
    )
    def launch(x: Any, weight: Any, y: Any, factor: float) -> lp.Launch:
        n = x.numel()
        return lp.Launch(grid=lp.cdiv(n, 256), block=256, args=(x, weight, y, n, x.shape[-1], factor))

    found = records(gpu, cuda, layer, monkeypatch)
    faults = {(one["kernel"], one["case"]): one["fault"] for one in found}
    assert faults["wrong_0", "wrong-a_tail-float32"] is None
    assert "1 of 287 elements are wrong; the worst is [6, 40]" in faults["short", "wrong-a_tail-float32"]
    assert "1 of 8 elements are wrong" in faults["short", "wrong-too_narrow-float32"]


def test_without_a_gpu_it_says_so(gpu: Any, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert gpu.run.main([]) == 2
    assert "no GPU run: torch" in capsys.readouterr().out


def test_a_cache_is_prepared_without_a_gpu(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LAYERPORT_CACHE_DIR", "")
    arguments = ["--prepare", str(tmp_path), "--arch", "sm_90", "--only", "layerport_builtin::silu_mul"]
    assert gpu.run.main(arguments) == 0
    entries = {path: path.stat().st_mtime_ns for path in (tmp_path / "kernels").rglob("*") if path.is_file()}
    assert len(entries) >= 3
    assert gpu.run.main(arguments) == 0
    assert {path: path.stat().st_mtime_ns for path in entries} == entries  # nothing was compiled again
    assert "kernels for sm_90" in capsys.readouterr().out


def result(gpu: Any, fault: str | None) -> dict[str, Any]:
    slow = {"case": "slow", "bytes": 1 << 30, "ours": 100.0, "copy": 70.0, "rivals": {"eager": 90.0, "liger": "absent"}}
    costs = {"Library.impl around it": 5.0, "our operator": 6.5, "enqueue without TensorRT": 11.0}
    return {
        "machine": {"gpu": "a GPU", "architecture": "sm_90", "driver": "1", "cuda": "13"},
        "without cases": ["p::other"],
        "layers": {
            "p::one": {
                "checked": 3,
                "faults": [{"kernel": "k", "case": "c", "variant": "v", "fault": fault}] if fault else [],
                "behaviour": {"graph": None},
                "times": [gpu.timing.judged(slow)],
                "host": {"microseconds": costs, "misses": gpu.timing.cost_misses(costs)},
                "compute-sanitizer": "not run",
            }
        },
    }


def test_the_table_says_what_was_missed(gpu: Any, tmp_path: Path) -> None:
    made = result(gpu, "wrong numbers")
    text = gpu.run.table(made)
    assert "p::one: 2 right, 1 wrong, 0 skipped" in text
    assert "WRONG k c v: wrong numbers" in text
    assert "MISSED: 0.70 of the copy, wanted 0.80; 0.90x the best rival, wanted 0.95" in text
    assert "MISSED our operator: 1.50 us over" in text
    assert "MISSED enqueue: 11.00 us, wanted 10" in text
    assert "not checked, no case: p::other" in text
    gpu.run.write(made, str(tmp_path / "out.json"))
    assert json.loads((tmp_path / "out.json").read_text()) == made


@pytest.mark.parametrize(("fault", "wrong"), [(None, False), ("skipped: not enough memory", False), ("nan", True)])
def test_only_what_is_wrong_fails(gpu: Any, fault: str | None, wrong: bool) -> None:
    assert gpu.run.failed(result(gpu, fault)) is wrong


def test_a_large_case_is_compared_in_parts(gpu: Any) -> None:
    case = LayerCase(
        layer=scaled("parts"),
        shapes=(CaseShape("large", {"x": (10, 4), "weight": (4,)}, gpu_only=True),),
        dtypes=("float32",),
        tolerances={"float32": Tolerance(1e-6, 1e-6)},
    )
    (one,) = case.cases(gpu_only=True)
    tensors = one.tensors()
    got = case.layer.reference(*one.arguments(tensors))
    gpu.checks.compare(one, got, tensors, most=12)
    got[9, 3] += 1
    with pytest.raises(AssertionError, match=r"1 of 4 elements are wrong; the worst is \[0, 3\]"):
        gpu.checks.compare(one, got, tensors, most=12)
