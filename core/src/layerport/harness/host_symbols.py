"""What a compiled program's symbols and line table tell: where shared memory lies, and where in the source a fault is.

For `compiler` and `cuda_runs`; both tools belong to the binutils, which a C++ compiler needs anyway.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

from layerport.errors import UsageError
from layerport.system import processes

_SHARED_NAME = re.compile(r"__shared__\s[^;{}()=\[]*?\b(?P<name>\w+)\s*[;\[]")
# Each variable has this alignment (cuda_host.h), and more room than it may fill.
_GAP = 64 * 1024


def shared_variables(
    binary: Path, program: str, environment: Mapping[str, str]
) -> tuple[int, tuple[tuple[str, int, int], ...], tuple[int, int]]:
    """The anchor's address, the `__shared__` variables (name, distance from it, bytes), and where all of them lie.

    That is a distance and bytes, up to the neighbours; no bytes where something else lies between them.
    Statics of the kernel's functions are shared, and those outside of functions that `program` declares so.
    """
    outside = [match["name"] for match in _SHARED_NAME.finditer(program)]
    named = re.compile("_ZN?L?(?:.*L)?(?:" + "|".join(f"{len(name)}{name}" for name in outside) + ")E?")
    anchor = 0
    found: list[tuple[int, int, str]] = []
    others: list[tuple[int, int]] = []
    for line in _read("objdump", "-t", str(binary), environment=environment):
        fields = line.split()
        if len(fields) < 4:
            continue
        section, symbol = fields[-3], fields[-1]
        if not section.startswith((".bss", ".data")) or section.startswith(".data.rel.ro"):
            continue
        address, size = int(fields[0], 16), int(fields[-2], 16)
        if symbol == "layerport_anchor":
            anchor = address
        local = symbol.startswith("_ZZ") and not re.match(r"_ZZN?K?(St|9cuda_host)", symbol)
        if local or (outside and named.fullmatch(symbol)):
            found.append((address, size, symbol))
        elif size:
            others.append((address, size))
    if not found:
        return anchor, (), (0, 0)
    found.sort()
    first, last = found[0][0], found[-1][0] + found[-1][1]
    # Nothing else lies between them where the linker sorted by alignment; where it did not, what does is not theirs.
    begin = max((at + size for at, size in others if at < first), default=0)
    end = min((at for at, _ in others if at >= last), default=last + _GAP)
    if any(first <= at < last for at, _ in others):
        begin = end = first
    begin, end = max(begin, first - _GAP), min(end, last + _GAP)
    return (
        anchor,
        tuple((_plain_name(symbol), at - anchor, size) for at, size, symbol in found),
        (begin - anchor, end - begin),
    )


def source_line(binary: Path, address: int, foreign: str, environment: Mapping[str, str]) -> str | None:
    """`file:line` of an address in the author's source; None where it is in none.

    foreign: how names of headers that are not the author's begin.  A call that the compiler took in is followed
    outwards.
    """
    passed = ("/usr/", "??", foreign)
    try:
        lines = _read("addr2line", "-i", "-e", str(binary), hex(address), environment=environment)
    except (UsageError, subprocess.CalledProcessError):  # the fault itself is what has to be told
        return None
    for line in lines:
        path, _, number = line.partition(" ")[0].rpartition(":")
        path = os.path.normpath(path)
        if not number.isdigit() or path.startswith(passed):
            continue
        return f"{path if os.path.exists(path) else Path(path).name}:{number}"
    return None


def _plain_name(symbol: str) -> str:
    """The variable's own name, the last one of a mangled symbol."""
    for match in re.finditer(r"(?=(?<!\d)(\d+)([A-Za-z_]\w*)$)", re.sub(r"(?:_\d+|E)$", "", symbol)):
        if int(match[1]) == len(match[2]):
            return match[2]
    return symbol


def _read(tool: str, *arguments: str, environment: Mapping[str, str]) -> list[str]:
    try:
        done = processes.run([tool, *arguments], check=True, env=dict(environment))
    except FileNotFoundError as error:
        raise UsageError(
            f"{tool} is not here, which reads a compiled program", "install the binutils (apt install binutils)"
        ) from error
    return done.stdout.splitlines()
