"""Prints the answers of commands: a rich table on a terminal, aligned text elsewhere, JSON for programs.

Every command may use this file; it imports rich only on a terminal.  In a notebook the same goes into a page.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, TextIO

from layerport.errors import escaped
from layerport.system import html

_page: ContextVar[list[str] | None] = ContextVar("page", default=None)


def as_html(render: Callable[[Any], None], record: Any) -> str:
    """What a command prints of its answer, as HTML: `_repr_html_` of the answer."""
    parts: list[str] = []
    token = _page.set(parts)
    try:
        render(record)
    finally:
        _page.reset(token)
    return "".join(parts)


def print_json(data: Any, *, file: TextIO | None = None) -> None:
    """Print `data` as JSON to stdout, and nothing else."""
    # JSON escapes all but one of the characters that steer a terminal.
    print(json.dumps(data, indent=2).replace("\x7f", "\\u007f"), file=file or sys.stdout)


def say(text: str, *, file: TextIO | None = None) -> None:
    """Print a line; further lines in a message are indented, so that none of them looks like one of ours."""
    if (page := _page.get()) is not None:
        page.append(html.line(text))
        return
    print(escaped(text).replace("\n", "\n  "), file=file or sys.stdout, flush=file is sys.stderr)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, file: TextIO | None = None) -> None:
    """Print rows of text under their columns; nothing in a cell is read as markup."""
    if (page := _page.get()) is not None:
        page.append(html.table(columns, rows))
        return
    file = file or sys.stdout
    # A pack or a bundle must not be able to steer the terminal, nor to begin a row.
    cells = [[escaped(cell).replace("\n", r"\n") for cell in row] for row in rows]
    if not (file.isatty() and _print_rich(columns, cells, file)):
        for line in plain_table(columns, cells):
            print(line, file=file)


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of an aligned table, two spaces between columns and none at the end of a line."""
    table = [list(columns), *(list(row) for row in rows)]
    widths = [max(len(row[index]) for row in table) for index in range(len(columns))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


def _print_rich(columns: Sequence[str], rows: Sequence[Sequence[str]], file: TextIO) -> bool:
    try:
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return False
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console(file=file).print(table)
    return True
