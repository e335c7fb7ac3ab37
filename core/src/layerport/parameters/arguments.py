"""One argument of a layer: what it is, its type and its default.

Imports neither torch nor numpy, so `import layerport` stays light; anyone may import it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from layerport.errors import UsageError
from layerport.parameters.rules import CHOICES, Rule, broken

if TYPE_CHECKING:
    from torch import Tensor

    Param: TypeAlias = Tensor
else:

    class Param:
        """The annotation of a tensor parameter: a constant of the engine.  Type checkers see torch.Tensor."""


class Missing(Enum):
    """The type of MISSING, which says that an argument has no default (None is a default of its own)."""

    MISSING = "missing"

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = Missing.MISSING

Scalar: TypeAlias = int | float | bool | str
Attribute: TypeAlias = Scalar | tuple[Scalar, ...] | None
"""An attribute in the standard form; a list is a tuple there."""

TENSOR: Final = "tensor"
SCALARS: Mapping[type, str] = {int: "int", float: "float", bool: "bool", str: "str"}
ATTRIBUTE_TYPES: Final = (*SCALARS.values(), *(f"{name}[]" for name in SCALARS.values()))


class Kind(StrEnum):
    """What an argument is at run time."""

    INPUT = "input"
    PARAM = "param"
    ATTRIBUTE = "attribute"


@dataclass(frozen=True)
class Argument:
    """One argument of a layer.

    type: "tensor" or one of ATTRIBUTE_TYPES.  default: MISSING, None for an absent optional, or a value in
    the standard form (lists as tuples).  rules: what an attribute has to keep to beyond its type.
    """

    name: str
    kind: Kind
    type: str
    optional: bool = False
    default: Attribute | Literal[Missing.MISSING] = MISSING
    rules: tuple[Rule, ...] = ()

    def __post_init__(self) -> None:
        allowed = ATTRIBUTE_TYPES if self.kind is Kind.ATTRIBUTE else (TENSOR,)
        if self.type not in allowed:
            raise UsageError(
                f"argument {self.name!r}: {self.kind} cannot have type {self.type!r}",
                f"use {', '.join(allowed)}",
            )
        if isinstance(self.default, list):
            object.__setattr__(self, "default", tuple(self.default))

    @property
    def required(self) -> bool:
        return self.default is MISSING

    @property
    def schema_type(self) -> str:
        return ("Tensor" if self.type == TENSOR else self.type) + ("?" if self.optional else "")

    @property
    def choices(self) -> tuple[Any, ...]:
        """The values that an attribute may have, where its annotation lists them; None too where it may be absent."""
        listed = next((rule.bound for rule in self.rules if rule.field == CHOICES and not rule.of_items), ())
        return (*listed, None) if listed and self.optional else listed

    def broken(self, value: Any, *, path: str = "") -> list[str]:
        """What is wrong with a value in the standard form by the rules; an absent optional one keeps to all."""
        place = f"{path}.{self.name}" if path else self.name
        return [
            f"{place}: expected {self.schema_type} {rule}, got {show_value(value)}"
            for rule in broken(self.rules, value)
        ]

    def __str__(self) -> str:
        text = f"{self.schema_type} {self.name}"
        return text if self.default is MISSING else f"{text}={_schema_literal(self.default)}"


def count(number: int, noun: str) -> str:
    """A number of things, as "2 faults"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def show_value(value: object) -> str:
    """A value as error messages show it, with its type."""
    if value is None:
        return "None"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def _schema_literal(value: Attribute) -> str:
    if isinstance(value, str):
        # Torch's schema parser reads octal escapes byte by byte and nothing else reliably.
        body = "".join(chr(b) if 32 <= b < 127 and b not in (0x22, 0x5C) else f"\\{b:03o}" for b in value.encode())
        return f'"{body}"'
    if isinstance(value, tuple):
        return f"[{', '.join(_schema_literal(item) for item in value)}]"
    return repr(value)
