"""The values in the JSON of a plugin spec, each checked as it is read; ValueError tells what is another one."""

from __future__ import annotations

import re
from collections.abc import ItemsView
from typing import Any

IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
ARCHITECTURE = re.compile(r"sm_[0-9]{2,3}")
DIGEST = re.compile(r"[0-9a-f]{64}")


def text_of(value: Any) -> str:
    if not isinstance(value, str) or len(value) > 4096:
        raise ValueError(f"{value!r:.80} is no text")
    return value


def match(pattern: re.Pattern[str], value: Any, *, limit: int = 512) -> str:
    text = text_of(value)
    if limit > 512:
        pattern = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]{0,4095}")
    if not pattern.fullmatch(text):
        raise ValueError(f"{text!r:.80} is not a name that may stand here")
    return text


def list_of(value: Any, length: int | None = None) -> list[Any]:
    if not isinstance(value, list) or (length is not None and len(value) != length):
        raise ValueError(f"{value!r:.80} is no list" + ("" if length is None else f" of {length}"))
    return value


def items_of(value: Any) -> ItemsView[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{value!r:.80} is no object")
    return value.items()


def flag_of(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r:.80} is neither true nor false")
    return value


def whole_of(value: Any, *, below: int = 2**31) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < below:
        raise ValueError(f"{value!r:.80} is not a whole number")
    return value
