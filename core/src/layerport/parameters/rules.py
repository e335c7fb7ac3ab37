"""What an author demands of an attribute beyond its type, read from its annotation: ranges, lengths, choices.

The constraint types are those of the package `annotated-types`, known by the names of their fields, so that the core
needs no such package.  Imports nothing foreign; the readers of signatures use it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_NUMBERS: Mapping[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "ge": ("at least", lambda value, bound: value >= bound),
    "gt": ("above", lambda value, bound: value > bound),
    "le": ("at most", lambda value, bound: value <= bound),
    "lt": ("below", lambda value, bound: value < bound),
    "multiple_of": ("a multiple of", lambda value, bound: value % bound == 0),
}
_LENGTHS: Mapping[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "min_length": ("of length at least", lambda value, bound: len(value) >= bound),
    "max_length": ("of length at most", lambda value, bound: len(value) <= bound),
}
_TESTS = {**_NUMBERS, **_LENGTHS}
CHOICES = "choices"
_SOURCE = "annotated_types"


class WrongRuleError(Exception):
    """A constraint that cannot be kept for this type; why."""


@dataclass(frozen=True)
class Rule:
    """One demand on an attribute beyond its type, read from its annotation.

    field: as `annotated-types` calls it, or "choices".  of_items: whether it is of each item of a list.
    """

    field: str
    bound: Any
    of_items: bool = False

    def holds(self, value: Any) -> bool:
        """Whether a value in the standard form, which is not None, keeps to it."""
        return all(map(self._holds, value)) if self.of_items else self._holds(value)

    def _holds(self, value: Any) -> bool:
        if self.field == CHOICES:
            return any(value == one for one in self.bound)
        return _TESTS[self.field][1](value, self.bound)

    def __str__(self) -> str:
        each = "each " if self.of_items else ""
        if self.field == CHOICES:
            return f"{each}one of {', '.join(map(repr, self.bound))}"
        return f"{each}{_TESTS[self.field][0]} {self.bound}"


def choices(values: Iterable[Any]) -> Rule:
    """The rule that a value is one of these, as `Literal` says it."""
    return Rule(CHOICES, tuple(values))


def rules_of(metadata: Iterable[Any], type_name: str) -> tuple[Rule, ...]:
    """The rules among what stands behind a type in `Annotated`; what is none of them is somebody else's.

    Raises WrongRuleError for a constraint that does not go with the type, or that is not known here.
    """
    found: list[Rule] = []
    for one in metadata:
        fields = [name for name in _TESTS if _bound(one, name) is not None]
        if not fields and type(one).__module__.partition(".")[0] == _SOURCE:
            raise WrongRuleError(f"{one!r} is not kept here; use ranges, multiples and lengths, or Literal")
        for name in fields:
            bound = _bound(one, name)
            if name == "min_length" and bound == 0:
                continue
            found.append(_rule(name, bound, type_name))
    return tuple(found)


def broken(rules: Iterable[Rule], value: Any) -> list[str]:
    """The rules that a value breaks, as text; none where an optional one is absent."""
    return [] if value is None else [str(rule) for rule in rules if not rule.holds(value)]


def _rule(name: str, bound: Any, type_name: str) -> Rule:
    if name in _LENGTHS:
        if not (type_name.endswith("[]") or type_name == "str"):
            raise WrongRuleError(f"{name} is of lists and texts, not of {type_name}")
        if type(bound) is not int:
            raise WrongRuleError(f"{name} is {bound!r}, which is no whole number")
    elif type_name.endswith("[]"):
        raise WrongRuleError(f"{name} is of numbers; annotate the items, as in list[Annotated[int, ...]]")
    elif type_name not in ("int", "float"):
        raise WrongRuleError(f"{name} is of numbers, not of {type_name}")
    elif type(bound) not in (int, float):
        raise WrongRuleError(f"{name} is {bound!r}, which is no number")
    elif name == "multiple_of" and not bound:
        raise WrongRuleError("nothing is a multiple of 0")
    return Rule(name, bound)


def _bound(one: Any, name: str) -> Any:
    return None if isinstance(one, type | str) else getattr(one, name, None)
