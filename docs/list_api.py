"""Writes out every public name with its signature and docstring, from the code: `python docs/list_api.py`.

The site shows it below `api.md`; it stands in no file, so that it cannot fall behind.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from enum import Enum
from functools import cached_property
from typing import Any

import layerport as lp
import layerport.conversion
import layerport.testing
import layerport.transforms
from layerport.packs import hookspecs

MODULES = {
    "Layers, builds and sessions": (lp, "lp"),
    "layerport.conversion": (layerport.conversion, "layerport.conversion"),
    "layerport.testing": (layerport.testing, "layerport.testing"),
    "layerport.transforms": (layerport.transforms, "layerport.transforms"),
}
WIDTH = 100


def page() -> str:
    """All of it as Markdown."""
    lines = []
    for title, (module, prefix) in MODULES.items():
        lines += ["", f"## {title}"]
        for name in module.__all__:
            lines += ["", f"### {prefix}.{name}", "", *_entry(name, getattr(module, name))]
            lines += [line for label, member in members(getattr(module, name)) for line in ("", *_entry(label, member))]
    lines += ["", "## Hooks"]
    for name in hookspecs.HOOKS:
        lines += ["", f"### {name}", "", *_entry(name, getattr(hookspecs, name))]
    return "\n".join(lines) + "\n"


def anchors() -> Iterator[tuple[str, str]]:
    """Of each name of `layerport` its heading and anchor; of two that differ in case the second anchor is numbered."""
    seen = set()
    for name in lp.__all__:
        anchor = f"lp{name.lower()}"
        yield f"lp.{name}", f"{anchor}-1" if anchor in seen else anchor
        seen.add(anchor)


def members(thing: object) -> Iterator[tuple[str, Any]]:
    """The public methods and properties of a class, as `Class.name`, those of its bases in layerport with them."""
    seen = set()
    for base in thing.__mro__ if inspect.isclass(thing) else ():
        for name, value in vars(base).items() if base.__module__.startswith("layerport") else ():
            function = getattr(value, "__func__", value)
            is_property = isinstance(value, property | cached_property)
            if not name.startswith("_") and name not in seen and (inspect.isfunction(function) or is_property):
                seen.add(name)
                yield f"{thing.__name__}.{name}", value


def _entry(label: str, thing: Any) -> list[str]:
    """The signature of something as code, and its docstring as Markdown."""
    if isinstance(thing, property | cached_property):
        getter = thing.fget if isinstance(thing, property) else thing.func
        shown = f"{label}: {_plain(inspect.signature(getter).return_annotation)}"
        return ["```python", shown, "```", "", *_markdown(inspect.getdoc(getter) or "", ())]
    thing = getattr(thing, "__func__", thing)
    names: tuple[str, ...] = ()
    if inspect.isclass(thing) and issubclass(thing, Enum):
        shown = f"{label}: " + ", ".join(member.name for member in thing)
        shown = "\n".join(textwrap.wrap(shown, WIDTH, subsequent_indent="    "))
    elif inspect.isclass(thing) or inspect.isfunction(thing):
        signature = inspect.signature(thing)
        names = tuple(signature.parameters)
        shown = _call(label, signature)
    else:
        shown = f"@{label}"
    return ["```python", shown, "```", "", *_markdown(inspect.getdoc(thing) or "", names)]


def _call(label: str, signature: inspect.Signature) -> str:
    """A signature in one line, or with a line for each argument where that is too long."""
    parts = []
    marker = False
    for parameter in signature.parameters.values():
        if parameter.name in ("self", "cls"):
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not marker:
            parts.append("*")
        marker = marker or parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL)
        stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        text = stars + parameter.name
        if parameter.annotation is not parameter.empty:
            text += f": {_plain(parameter.annotation)}"
        if parameter.default is not parameter.empty:
            text += f" = {_default(parameter.default)}"
        parts.append(text)
    result = _plain(signature.return_annotation)
    end = ")" if result in ("", "None") else f") -> {result}"
    line = f"{label}({', '.join(parts)}{end}"
    return line if len(line) <= WIDTH else "\n".join([f"{label}(", *(f"    {part}," for part in parts), end])


def _plain(annotation: Any) -> str:
    """An annotation as it is written."""
    if annotation is inspect.Signature.empty:
        return ""
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _default(value: object) -> str:
    """A default as code; what has an address in its text is left out."""
    text = repr(value)
    return "..." if text.startswith("<") else text


def _markdown(docstring: str, names: tuple[str, ...]) -> list[str]:
    """A docstring with its descriptions of arguments (`name: ...`) as a list, and its example as code."""
    lines: list[str] = []
    text, _, example = docstring.partition("\n\nExample::\n")
    one = "|".join(map(re.escape, names)) or r"(?!)"
    described = re.compile(rf"(?:(?<=\.)\s+|^)((?:{one})(?:, (?:{one}))*): ", re.MULTILINE)
    for paragraph in text.split("\n\n"):
        if paragraph.startswith("    "):
            lines += ["```text", textwrap.dedent(paragraph), "```", ""]
            continue
        first, *rest = described.split(paragraph)
        if first.strip():
            lines += [_escaped(first), ""]
        lines += [f"- **{label}**: {_escaped(said)}" for label, said in zip(rest[::2], rest[1::2], strict=True)]
        lines += [""] if rest else []
    if example:
        lines += ["```python", textwrap.dedent(example).strip("\n"), "```"]
    return lines


def _escaped(text: str) -> str:
    """Text on one line, with what Markdown would take as its own escaped, but for code."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    return "".join(part if part.startswith("`") else re.sub(r"([*_<>\[\]|\\#])", r"\\\1", part) for part in parts)


if __name__ == "__main__":
    print(page(), end="")
