"""Every name of the CUDA bindings and of Torch's CUDA half that our code uses is in the real libraries, and takes as
much as we give it.

The code that runs on a GPU is tested against doubles; this holds what the doubles cannot, so that a first run on a GPU
does not end with a misspelt name.  Names of TensorRT: `test_tensorrt_flavour`.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import layerport
from layerport.foreign import torch_private

SOURCE = Path(layerport.__file__).parent
FILES = [*sorted(SOURCE.rglob("*.py")), *sorted((Path(__file__).parents[3] / "benchmarks" / "gpu").glob("*.py"))]
NAME = re.compile(r"cu[A-Z]\w+")
# Where names stand: the expression before the dot, and the module.
OWNERS = {
    "driver": "cuda.bindings.driver",
    "self.driver": "cuda.bindings.driver",
    "self._driver": "cuda.bindings.driver",
    "launcher.driver": "cuda.bindings.driver",
    "self._where[]": "cuda.bindings.driver",
    "where[]": "cuda.bindings.driver",
    "environment.driver": "cuda.bindings.driver",
    "nvrtc": "cuda.bindings.nvrtc",
    "pathfinder": "cuda.pathfinder",
    "torch.cuda": "torch.cuda",
    "torch._C": "torch._C",
}
# Only CUDA builds of Torch have these; every build has their stubs, or writes them into models that it compiles.
OF_CUDA_BUILDS = {
    "_cuda_getCurrentRawStream": ("_C/__init__.pyi", "def {}("),
    "_cuda_getDevice": ("_C/__init__.pyi", "def {}("),
    "_dynamo.guards._empty_strided_cuda": ("_inductor/codegen/wrapper.py", "torch._C.{}"),
}
# Of a module that is called `nvrtc` or `driver`, these are names of the bindings; others are our own.
OF_BINDINGS = re.compile(r"cu|CU|nvrtc[A-Z]")


def text_of(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{text_of(node.value)}.{node.attr}"
    return f"{text_of(node.value)}[]" if isinstance(node, ast.Subscript) else "?"


def uses() -> Iterator[tuple[str, str, str, int | None]]:
    """Where, the module, the name after it, and how many arguments it is called with (None: it is not, or unknown)."""
    for path in FILES:
        tree = ast.parse(path.read_text())
        calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
        inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        for node in ast.walk(tree):
            place = f"{path.name}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Attribute):
                parts, base = [node.attr], node.value
                while text_of(base) not in OWNERS and isinstance(base, ast.Attribute):
                    parts.insert(0, base.attr)
                    base = base.value
                owner = text_of(base)
                if owner not in OWNERS or id(node) in inner:
                    continue
                if not OWNERS[owner].startswith("cuda.bindings") or OF_BINDINGS.match(parts[0]):
                    yield place, OWNERS[owner], ".".join(parts), arguments(calls.get(id(node)), 0)
            elif isinstance(node, ast.Call):  # the name as a text, with the arguments behind it
                for index, one in enumerate(node.args):
                    if isinstance(one, ast.Constant) and isinstance(one.value, str) and NAME.fullmatch(one.value):
                        yield place, "cuda.bindings.driver", one.value, arguments(node, index + 1)


def arguments(call: ast.Call | None, skipped: int) -> int | None:
    if call is None or any(isinstance(one, ast.Starred) for one in call.args):
        return None
    return len(call.args) - skipped


OF_TORCH = {
    ("torch_private.py", "torch._C", name.path.removeprefix("torch._C."), None)
    for name in torch_private.NAMES
    if name.path.startswith("torch._C.") and "cuda" in name.path
}
USES = sorted({*uses(), *OF_TORCH}, key=str)


def resolve(module: str, name: str) -> Any:
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def taken(name: str, function: Any) -> int:
    stated = function.__doc__.splitlines()[0]
    inside = stated[stated.index("(") + 1 : stated.rindex(")")]
    inside = re.sub(r"\[[^][]*(\[[^][]*\][^][]*)*\]", "", inside)
    assert stated.startswith(f"{name}("), stated
    return len(inside.split(",")) if inside else 0


def fault_of(module: str, name: str, count: int | None) -> str | None:
    if module == "torch._C" and name in OF_CUDA_BUILDS and not torch.cuda.is_available():
        file, form = OF_CUDA_BUILDS[name]
        text = Path(torch.__file__).with_name(file.partition("/")[0]).joinpath(file.partition("/")[2]).read_text()
        return None if form.format(name) in text else f"is not in Torch's {file}"
    try:
        found = resolve(module, name)
    except AttributeError as error:
        return str(error)
    if count is not None and module == "cuda.bindings.driver" and NAME.fullmatch(name):
        wanted = taken(name, found)
        return None if count == wanted else f"takes {wanted} arguments and is given {count}"
    if count is not None and inspect.isfunction(found):
        try:
            inspect.signature(found).bind(*range(count))
        except TypeError as error:
            return None if "missing" in str(error) else str(error)
    return None


def test_the_source_is_read() -> None:
    names = {name for _, _, name, _ in USES}
    assert {"cuLaunchKernel", "cuLibraryLoadData", "cuStreamBeginCapture", "cuCtxGetDevice", "nvrtcVersion"} <= names
    assert {"CUresult.CUDA_SUCCESS", "is_current_stream_capturing", "_cuda_getDevice", "graph"} <= names
    assert len({name for _, module, name, _ in USES if module == "cuda.bindings.driver"}) > 35
    assert len({name for _, module, name, _ in USES if module == "torch.cuda"}) > 12


def test_the_check_sees_what_is_wrong() -> None:
    assert fault_of("cuda.bindings.driver", "cuStreamCreate", 1) is None
    assert fault_of("cuda.bindings.driver", "cuStreamCreate", 2) == "takes 1 arguments and is given 2"
    assert fault_of("cuda.bindings.driver", "cuLibraryLoadData", 7) is None
    assert "has no attribute" in str(fault_of("cuda.bindings.driver", "cuStreamCrate", 1))
    assert "has no attribute" in str(fault_of("torch.cuda", "Graph", None))
    assert "too many" in str(fault_of("torch.cuda", "synchronize", 3))


@pytest.mark.parametrize("module", sorted({module for _, module, _, _ in USES}))
def test_every_name_is_there_and_takes_as_much_as_it_is_given(module: str) -> None:
    found = {(place, name): fault_of(module, name, count) for place, where, name, count in USES if where == module}
    assert {key: fault for key, fault in found.items() if fault} == {}
