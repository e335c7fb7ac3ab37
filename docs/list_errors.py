"""Lists every error that layerport raises on purpose, from the code: `python docs/list_errors.py`.

The site shows the list below `errors.md`; it stands in no file, so that it cannot fall behind.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
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
    found = set()
    for file in sorted(root.rglob("*.py")):
        room = file.relative_to(root).parts[0].removesuffix(".py")
        for call in _calls(ast.parse(file.read_text(encoding="utf-8"))):
            fault = _text(call.args[0]) if call.args else ""
            given = [*call.args[1:2], *(one.value for one in call.keywords if one.arg == "repair")]
            if fault.strip("… :"):
                found.add(Listed(fault, _text(given[0]) if given else "", _name(call.func), room))
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


def _calls(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call) and _name(node.func) in KINDS)


def _name(function: ast.expr) -> str:
    return getattr(function, "id", getattr(function, "attr", ""))


def _text(node: ast.expr) -> str:
    """What a text says, with … for what is put in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) if isinstance(part, ast.Constant) else "…" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    return "…"


def _cell(text: str) -> str:
    plain = " ".join(text.split()).replace("|", "\\|").replace("`", "'")
    return f"`{plain}`" if plain.strip("…") else ""


if __name__ == "__main__":
    print(page(), end="")
