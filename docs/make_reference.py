"""Writes reference.md from the docstrings and the command line: `python docs/make_reference.py`.

A test compares the page with what this prints, so it cannot fall behind.
"""

from __future__ import annotations

import inspect
import pkgutil
from pathlib import Path

import click

import layerport as lp
import layerport.conversion
import layerport.testing
import layerport.transforms
from layerport.cli import main
from layerport.packs import hookspecs

MODULES = (layerport.conversion, layerport.testing, layerport.transforms)
PAGE = Path(__file__).with_name("reference.md")


def not_api() -> list[str]:
    """The modules and rooms at the top of the package that are not public."""
    public = {module.__name__ for module in MODULES}
    names = sorted(f"layerport.{one.name}" for one in pkgutil.iter_modules(lp.__path__))
    return [name for name in names if name not in public]


def page() -> str:
    """The whole page."""
    lines = [
        "# Reference",
        "",
        "Made by `docs/make_reference.py` from the docstrings and the command line; do not edit it by hand.",
        "",
        "## Python",
        "",
        "`import layerport as lp` loads no framework; each name is imported when it is first used.",
        "",
        "| name | what it is |",
        "|---|---|",
    ]
    for name in lp.__all__:
        lines.append(f"| `lp.{name}` | {_first_sentence(getattr(lp, name))} |")
    for module in MODULES:
        names = ", ".join(f"`{name}`" for name in module.__all__)
        lines += ["", f"`{module.__name__}`: {names}.  {_first_sentence(module)}"]
    others = ", ".join(f"`{name}`" for name in not_api())
    lines += [
        "",
        f"All else is no API, whether or not its name begins with `_`, and may change in any version: {others}, and "
        "whatever is in them but the names above.",
    ]
    lines += ["", "## Hooks", "", "| hook | what it answers |", "|---|---|"]
    for name, arguments in hookspecs.HOOKS.items():
        lines.append(f"| `{name}({', '.join(arguments)})` | {_first_sentence(getattr(hookspecs, name))} |")
    lines += ["", "## Commands"]
    for name, command in sorted(main.commands.items()):
        arguments = [param.human_readable_name for param in command.params if isinstance(param, click.Argument)]
        usage = " ".join(["layerport", name, *arguments])
        lines += ["", f"| `{usage}` | {_cell(command.get_short_help_str(200))} |", "|---|---|"]
        for param in command.params:
            if isinstance(param, click.Option):
                flags = ", ".join(f"`{flag}`" for flag in param.opts)
                value = "" if param.is_flag else f" {param.metavar or param.type.name.upper()}"
                lines.append(f"| {_cell(flags + value)} | {_cell(param.help or '')} |")
    return "\n".join(lines) + "\n"


def _first_sentence(thing: object) -> str:
    text = (inspect.getdoc(thing) or "").split("\n\n")[0].replace("\n", " ")
    return _cell(text.split(".  ")[0].rstrip(".") + ".")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page())
