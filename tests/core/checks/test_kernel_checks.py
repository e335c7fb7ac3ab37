"""A build runs each plugin's kernel, launch rule and converted parameters, and a wrong one never passes.

No engine is built where the check alone is looked at: it reads the portable model and the plugin specs.
"""

from __future__ import annotations

import itertools
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

import layerport as lp
import warm
from layerport.bundle import bundle as bundles
from layerport.checks import kernel_checks, kernel_trials
from layerport.checks.kernel_checks import KernelCheck, check_kernels
from layerport.errors import VerifyError
from layerport.front import sources
from layerport.front.pipeline import Wishes, prepare
from layerport.front.ways import Ways
from layerport.harness import compiler
from layerport.packs import host as packs
from layerport.system.python_files import import_file
from layerport.targets import Target
from layerport.testing import run_kernel
from small_setup import SMALL, TESTS

PACK = '''
import numpy as np
import torch
from torch import Tensor

import layerport as lp


@lp.layer("lp_checked::packed_linear")
def packed_linear(x: Tensor, weight: lp.Param, scale: lp.Param, eps: float = 1e-5) -> Tensor:
    """x: (rows, K) floats; weight: (N, K) int8; scale: (N,)."""
    wide = x.float()
    wide = wide * torch.rsqrt((wide * wide).mean(-1, keepdim=True) + eps)
    return ((wide @ weight.float().T) * scale.float()).to(x.dtype)


CODE = """
#include <cuda_fp16.h>
template <class T> __global__ void packed(const T* x, const signed char* w, const T* s, T* y, long long n, int k,
                                          int cols, float eps) {
  long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
  if (i >= n) return;
  const T* row = x + (i / cols) * k;
  float sum = 0, squares = 0;
  for (int j = 0; j < k; ++j) squares += (float)row[j] * (float)row[j];
  for (int j = 0; j < k; ++j) sum += (float)row[j] * (float)w[j * cols + i % cols];
  y[i] = (T)(sum * rsqrtf(squares / k + eps) * (float)s[i % cols]);
}
"""


@packed_linear.kernel(
    lp.cuda(CODE, "packed<{x}>"),
    dtypes=({"*": "float32", "weight": "int8"}, {"*": "float16", "weight": "int8"}),
)
def launch(x, weight, scale, y, eps):
    n, k, cols = y.numel(), x.shape[-1], weight.shape[-1]
    return lp.Launch(grid=lp.cdiv(n, 64), block=64, args=(x, weight, scale, y, n, k, cols, eps))


@lp.hookimpl
def layerport_layers():
    return (packed_linear,)


@lp.hookimpl
def layerport_export_parameters(module, name):
    if type(module).__name__ == "PackedLinear":
        return packed_linear.bind(weight=module.weight, scale=module.scale, eps=module.eps)


CALLS = []


@lp.hookimpl
def layerport_convert_parameters(layer, parameters, target):
    CALLS.append(layer)
    weight, scale = parameters["weight"], parameters["scale"]
    return parameters.replace(weight=np.ascontiguousarray(weight.T), scale=scale)
'''


