"""Triton kernels: what is compiled, with what, and launched how.  `test_triton_interpreter` runs them.

That a driver takes these cubins is for a GPU to show.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from torch import Tensor

import layerport as lp
from layerport.bundle.kernel_code import KernelCode, KernelStep
from layerport.bundle.plugin_spec import PluginSet, PluginSpec, from_bytes, to_bytes
from layerport.dtypes import DType
from layerport.engine.runner import KernelRunner
from layerport.errors import BuildError, PackError, UsageError
from layerport.kernels.compilation import Compilation, build_kernels, compile_all
from layerport.kernels.declaration import Kernel
from layerport.kernels.launch_rules import LaunchRule, PointerArg
from layerport.kernels.launcher import Launcher
from layerport.kernels.toolchains import process
from layerport.kernels.toolchains import triton as triton_compiler
from layerport.kernels.toolchains.triton_functions import find_function
from layerport.kernels.toolchains.triton_signature import multiple_of
from layerport.kernels.tracing import specialise, trace
from layerport.sizes.expressions import Const, Symbol
from layerport.sizes.tensors import TensorType, renamed
from layerport.system.disk_cache import DiskCache
from layerport.system.python_files import import_file
from plan_reading import fields_in
from small_setup import TESTS, python
from triton_setup import (  # noqa: F401
    ARCHITECTURES,
    FUNCTIONS,
    MANY,
    PACK,
    SIGNATURE,
    build,
    fault,
    kernel,
    line_of,
    pack_fixture,
    passing,
    reference,
    shift_kernel,
    store_fixture,
    tensors,
)


@pytest.fixture
def forbid_compiling(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def forbid() -> None:
        def refuse(*_: Any, **__: Any) -> Any:
            raise AssertionError("a compiler process is started")

        monkeypatch.setattr(subprocess, "Popen", refuse)

    return forbid


# --- the record ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"fn": "scale"}, "lp.triton: 'scale' names no function"),
        ({"fn": "a b:scale"}, "names no function"),
        ({"fn": reference}, "is no Triton function\n  to repair: decorate it with @triton.jit"),
        ({"fn": 3}, "lp.triton: int 3 is no Triton function"),
        ({"num_warps": 3}, "lp.triton: num_warps is 3\n  to repair: give one of 1, 2, 4, 8, 16, 32"),
        ({"num_warps": True}, "lp.triton: num_warps is bool True"),
        ({"num_stages": 0}, "lp.triton: num_stages is 0\n  to repair: give 1 to 32"),
        ({"constexprs": [64]}, "lp.triton: constexprs is list"),
        ({"constexprs": {"A B": 1}}, "constexprs has the name 'A B'"),
        ({"constexprs": {"BLOCK": [1]}}, "constexpr BLOCK is list [1]"),
        ({"alignment": 32}, "lp.triton: alignment is 32"),
        ({"alignment": 3}, "lp.triton: alignment is 3"),
        ({"alignment": True}, "lp.triton: alignment is True"),
        ({"time_limit": 86401}, "lp.triton: time_limit is 86401"),
        ({"time_limit": 0}, "lp.triton: time_limit is 0"),
    ],
)
def test_a_source_is_checked_when_it_is_made(options: dict[str, Any], said: str) -> None:
    given = {"fn": "kernel.py:scale"} | options
    with pytest.raises(UsageError) as caught:
        lp.triton(given.pop("fn"), **given)
    assert said in str(caught.value)


def test_an_autotuned_function_is_refused_with_what_to_do() -> None:
    tuned = import_file(str(FUNCTIONS)).tuned
    with pytest.raises(UsageError, match="Autotuner, which chooses when it runs, on a GPU") as caught:
        lp.triton(tuned)
    assert "give the @triton.jit function itself" in str(caught.value)


def test_a_pack_is_imported_and_listed_without_triton_and_its_use_names_the_pip_line(tmp_path: Path) -> None:
    code = """
