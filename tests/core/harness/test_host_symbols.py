"""Where shared memory lies in a compiled program, read from a symbol table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from layerport.harness import host_symbols

GAP = host_symbols._GAP
BASE = 0x100000
# name, address, size, section
Symbol = tuple[str, int, int, str]


def read(monkeypatch: pytest.MonkeyPatch, *symbols: Symbol, program: str = "") -> Any:
    """What is found in a table of these symbols, the anchor at 0x1000."""
    rows = [("layerport_anchor", 0x1000, 4, ".data"), *symbols]
    table = ["", "program:     file format elf64", "SYMBOL TABLE:"]
    for name, address, size, section in rows:
        table.append(f"{address:016x} l     O {section}\t{size:016x}              {name}")
    monkeypatch.setattr(host_symbols, "_read", lambda *command, environment: table)
    anchor, variables, around = host_symbols.shared_variables(Path("program"), program, {})
    assert anchor == 0x1000
    return variables, around


def static(name: str, address: int, size: int = 16, section: str = ".bss") -> Symbol:
    return f"_ZZ6kernelPfE{len(name)}{name}", address, size, section


def test_statics_of_functions_and_the_room_up_to_their_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = ("before", 0x2000, 0x100, ".bss"), ("after", 0x4000, 8, ".bss")
    variables, around = read(monkeypatch, after, static("b", 0x3010), before, static("a", 0x3000))
    assert variables == (("a", 0x2000, 16), ("b", 0x2010, 16))
    assert around == (0x2100 - 0x1000, 0x4000 - 0x2100)


def test_neighbours_that_touch(monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = ("before", 0x2F00, 0x100, ".bss"), ("after", 0x3010, 8, ".bss")
    _, around = read(monkeypatch, before, static("a", 0x3000), after, ("further", 0x5000, 8, ".bss"))
    assert around == (0x2000, 16)


def test_no_neighbours_or_far_ones_leave_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    far = ("far", BASE + 16 + 2 * GAP, 8, ".bss")
    for others in ((), (far,)):
        _, (begin, size) = read(monkeypatch, static("a", BASE), *others)
        assert begin == BASE - 0x1000 - GAP and size == 16 + 2 * GAP


def test_something_else_between_them(monkeypatch: pytest.MonkeyPatch) -> None:
    between = ("between", 0x3100, 8, ".bss")
    _, around = read(monkeypatch, static("a", 0x3000), between, static("b", 0x3200))
    assert around == (0x2000, 0)


def test_what_is_no_shared_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    program = "__shared__ float outer[4];"
    variables, _ = read(
        monkeypatch,
        static("a", 0x3000),
        static("constant", 0x3100, section=".rodata"),
        ("_ZZNSt6vectorE4once", 0x3200, 16, ".bss"),
        ("_ZN5outerE", 0x3300, 16, ".bss"),
        ("_ZN5otherE", 0x3400, 16, ".bss"),
        program=program,
    )
    assert [name for name, _, _ in variables] == ["a", "outer"]
    assert read(monkeypatch, ("other", 0x3000, 4, ".bss")) == ((), (0, 0))
