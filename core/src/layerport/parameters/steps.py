"""What a conversion rule answers with, and what is remembered of each conversion.  For `conversion` and the rules."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

from layerport.parameters.arrays import Array


class Hop(NamedTuple):  # a tuple is made in a tenth of a frozen dataclass's time, and a model has many tensors
    """What a rule may answer with: the next value on the way to an array, and what was done to get it."""

    value: Any
    action: str


class Step(NamedTuple):
    """One conversion that was made.  dtype, shape and nbytes are those of its result.

    action: "view" (no byte was copied), "copy", "cast", or a rule's own word for it.  by: "layerport" or a
    pack.
    """

    source_type: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    action: str
    by: str
    path: str = ""

    def to_json(self) -> dict[str, Any]:
        """The step as a program reads it."""
        return {**self._asdict(), "shape": list(self.shape)}


class Converted(NamedTuple):
    """An array in the standard form, and the steps that led to it."""

    array: Array
    steps: tuple[Step, ...]


def _full_name(kind: type) -> str:
    """The name under which a type stands in the table: "torch.nn.parameter.Parameter", "list"."""
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


full_name: Callable[[type], str] = lru_cache(1024)(_full_name)
