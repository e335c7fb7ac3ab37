"""The one-token changes of a source file that could change what it does; cosmic-ray's operators make them."""

from __future__ import annotations

import ast
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from cosmic_ray.ast import Visitor, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

# A comparison, a constant, a condition, an operator, a removed `not`.  Variables, decorators and loops are left alone.
_KINDS = ("ReplaceComparison", "ReplaceBinary", "ReplaceUnary", "Replace", "AddNot", "NumberReplacer")
_LEFT = ("ReplaceVariable",)
# These two agree for all that the code compares with `is`.
_SAME = ("Is_Eq", "Eq_Is", "IsNot_NotEq", "NotEq_IsNot")


@dataclass(frozen=True)
class Change:
    """One change: which operator of cosmic-ray, at which of the places in the file that it could change."""

    file: Path
    line: int
    column: int
    operator: str
    occurrence: int

    def apply(self, source: str) -> str:
        """The changed source."""
        changed = mutate_code(source, get_operator(self.operator)(), self.occurrence)
        assert changed is not None, self
        return changed


class _Places(Visitor):
    """Counts the places as cosmic-ray does when it changes one."""

    def __init__(self) -> None:
        names = [name for name in operator_names() if name.partition("/")[2].startswith(_KINDS)]
        kept = [name for name in names if not name.endswith(_SAME) and not name.partition("/")[2].startswith(_LEFT)]
        self._operators = [(name, get_operator(name)()) for name in kept]
        self._counts = dict.fromkeys(kept, 0)
        self.found: list[tuple[int, int, str, int]] = []

    def visit(self, node):  # type: ignore[no-untyped-def]
        for name, operator in self._operators:
            for (line, column), _ in operator.mutation_positions(node):
                self.found.append((line, column, name, self._counts[name]))
                self._counts[name] += 1
        return node


def sample(files: list[Path], count: int, seed: int) -> list[Change]:
    """`count` places of the files, each with one of the changes that are possible there; a seed gives the same ones."""
    chance = random.Random(seed)
    places = [place for file in files for place in _places(file)]
    chance.shuffle(places)
    return list(_chosen(places, count, chance))


def _places(file: Path) -> Iterator[list[Change]]:
    visitor = _Places()
    visitor.walk(get_ast(file.read_text()))
    for _, found in groupby(sorted(visitor.found), key=lambda one: one[:2]):
        yield [Change(file, *one) for one in found]


def _chosen(places: list[list[Change]], count: int, chance: random.Random) -> Iterator[Change]:
    for place in places:
        if count == 0:
            return
        change = chance.choice(place)
        if _meaning(change.apply(source := change.file.read_text())) not in (None, _meaning(source)):
            count -= 1
            yield change


def _meaning(source: str) -> str | None:
    """The syntax tree without what only a type checker asks, asserts too; None where it is no Python."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.arg | ast.AnnAssign):
            node.annotation = ast.Constant(None)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.returns = None
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "zip":
            node.keywords = []  # `strict` asserts too
        elif isinstance(node, ast.Assert) or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)):
            node.test = ast.Constant(None)
    return ast.dump(tree)
