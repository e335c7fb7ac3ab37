"""What objects of other people's making say about themselves, as text that can neither fail nor steer a terminal.

A pack's exception or answer may raise in its own `__str__`, `__repr__`, `__class__` or `__name__`; whoever writes a
message about one asks this file.  Anyone may import it.
"""

from __future__ import annotations

from types import FrameType
from typing import Any, cast

from layerport.errors import escaped

LONGEST = 400


def type_name(value: object) -> str:
    """The name of a value's class, whatever its metaclass makes of `__name__`."""
    return shown(cast(Any, type.__dict__["__name__"]).__get__(type(value)), 80)


def message(error: BaseException, *, longest: int = LONGEST) -> str:
    """The text of an exception in one line; empty where it has none, a remark where it cannot be told."""
    try:
        text = str(error)
    except KeyboardInterrupt:
        raise
    except BaseException as fault:
        return f"(its __str__ raises {type_name(fault)})"
    return shown(text, longest)


def reason(error: BaseException, *, longest: int = LONGEST) -> str:
    """An exception in one line: `ValueError: no such thing`."""
    text = message(error, longest=longest)
    return f"{type_name(error)}: {text}" if text else type_name(error)


def describe(value: object) -> str:
    """A value's type and short text for a message: `list [<layer a::b version 1>]`."""
    try:
        text = shown(repr(value), 80)
    except KeyboardInterrupt:
        raise
    except BaseException as fault:
        text = f"(its __repr__ raises {type_name(fault)})"
    return f"{type_name(value)} {text}"


def shown(text: str, longest: int = LONGEST) -> str:
    """Text in one line, short enough for a table, without characters that a terminal acts on."""
    # A subclass of str answers as it likes; what str itself makes of it does not.
    flat = " ".join(str.__str__(text)[: longest * 8].split())
    clean = escaped(flat)
    return clean if len(clean) <= longest else f"{clean[: longest - 3]}..."


def frames(error: BaseException) -> list[tuple[FrameType, int]]:
    """The frames that an exception passed through with their lines, outermost first; none where it hides them."""
    try:
        step = BaseException.__dict__["__traceback__"].__get__(error)
    except Exception:
        return []
    found = []
    while step is not None:
        found.append((step.tb_frame, step.tb_lineno))
        step = step.tb_next
    return found
