"""Which names of TensorRT our code uses, read from its source, and whether a flavour's bindings have them.

The bindings say what they have through `describe`, which runs beside them in a process of its own; signatures come from
the first lines that pybind11 puts into docstrings.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import layerport

SOURCE = Path(layerport.__file__).parent

# What an object is whose type the source does not say.  Keyed by the expression that stands before the dot.
EVERYWHERE = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "registry": "IPluginRegistry",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "runtime_config": "IRuntimeConfig",
}
# ... in one file, or in one function of it.
IN_FILE = {
    "engine/configuring.py": {"self._config": "IBuilderConfig", "self._cache": "ITimingCache"},
    "engine/engine_session.py": {"self._engine": "ICudaEngine", "self._runtime": "Runtime"},
    "engine/lanes.py": {"one.context": "IExecutionContext"},
    "engine/runtime_cache.py": {"cache": "IRuntimeCache", "self._cache": "IRuntimeCache"},
    "engine/plugin.py": {"builder": "IExprBuilder", "description": "PluginTensorDesc"},
    "engine/dim_expressions.py": {"builder": "IExprBuilder", "self._builder": "IExprBuilder"},
    "parameters/frameworks/tensorrt.py": {"weights": "Weights", "field": "PluginField"},
}
IN_FUNCTION = {
    ("engine/worker.py", "_parser_error"): {"error": "ParserError"},
    ("engine/worker.py", "_profile"): {"tensor": "ITensor"},
    ("engine/plugin.py", "supports_format_combination"): {"tensors[]": "DynamicPluginTensorDesc"},
    ("engine/plugin.py", "on_shape_change"): {"one": "PluginTensorDesc"},
    ("engine/plugin.py", "_create"): {"one": "PluginField", "found[]": "PluginField"},
}
# Parameters of type Any in the files above that are no objects of TensorRT.
OURS = {"self", "logger", "slot", "dtype", "array", "request", "value", "foreign", "data", "fields", "model", "writer"}


@dataclass(frozen=True)
class Use:
    """One use of a name: `owner` is a class of the bindings, "" the module itself.

    kind: "read", "write", or "call" with its arguments (positional None: more than the source shows).
    """

    place: str
    owner: str
    name: str
    kind: str
    positional: int | None = 0
    keywords: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        return f"{self.owner}.{self.name}" if self.owner else self.name


def adapter_files() -> list[Path]:
    """The files that speak to TensorRT."""
    files = [
        *sorted((SOURCE / "engine").glob("*.py")),
        *sorted((SOURCE / "parameters" / "frameworks").glob("tensorrt*.py")),
    ]
    return [path for path in files if any(getattr(node, "id", "") == "trt" for node in ast.walk(_tree(path)))] + [
        SOURCE / "engine" / "dim_expressions.py",
        SOURCE / "engine" / "runtime_cache.py",
    ]


def uses() -> list[Use]:
    """Every use of a name of TensorRT in our code."""
    return [use for path in adapter_files() for use in _uses_in(path)]


def undeclared() -> list[str]:
    """Parameters of type Any whose attributes are used, but of which the tables here do not say what they are."""
    found = []
    for path in adapter_files():
        file = path.relative_to(SOURCE).as_posix()
        if file not in IN_FILE and file != "engine/worker.py":
            continue
        for function, node in _functions(_tree(path)):
            known = {"trt", *OURS, *_table(file, function)}
            taken = {base for base, _ in _attributes(node)}
            found += [
                f"{file} {function}: {argument.arg}"
                for argument in node.args.args
                if isinstance(argument.annotation, ast.Name)
                and argument.annotation.id == "Any"
                and argument.arg in taken - known
            ]
    return found


def faults_of(use: Use, described: dict[str, Any]) -> str | None:
    """What is wrong with a use, by the bindings' description; None where nothing is."""
    members = described.get(use.owner, {})
    member = members.get(use.name)
    if member is None:
        return "is not there"
    if use.kind == "write":
        return None if member.get("settable") else "cannot be set"
    if use.kind == "read" or use.positional is None:
        return None
    if member["kind"] == "property":
        return "is no method"
    signatures = signatures_of(member["doc"] or "")
    if member["kind"] == "class":
        signatures = [one[1:] for one in signatures_of(described[use.name]["__init__"]["doc"])]
    elif use.owner and use.name != "__init__":
        signatures = [one[1:] for one in signatures]
    if not signatures:
        return "has no signature"
    if not any(_fits(use, one) for one in signatures):
        return f"is called with {use.positional} arguments and {list(use.keywords)}: {member['doc'][:200]}"
    return None