class PackedLinear(nn.Module):
    def __init__(self, columns: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("weight", torch.randint(-9, 9, (columns, 12), generator=generator, dtype=torch.int8))
        self.scale = nn.Parameter(torch.rand(columns, generator=generator) + 0.5)
        self.eps = 1e-5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt((wide * wide).mean(-1, keepdim=True) + self.eps)
        return ((wide @ self.weight.float().T) * self.scale.float()).to(x.dtype)


_numbers = itertools.count()


def changed(*changes: tuple[str, str]) -> str:
    """The pack with changes, and a namespace of its own: a Torch operator is there once in a process."""
    text = PACK.replace("lp_checked", f"lp_checked_{next(_numbers)}")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return text


def prepared(
    tmp_path: Path, text: str, model: nn.Module, *args: Any, dynamic: Any = None, name: str = "bundle"
) -> tuple[Any, packs.Packs]:
    """What the front half writes for a pack and a model, as a bundle without a plan."""
    pack = tmp_path / f"{name}.py"
    pack.write_text(text)
    return from_pack(tmp_path / name, str(pack), model, *args, dynamic=dynamic)


def from_pack(folder: Path, pack: str, model: nn.Module, *args: Any, dynamic: Any) -> tuple[Any, packs.Packs]:
    loaded = packs.load(pack)
    folder.mkdir()
    wishes = Wishes(Target.parse("rtx:sm_89"), {}, (), (), Ways(), strict=False, samples=True)
    source = sources.as_source((model.eval(), args, dynamic))
    manifest = prepare(source, loaded, folder, wishes, lambda stage: None).manifest
    return bundles.write_manifest(folder, manifest), loaded


ROWS = ({0: Dim("rows", min=1, max=64)},)


def checks(tmp_path: Path, *changes: tuple[str, str], model: Any = None, rows: int = 4) -> tuple[KernelCheck, ...]:
    torch.manual_seed(0)
    made = prepared(tmp_path, changed(*changes), model or PackedLinear(20), torch.randn(rows, 12), dynamic=ROWS)
    return check_kernels(*made)


def test_a_right_kernel_is_said_to_be_right_and_by_how_much(tmp_path: Path) -> None:
    (check,) = checks(tmp_path)
    assert check.answer == "right", check
    assert check.max_error is not None and 0 < check.max_error < 1e-6
    assert re.fullmatch(r"right on the CPU \(max error \d\.\de-0[78]\)", str(check))
    assert check.trials == ("the sample", "the sample at x [3, 12], scaled down")
    assert check.kernel == "packed_linear_0" and len(check.nodes) == 1


TRANSPOSED = "weight=np.ascontiguousarray(weight.T)"


@pytest.mark.parametrize(
    "change",
    [
        (TRANSPOSED, "weight=np.ascontiguousarray(weight[::-1].T)"),
        (TRANSPOSED, "weight=np.ascontiguousarray(weight.reshape(weight.shape[::-1]))"),
        ("scale=scale)", "scale=(scale * 7).astype(scale.dtype))"),
        ("y, n, k, cols, eps))", "y, n, cols, k, eps))"),
        ("args=(x, weight, scale, y, n, k,", "args=(x, weight, scale, y, 48, k,"),
        ("grid=lp.cdiv(n, 64)", "grid=lp.cdiv(n, 64) + 1 - lp.cdiv(n, 64)"),
        ("n, k, cols, eps))", "n, k, cols, 1e-6))"),
        ("if (i >= n) return;", ""),
        ("if (i >= n) return;", "if (i >= n - 1) return;"),
        ("y[i] = (T)(", "y[i] = (T)(0 * "),
        ("y[i] = (T)(", "y[i] = (T)(i == n - 1 ? 0.f / 0.f : "),
    ],
    ids=[
        "packed in reverse",
        "reshaped, not transposed",
        "scales times seven",
        "swapped arguments",
        "the sample's size as a constant",
        "a grid that fits small sizes",
        "another epsilon",
        "no check of the end",
        "the last element unwritten",
        "zeros",
        "a NaN",
    ],
)
def test_a_wrong_conversion_launch_rule_or_kernel_is_found(tmp_path: Path, change: tuple[str, str]) -> None:
    (check,) = checks(tmp_path, change)
    assert check.answer == "wrong", check
    assert str(check).startswith("WRONG on the CPU: ") and "(on the sample" in check.reason


def test_arguments_that_are_equal_in_the_sample_are_told_apart(tmp_path: Path) -> None:
    # 12 columns, and one row of 12: n, k and cols are all 12.
    swapped = changed(("y, n, k, cols, eps))", "y, x.shape[0] * x.shape[1], k, cols, eps))"))
    made = prepared(tmp_path, swapped, PackedLinear(12), torch.randn(2, 12), dynamic=ROWS)
    assert check_kernels(*made)[0].answer == "right"  # 12 columns in and 12 out: it is the same
    swapped = changed(("y, n, k, cols, eps))", "y, k * k, k, cols, eps))"))
    made = prepared(tmp_path, swapped, PackedLinear(12), torch.randn(12, 12), dynamic=ROWS, name="other")
    (check,) = check_kernels(*made)
    assert check.answer == "wrong" and "at x [3, 12]" in check.reason, check


def test_a_conversion_that_is_wrong_at_one_node_only(tmp_path: Path) -> None:
    cached = (
        '    CALLS.append(layer)\n    weight, scale = parameters["weight"], parameters["scale"]\n',
        '    CALLS.append(parameters)\n    weight, scale = CALLS[0]["weight"], parameters["scale"]\n',
    )
    model = nn.Sequential(PackedLinear(12, 1), PackedLinear(12, 2))
    first, second = checks(tmp_path, cached, model=model)
    assert [first.answer, second.answer] == ["right", "wrong"]
    assert first.plugin == second.plugin and first.nodes != second.nodes


def test_an_output_rule_that_the_reference_breaks(tmp_path: Path) -> None:
    rule = (
        "CODE = ",
        "@packed_linear.shape_rule\ndef rule(x, weight, scale, eps):\n"
        "    return ((x.dtype, (x.shape[0], weight.shape[0] + 0 * x.shape[0])),)\n\n\nCODE = ",
    )
    wrong = (rule[0], rule[1].replace("weight.shape[0] +", "weight.shape[0] - 1 +"))
    made, _ = prepared(tmp_path, changed(wrong), PackedLinear(20), torch.randn(4, 12), dynamic=ROWS)
    (layer,) = made.manifest["layers"]
    assert layer["realised"] == "decomposed" and "its own output rule" in layer["reason"]
    assert "where output 0 is [1, 20]; correct the sizes with @packed_linear.shape_rule" in layer["reason"]


class Calls(nn.Module):
    """Calls the layer itself, so that nothing has to be claimed."""

    def __init__(self, layer: lp.Layer) -> None:
        super().__init__()
        self.layer = layer
        self.values = PackedLinear(20)

    def forward(self, x: torch.Tensor) -> Any:
        return self.layer(x, self.values.weight, self.values.scale)


def calling(tmp_path: Path, text: str, x: torch.Tensor) -> tuple[KernelCheck, ...]:
    pack = tmp_path / "calls.py"
    pack.write_text(text)
    model = Calls(import_file(str(pack)).packed_linear)
    return check_kernels(*from_pack(tmp_path / "bundle", str(pack), model, x, dynamic=ROWS))


def test_zeros_for_zeros_are_no_proof(tmp_path: Path) -> None:
    (check,) = calling(tmp_path, changed(("y[i] = (T)(", "y[i] = (T)(0 * ")), torch.zeros(4, 12))
    assert check.answer == "wrong" and "on seeded normal values" in check.reason


def test_nothing_finite_is_not_right(tmp_path: Path) -> None:
    (check,) = calling(tmp_path, changed(), torch.full((4, 12), torch.nan))
    assert (check.answer, check.reason) == ("not run", "the reference gives nothing finite on the inputs of its node")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("#include <cuda_fp16.h>", "#include <cuda_fp16.h>\n#include <mma.h>"), "tensor cores|cannot run on the CPU"),
        (("float sum = 0", 'asm("");  float sum = 0'), "inline PTX, which cannot run on the CPU"),
    ],
)
def test_what_only_a_gpu_can_run_is_not_run(tmp_path: Path, change: tuple[str, str], reason: str) -> None:
    (check,) = checks(tmp_path, change)
    assert check.answer == "not run" and re.search(reason, check.reason), check
    assert str(check).startswith("not run: ")


