"""The conformance kit: a pack without fault passes, and each planted fault is found by its check, which says what."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest

from layerport.errors import BuildError, UsageError
from layerport.targets import RTX_ARCHITECTURES
from layerport.testing.conformance import network_checks
from layerport.testing.conformance.kit import NAMES, checks_of, judge
from packs.zoo_conformance import FAULTS, TEXT, Planted

_numbers = itertools.count()
# Of installed packs, and of a GPU: these have tests of their own.
ELSEWHERE = {"distribution", "gpu_numbers", "gpu_streams", "gpu_graph"}


def write(folder: Path, text: str, name: str = "pack") -> tuple[str, str]:
    """The file of a pack with a namespace of its own, and that namespace."""
    namespace = f"conformance_{next(_numbers)}"
    file = folder / f"{name}_{namespace}.py"
    file.write_text(text.replace("NAMESPACE", namespace))
    return str(file), namespace


def test_a_pack_without_fault_passes_every_check(tmp_path: Path) -> None:
    file, namespace = write(tmp_path, TEXT)
    checks = checks_of(file)
    assert {one.name for one in checks} == set(NAMES) - ELSEWHERE
    assert len({one.id for one in checks}) == len(checks)
    assert f"{namespace}::scaled-float32-kernel" in {one.id for one in checks}
    verdicts = {one.name: judge(one) for one in checks}
    assert {name: one.reason for name, one in verdicts.items()} == dict.fromkeys(verdicts, "")
    noted = verdicts["compilation"].notes
    assert all(
        re.fullmatch(r"kernel scaled_0: \d+ registers, 0 bytes of local memory, 256 bytes .* on sm_.*", one)
        for one in noted
    )
    assert set(", ".join(one.partition(" on ")[2] for one in noted).split(", ")) == set(RTX_ARCHITECTURES)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_each_planted_fault_is_found(fault: Planted, tmp_path: Path) -> None:
    file, _ = write(tmp_path, fault.text("NAMESPACE"))
    (verdict,) = [judge(one) for one in checks_of(file) if one.name == fault.check]
    assert verdict.answer == "failed"
    assert fault.says in verdict.reason, verdict.reason
    assert "to repair: " in verdict.reason


TWO_DTYPES = """
import torch
from torch import Tensor

import layerport as lp
from layerport.testing import CaseShape, LayerCase, Tolerance

SOURCE = '''
#include <cuda_fp16.h>

template <typename T> __global__ void k(const T* x, T* y, long long n) {
    long long i = blockIdx.x * 64ll + threadIdx.x;
    if (i < n) y[i] = (T)((float)x[i] * 2.0f);
}
'''


@lp.layer("NAMESPACE::twice")
def twice(x: Tensor) -> Tensor:
    return x * 2.0


@twice.kernel(lp.cuda(SOURCE, "k<{x}>"), dtypes=("float32", "float16"))
def launch(x, y):
    return lp.Launch(grid=lp.cdiv(x.numel(), 64), block=64, args=(x, y, x.numel()))


@lp.hookimpl
def layerport_layers():
    return (twice,)


