"""The errors that users meet: a fault with its values, then the repair.  Imports nothing; anyone may import it."""

from __future__ import annotations

from collections.abc import Sequence


def shown(value: object) -> str:
    """A value with its type, for messages, cut at 60 characters."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def escaped(text: str) -> str:
    """A text as a terminal or a page may show it: whatever could steer it (all but a new line) comes out as `\\x1b`.

    Names and messages of packs, models, bundles and tools go through this one place before anybody sees them.
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or character == "\n" else character.encode("unicode_escape").decode()
        for character in text
    )


class LayerportError(Exception):
    """Base of every error that layerport raises on purpose.

    fault: what is wrong, with the values that show it.  repair: what to do about it.
    faults: several faults of one thing, listed below the first line.
    report: where a build failed, the `BuildReport` of what it had done by then.
    """

    exit_code = 4
    report: object = None

    def __init__(self, fault: str, repair: str | None = None, *, faults: Sequence[str] = ()) -> None:
        self.fault = fault
        self.repair = repair
        self.faults = tuple(faults)
        super().__init__(fault)

    def __str__(self) -> str:
        lines = [self.fault, *(f"  - {fault}" for fault in self.faults)]
        if self.repair:
            lines.append(f"  to repair: {self.repair}")
        return escaped("\n".join(lines))


class VerifyError(LayerportError):
    """The answer is no: numbers do not match."""

    exit_code = 1


class UsageError(LayerportError):
    """What the caller passed in cannot be used as it is."""

    exit_code = 2


class PackError(LayerportError):
    """A pack is at fault."""

    exit_code = 3


class BuildError(LayerportError):
    """A tool failed, or a build cannot be made."""

    exit_code = 4
