"""What a pack's author hands over for a kernel, and what is refused at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from layerport.dtypes import DType
from layerport.errors import BuildError, PackError, UsageError
from layerport.kernels.compilation import Compilation, compile_all
from layerport.kernels.cuda_source import CudaSource, cuda
from layerport.kernels.declaration import Kernel, Launch
from layerport.parameters.signature import Argument, Kind, Signature
from layerport.sizes.expressions import Symbol, cdiv
from layerport.sizes.tensors import TensorType

SIGNATURE = Signature(
    (
        Argument("x", Kind.INPUT, "tensor"),
        Argument("scale", Kind.PARAM, "tensor", optional=True, default=None),
        Argument("beta", Kind.ATTRIBUTE, "float", default=1.0),
        Argument("width", Kind.ATTRIBUTE, "int", default=4),
        Argument("mode", Kind.ATTRIBUTE, "str", default="Sum"),
        Argument("fast", Kind.ATTRIBUTE, "bool", default=False),
    )
)
CODE = """#include <cuda_fp16.h>
template <class T> __global__ void scale(const T* x, const float* s, T* y, long long n, float beta) {
  long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
  if (i < n) y[i] = (T)((float)x[i] * s[0] * beta);
}
"""


def launch(x: Any, scale: Any, y: Any, beta: float) -> Launch:
    return Launch(cdiv(x.numel(), 256), 256, (x, scale, y, x.numel(), beta))


def kernel(entry: str = "scale<{x}>", source: str = CODE, dtypes: Any = ("float32",), **fields: Any) -> Kernel:
    return Kernel("scale_0", (cuda(source, entry),), dtypes, fields.pop("launch", launch), **fields)


def test_code_is_inline_if_it_has_a_newline() -> None:
    assert cuda(CODE, "scale").inline
    assert cuda(CODE, "scale").path is None
    assert cuda(CODE, "scale").read() == CODE
    assert not cuda("scale.cu", "scale").inline


def test_a_path_starts_at_the_file_of_the_launch_rule(tmp_path: Path) -> None:
    assert kernel(source="sub/scale.cu").sources[0].path == Path(__file__).parent / "sub" / "scale.cu"
    absolute = tmp_path / "scale.cu"
    absolute.write_text(CODE)
    assert kernel(source=str(absolute)).sources[0].read() == CODE


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": ""}, "lp.cuda: source is str ''"),
        ({"source": 3}, "lp.cuda: source is int 3"),
        ({"source": "a\n\0"}, "lp.cuda: source is str"),
        ({"entry": " "}, "lp.cuda: entry is str ' '"),
        ({"options": "-O3"}, r'options is str \'-O3\'\n.*options=\("...",\)'),
        ({"options": ("O3",)}, "option 'O3' does not start with '-'"),
        ({"options": ("-arch=sm_90",)}, "the targets of a build give the architecture"),
        ({"options": ("--gpu-architecture=sm_90",)}, "the targets of a build give the architecture"),
        ({"options": ("-I/somewhere",)}, "name folders in include="),
        ({"options": ("--pre-include=a.h",)}, "name folders in include="),
        ({"options": ("-rdc=true",)}, "a kernel is compiled whole"),
        ({"options": ("--pch",)}, "the compiler writes nothing but the cubin"),
        ({"include": "folder"}, "include is str 'folder'"),
        ({"time_limit": 0}, "time_limit is int 0"),
        ({"time_limit": 86401}, "time_limit is int 86401\n.*at most a day"),
        ({"time_limit": "1"}, "time_limit is str '1'"),
    ],
)
def test_a_source_is_checked_when_it_is_made(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        cuda(**({"source": "a.cu", "entry": "a"} | arguments))


def test_a_compilation_may_take_a_day() -> None:
    assert cuda("a.cu", "a", time_limit=86400).time_limit == 86400


def test_a_source_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"nothere.cu cannot be read: No such file or directory\n.*relative to"):
        kernel(source="nothere.cu").sources[0].read()
    (tmp_path / "latin.cu").write_bytes(b"// caf\xe9\n")
    with pytest.raises(BuildError, match=r"latin.cu is not UTF-8 at byte 6"):
        kernel(source=str(tmp_path / "latin.cu")).sources[0].read()
    (tmp_path / "nul.cu").write_bytes(b"ab\0")
    with pytest.raises(BuildError, match=r"nul.cu has a NUL at character 2"):
        kernel(source=str(tmp_path / "nul.cu")).sources[0].read()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dtypes": ()}, "kernel scale_0: no dtypes"),
        ({"dtypes": "float32"}, "kernel scale_0: dtypes is str 'float32', not a tuple"),
        ({"dtypes": ["float32"]}, r"kernel scale_0: dtypes is list \['float32'\], not a tuple"),
        ({"dtypes": {"x": "float32"}}, r"kernel scale_0: dtypes is dict \{'x': 'float32'\}, not a tuple"),
        ({"dtypes": None}, "kernel scale_0: dtypes is NoneType None, not a tuple"),
        ({"dtypes": ("float32", 3)}, r"kernel scale_0: dtypes\[1\] is int 3, not a name or a mapping"),
        ({"dtypes": ({"x": ["float32"]},)}, r"kernel scale_0: dtypes\[0\]: unknown dtype \['float32'\]"),
        ({"dtypes": ("float33",)}, "unknown dtype 'float33'"),
        ({"dtypes": ({"x": "float33"},)}, "unknown dtype 'float33'"),
        ({"launch": 3}, "launch and when must be functions"),
        ({"when": 3}, "launch and when must be functions"),
        ({"launch": lambda *tensors: None}, r"launch takes \*tensors\n.*name each argument"),
        ({"launch": lambda x, **rest: None}, r"launch takes \*\*rest"),
    ],
)
def test_a_kernel_is_checked_when_it_is_made(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        kernel(**fields)


def test_a_kernel_wants_a_source() -> None:
    with pytest.raises(UsageError, match=r"source is str 'scale.cu'\n.*make it with lp.cuda"):
        Kernel("k", ("scale.cu",), ("float32",), launch)  # type: ignore[arg-type]


def test_combinations_name_every_tensor_and_output() -> None:
    half, single = DType.FLOAT16, DType.FLOAT32
    made = kernel(
        dtypes=(
            "float32",
            {"scale": "float32", "*": "float16"},
            {"x": "float16", "scale": "float32", "y": "float32"},
        )
    )
    assert made.combinations(SIGNATURE) == (
        {"x": single, "scale": single, "output": single},
        {"x": half, "scale": single, "output": half},
        {"x": half, "scale": single, "output": single},
    )


def test_combinations_with_wrong_names_show_all_faults() -> None:
    with pytest.raises(PackError) as caught:
        kernel(dtypes=({"x": "float16", "gate": "float16"},)).combinations(SIGNATURE)
    assert "dtypes {x: float16, gate: float16} do not fit the layer" in str(caught.value)
    assert "scale: no dtype stated" in str(caught.value)
    assert "output: no dtype stated" in str(caught.value)
    assert "gate: the layer has no such tensor, only x, scale, output" in str(caught.value)


def test_outputs_are_the_names_that_are_left_in_order() -> None:
    made = kernel(launch=lambda b, x, a: None)
    assert made.output_aliases(("output0", "output1"), ("x",)) == {"b": "output0", "a": "output1"}
    by_name = kernel(launch=lambda output1, x, output0: None)
    assert by_name.output_aliases(("output0", "output1"), ("x",)) == {
        "output0": "output0",
        "output1": "output1",
    }
    with pytest.raises(PackError, match="launch takes b, a beside the layer's arguments, but the layer has 1 outputs"):
        made.output_aliases(("output",), ("x",))


def test_sizes_that_a_kernel_writes_follow_the_outputs() -> None:
    made = kernel("scale<{y}>", launch=lambda x, y, count: None)
    assert made.combinations(SIGNATURE)[0] == dict.fromkeys(("x", "scale", "output"), DType.FLOAT32)
    assert made.entries(SIGNATURE, {"x": DType.FLOAT32, "output": DType.FLOAT16}, {}) == ("scale<__half>",)
    with pytest.raises(PackError, match="launch takes nothing beside the layer's arguments"):
        kernel(launch=lambda x: None).combinations(SIGNATURE)


@pytest.mark.parametrize(
    ("template", "entry"),
    [
        ("scale", "scale"),
        ("scale<{x}, {scale}, {y}>", "scale<__half, float, __half>"),
        ("scale<{output}>", "scale<__half>"),
        ("scale<{x}, {width}, {fast}, {mode}>", "scale<__half, 4, false, Sum>"),
        ("a::scale<{{}}>", "a::scale<{}>"),
    ],
)
def test_an_entry_takes_types_and_values(template: str, entry: str) -> None:
    dtypes = {"x": DType.FLOAT16, "scale": DType.FLOAT32, "output": DType.FLOAT16}
    attributes: dict[str, Any] = {"beta": 1.5, "width": 4, "mode": "Sum", "fast": False}
    assert kernel(template).entries(SIGNATURE, dtypes, attributes) == (entry,)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "scale<{gate}>",
            r"has \{gate\}, which is no tensor, size or attribute\n.*use one of x, output, beta, mode, or a size",
        ),
        ("scale<{x.dtype}>", r"has \{x.dtype\}, which is no tensor"),
        ("scale<{x!r}>", r"has \{x!r\}, which is no tensor"),
        ("scale<{x.1}>", r"has \{x.1\}, which is not known here"),
        ("scale<{gate.0}>", r"has \{gate.0\}, which is no tensor"),
        ("scale<{}>", r"has \{\}, which is no tensor"),
        ("scale<{x>", "is no template: "),
        ("scale<{beta}>", "attribute beta, which is float 1.5, cannot stand in a C\\+\\+ template"),
        ("scale<{mode}>", "attribute mode, which is str 'a>; evil', cannot stand"),
    ],
)
def test_an_entry_that_cannot_be_made(template: str, message: str) -> None:
    with pytest.raises(PackError, match=message):
        kernel(template).entries(
            SIGNATURE, {"x": DType.FLOAT16, "output": DType.FLOAT16}, {"beta": 1.5, "mode": "a>; evil"}
        )


def test_a_tensor_has_symbols_or_numbers() -> None:
    tensor = TensorType.symbolic("x", DType.BFLOAT16, 3)
    assert tensor.ndim == 3
    assert tensor.itemsize == 2
    assert [str(size) for size in tensor.shape] == ["x.0", "x.1", "x.2"]
    assert str(tensor.numel()) == "x.0*x.1*x.2"
    assert TensorType("x", DType.FLOAT32, (2, 3)).numel() == 6
    assert TensorType("x", DType.FLOAT32, ()).numel() == 1


def test_a_launch_fills_up_to_three_dims() -> None:
    made = Launch((Symbol("x.0"), 2), 128, [1, None, 2.5], shared=16)
    assert [str(size) for size in (*made.grid, *made.block, made.shared)] == [
        "x.0",
        "2",
        "1",
        "128",
        "1",
        "1",
        "16",
    ]
    assert made.args == (1, None, 2.5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"grid": (1, 2, 3, 4)}, "grid has 4 dims, allowed are 1 to 3"),
        ({"grid": ()}, "grid has 0 dims"),
        ({"grid": 1.5}, "grid x is float 1.5, not a whole number or an expression"),
        ({"grid": True}, "grid x is bool True, not a whole number"),
        ({"grid": (1, "2")}, "grid y is str '2', not a whole number"),
        ({"grid": -1}, "grid x is -1, allowed are 1 to 2147483647"),
        ({"grid": (1, 65536)}, "grid y is 65536, allowed are 1 to 65535"),
        ({"block": 0}, "block x is 0, allowed are 1 to 1024"),
        ({"block": (1, 1, 65)}, "block z is 65, allowed are 1 to 64"),
        ({"block": (64, 32)}, r"a block has 2048 threads \(64 x 32 x 1\), allowed are 1024"),
        ({"shared": -1}, "dynamic shared memory is -1 bytes"),
        (
            {"shared": 228 * 1024},
            "dynamic shared memory is 233472 bytes, no architecture has more than 232448",
        ),
        ({"args": 3}, "args is int 3, not a tuple"),
        ({"args": (1, "x")}, r"args\[1\] is str 'x'"),
        ({"args": (1, [2])}, r"args\[1\] is list \[2\]"),
    ],
)
def test_a_launch_is_checked_when_it_is_made(fields: dict[str, Any], message: str) -> None:
    usual: dict[str, Any] = {"grid": 1, "block": 1, "args": ()}
    with pytest.raises(UsageError, match=message):
        Launch(**(usual | fields))


def test_a_launch_shows_all_faults_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        Launch(-1, 2048, ("x",), shared=-5)  # type: ignore[arg-type]
    assert len(caught.value.faults) == 5


def test_compiles_one_kernel_for_several_architectures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAYERPORT_CACHE_DIR", str(tmp_path))
    dtypes = {"x": DType.FLOAT16, "scale": DType.FLOAT32, "output": DType.FLOAT16}
    names = ("sm_89", "sm_120")
    wanted = [Compilation(kernel(), SIGNATURE, dtypes, {"beta": 1.0}, name, "p::scale") for name in names]
    cubins = {name: made[0] for name, made in zip(names, compile_all(wanted), strict=True)}
    assert {name: cubin.architecture for name, cubin in cubins.items()} == {
        "sm_89": "sm_89",
        "sm_120": "sm_120",
    }
    assert cubins["sm_89"].parameter_sizes == (8, 8, 8, 8, 4)
    assert "__half" in cubins["sm_89"].symbol
    # Each has two names: by source and compiler, and by source alone.
    assert len([path for path in (tmp_path / "kernels").rglob("*") if path.is_file()]) == 4


def test_a_compilation_error_names_layer_and_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAYERPORT_CACHE_DIR", str(tmp_path))
    (tmp_path / "scale.cu").write_text(CODE.replace("s[0]", "t[0]"))
    broken = kernel(source=str(tmp_path / "scale.cu"))
    dtypes = {"x": DType.FLOAT16, "scale": DType.FLOAT32, "output": DType.FLOAT16}
    with pytest.raises(BuildError, match=r"layer p::scale, kernel scale_0: .*/scale.cu:4: identifier \"t\" is"):
        compile_all([Compilation(broken, SIGNATURE, dtypes, {}, "sm_89", "p::scale")])


def test_a_source_is_anchored_once() -> None:
    source = CudaSource("a.cu", "a", folder="/first")
    assert source.anchored("/second").path == Path("/first/a.cu")
