"""JSON from strangers, read strictly: the manifest, the headers of safetensors files and plugin specs.

Imports nothing heavy; anyone may import it.  Python's own reader takes more than JSON has (NaN, one key twice, integers
of any length) and texts that cannot be written again.
"""

from __future__ import annotations

import json
import math
from typing import Any

_MOST_VALUES = 1_000_000
_DEEPEST = 40
_LONGEST_NUMBER = 40


def read_json(data: bytes | bytearray, *, infinite: bool = False) -> Any:
    """The value of UTF-8 JSON text.  Raises ValueError that says what is wrong with it.

    infinite: whether Python's NaN and Infinity may stand in it.
    No key twice, no number of more than 40 characters, no half of a surrogate pair, at most 40
    levels deep and about a million values, so that it takes neither much memory nor a deep stack.
    """
    values = sum(data.count(sign) for sign in (b",", b"[", b"{"))
    if values > _MOST_VALUES:
        raise ValueError(f"it has about {values} values, at most {_MOST_VALUES} are read")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is no UTF-8") from None
    try:
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=float if infinite else _constant,
            parse_int=_integer,
            parse_float=_number,
        )
    except RecursionError:
        raise ValueError(f"it is more than {_DEEPEST} levels deep") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no JSON: {error.msg} at character {error.pos}") from None
    _check(value, surrogates="\\ud" in text or "\\uD" in text)
    return value


def is_whole(text: str) -> bool:
    """Whether a text has no half of a surrogate pair, which no file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"one name twice: {twice!r:.80}")
    return found


def _constant(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")


def _integer(text: str) -> int:
    if len(text) > _LONGEST_NUMBER:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _number(text: str) -> float:
    value = float(text) if len(text) <= _LONGEST_NUMBER else math.inf
    if not math.isfinite(value):
        raise ValueError(f"the number {text:.40} is too large or too long")
    return value


def _check(value: Any, *, surrogates: bool) -> None:
    """Raise ValueError for a value that is too deep or, where there may be some, has half of a surrogate pair."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > _DEEPEST:
            raise ValueError(f"it is more than {_DEEPEST} levels deep")
        inner: list[Any] = []
        for one in level:
            if surrogates and not all(map(is_whole, _texts(one))):
                raise ValueError("a text has half of a surrogate pair")
            if isinstance(one, dict):
                inner += one.values()
            elif isinstance(one, list):
                inner += one
        level = inner


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return list(value)
    return [value] if isinstance(value, str) else []
