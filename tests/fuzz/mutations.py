"""How inputs are damaged: bytes anywhere, and JSON at any place of its structure.  Each damage follows from a seed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import islice
from random import Random
from typing import Any

MOST_PLACES = 20_000
MOST_BYTES = 1 << 22

Mutate = Callable[[bytes, Random], bytes]

NUMBERS = (0, 1, -1, 2, 127, 255, 65535, 2**31 - 1, 2**31, 2**32, -(2**31), 2**53, 2**63 - 1, 2**63, 2**64, 10**30)
FLOATS = (0.0, -0.0, 0.5, 1e308, -1e308, 5e-324, float("nan"), float("inf"), float("-inf"))
TEXTS = (
    "",
    "x",
    "x.0",
    "n",
    "0",
    "-1",
    "../../x",
    "/etc/passwd",
    "manifest.json",
    "a\0b",
    "\x1b[2J\x1b]0;t\x07",
    "\u202eevil",
    "\ud800",
    "é" * 40,
    "y" * 5000,
    "(" * 120,
    "n//0",
    "n*n*n*n*n*n",
    "float32",
    "sm_89",
    "bfloat16",
    "a::b",
    "::",
    "__class__",
    "%s{0}",
)


def bytes_mutation(data: bytes, random: Random) -> bytes:
    """Some bytes changed, added, taken away, moved or doubled."""
    found = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 3, 8))):
        at = random.randrange(len(found) + 1)
        span = random.choice((1, 1, 2, 4, 8, 16, random.randrange(1, 200)))
        action = random.randrange(8)
        if action == 0 and at < len(found):
            found[at] ^= 1 << random.randrange(8)
        elif action == 1 and at < len(found):
            found[at] = random.choice((0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)))
        elif action == 2:
            del found[at : at + span]
        elif action == 3:
            found[at:at] = random.randbytes(span)
        elif action == 4:
            other = random.randrange(len(found) + 1)
            found[at : at + span] = found[other : other + span]
        elif action == 5:
            found[at : at + span] = random.choice(NUMBERS).to_bytes(16, "little", signed=True)[
                : random.choice((1, 2, 4, 8))
            ]
        elif action == 6:
            del found[at:]
        else:
            found[at:at] = found[at : at + span]
    return bytes(found)


def json_mutation(data: bytes, random: Random) -> bytes:
    """JSON text with its structure changed at some places, now and then with its text changed too."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return bytes_mutation(data, random)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        value = changed_value(value, random)
    text = json.dumps(value, ensure_ascii=random.random() < 0.8).encode("utf-8", "surrogatepass")
    if len(text) > MOST_BYTES:  # what is doubled again and again
        return bytes_mutation(data, random)
    if random.random() < 0.1:
        text = _with_duplicate(text, random)
    return bytes_mutation(text, random) if random.random() < 0.1 else text


def changed_value(value: Any, random: Random) -> Any:
    """The value with one place of it changed; what it holds otherwise is shared."""
    places = list(islice(_places(value), MOST_PLACES))
    if not places or random.random() < 0.01:
        return _replacement(value, value, random)
    # A list of thousand equal entries would take nearly all changes; the keys on the way there say what is different.
    by_kind: dict[tuple[str, ...], list[tuple[Any, ...]]] = {}
    for place in places:
        by_kind.setdefault(tuple(str(key) for key in place if isinstance(key, str)), []).append(place)
    place = random.choice(random.choice(list(by_kind.values())))
    return _changed_at(value, place, value, random)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in items:
        yield (*path, key)
        if len(path) < 12:
            yield from _places(one, (*path, key))


