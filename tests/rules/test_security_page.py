"""docs/security.md: every promise names tests, and each of them is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "security.md"
TEST = re.compile(r"`(\w+\.py)::(\w+)`")


def promises() -> list[str]:
    """The rows of the tables under "What is promised"."""
    part = PAGE.read_text().split("## What is not promised")[0]
    return [line for line in part.splitlines() if line.startswith("| ") and not line.startswith("| promise ")]


def functions() -> set[tuple[str, str]]:
    return {
        (file.name, node.name)
        for file in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef)
    }


def test_every_promise_names_its_tests() -> None:
    assert len(promises()) > 20
    assert [line for line in promises() if not TEST.search(line.rpartition(" | ")[2] or line)] == []


def test_every_test_that_it_names_is_there() -> None:
    named = set(TEST.findall(PAGE.read_text()))
    assert named and named - functions() == set()