def test_no_compiler_is_a_reason_and_no_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = prepared(tmp_path, changed(), PackedLinear(20), torch.randn(4, 12), dynamic=ROWS)
    monkeypatch.setenv("CXX", "")
    monkeypatch.setenv("PATH", str(tmp_path))
    compiler._compiler.cache_clear()
    compiler._tools.cache_clear()
    try:
        (check,) = check_kernels(*made)
    finally:
        compiler._compiler.cache_clear()
        compiler._tools.cache_clear()
    assert check.answer == "not run" and "no C++ compiler is here" in check.reason


def test_work_beyond_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = prepared(tmp_path, changed(), PackedLinear(20), torch.randn(40, 12), dynamic=ROWS)
    monkeypatch.setattr("layerport.checks.kernel_runs.MOST_ELEMENTS", 600)
    (check,) = check_kernels(*made)
    assert check.answer == "right" and check.trials[0] == "the sample at x [3, 12]"
    monkeypatch.setattr("layerport.checks.kernel_runs.MOST_ELEMENTS", 100)
    (check,) = check_kernels(*made)
    assert check.answer == "not run" and "x [40, 12] is beyond the budget" in check.reason
    monkeypatch.undo()
    monkeypatch.setattr(kernel_checks, "MOST_SECONDS", 0.0)
    (check,) = check_kernels(*made)
    assert check.answer == "not run" and "budget of all kernels" in check.reason


