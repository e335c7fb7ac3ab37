"""The rooms of the core: who imports whom, drawn on the architecture page, and the one device for late imports."""

from __future__ import annotations

import ast
import graphlib
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "architecture.md"
SOURCE = ROOT / "core" / "src" / "layerport"
# Public import paths over the rooms, and what stands beside them.
FACADES = {"authoring", "conversion", "transforms", "testing"}
MOST_AT_THE_TOP = 12
MOST_WITHIN_FUNCTIONS = 15


class Import(NamedTuple):
    """An import of one of our own modules.  within: whether it stands in a function."""

    source: str
    target: str
    line: int
    within: bool


@cache
def modules() -> dict[str, Path]:
    """Every module of the core by its dotted name."""
    found = {}
    for path in SOURCE.rglob("*.py"):
        parts = ["layerport", *path.relative_to(SOURCE).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports() -> tuple[Import, ...]:
    """Every import of our own modules, those for type checkers and those within functions too."""
    return tuple(one for name, path in modules().items() for one in _in(ast.parse(path.read_text()), name, False))


def _in(node: ast.AST, module: str, within: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            targets = [alias.name for alias in child.names]
        elif isinstance(child, ast.ImportFrom) and child.module:
            whole = [f"{child.module}.{alias.name}" for alias in child.names]
            targets = [one if one in modules() else child.module for one in whole]
        else:
            yield from _in(child, module, within or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)))
            continue
        for target in dict.fromkeys(targets):
            if target.split(".")[0] == "layerport":
                yield Import(module, target, child.lineno, within)


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


@cache
def order() -> list[str]:
    """The rooms from the roof to the ground, as the layers contract has them."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (one["layers"] for one in contracts if one["type"] == "layers")
    return [name.removeprefix("layerport.") for name in layers]


def picture() -> str:
    """Each room and those below it that it imports."""
    edges = {(room(one.source), room(one.target)) for one in imports()}
    width = max(map(len, order()))
    return "\n".join(
        f"{name:<{width}}  {', '.join(other for other in order() if other != name and (name, other) in edges)}".rstrip()
        for name in order()
    )


def test_every_room_has_its_place() -> None:
    assert {room(name) for name in modules()} - {""} == {*order(), *FACADES}


def test_no_room_imports_a_higher_one_not_even_for_its_types() -> None:
    place = {name: number for number, name in enumerate(order())}
    upwards = [
        one
        for one in imports()
        if {room(one.source), room(one.target)} <= place.keys() and place[room(one.target)] < place[room(one.source)]
    ]
    assert upwards == []


def test_the_picture_on_the_page_is_what_the_imports_say() -> None:
    drawn = re.search(r"## The rooms\n.*?```text\n(.*?)```", PAGE.read_text(), re.S)
    assert drawn is not None and drawn[1].strip() == picture().strip(), f"write this:\n{picture()}"


def test_imports_within_functions_are_few() -> None:
    # Two processes that must load things in an order of their own, and a command of the command line that needs a file
    # that stands beside the rooms; all else goes through `late`.
    hidden = sorted({(one.source, one.line) for one in imports() if one.within})
    assert len(hidden) <= MOST_WITHIN_FUNCTIONS, hidden
    assert {module for module, _ in hidden} == {
        "layerport.cli",
        "layerport.engine.worker",
        "layerport.packs.trial_child",
    }


def test_the_top_of_the_package_is_small() -> None:
    top = [path for path in SOURCE.iterdir() if path.suffix == ".py"]
    assert len(top) <= MOST_AT_THE_TOP


@cache
def late_names() -> dict[tuple[str, str], str]:
    """What each module names in full, to be loaded when it is first used: (module, named module) and its room."""
    rooms = {name for name, path in modules().items() if path.name == "__init__.py" and name != "layerport"}
    late = re.compile(rf"\b(({'|'.join(sorted(map(re.escape, rooms), key=len, reverse=True))})\.([a-z_]+))\b")
    found = {}
    for name, path in modules().items():
        text = re.sub(r'""".*?"""|"[^"\n]*"|^[ \t]*(?:from|import) [^\n]*$', "", path.read_text(), flags=re.S | re.M)
        found |= {(name, whole): owner for whole, owner, _ in late.findall(text) if whole in modules()}
    return {pair: owner for pair, owner in found.items() if pair[1] not in rooms}


def test_what_is_loaded_late_is_named_in_its_room() -> None:
    # A type checker knows only what the room's file names; a name that is missing there would not be checked.
    for (name, whole), owner in late_names().items():
        part = whole.rpartition(".")[2]
        assert f"import {part} as {part}" in modules()[owner].read_text(), f"{name} names {whole}"


def test_no_module_needs_itself() -> None:
    """Within a room too, and late: a cycle is a thing that is in pieces, or two that know too much of each other."""
    needs: dict[str, set[str]] = {name: set() for name in modules()}
    parts = {name for name, path in modules().items() if path.name != "__init__.py"}
    for source, target in [*((one.source, one.target) for one in imports()), *late_names()]:
        if {source, target} <= parts:
            needs[source].add(target)
    tuple(graphlib.TopologicalSorter(needs).static_order())


def test_the_journeys_name_what_is_there() -> None:
    part = PAGE.read_text().split("## Four journeys")[1].split("\n## ")[0]
    named = re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)(?:\.([A-Z]\w+))?(?:\.([a-z_]\w*))?`", part)
    assert len(named) > 12
    for path, kind, member in named:
        module, last = f"layerport.{path}", ""
        if module not in modules():
            module, _, last = module.rpartition(".")
        assert module in modules(), path
        text = modules()[module].read_text()
        for name in filter(None, (kind, member, last)):
            assert re.search(rf"^\s*(?:class|def) {name}\b", text, re.M), f"{path}: {name}"


def test_tests_lie_in_folders_named_as_the_rooms() -> None:
    rooms = {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    folders = {path.parent.name for path in (ROOT / "tests" / "core").glob("*/test_*.py")}
    assert folders == {room for room in rooms if any((SOURCE / room).glob("[!_]*.py"))}
