"""Writes reference.md from the docstrings and the command line: `python docs/make_reference.py`.

A test compares the page with what this prints, so it cannot fall behind.
"""

from __future__ import annotations

import inspect
from pathlib import Path

import click

import layerport as lp
from layerport.cli import main
from layerport.packs import hookspecs

PAGE = Path(__file__).with_name("reference.md")


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
    lines += ["", "## Hooks", "", "| hook | what it answers |", "|---|---|"]
    for name, arguments in hookspecs.HOOKS.items():
        lines.append(f"| `{name}({', '.join(arguments)})` | {_first_sentence(getattr(hookspecs, name))} |")
    lines += ["", "## Commands"]
    for name, command in sorted(main.commands.items()):
        arguments = [param.human_readable_name for param in command.params if isinstance(param, click.Argument)]
        lines += ["", f"### `{' '.join(['layerport', name, *arguments])}`", "", command.get_short_help_str(200), ""]
        lines += ["| option | what it does |", "|---|---|"]
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
