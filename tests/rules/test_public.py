"""What is public: the names of `layerport`, its public modules, and the page that lists them and nothing else."""

from __future__ import annotations

import ast
import inspect
import pkgutil
import re
import runpy
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import layerport as lp
import layerport.conversion
import layerport.testing
import layerport.transforms

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "core" / "src" / "layerport"
PAGE = (ROOT / "docs" / "reference.md").read_text()
MODULES = (layerport.conversion, layerport.testing, layerport.transforms)
# Public as a whole; a pack gets and hands them on, and what is in them is the core's.
OPAQUE = {"Derivation", "LaunchRule", "Signature"}


def test_the_page_lists_the_public_names_and_no_other() -> None:
    assert re.findall(r"^\| `lp\.(\w+)` \|", PAGE, re.M) == lp.__all__ == sorted(lp.__all__)
    for module in MODULES:
        (line,) = re.findall(rf"^`{re.escape(module.__name__)}`: (.*?)\.  ", PAGE, re.M)
        assert re.findall(r"`(\w+)`", line) == list(module.__all__)


def test_each_public_name_is_there_and_says_what_it_is() -> None:
    for name in lp.__all__:
        assert getattr(lp, name).__doc__, name
    assert set(lp.__all__) <= set(dir(lp))


def test_so_does_each_public_method_and_property() -> None:
    members = runpy.run_path(str(ROOT / "docs" / "list_api.py"))["members"]
    public = [getattr(module, name) for module in (lp, *MODULES) for name in module.__all__]
    found = {label: member for one in public for label, member in members(one)}
    assert len(found) > 100
    assert [label for label, member in found.items() if not inspect.getdoc(member)] == []


def test_every_other_module_is_said_to_be_no_api() -> None:
    (line,) = re.findall(r"^All else is no API, (.*)$", PAGE, re.M)
    there = {f"layerport.{one.name}" for one in pkgutil.iter_modules(lp.__path__) if not one.name.startswith("_")}
    assert set(re.findall(r"`(layerport\.\w+)`", line)) == there - {module.__name__ for module in MODULES}


@cache
def trees() -> tuple[ast.Module, ...]:
    return tuple(ast.parse(path.read_text()) for path in SOURCE.rglob("*.py"))


def definitions() -> dict[str, list[ast.AST]]:
    """Each class, and the value of each alias of a type, by name."""
    found: dict[str, list[ast.AST]] = {}
    for tree in trees():
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(node)
            elif isinstance(node, ast.AnnAssign) and node.value and "TypeAlias" in ast.unparse(node.annotation):
                found.setdefault(ast.unparse(node.target), []).append(node.value)
    return found


def met(node: ast.AST) -> Iterator[str]:
    """The names in the types of a function, of the public fields and properties of a class, or of an alias."""
    if isinstance(node, ast.FunctionDef):
        arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
        for one in (*(argument.annotation for argument in arguments), node.returns):
            yield from re.findall(r"[A-Za-z_]\w*", ast.unparse(one)) if one is not None else ()
    elif isinstance(node, ast.ClassDef):
        for part in node.body:
            if isinstance(part, ast.AnnAssign) and "ClassVar" in ast.unparse(part.annotation):
                continue
            if isinstance(part, ast.AnnAssign) and not ast.unparse(part.target).startswith("_"):
                yield from re.findall(r"[A-Za-z_]\w*", ast.unparse(part.annotation))
            elif isinstance(part, ast.FunctionDef) and not part.name.startswith("_"):
                yield from met(part)
    else:
        yield from re.findall(r"[A-Za-z_]\w*", ast.unparse(node))


def test_every_type_that_a_pack_meets_in_a_hook_is_public() -> None:
    known = definitions()
    (hooks,) = (tree for tree in trees() if "layerport_layers" in {getattr(one, "name", "") for one in tree.body})
    left = {name for one in hooks.body if isinstance(one, ast.FunctionDef) for name in met(one)}
    seen: set[str] = set()
    while left:
        name = left.pop()
        if name in known and name not in seen:
            seen.add(name)
            left.update(other for node in known[name] for other in met(node) if name not in OPAQUE)
    classes = {name for name in seen if any(isinstance(node, ast.ClassDef) for node in known[name])}
    # Two rooms have a record of a candidate; the one of the hooks is an alias.
    assert {"KernelCode", "Rewrite", "TorchTarget", "Place"} <= classes
    private = classes - set(lp.__all__) - set(layerport.conversion.__all__) - {"Candidate"}
    assert private == set()


def test_packs_implement_hooks_and_declare_none() -> None:
    assert "hookimpl" in lp.__all__ and not hasattr(lp, "hookspec")