import sys
sys.modules["triton"] = None
from layerport.packs.host import load
from layerport.commands.packs import layers_report
from layerport.sizes.tensors import TensorType
from layerport.kernels.compilation import Compilation, compile_all
from layerport.dtypes import DType
layer = load(sys.argv[1]).layer("triton_tests::rms_norm")
(listed,) = [one for one in layers_report(explicit=[sys.argv[1]]).layers if one.name == layer.name]
assert tuple(listed.toolchains) == ("triton",)
shapes = {"x": TensorType("x", DType.FLOAT32, (4, 8)), "weight": TensorType("weight", DType.FLOAT32, (8,))}
shapes["output"] = shapes["x"]
try:
    compile_all([Compilation(layer.kernels[0], layer.signature, {}, {"eps": 1e-6}, "sm_89", layer.name, shapes)])
except Exception as error:
    print(error)
"""
    done = python(code, str(PACK), environment={"LAYERPORT_CACHE_DIR": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert "layer triton_tests::rms_norm, kernel rows is written in Triton, which cannot be imported" in done.stdout
    assert "pip install 'layerport[triton]'" in done.stdout


def test_nothing_of_the_core_imports_triton_until_a_kernel_is_used() -> None:
    code = (
        "import sys, layerport as lp; lp.triton('a.py:b'); from layerport.packs.host import load; load(sys.argv[1]);"
        "assert 'triton' not in sys.modules or 'torch' in sys.modules; print([m for m in sys.modules if m == 'triton'])"
    )
    done = python(code, str(PACK))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


# --- what it is compiled with --------------------------------------------------------------------------------------


def specialised(of: Mapping[str, TensorType | None] | None = None, **options: Any) -> Any:
    return specialise(kernel("copy", **options), SIGNATURE, of or tensors(6, 1000), {}, layer="p::one")[0]


def test_constants_and_functions_of_shapes_dtypes_and_earlier_constexprs() -> None:
    made = specialised(
        num_warps=lambda BLOCK: BLOCK // 256,
        num_stages=lambda x: 2 if x.dtype == "float32" else 4,
        constexprs={
            "BLOCK": lambda x: lp.next_power_of_2(x.shape[-1]),
            "HALF": lambda BLOCK: BLOCK // 2,
            "OUT": lambda output: output.dtype,
            "EXACT": True,
        },
    )
    assert (made.num_warps, made.num_stages) == (4, 2)
    assert dict(made.constexprs) == {"BLOCK": 1024, "HALF": 512, "OUT": DType.FLOAT32, "EXACT": True}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"constexprs": {"BLOCK": lambda x: x.shape[-1] * 2}},
            "constexpr BLOCK at {file}: it is 2*x.1, and x.1 is dynamic here",
        ),
        (
            {"constexprs": {"BLOCK": lambda x: lp.next_power_of_2(x.shape[-1])}},
            "constexpr BLOCK at {file}: x.1 is symbolic here: its next power of 2 is no number yet",
        ),
        (
            {"num_warps": lambda x: 8 if x.shape[-1] > 4096 else 4},
            "num_warps at {file}: 4096 < x.1 is symbolic here",
        ),
    ],
)
def test_a_constant_that_depends_on_a_dynamic_size_names_the_ways_out(options: dict[str, Any], said: str) -> None:
    with pytest.raises(PackError) as caught:
        specialised(tensors("x.0", "x.1"), **options)
    text = str(caught.value)
    line = text.partition(f"{__file__}:")[2].partition(":")[0]
    assert said.replace("{file}", f"{__file__}:{line}") in text
    assert text.startswith("layer p::one, kernel copy: ")
    assert "make that size static in the export" in text
    assert "one kernel and predicate for each range of sizes" in text
    assert "pass the size as an argument that is no constexpr" in text


@pytest.mark.parametrize("alignment", [1, 2, 4, 8, 16])
def test_the_alignments_there_are(alignment: int) -> None:
    assert lp.triton("kernel.py:scale", alignment=alignment, time_limit=86400).alignment == alignment


def test_a_constant_of_a_static_size_is_fine_where_other_sizes_are_dynamic() -> None:
    made = specialised(tensors("x.0", 48), constexprs={"BLOCK": lambda x: lp.next_power_of_2(x.shape[-1])})
    assert made.constexprs["BLOCK"] == 64


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_warps": lambda: 3}, "layer p::one, kernel copy: num_warps is 3"),
        ({"num_stages": lambda: 2.0}, "layer p::one, kernel copy: num_stages is float 2.0"),
        ({"constexprs": {"BLOCK": lambda: [1]}}, "it is list [1]"),
        ({"constexprs": {"BLOCK": lambda z: 1}}, "it takes z"),
        ({"constexprs": {"BLOCK": lambda x: x.shape[7]}}, "IndexError: tuple index out of range"),
    ],
)
def test_a_function_that_gives_something_wrong(options: dict[str, Any], said: str) -> None:
    with pytest.raises(PackError) as caught:
        specialised(**options)
    assert said in str(caught.value)


def test_a_launch_rule_may_take_the_constexprs() -> None:
    def launch(x: TensorType, y: TensorType, BLOCK: int) -> lp.Launch:
        return lp.Launch(grid=lp.cdiv(x.numel(), BLOCK), args=(x, y, x.numel()))

    rule = trace(kernel("copy", launch, num_warps=8), SIGNATURE, tensors("x.0"), {}).launches.rules[0]
    assert [str(size) for size in rule.grid] == ["ceildiv(x.0, 64)", "1", "1"]
    assert [str(size) for size in rule.block] == ["256", "1", "1"]


@pytest.mark.parametrize("options", [{"block": 128}, {"shared": 1024}])
def test_a_launch_rule_gives_no_block_to_triton(options: dict[str, Any]) -> None:
    made = kernel("copy", lambda x, y: lp.Launch(grid=1, args=(x, y, 1), **options))
    with pytest.raises(PackError, match="it gives a block or shared memory to Triton") as caught:
        trace(made, SIGNATURE, tensors(), {})
    assert "they come from num_warps and the compiled kernel" in str(caught.value)


def test_a_launch_rule_gives_a_block_to_cuda() -> None:
    source = lp.cuda("\n__global__ void k() {}\n", "k")
    made = Kernel("k", (source,), ("float32",), lambda x, y: lp.Launch(grid=1, args=()))
    with pytest.raises(PackError, match="it gives no block"):
        trace(made, SIGNATURE, tensors(), {})


# --- cubins --------------------------------------------------------------------------------------------------------


def test_cubins_for_every_architecture_with_their_launch_rules(store: DiskCache) -> None:
    made = build(kernel("copy", num_warps=2), store, *ARCHITECTURES, of=tensors("x.0"))
    for architecture, one in zip(ARCHITECTURES, made, strict=True):
        assert one.steps[0].cubin.architecture == architecture
        assert one.steps[0].cubin.symbol == "copy"
        # The function's own parameters, then the two hidden pointers of this version of Triton.
        assert one.steps[0].cubin.parameter_sizes == (8, 8, 4, 8, 8)
        assert one.steps[0].rule.to_json() == {
            "grid": ["ceildiv(x.0, 64)", "1", "1"],
            "block": ["64", "1", "1"],
            "shared": "0",
            "args": [["pointer", "x", "16"], ["pointer", "output", "16"], ["int", "x.0"], ["null"], ["null"]],
        }
        assert LaunchRule.from_json(one.steps[0].rule.to_json()) == one.steps[0].rule


def test_shared_memory_comes_from_the_compiled_kernel(store: DiskCache, pack: Any) -> None:
    (rows,) = pack.rms_norm.kernels
    x = TensorType("x", DType.FLOAT16, (Symbol("x.0"), 3000))
    of = {"x": x, "weight": TensorType("weight", DType.FLOAT16, (3000,)), "output": x}
    options = {"signature": pack.rms_norm.signature, "attributes": {"eps": 1e-6}}
    (one,) = build(rows, store, "sm_89", of=of, **options)
    assert [str(size) for size in one.steps[0].rule.block] == ["256", "1", "1"]
    assert int(one.steps[0].rule.shared) >= 8 * 4  # one float of each of the 8 warps
    assert one.steps[0].cubin.resources.local_bytes == 0


def test_aligned_addresses_allow_wide_loads(store: DiskCache, tmp_path: Path) -> None:
    disassembler = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    for alignment, wide in ((16, True), (1, False)):
        made = kernel("copy", constexprs={"BLOCK": 1024}, alignment=alignment)
        (one,) = build(made, store, of=tensors(1 << 20))
        assert one.steps[0].rule.alignments == ({"x": 16, "output": 16} if wide else {})
        file = tmp_path / "copy.cubin"
        file.write_bytes(one.steps[0].cubin.image)
        code = subprocess.run([disassembler, "-sass", file], capture_output=True, text=True, check=True).stdout
        assert ("LDG.E.128" in code and "STG.E.128" in code) is wide


def test_equal_input_gives_equal_bytes_wherever_it_lies(tmp_path: Path) -> None:
    images = set()
    for place in ("a", "bb"):
        folder = tmp_path / place
        folder.mkdir()
        file = Path(shutil.copy(FUNCTIONS, folder))
        moved = file.read_text().replace('"""The Triton', '"""\n\nThe Triton', 1)
        file.write_text(moved if place == "bb" else file.read_text())
        made = build(kernel("rms_norm", rows, file), DiskCache(folder / "cache"), "sm_89", "sm_120", of=ROWS)
        images.add(tuple(one.steps[0].cubin.image for one in made))
        assert all(str(tmp_path).encode() not in one.steps[0].cubin.image for one in made)
    assert len(images) == 1


def rows(x: TensorType, y: TensorType) -> lp.Launch:
    return lp.Launch(grid=x.shape[0], args=(x, x, y, x.shape[1], 1e-5))


ROWS = tensors("x.0", 48)


def test_the_environment_of_triton_changes_nothing(
    tmp_path: Path, store: DiskCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build(kernel("copy"), store)[0].steps[0].cubin.image
    for name, value in {"DISABLE_PTXAS_OPT": "1", "TRITON_ALWAYS_COMPILE": "1", "PTXAS_OPTIONS": "-O0"}.items():
        monkeypatch.setenv(name, value)
    assert build(kernel("copy"), DiskCache(tmp_path / "other"))[0].steps[0].cubin.image == first


def test_the_second_time_nothing_is_compiled(store: DiskCache, forbid_compiling: Callable[[], None]) -> None:
    first = build(kernel("copy"), store, "sm_89", "sm_89")
    forbid_compiling()
    assert [one.steps[0].cubin for one in build(kernel("copy"), store, "sm_89", "sm_89")] == [
        one.steps[0].cubin for one in first
    ]


@pytest.mark.parametrize(("old", "new"), [("value * value", "value * value * 2.0"), ("1.0 / tl.sqrt", "3.0 / tl.sqrt")])
def test_a_change_in_the_function_or_a_helper_is_another_entry(
    store: DiskCache, tmp_path: Path, old: str, new: str
) -> None:
    changed = tmp_path / "changed.py"
    changed.write_text(FUNCTIONS.read_text().replace(old, new))
    first = build(kernel("rms_norm", rows), store, of=ROWS)[0].steps[0].cubin
    second = build(kernel("rms_norm", rows, changed), store, of=ROWS)[0].steps[0].cubin
    assert first.digest != second.digest


def entry_of(store: DiskCache) -> Path:
    """The one entry that holds machine code; another one names it by its files."""
    return max((path for path in store.folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def test_a_damaged_entry_is_compiled_again(store: DiskCache) -> None:
    first = build(kernel("copy"), store)[0].steps[0].cubin
    entry = entry_of(store)
    data = bytearray(entry.read_bytes())
    data[-1] ^= 1
    entry.write_bytes(data)
    assert build(kernel("copy"), store)[0].steps[0].cubin == first
    assert hashlib.sha256(entry.read_bytes()).digest() != hashlib.sha256(data).digest()


def test_an_entry_of_another_kind_is_compiled_again(store: DiskCache) -> None:
    first = build(kernel("copy"), store)[0].steps[0].cubin
    entry = entry_of(store)
    store.put(entry.name, {"symbol": "copy"}, first.image)
    assert build(kernel("copy"), store)[0].steps[0].cubin == first


# --- arguments -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wide", [3, 2**31 - 1, -(2**31), 2**31, -(2**31) - 1, 1 << 40])
@pytest.mark.parametrize("absent", [True, False])
def test_types_follow_annotations_values_and_what_is_absent(store: DiskCache, wide: int, absent: bool) -> None:
    x = TensorType("x", DType.FLOAT32, (Symbol("x.0"),))
    of = {"x": x, "bias": None if absent else x, "output": x}
    options = {"signature": MANY, "attributes": {"flag": True, "factor": 2.0, "wide": wide}}
    (one,) = build(shift_kernel(), store, of=of, **options)
    pointers = (8, 8) if absent else (8, 8, 8)
    assert one.steps[0].cubin.parameter_sizes == (*pointers, 8, 4 if -(2**31) <= wide < 2**31 else 8, 1, 4, 8, 8)


@pytest.mark.parametrize(
    ("expression", "multiple"),
    [
        (Const(48), 48),
        (Symbol("x.0") * 32, 32),
        (Symbol("x.0") // 16 * 16 + 32, 16),
        (Symbol("x.0") + 16, 1),
        (lp.where(Symbol("x.0") < 3, 64, 48), 16),
        (lp.minimum(Symbol("x.0") * 8, 24), 8),
        (lp.cdiv(Symbol("x.0"), 16), 1),
    ],
)
def test_what_is_known_of_a_size(expression: Any, multiple: int) -> None:
    assert multiple_of(expression) == multiple
    assert all(expression.evaluate({"x.0": size}) % multiple == 0 for size in range(1, 200))


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (
            kernel("copy", passing("x", "y")),
            "the launch rule passes 2 arguments, and copy takes 3 that are no constexprs\n"
            "  - passed: tensor x, tensor output\n  - taken: x, y, n",
        ),
        (kernel("copy", constexprs={}), "constexpr BLOCK has no value"),
        (kernel("copy", constexprs={"BLOCK": 64, "BLOK": 1}), "constexpr BLOK is given, and there is no such"),
        (
            kernel("shift", passing("x", None, "y", 2.5, 1, True, 1.0), constexprs={"OUT": DType.FLOAT32}),
            "n is annotated i64 and gets float 2.5; it may be fp32 or fp64",
        ),
    ],
)
def test_arguments_that_do_not_fit_the_function(store: DiskCache, made: Kernel, said: str) -> None:
    text = fault(made, store)
    assert text.startswith(f"layer p::one, kernel {made.name}: ")
    assert said in text


def test_a_dtype_without_a_type_in_triton(store: DiskCache) -> None:
    assert "x is tensor x of int4, which Triton has no type for" in fault(
        kernel("copy"), store, of=tensors(dtype=DType.INT4)
    )


def test_a_kernel_is_compiled_with_its_tensors_only() -> None:
    with pytest.raises(UsageError, match="is written in Triton and compiled without its tensors"):
        compile_all([Compilation(kernel("copy"), SIGNATURE, {}, {}, "sm_89")])
    with pytest.raises(UsageError, match="built without its tensors"):
        build_kernels([Compilation(kernel("copy"), SIGNATURE, {}, {}, "sm_89")])


# --- faults in the function ----------------------------------------------------------------------------------------


def test_a_function_that_does_not_compile_shows_its_line(store: DiskCache) -> None:
    line = "    tl.store(y + places, tl.load(x + places) + tl.arange(0, BLOCK * 2))"
    text = fault(kernel("does_not_compile"), store, BuildError)
    assert f"layer p::one, kernel does_not_compile: {FUNCTIONS}:{line_of(line)} does not compile for sm_89" in text
    assert "Cannot make_shape_compatible" in text
    assert f"at {FUNCTIONS}:{line_of(line)}: {line.strip()}" in text


def test_a_helper_that_does_not_compile_shows_both_lines(store: DiskCache) -> None:
    text = fault(kernel("calls_what_does_not_compile"), store, BuildError)
    inner, outer = "    return kept.no_such_thing", "    tl.store(y + places, wrong_inside(tl.load(x + places)))"
    assert f"{FUNCTIONS}:{line_of(inner)} does not compile" in text
    assert f"at {FUNCTIONS}:{line_of(outer)}: {outer.strip()}" in text
    assert "no_such_thing" in text


def test_a_type_that_an_architecture_lacks(store: DiskCache) -> None:
    of = tensors(dtype=DType.FLOAT8_E4M3FN)
    with pytest.raises(BuildError) as caught:
        build(kernel("copy"), store, "sm_80", of=of)
    text = str(caught.value)
    assert "for sm_80" in text
    assert "fp8e4nv" in text


def test_what_the_assembler_refuses(store: DiskCache) -> None:
    with pytest.raises(BuildError) as caught:
        build(kernel("wrong_assembly"), store)
    text = str(caught.value)
    assert "kernel wrong_assembly: wrong_assembly does not compile for sm_89: PTXASError" in text
    assert any("ptxas" in line for line in caught.value.faults), text


def test_memory_beside_the_tensors_is_refused(store: DiskCache) -> None:
    with pytest.raises(BuildError) as caught:
        build(kernel("with_descriptor"), store, "sm_90")
    text = str(caught.value)
    assert "with_descriptor for sm_90 needs memory beside its tensors, which a launch here does not give" in text
    assert "global scratch size: " in text
    assert "use plain pointers" in text


def test_hidden_arguments_that_nobody_named_are_refused(store: DiskCache) -> None:
    job_metadata = {
        "name": "copy",
        "num_ctas": 1,
        "num_warps": 4,
        "shared": 0,
        "launch_cooperative_grid": False,
        "launch_pdl": False,
        "scratch": {"global_scratch_size": 0},
    }
    (one,) = build(kernel("copy"), store)
    call = type("Call", (), {"args": one.steps[0].rule.args[:3], "rule": one.steps[0].rule})
    job = triton_compiler.Job(kernel("copy").sources[0], call, None, "sm_89", "kernel copy")  # type: ignore[arg-type]
    with pytest.raises(BuildError) as caught:
        triton_compiler._finish(job, job_metadata, one.steps[0].cubin.image)
    assert "takes 5 arguments: 3 of the function, 2 hidden" in str(caught.value)
    assert "Triton names 1 hidden ones (global_scratch_size)" in str(caught.value)
    with pytest.raises(BuildError, match="needs a launch in clusters"):
        triton_compiler._finish(job, job_metadata | {"num_ctas": 2}, one.steps[0].cubin.image)


def test_a_compilation_that_takes_too_long_is_ended(store: DiskCache) -> None:
    text = fault(kernel("copy", time_limit=0.001), store, BuildError)
    assert "copy did not compile for sm_89 within 0.001 s" in text
    assert "lp.triton(..., time_limit=seconds)" in text


def test_a_compiler_that_dies_is_an_error(store: DiskCache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    child = tmp_path / "child.py"
    child.write_text("import os, sys\nprint('out of luck', file=sys.stderr, flush=True)\nos.kill(os.getpid(), 9)\n")
    monkeypatch.setattr(process, "_CHILD", child)
    text = fault(kernel("copy"), store, BuildError)
    assert "the compiler process ended with status -9 for sm_89" in text
    assert "out of luck" in text


def test_a_child_that_fails_tells_what_triton_said(
    store: DiskCache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    child = tmp_path / "child.py"
    child.write_text(
        "import json, os\n"
        "data = json.dumps({'ok': False, 'error': 'PTXASError', 'log': 'no\\nRepro command: x', 'size': 0}).encode()\n"
        "os.write(1, len(data).to_bytes(4, 'little') + data)\n"
    )
    monkeypatch.setattr(process, "_CHILD", child)
    text = fault(kernel("copy"), store, BuildError)
    assert "layer p::one, kernel copy: copy does not compile for sm_89: PTXASError\n  - no\n" in text
    assert "Repro" not in text


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        (f"{FUNCTIONS}:nothing", "has no nothing\n  to repair: its Triton functions are calls_what_does_not_compile"),
        (f"{FUNCTIONS}:not_triton", "not_triton is int, no Triton function"),
        (f"{FUNCTIONS}:tuned", "tuned is Autotuner, no Triton function"),
        ("nothere.py:scale", "nothere.py, which has its Triton function, cannot be imported: there is no file"),
        ("no_such_module:scale", "no_such_module, which has its Triton function, cannot be imported"),
    ],
)
def test_a_function_that_is_not_there(reference: str, said: str) -> None:
    source = lp.triton(reference).anchored(str(TESTS), None)
    with pytest.raises(PackError) as caught:
        find_function(source, "kernel k")
    assert said in str(caught.value)


def test_functions_are_found_as_text_and_as_objects() -> None:
    module = import_file(str(FUNCTIONS))
    assert find_function(lp.triton(module.copy), "k") is module.copy
    beside = find_function(lp.triton("triton_functions.py:copy").anchored(str(FUNCTIONS.parent), None), "k")
    named = find_function(lp.triton("packs.triton_functions:copy"), "k")
    relative = find_function(lp.triton(".triton_functions:copy").anchored("/", "packs"), "k")
    assert beside.src == named.src == module.copy.src
    assert relative is named
    with pytest.raises(PackError, match="'.triton_functions' is relative, and its launch rule is in no package"):
        find_function(lp.triton(".triton_functions:copy").anchored("/", None), "k")


def test_in_interpreter_mode_nothing_is_compiled() -> None:
    code = """
