"""Tables and lines as HTML, for notebooks.  Whatever a pack, a model or a tool has named is escaped here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from layerport.errors import escaped


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Rows under their columns; nothing where there is no row."""
    body = "".join(f"<tr>{''.join(f'<td>{text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    head = "".join(f"<th>{text(name)}</th>" for name in columns)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" if body else ""


def line(value: object) -> str:
    """One paragraph; further lines of the text stay lines."""
    return f'<p style="white-space: pre-wrap; margin: 0">{text(value)}</p>'


def text(value: object) -> str:
    """A text as HTML shows it, None as nothing."""
    return "" if value is None else escape(escaped(str(value)))
