"""Records that programs read as JSON: the answers of commands, the entries of a manifest.  Imports nothing foreign."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


class Record:
    """What a frozen dataclass inherits to be written as JSON."""

    def to_json(self) -> dict[str, Any]:
        """The record as a program reads it: its fields by name, in values that JSON has."""
        return {one.name: plain(getattr(self, one.name)) for one in dataclasses.fields(self)}  # type: ignore[arg-type]


def plain(value: Any) -> Any:
    """A value as JSON has it: tuples are lists, records within are written by themselves."""
    if hasattr(type(value), "to_json"):
        return value.to_json()
    if isinstance(value, Mapping):
        return {name: plain(one) for name, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, (tuple, list)) else value
