"""Private names of other libraries stand in `foreign` alone, a file for each library."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = ("layerport", "layerport_builtin_layers")
SOURCES = (ROOT / "core" / "src" / "layerport", ROOT / "builtin_layers" / "src" / "layerport_builtin_layers")
# Documented, for all their underscore.
DOCUMENTED = {"_asdict", "_replace", "_fields", "_exit", "_thread"}
HALF_PRIVATE = re.compile(r"(torch\.fx\.experimental|torch\._[a-zA-Z]\w*|triton\._C|triton\.runtime\.interpreter)\b")
LIBRARIES = "torch|triton|onnx|onnxruntime|onnxscript|onnx_ir|pluggy|numpy"
WRITTEN_OUT = re.compile(rf"({LIBRARIES})(\.\w+)*\.(_[a-zA-Z]\w*|experimental)(\.\w+)*")


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in DOCUMENTED


def own_attributes(tree: ast.AST) -> Iterator[str]:
    """The private attributes that classes define: methods, fields, and what is assigned to `self`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for one in node.body:
                if isinstance(one, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    yield one.name
                elif isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name):
                    yield one.target.id
                elif isinstance(one, ast.Assign):
                    yield from (target.id for target in one.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node.value):
            yield node.attr


def is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def foreign_imports(tree: ast.AST) -> Iterator[tuple[int, str, str]]:
    """Line, the name in the file and the whole path of what is imported of others."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            named = [(alias.asname or alias.name.split(".")[0], alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.module != "__future__":
            named = [(alias.asname or alias.name, f"{node.module}.{alias.name}") for alias in node.names]
        else:
            continue
        yield from ((node.lineno, name, path) for name, path in named if path.split(".")[0] not in OURS)


def faults(text: str, own: frozenset[str]) -> list[str]:
    """The private names of others in a file.  own: the private attributes of our own classes."""
    tree = ast.parse(text)
    found = []
    roots = set()
    for line, name, path in foreign_imports(tree):
        roots.add(name)
        if any(map(private, path.split("."))) or HALF_PRIVATE.match(path):
            found.append(f"{line}: import of {path}")
    documentation = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            whole = ast.unparse(node)
            is_foreign = whole.split(".")[0] in roots
            if (private(node.attr) and not is_self(node.value) and (is_foreign or node.attr not in own)) or (
                is_foreign and HALF_PRIVATE.fullmatch(whole)
            ):
                found.append(f"{node.lineno}: {whole}")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in ("getattr", "hasattr", "setattr", "delattr") and len(node.args) > 1:
                name = node.args[1]
                if isinstance(name, ast.Constant) and private(str(name.value)) and name.value not in own:
                    found.append(f"{node.lineno}: {ast.unparse(node)}")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            found += [f"{node.lineno}: {node.value!r}"] if WRITTEN_OUT.fullmatch(node.value) else []
    return found


def files() -> list[Path]:
    return [path for source in SOURCES for path in sorted(source.rglob("*.py")) if path.parent.name != "foreign"]


def test_no_other_file_names_what_is_private_of_others() -> None:
    trees = [ast.parse(path.read_text()) for path in files()]
    own = frozenset(name for tree in trees for name in own_attributes(tree) if private(name))
    found = [f"{path.relative_to(ROOT)}:{fault}" for path in files() for fault in faults(path.read_text(), own)]
    assert found == []


def test_a_file_of_foreign_names_one_library() -> None:
    for path in (SOURCES[0] / "foreign").glob("*_private.py"):
        library = path.stem.removesuffix("_private")
        named = {one[2].split(".")[0] for one in foreign_imports(ast.parse(path.read_text()))}
        others = named - set(sys.stdlib_module_names) - {"importlib", library}
        assert others == set(), path.name


@pytest.mark.parametrize(
    "line",
    [
        "import torch._dynamo",
        "from torch._subclasses import FakeTensorMode",
        "from torch.fx.experimental.symbolic_shapes import ShapeEnv",
        "from torch.utils import _pytree as pytree",
        "from triton.runtime.interpreter import TensorHandle",
        "import torch\ntorch._C.DispatchKeySet",
        "import torch\ntorch.fx.experimental",
        "def run(tensor): return tensor._version",
        "def run(operator): return getattr(operator, '_schema', None)",
        "import pluggy\ndef run(manager: pluggy.PluginManager): return manager._hookexec",
        "def run(): return find('torch._C._functorch')",
    ],
)
def test_the_rule_sees_it(line: str) -> None:
    assert faults(line, frozenset({"_own"})) != []


@pytest.mark.parametrize(
    "line",
    [
        '"""Of torch._C."""',
        "def run(layer): return layer._own",
        "class A:\n    def run(self): return self._anything",
        "import os\nos._exit(1)",
        "def run(row): return row._asdict()",
        "from layerport.layers import _own",
    ],
)
def test_the_rule_lets_it_pass(line: str) -> None:
    assert faults(line, frozenset({"_own"})) == []