import sys
from layerport.kernels.toolchains.triton_functions import find_function
import layerport as lp
try:
    find_function(lp.triton(sys.argv[1]), "kernel k")
except lp.BuildError as error:
    print(error)
"""
    done = python(
        code,
        f"{FUNCTIONS}:copy",
        environment={"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])},
    )
    assert "Triton is in interpreter mode, in which nothing is compiled" in done.stdout, done.stderr
    assert "unset TRITON_INTERPRET" in done.stdout


# --- launching -----------------------------------------------------------------------------------------------------


class Driver:
    """As much of a driver as loading and launching takes."""

    class CUresult:
        CUDA_SUCCESS = 0

    def __init__(self) -> None:
        self.launches: list[tuple[Any, ...]] = []

    def CUfunction(self, handle: int) -> int:
        return handle

    def cuLibraryUnload(self, *_: Any) -> tuple[int]:
        return (0,)

    def cuLibraryLoadData(self, *_: Any) -> tuple[int, int]:
        return 0, 1

    def cuLibraryGetKernel(self, *_: Any) -> tuple[int, int]:
        return 0, 1

    def cuLaunchKernel(self, *arguments: Any) -> tuple[int]:
        self.launches.append(arguments)
        return (Driver.CUresult.CUDA_SUCCESS,)


def test_it_is_launched_by_the_one_launcher(store: DiskCache) -> None:
    (one,) = build(kernel("copy", num_warps=2), store, of=tensors("x.0"))
    driver = Driver()
    launcher = Launcher(one.steps[0].cubin.image, one.steps[0].cubin.symbol, one.steps[0].rule, driver=driver)
    launcher.resolve({"x.0": 1000})
    launcher.launch({"x": 0x1000, "output": 0x2000}, stream=5)
    assert driver.launches[0][1:9] == (16, 1, 1, 64, 1, 1, 0, 5)
    with pytest.raises(UsageError) as caught:
        launcher.launch({"x": 0x1000, "output": 0x2004}, stream=5)
    assert "tensor output lies at 0x2004, which is no multiple of 16 bytes" in str(caught.value)
    assert "lp.triton(..., alignment=1)" in str(caught.value)
    assert len(driver.launches) == 1


def test_a_size_that_does_not_fit_its_parameter_names_the_annotation(store: DiskCache) -> None:
    (one,) = build(kernel("copy"), store, of=tensors("x.0"))
    launcher = Launcher(one.steps[0].cubin.image, one.steps[0].cubin.symbol, one.steps[0].rule, driver=Driver())
    with pytest.raises(UsageError, match=r"is 2147483648 for these sizes.*\n.*tl.int64 in Triton"):
        launcher.resolve({"x.0": 2**31})


def test_a_grid_that_is_too_large_is_refused(store: DiskCache) -> None:
    made = kernel("copy", lambda x, y: lp.Launch(grid=(1, x.numel()), args=(x, y, 1)))
    (one,) = build(made, store, of=tensors("x.0"))
    with pytest.raises(UsageError, match="grid y is 65536, allowed are 1 to 65535"):
        one.steps[0].rule.resolve({"x.0": 65536})


def test_an_alignment_is_read_strictly() -> None:
    rule = LaunchRule((Const(1),) * 3, (Const(1),) * 3, Const(0), (PointerArg("x", 16),))
    data = rule.to_json()
    assert LaunchRule.from_json(data) == rule
    for wrong in (["pointer", "x", "3"], ["pointer", "x", 16], ["int", "x.0", "16"], ["pointer", "x", "16", "16"]):
        with pytest.raises(BuildError, match="a launch rule cannot be read"):
            LaunchRule.from_json(data | {"args": [wrong]})


def test_one_kernel_may_launch_differently_on_two_architectures(store: DiskCache) -> None:
    both = build(kernel("copy"), store, "sm_89", "sm_120", of=tensors("x.0"))
    steps = [one.steps[0] for one in both]
    codes = tuple(
        KernelCode(
            "copy",
            (
                KernelStep(
                    "copy",
                    LaunchRule(one.rule.grid, one.rule.block, Const(shared), one.rule.args),
                    {name: one.cubin.digest},
                ),
            ),
        )
        for name, one, shared in zip(("sm_89", "sm_120"), steps, (0, 512), strict=True)
    )
    images = {one.cubin.digest: one.cubin.image for one in steps}
    x = TensorType.symbolic("x", DType.FLOAT32, 1)
    spec = PluginSpec("p::one", 1, (x,), renamed((x.by_place(),), ("output",)), kernels=codes, images=images)
    again = from_bytes(to_bytes(PluginSet({spec.key: spec}, {}))).specs[spec.key]
    assert again.architectures == ("sm_89", "sm_120")
    loaded: list[tuple[bytes, str]] = []

    def launcher(image: bytes, symbol: str, rule: LaunchRule) -> Any:
        loaded.append((image, str(rule.shared)))

    KernelRunner(again, "sm_120", launcher)
    assert loaded == [(both[1].steps[0].cubin.image, "512")]


# --- a whole build -------------------------------------------------------------------------------------------------


class Rows(torch.nn.Module):
    """What the pack claims, by its name."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(0.5, 1.5, 200))
        self.eps = 1e-5

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