def _changed_at(value: Any, place: Sequence[Any], whole: Any, random: Random) -> Any:
    key, *rest = place
    if rest:
        copy = dict(value) if isinstance(value, dict) else list(value)
        copy[key] = _changed_at(value[key], rest, whole, random)
        return copy
    if isinstance(value, dict):
        action = random.randrange(5)
        if action == 0:
            return {name: one for name, one in value.items() if name != key}
        if action == 1:
            return {(random.choice(TEXTS) if name == key else name): one for name, one in value.items()}
        if action == 2:
            return {**value, random.choice((*TEXTS, *list(value))): _replacement(value[key], whole, random)}
        return {**value, key: _replacement(value[key], whole, random)}
    action = random.randrange(5)
    if action == 0:
        return [*value[:key], *value[key + 1 :]]
    if action == 1:
        return [*value[:key], value[key], *value[key:]]
    return [*value[:key], _replacement(value[key], whole, random), *value[key + 1 :]]


def _replacement(value: Any, whole: Any, random: Random) -> Any:
    action = random.randrange(9)
    if action == 0 and isinstance(value, str):
        return text_mutation(value, random)
    if action == 1 and isinstance(value, (int, float)) and not isinstance(value, bool):
        return value + random.choice((-1, 1, 2, -value * 2, 2**31))
    if action == 2:
        elsewhere = list(islice(_places(whole), MOST_PLACES)) if isinstance(whole, (dict, list)) else []
        return _at(whole, random.choice(elsewhere)) if elsewhere else None
    if action == 3:
        return random.choice((None, True, False, [], {}, [[]], [None], {"": None}))
    if action == 4:
        return random.choice(NUMBERS)
    if action == 5:
        return random.choice(FLOATS)
    if action == 6:
        return random.choice(([value], {"a": value}, [value] * random.choice((2, 40, 2000)), _deep(value, random)))
    if action == 7 and isinstance(value, (int, float)):
        return random.choice((str(value), float(value) if abs(value) < 1e300 else 0.5, not value))
    return random.choice(TEXTS)


def _deep(value: Any, random: Random) -> Any:
    for _ in range(random.choice((3, 60, 400))):
        value = [value] if random.random() < 0.5 else {"a": value}
    return value


def _at(value: Any, place: Sequence[Any]) -> Any:
    for key in place:
        value = value[key]
    return value


def _with_duplicate(text: bytes, random: Random) -> bytes:
    """JSON with one key twice, or with a number that no other writer makes."""
    if random.random() < 0.5:
        return text[:1] + b'"format": 1, ' + text[1:] if text[:1] == b"{" else text
    digits = random.choice((b"1" * 5000, b"-0", b"1e400", b"NaN", b"-Infinity", b"0.1e-400", b"\xff", b"{" * 5000))
    return text.replace(b"1", digits, 1)


_WORDS = (
    "min(",
    "max(",
    "where(",
    "ceildiv(",
    "and(",
    "or(",
    "not(",
    "//",
    "%",
    "*",
    "+",
    "-",
    "==",
    "<",
    ")",
    "(",
    ",",
    " ",
)


def text_mutation(text: str, random: Random) -> str:
    """A text with pieces of size expressions put in, taken out or doubled."""
    for _ in range(random.choice((1, 1, 2, 4))):
        at, span = random.randrange(len(text) + 1), random.choice((1, 1, 2, 5, 20))
        action = random.randrange(5)
        if action == 0:
            text = text[:at] + text[at + span :]
        elif action == 1:
            text = text[:at] + random.choice((*_WORDS, *(str(one) for one in NUMBERS))) + text[at:]
        elif action == 2:
            text = text[:at] + random.choice(TEXTS)[:200] + text[at + span :]
        elif action == 3:
            text = text[:at] + text[at : at + span] * random.choice((2, 30)) + text[at + span :]
        else:
            other = random.randrange(len(text) + 1)
            text = text[:at] + text[other : other + span] + text[at:]
    return text


def expression_mutation(data: bytes, random: Random) -> bytes:
    """The text of a size expression, changed; it ends at 100,000 bytes."""
    text = data.decode("utf-8", "replace")
    return text_mutation(text, random).encode("utf-8", "surrogatepass")[:100_000]