def test_a_kernel_that_never_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_checks, "RUN_SECONDS", 1.0)
    (check,) = checks(tmp_path, ("float sum = 0", "while (*(volatile float*)&eps > 0) {}\n  float sum = 0"))
    assert check.answer == "not run" and "did not end within 1 s" in check.reason


def test_another_source_than_the_bundles_is_not_run(tmp_path: Path) -> None:
    made, _ = prepared(tmp_path, changed(), PackedLinear(20), torch.randn(4, 12), dynamic=ROWS)
    other = tmp_path / "other.py"
    other.write_text((tmp_path / "bundle.py").read_text().replace("y[i] = (T)(", "y[i] = (T)(2 * "))
    code = (
        "import sys, layerport.checks.kernel_checks as k, layerport.bundle.bundle as b\n"
        "print(*k.check_kernels(b.Bundle.open(sys.argv[1]), extra=sys.argv[2:]))"
    )
    for pack, answer in (
        (str(tmp_path / "bundle.py"), "right on the CPU"),
        (str(other), "not the source"),
        (None, "no loaded pack"),
    ):
        command = [warm.python(), "-c", code, str(made.folder), *([pack] if pack else [])]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        assert answer in done.stdout, done


def test_a_build_fails_on_a_wrong_kernel_and_leaves_nothing(tmp_path: Path) -> None:
    pack = tmp_path / "bundle.py"
    pack.write_text(changed((TRANSPOSED, "weight=np.ascontiguousarray(weight[::-1].T)")))
    source = (PackedLinear(20).eval(), (torch.randn(4, 12),), ROWS)
    options: dict[str, Any] = {"target": "rtx:sm_89", "packs": [str(pack)]}
    with pytest.raises(VerifyError, match="1 kernel gives something else than the reference") as caught:
        lp.build(source, tmp_path / "a.lp", **options)
    assert caught.value.exit_code == 1 and "::packed_linear" in caught.value.faults[0]
    report: Any = caught.value.report
    assert [one.realised for one in report.layers] == ["plugin"]
    assert not list(tmp_path.glob("*.lp")) and not list(tmp_path.glob(".*.partial"))
    built = lp.build(source, tmp_path / "a.lp", verify=False, **options)
    assert built.verification is None
    result = lp.verify(tmp_path / "a.lp", packs=[str(pack)])
    assert not result.passed and result.portable == "passed" and result.engine == "not run"
    assert json.loads(json.dumps(result.to_json()))["kernels"][0]["answer"] == "wrong"
    assert lp.verify(tmp_path / "a.lp", kernels=False).passed


def test_run_kernel_applies_the_packs_conversion(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "bundle.py"
    path.write_text(changed())
    module = import_file(str(path))
    linear = PackedLinear(20)
    x = torch.randn(5, 12)
    got = run_kernel(module.packed_linear, x, linear.weight, linear.scale)
    assert torch.allclose(torch.from_numpy(got), linear(x), atol=1e-5)
    path = tmp_path / "wrong.py"
    path.write_text(changed((TRANSPOSED, "weight=np.ascontiguousarray(weight[::-1].T)")))
    wrong = import_file(str(path))
    got = run_kernel(wrong.packed_linear, x, linear.weight, linear.scale)
    assert not torch.allclose(torch.from_numpy(got), linear(x), atol=1e-2)


def test_what_a_check_that_did_not_run_says() -> None:
    check = KernelCheck("key", "a::b", "k", ("n",), "not run", "its node stands inside a loop or a branch")
    assert str(check) == "not run: its node stands inside a loop or a branch"
    assert kernel_checks.worst([]) is None and kernel_trials.MOST_ELEMENTS > 0


TRITON = TESTS / "packs" / "triton_pack.py"


class Rows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, 200))
        self.eps = 1e-5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