def model() -> tuple[Any, ...]:
    torch.manual_seed(0)
    return (
        torch.nn.Sequential(torch.nn.Linear(200, 200), Rows()).eval(),
        (torch.randn(4, 200),),
        {"input": {0: torch.export.Dim("rows", min=1, max=64)}},
    )


def test_a_model_with_a_triton_kernel_becomes_a_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAYERPORT_CACHE_DIR", str(tmp_path / "cache"))
    report = lp.build(model(), tmp_path / "out.lp", target="rtx:sm_89,sm_120", packs=[str(PACK)])
    assert [(one.layer, one.realised) for one in report.layers] == [("triton_tests::rms_norm", "plugin")]
    assert report.verification is not None
    assert report.verification.passed
    assert not {"torch", "triton", "triton_pack"} & set(report.build_modules)
    (spec,) = from_bytes((tmp_path / "out.lp" / "plugins.safetensors").read_bytes()).specs.values()
    assert spec.architectures == ("sm_89", "sm_120")
    assert all(code.steps[0].launch.to_json()["grid"] == ["x.0", "1", "1"] for code in spec.kernels)
    plan = (tmp_path / "out.lp" / "rtx-sm_89+sm_120.plan").read_bytes()
    kept = [held.images for held, _ in fields_in(plan)]
    assert kept and {digest for images in kept for digest in images} == set(spec.images)


def test_a_constexpr_of_a_dynamic_size_stops_the_build_with_the_ways_out(tmp_path: Path) -> None:
    pack = tmp_path / "dynamic_pack.py"
    pack.write_text(
        PACK.read_text()
        .replace("triton_functions.py", str(FUNCTIONS))
        .replace("triton_tests::", "triton_dynamic::")
        .replace("lambda weight: lp.next_power_of_2(weight.shape[0])", "lambda x: lp.next_power_of_2(x.shape[0])")
    )
    source = model()
    with pytest.raises(PackError) as caught:
        lp.build(source, tmp_path / "out.lp", target="rtx:sm_89", packs=[str(pack)])
    text = str(caught.value)
    assert "layer triton_dynamic::rms_norm, kernel rows: constexpr BLOCK at" in text
    assert "x.0 is symbolic here" in text
    assert "make that size static in the export" in text
