"""What every benchmark here shares: interleaved timing, comparisons against a limit, a table or JSON.

Imported by the scripts of this folder only.  Standard library only, so that a script decides itself what it loads.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any


@dataclass(frozen=True)
class Comparison:
    """One figure of ours beside the same of the other side.

    limit: how many times theirs ours may be, None where nothing is promised.  allowance: what may come on top, in
    `unit`.  details: further figures, for the JSON.
    """

    what: str
    ours: float
    theirs: float
    unit: str
    limit: float | None = None
    allowance: float = 0.0
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        return self.ours / self.theirs if self.theirs else float("inf")

    @property
    def allowed(self) -> float | None:
        """The most that ours may be."""
        return None if self.limit is None else self.theirs * self.limit + self.allowance

    @property
    def within(self) -> bool | None:
        return None if self.allowed is None else self.ours <= self.allowed

    def to_json(self) -> dict[str, Any]:
        return {
            "what": self.what,
            "ours": self.ours,
            "theirs": self.theirs,
            "unit": self.unit,
            "ratio": round(self.ratio, 4),
            "limit": self.limit,
            "allowance": self.allowance,
            "within": self.within,
            **self.details,
        }


@dataclass(frozen=True)
class Timing:
    """Seconds per call of one side, over all rounds."""

    least: float
    median: float


def interleaved(
    sides: Mapping[str, Callable[[], Any]], *, rounds: int, calls: int = 1, seconds: float | None = None
) -> dict[str, Timing]:
    """Time every side in turn, `rounds` times, `calls` calls each, beginning with another side in each round.

    seconds: stop after this long, but not before three rounds.  The rounds are short, so that on a shared machine some
    of them run undisturbed: their least time is the figure to compare, the median tells how disturbed the rest was.
    """
    names = list(sides)
    times: dict[str, list[float]] = {name: [] for name in names}
    for call in sides.values():
        call()
    clock = time.perf_counter
    begun = clock()
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            call = sides[name]
            start = clock()
            for _ in range(calls):
                call()
            times[name].append((clock() - start) / calls)
        if seconds is not None and turn >= 2 and clock() - begun > seconds:
            break
    return {name: Timing(min(taken), statistics.median(taken)) for name, taken in times.items()}


def arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser with what every script takes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON on standard output")
    return parser


def environment(distributions: Iterable[str] = ()) -> dict[str, Any]:
    """Where the figures were taken: they mean nothing without."""
    versions = {}
    for name in ("layerport", *distributions):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "load": None if load is None else round(load, 2),
        "python": platform.python_version(),
        "versions": versions,
    }


def show(
    title: str,
    comparisons: Sequence[Comparison],
    *,
    as_json: bool,
    sides: tuple[str, str],
    notes: Sequence[str] = (),
    where: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Print the comparisons.  sides: what ours and theirs are called.  extra: goes into the JSON only."""
    where = dict(where or environment())
    if as_json:
        document = {
            "benchmark": title,
            "sides": {"ours": sides[0], "theirs": sides[1]},
            "environment": where,
            "comparisons": [one.to_json() for one in comparisons],
            "notes": list(notes),
            **(extra or {}),
        }
        print(json.dumps(document, indent=2))
        return
    print(title)
    print(f"  load {where['load']} on {where['cpus']} CPUs; ours: {sides[0]}; theirs: {sides[1]}")
    rows = [("", "ours", "theirs", "ratio", "limit", "")]
    rows += [
        (
            one.what,
            _text(one.ours, one.unit),
            _text(one.theirs, one.unit),
            f"{one.ratio:.2f}",
            _limit(one),
            _verdict(one),
        )
        for one in comparisons
    ]
    print_table(rows)
    for note in notes:
        print(f"  {note}")


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows with the first column to the left and the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [text.ljust(widths[0]) if place == 0 else text.rjust(widths[place]) for place, text in enumerate(row)]
        print(("  " + "  ".join(cells)).rstrip())


def _text(value: float, unit: str) -> str:
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:.{digits}f} {unit}"


def _limit(one: Comparison) -> str:
    if one.limit is None:
        return "-"
    return f"{one.limit:g}" + (f" + {one.allowance:g} {one.unit}" if one.allowance else "")


def _verdict(one: Comparison) -> str:
    return {None: "", True: "within", False: "ABOVE"}[one.within]