CASE = LayerCase(
    layer=twice,
    shapes=(CaseShape("small", {"x": (3, 5)}),),
    dtypes=("float32", "float16"),
    tolerances={name: Tolerance(1e-2, 1e-2) for name in ("float32", "float16")},
)
"""


def test_one_build_serves_all_dtypes(tmp_path: Path) -> None:
    file, _ = write(tmp_path, TWO_DTYPES)
    builds: list[int] = []
    build = network_checks.building.build

    def counted(network: Any, *args: Any, **options: Any) -> Any:
        builds.append(len(options["args"]))
        return build(network, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network_checks.building, "build", counted)
        verdicts = {one.dtype: judge(one) for one in checks_of(file) if one.name == "network"}
    assert {name: one.reason for name, one in verdicts.items()} == {"float32": "", "float16": ""}
    assert builds == [4]


def test_a_network_that_fails_in_one_dtype_fails_there_alone(tmp_path: Path) -> None:
    file, _ = write(tmp_path, TWO_DTYPES)
    build = network_checks.building.build

    def refused(network: Any, *args: Any, **options: Any) -> Any:
        if any(str(one.dtype) == "torch.float16" for one in options["args"]):
            raise BuildError("no half here", "use float")
        return build(network, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network_checks.building, "build", refused)
        verdicts = {one.dtype: judge(one) for one in checks_of(file) if one.name == "network"}
    assert (verdicts["float32"].answer, verdicts["float16"].answer) == ("passed", "failed")
    assert "small-float16: a network with two of it does not build for rtx:sm_89: no half here" in (
        verdicts["float16"].reason
    )


def test_there_are_enough_faults_for_every_check() -> None:
    assert {one.check for one in FAULTS} == set(NAMES) - ELSEWHERE
    assert len({one.name for one in FAULTS}) == len(FAULTS) >= 40


def test_only_some_layers(tmp_path: Path) -> None:
    file, namespace = write(tmp_path, TEXT)
    assert {one.layer for one in checks_of(file, layers=["scaled"])} == {None, f"{namespace}::scaled"}
    with pytest.raises(UsageError, match="has no layer 'scale'"):
        checks_of(file, layers=["scale"])
    with pytest.raises(UsageError, match="there is no pack 'nobody'"):
        checks_of("nobody")


BRANCHING = '''
import torch
from torch import Tensor

import layerport as lp
from layerport.testing import CaseShape, LayerCase, Tolerance

SOURCE = """
__global__ void add(const float* x, const float* w, const float* table, float* y, int n, int width, int given) {
    int i = blockIdx.x * 64 + threadIdx.x;
    if (i < n) y[i] = x[i] * w[i % width] + table[i % width % given];
}
"""


@lp.layer("NAMESPACE::added")
def added(x: Tensor, w: lp.Param, table: Tensor) -> Tensor:
    """x * w + table, of which half may be given.  x: (N, C); w: (C,); table: (C,) or (C / 2,)."""
    if w.shape != x.shape[1:]:
        raise ValueError("shapes do not fit")
    if table.shape[0] * 2 == x.shape[1]:
        table = torch.cat([table, table])
    return x * w + table


@added.kernel(lp.cuda(SOURCE, "add"), dtypes=("float32",))
def launch(x, w, table, output):
    n, width = x.numel(), x.shape[1]
    return lp.Launch(grid=lp.cdiv(n, 64), block=64, args=(x, w, table, output, n, width, table.shape[0]))


CASE = LayerCase(
    added,
    [
        CaseShape("half of the table", {"x": (3, 6), "w": (6,), "table": (3,)}),
        CaseShape("whole table", {"x": (3, 6), "w": (6,), "table": (6,)}),
        CaseShape("more rows", {"x": (5, 6), "w": (6,), "table": (6,)}),
        CaseShape("no channel", {"x": (3, 0), "w": (0,), "table": (0,)}),
    ],
    ["float32"],
    {"float32": Tolerance(1e-5, 1e-5)},
)


@lp.hookimpl
def layerport_layers():
    return (added,)
'''


def test_shapes_that_take_other_ways_through_a_reference_have_bodies_of_their_own(tmp_path: Path) -> None:
    file, _ = write(tmp_path, BRANCHING)
    verdicts = {one.name: judge(one) for one in checks_of(file) if one.name in ("onnx", "launch")}
    assert {name: one.reason for name, one in verdicts.items()} == {"onnx": "", "launch": ""}


RANKS = '''
import torch
from torch import Tensor

import layerport as lp
from layerport.testing import CaseShape, LayerCase, Tolerance


@lp.layer("NAMESPACE::shifted")
def shifted(x: Tensor) -> Tensor:
    """x + 1; ONNX Runtime is given something else for matrices."""
    more = 2 if torch.compiler.is_exporting() and x.ndim == 2 else 1
    return x + more


CASE = LayerCase(shifted, [CaseShape("row", {"x": (3,)}), CaseShape("matrix", {"x": (3, 4)})], ["int32"], {})


@lp.hookimpl
def layerport_layers():
    return (shifted,)
'''


def test_every_rank_of_an_input_has_a_body_that_is_compared(tmp_path: Path) -> None:
    file, _ = write(tmp_path, RANKS)
    (verdict,) = [judge(one) for one in checks_of(file) if one.name == "onnx"]
    assert verdict.answer == "failed"
    assert "shifted-matrix-int32: ONNX Runtime gives something else" in verdict.reason


POINTS = """
import torch
from torch import Tensor