@pytest.mark.parametrize(
    ("old", "new", "answer"),
    [
        ("", "", "right on the CPU"),
        ("columns, eps)", "columns, 1e-7)", "WRONG on the CPU: output["),
        ("columns, eps)", "columns - 1, eps)", "WRONG on the CPU: leaves elements of its outputs unwritten; "),
        ("(x, weight, y, columns", "(x, x, y, columns", "WRONG on the CPU: output[0, "),
        ("grid=x.numel() // columns", "grid=1", "WRONG on the CPU: leaves elements of its outputs unwritten; "),
    ],
)
def test_a_triton_kernel(tmp_path: Path, old: str, new: str, answer: str) -> None:
    text = TRITON.read_text().replace("triton_tests::", f"triton_checked_{next(_numbers)}::").replace(old, new)
    text = text.replace("triton_functions.py", str(TRITON.with_name("triton_functions.py")))
    made = prepared(tmp_path, text, Rows(), torch.randn(4, 200), dynamic=ROWS)
    (check,) = check_kernels(*made)
    assert str(check).startswith(answer), check


DOUBLED = '''
from torch import Tensor
import layerport as lp

@lp.layer("lp_scalar::doubled")
def doubled(x: Tensor) -> Tensor:
    return x * 2

CODE = """
__global__ void doubled(const float* x, float* y, long long n) {
  long long i = blockIdx.x * 64ll + threadIdx.x;
  if (i < n) y[i] = 2 * x[i];
}
"""

@doubled.kernel(lp.cuda(CODE, "doubled"), dtypes=("float32",))
def launch(x, y):
    return lp.Launch(grid=lp.cdiv(x.numel(), 64), block=64, args=(x, y, x.numel()))

@lp.hookimpl
def layerport_layers():
    return (doubled,)
'''


def test_a_tensor_without_axes(tmp_path: Path) -> None:
    class Doubled(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.ops.lp_scalar.doubled(x)

    pack = tmp_path / "scalar_pack.py"
    pack.write_text(DOUBLED)
    (check,) = check_kernels(*from_pack(tmp_path / "bundle", str(pack), Doubled(), torch.tensor(1.5), dynamic=None))
    assert check.answer == "right", check


def test_layers_of_every_kind(tmp_path: Path, small: Any) -> None:
    """Several outputs of several dtypes, optional tensors, sizes that depend on data."""

    class Kinds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.rand(12) + 0.5)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            y, positive = small.many(x, self.weight, None, None, 0.5, times=3)
            return small.gate(small.norm(y, self.weight), x), positive

    made = from_pack(tmp_path / "bundle", SMALL, Kinds(), torch.randn(4, 12), dynamic=ROWS)
    found = check_kernels(*made)
    assert [(one.layer, one.answer) for one in found] == [
        ("lp_small::many", "right"),
        ("lp_small::norm", "right"),
    ], [str(one) for one in found]


@pytest.mark.parametrize(
    ("old", "new", "answer"),
    [
        ("float sum = 0", "__syncthreads();\n  float sum = 0", "right on the CPU"),
        (
            "float sum = 0",
            "const_cast<T*>(x)[0] = x[1];\n  float sum = 0",
            "inline.cu:8: thread (0, 0, 0) of block (0, 0, 0) writes its input x",
        ),
        (
            "float sum = 0",
            "extern __shared__ float part[];\n  part[threadIdx.x] = 0;\n  float sum = part[threadIdx.x]",
            "writes the dynamic shared memory 0 bytes past its end, the launch rule asks for shared=0",
        ),
        ("y[i] = (T)(", "if (i + 1 < n) y[i + 1] = (T)0;\n  y[i] = (T)(", "WRONG on the CPU: output["),
    ],
)
def test_a_build_accuses_of_what_no_gpu_lets_pass(tmp_path: Path, old: str, new: str, answer: str) -> None:
    (check,) = checks(tmp_path, (old, new))
    assert answer in str(check)