def _fits(use: Use, signature: list[tuple[str, bool]]) -> bool:
    assert use.positional is not None
    rest = signature[use.positional :]
    names = {name for name, _ in rest}
    needed = {name for name, required in rest if required}
    return use.positional <= len(signature) and needed <= set(use.keywords) <= names


def signatures_of(doc: str) -> list[list[tuple[str, bool]]]:
    """The overloads in a docstring of pybind11: the parameters, `self` too, and whether each must be given."""
    found = []
    for line in doc.splitlines():
        match = re.match(r"(?:\d+\. )?\w+\((.*)\) -> ", line.strip())
        if match and not match[1].startswith("*args"):
            found.append([_parameter(text) for text in _split(match[1]) if text not in ("*", "/")])
    return found


def _parameter(text: str) -> tuple[str, bool]:
    return text.partition(":")[0].strip(), "=" not in text


def _split(text: str) -> list[str]:
    parts, depth = [""], 0
    for letter in text:
        depth += letter in "([{<"
        depth -= letter in ")]}>"
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


BASE = "plugin_base(trt)"  # what makes our own base class


@dataclass(frozen=True)
class Derived:
    """A class of ours on classes of TensorRT: its methods with their numbers of parameters, and what it sets."""

    place: str
    bases: tuple[str, ...]
    methods: dict[str, int]
    attributes: frozenset[str]


def derived() -> list[Derived]:
    """Every class of ours that derives from one of TensorRT's."""
    found = []
    for path in adapter_files():
        for node in ast.walk(_tree(path)):
            if not isinstance(node, ast.ClassDef):
                continue
            bases = tuple(text[4:] for base in node.bases if (text := _text(base)).startswith("trt."))
            inherited = [
                one for one in found if BASE in map(ast.unparse, node.bases) and one.place.endswith("SpecPlugin")
            ]
            bases += tuple(base for one in inherited for base in one.bases)
            if bases:
                methods = [one for one in node.body if isinstance(one, ast.FunctionDef)]
                stored = {
                    part.attr
                    for part in ast.walk(node)
                    if isinstance(part, ast.Attribute)
                    and isinstance(part.ctx, ast.Store)
                    and _text(part.value) == "self"
                }
                found.append(
                    Derived(
                        f"{path.relative_to(SOURCE).as_posix()} {node.name}",
                        bases,
                        {name: count for one in inherited for name, count in one.methods.items()}
                        | {one.name: len(one.args.args) for one in methods if not one.name.startswith("_")},
                        frozenset(name for name in stored if not name.startswith("_")).union(
                            *(one.attributes for one in inherited)
                        ),
                    )
                )
    return found


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def _functions(tree: ast.AST) -> Iterator[tuple[str, ast.FunctionDef]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            yield node.name, node


def _table(file: str, function: str) -> dict[str, str]:
    return {**EVERYWHERE, **IN_FILE.get(file, {}), **IN_FUNCTION.get((file, function), {})}


def _uses_in(path: Path) -> Iterator[Use]:
    tree, file = _tree(path), path.relative_to(SOURCE).as_posix()
    inside = {id(part): name for name, node in _functions(tree) for part in ast.walk(node)}  # the innermost is last
    calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for base, node in _attributes(tree):
        table = _table(file, inside.get(id(node), ""))
        if base == "trt" or base.startswith("trt."):
            owner = base[4:]
        elif base in table:
            owner = table[base]
        else:
            continue
        place, call = f"{file}:{node.lineno}", calls.get(id(node))
        if call is None:
            yield Use(place, owner, node.attr, "write" if isinstance(node.ctx, ast.Store) else "read")
            continue
        starred = any(isinstance(one, ast.Starred) for one in call.args) or any(
            one.arg is None for one in call.keywords
        )
        keywords = tuple(one.arg for one in call.keywords if one.arg is not None)
        yield Use(place, owner, node.attr, "call", None if starred else len(call.args), keywords)


def _attributes(tree: ast.AST) -> Iterator[tuple[str, ast.Attribute]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield _text(node.value), node


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_text(node.value)}.{node.attr}"
    if isinstance(node, ast.Subscript):
        return f"{_text(node.value)}[]"
    return "?"


def describe(module: Any) -> str:
    """What bindings have, as JSON: for each class, and "" for the module, the members."""

    def member(value: Any) -> dict[str, Any]:
        if isinstance(value, property):
            return {"kind": "property", "settable": value.fset is not None}
        if isinstance(value, type):
            return {"kind": "class", "doc": value.__doc__}
        return {"kind": "method" if callable(value) else "value", "doc": value.__doc__ if callable(value) else None}

    found = {"": {name: member(value) for name, value in vars(module).items()}}
    for name, kind in vars(module).items():
        if isinstance(kind, type):
            found[name] = {inner: member(getattr(kind, inner, None)) for inner in dir(kind)}
    return json.dumps(found)