import layerport as lp
from layerport.testing import CaseShape, LayerCase, Tolerance


@lp.layer("NAMESPACE::lengths")
def lengths(points: Tensor) -> Tensor:
    \"\"\"The length of each point.  points: (n, 2).\"\"\"
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError("lengths: points are not (n, 2)")
    return points.square().sum(-1).sqrt()


CASE = LayerCase(lengths, [CaseShape("some", {"points": (5, 2)})], ["float32"], {"float32": Tolerance(1e-6, 1e-6)})


@lp.hookimpl
def layerport_layers():
    return (lengths,)
"""


def test_a_size_that_the_reference_refuses_otherwise_may_be_fixed(tmp_path: Path) -> None:
    file, _ = write(tmp_path, POINTS)
    (verdict,) = [judge(one) for one in checks_of(file) if one.name == "shapes"]
    assert (verdict.answer, verdict.reason) == ("passed", "")


KINDS = """
import numpy as np
import torch
from torch import Tensor

import layerport as lp
from layerport.testing import CaseShape, LayerCase, Tolerance

CLOSE = {"float32": Tolerance(1e-5, 1e-5)}


def draw(name, shape, generator):
    whole = torch.randint(-1, 2, shape, generator=generator)
    return whole if name == "weight" else torch.randn(shape, generator=generator, dtype=torch.float64)


@lp.layer("NAMESPACE::packed")
def packed(x: Tensor, weight: lp.Param) -> Tensor:
    \"\"\"x @ weight.T, of which the kernel takes other bytes.  x: (M, K); weight: int8 (N, K).\"\"\"
    return x @ weight.to(x.dtype).T


@packed.kernel(lp.cuda("p.cu", "packed"), dtypes=({"weight": "uint8", "*": "float32"},))
def launch_packed(x, weight, y):
    return lp.Launch(grid=1, block=1, args=(x, weight, y))


@lp.layer("NAMESPACE::starts")
def starts(x: Tensor) -> Tensor:
    \"\"\"The places above 0.  x: (N,).\"\"\"
    places = torch.nonzero(x > 0)[:, 0]
    torch._check(places.shape[0] <= x.shape[0])
    return places


STARTS = "__global__ void starts(const float* x, long long* y, long long* count, int n) { *count = 0; }\\n"


@starts.kernel(lp.cuda(STARTS, "starts"), dtypes=({"x": "float32", "y": "int64"},))
def launch_starts(x, y, count):
    return lp.Launch(grid=1, block=1, args=(x, y, count, x.shape[0]))


@lp.layer("NAMESPACE::doubled")
def doubled(x: Tensor) -> Tensor:
    \"\"\"x + x.  x: (N, C).\"\"\"
    return x + x


@lp.hookimpl
def layerport_layers():
    return (packed, starts, doubled)


@lp.hookimpl
def layerport_convert_parameters(layer, parameters):
    return parameters.replace(weight=(parameters["weight"] + 1).astype(np.uint8)) if layer is packed else None


CASES = (
    LayerCase(
        packed,
        (CaseShape("prime", {"x": (3, 28), "weight": (67, 28)}),),
        ({"weight": "int8", "*": "float32"},),
        CLOSE,
        draw,
    ),
    LayerCase(starts, (CaseShape("some", {"x": (50,)}),), ("float32",), CLOSE),
    LayerCase(doubled, (CaseShape("one", {"x": (1, 1)}), CaseShape("many", {"x": (20, 60)})), ("float32",), CLOSE),
)
"""


@pytest.mark.parametrize(
    ("layer", "check"),
    [
        ("packed", "record"),  # the dtypes of a kernel are those after the conversion
        ("packed", "operator"),  # a product of transposed tensors adds up in another order
        ("starts", "launch"),  # the greatest size that depends on data depends on the inputs' sizes
        ("doubled", "gradients"),  # the one case that is small enough has sizes of 1
    ],
)
def test_what_holds_of_a_right_layer_of_another_kind(layer: str, check: str, tmp_path: Path) -> None:
    file, _ = write(tmp_path, KINDS)
    (verdict,) = [judge(one) for one in checks_of(file, layers=[layer]) if one.name == check]
    assert (verdict.answer, verdict.reason) == ("passed", "")
