"""Lists every error that layerport raises on purpose, from the code: `python docs/list_errors.py`.

The site shows the list below `errors.md`; it stands in no file, so that it cannot fall behind.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import layerport
from layerport import errors

KINDS = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)}
PARTS = {
    "Building a model": ("building", "commands", "front", "search", "sizes", "checks", "targets", "dtypes"),
    "Layers and their parameters": ("layers", "parameters", "authoring"),
    "Kernels": ("kernels", "harness"),
    "Packs": ("packs", "testing", "foreign"),
    "Bundles and engines": ("bundle", "session", "engine", "system"),
}


@dataclass(frozen=True, order=True)
class Listed:
    """One error: its texts with … for the values, its class, and the room of the code that raises it."""

    fault: str
    repair: str
    kind: str
    room: str


def listed() -> list[Listed]:
    """All of them, each once, in the order of their texts.  An error that is raised again with more context is not."""
    root = Path(layerport.__file__).parent
    trees = {file: ast.parse(file.read_text(encoding="utf-8")) for file in sorted(root.rglob("*.py"))}
    everywhere = _texts(node for tree in trees.values() for node in tree.body)
    found = set()
    for file, tree in trees.items():
        room = file.relative_to(root).parts[0].removesuffix(".py")
        imported = {one.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for one in node.names}
        others = {name: said for name, said in everywhere.items() if name in imported or name.isupper()}
        here = others | _texts(tree.body)
        for function in _functions(tree):
            known = here | _texts(ast.walk(function)) if function is not tree else here
            for call in _calls(function):
                fault = _text(call.args[0]) if call.args else ""
                given = [*call.args[1:2], *(one.value for one in call.keywords if one.arg == "repair")]
                if fault.strip("… :"):
                    found.add(Listed(fault, _text(given[0], known) if given else "", _name(call.func), room))
    return sorted(found, key=lambda one: (one.fault.lstrip("… ").lower(), one))


def page() -> str:
    """The list as Markdown."""
    everything = listed()
    lines = []
    for part, rooms in PARTS.items():
        lines += ["", f"## {part}", "", "| error | to repair | exit code |", "|---|---|---|"]
        for one in everything:
            if one.room in rooms:
                lines.append(f"| {_cell(one.fault)} | {_cell(one.repair)} | {KINDS[one.kind].exit_code} |")
    return "\n".join(lines) + "\n"


def _functions(tree: ast.Module) -> Iterator[ast.AST]:
    """The outermost functions of a file, methods too, and the file itself for what stands in none."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef):
            yield node
        else:
            waiting += ast.iter_child_nodes(node)
    yield tree


def _calls(inside: ast.AST) -> Iterator[ast.Call]:
    """The errors made in a function; of a whole file those that are made in none."""
    waiting = list(ast.iter_child_nodes(inside))
    while waiting:
        node = waiting.pop()
        if isinstance(inside, ast.Module) and isinstance(node, ast.FunctionDef):
            continue
        is_ours = isinstance(node, ast.Call) and not ast.unparse(node.func).startswith("pytest.")
        if is_ours and isinstance(node, ast.Call) and _name(node.func) in KINDS:
            yield node
        waiting += ast.iter_child_nodes(node)


def _name(function: ast.expr) -> str:
    return getattr(function, "id", getattr(function, "attr", ""))


def _texts(nodes: Iterable[ast.AST]) -> dict[str, list[ast.expr]]:
    """What names stand for: the values assigned to them, or what a function of that name returns."""
    found: dict[str, list[ast.expr]] = {}
    for node in nodes:
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.NamedExpr) and node.value is not None:
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                for one, value in _pairs(target, node.value):
                    if not any(isinstance(part, ast.Name) and part.id == one.id for part in ast.walk(value)):
                        found.setdefault(one.id, []).append(value)
        elif isinstance(node, ast.FunctionDef):
            returned = [one.value for one in ast.walk(node) if isinstance(one, ast.Return) and one.value is not None]
            found.setdefault(node.name, []).extend(returned)
        elif isinstance(node, ast.ClassDef):
            for name, values in _texts(node.body).items():
                found.setdefault(name, []).extend(values)
    return found


def _pairs(target: ast.expr, value: ast.expr) -> Iterator[tuple[ast.Name, ast.expr]]:
    if isinstance(target, ast.Name):
        yield target, value
    elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        for one, other in zip(target.elts, value.elts, strict=True):
            yield from _pairs(one, other)


def _text(node: ast.expr, known: Mapping[str, list[ast.expr]] | None = None, depth: int = 3) -> str:
    """What a text says, with … for what is put in; known: what names stand for.  Of several texts all, with " / "."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) if isinstance(part, ast.Constant) else "…" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left, known, depth) + _text(node.right, known, depth)
    if isinstance(node, ast.Attribute) and node.attr == "repair":
        return "what the error says that it holds"
    choices: list[ast.expr] = []
    if isinstance(node, ast.IfExp):
        choices = [node.body, node.orelse]
    elif isinstance(node, ast.BoolOp):
        choices = node.values
    elif known is not None and depth:
        choices, depth = known.get(_name(node.func if isinstance(node, ast.Call) else node), []), depth - 1
    texts = dict.fromkeys(_text(one, known, depth) for one in choices)
    return " / ".join(text for text in texts if text.strip("… :")) or "…"


def _cell(text: str) -> str:
    plain = " ".join(text.split()).replace("|", "\\|").replace("`", "'")
    return f"`{plain}`" if plain.strip("…") else ""


if __name__ == "__main__":
    print(page(), end="")
