"""Conditions on the sizes of a model: what is not proven when it is built, a session checks before it runs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from layerport.errors import UsageError
from layerport.sizes.expressions import Expr, parse

LIMIT = 10_000
_TEXT_LIMIT = 10_000
_MODULO = re.compile(r"(?P<size>[\w.]+|\([^()]*\)) - (?P<by>[\w.]+)\*\((?P=size)//(?P=by)\)")


@dataclass(frozen=True)
class Condition:
    """What must hold of the model's dims for its numbers to be right.

    text: an expression over the dims.  layer, module: whose reference needs it; both empty for the model's own forward.
    """

    text: str
    layer: str
    module: str

    @classmethod
    def read(cls, value: Any, dims: Mapping[str, Any]) -> Condition:
        """A condition from a manifest; ValueError where it is none, or names a size that is no dim."""
        made = cls(value["condition"], value["layer"], value["module"])
        if not all(isinstance(one, str) and len(one) <= _TEXT_LIMIT for one in (made.text, made.layer, made.module)):
            raise ValueError("a condition is no text")
        if not all(name in dims for name in made.expression.symbols()):
            raise ValueError(f"condition {made.text!r:.80} names a size that is no dim")
        return made

    @cached_property
    def expression(self) -> Expr:
        return parse(self.text)

    def to_json(self) -> dict[str, str]:
        """The condition as the manifest holds it."""
        return {"condition": self.text, "layer": self.layer, "module": self.module}

    def fault(self, sizes: Mapping[str, int]) -> str | None:
        """What is wrong with these sizes of the dims; None where it holds, or where a size is not known."""
        names = sorted(self.expression.symbols())
        if not sizes.keys() >= set(names):
            return None
        try:
            if self.expression.evaluate(sizes):
                return None
        except UsageError:  # a division by zero
            pass
        who = f"layer {self.layer} ({self.module})" if self.layer else "the model"
        return f"{who} is right only where {self.text}, got {', '.join(f'{name}={sizes[name]}' for name in names)}"


def readable(expression: Expr) -> str:
    """The text of an expression as people write it; `parse` reads the same from it."""
    text = _MODULO.sub(r"\g<size> % \g<by>", expression.text)
    return text if parse(text).structurally_equals(expression) else expression.text


def first_faults(conditions: Iterable[Condition], sizes: Mapping[str, int]) -> list[str]:
    """What is wrong with these sizes, for each layer the first condition only: the others say the same again."""
    found: dict[tuple[str, str], str] = {}
    for one in conditions:
        if (one.layer, one.module) not in found and (fault := one.fault(sizes)) is not None:
            found[one.layer, one.module] = fault
    return list(found.values())
