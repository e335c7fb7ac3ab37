"""Versions stand in several files, which say the same: packages, changelog, ranges, the oldest constraints."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from layerport.foreign.tested import NEWEST

ROOT = Path(__file__).parents[2]


def version(package: str) -> str:
    (found,) = re.findall(r'^__version__ = "(.*)"$', (ROOT / package / "__init__.py").read_text(), re.M)
    return str(found)


def requirements(distribution: str) -> list[Requirement]:
    project = tomllib.loads((ROOT / distribution / "pyproject.toml").read_text())["project"]
    extras = project.get("optional-dependencies", {}).values()
    return [Requirement(one) for listed in (project["dependencies"], *extras) for one in listed]


def pins(file: str) -> dict[str, Version]:
    return {
        name.lower(): Version(number)
        for name, number in re.findall(r"^([\w-]+)==(\S+)$", (ROOT / file).read_text(), re.M)
    }


def test_the_distributions_and_the_changelog_have_one_version() -> None:
    core = version("core/src/layerport")
    assert version("builtin_layers/src/layerport_builtin_layers") == core
    assert version("native/src/layerport_native") == core
    newest = re.search(r"^## (\S+), (not released yet|\d{4}-\d{2}-\d{2})$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert newest is not None and newest[1] == core
    (needed,) = (one for one in requirements("builtin_layers") if one.name == "layerport")
    assert needed.specifier.contains(core)


def test_the_newest_versions_that_are_tested_are_those_of_the_constraints() -> None:
    pinned = pins("constraints.txt")
    for library, newest in NEWEST.items():
        assert pinned[library].release[:2] == Version(newest).release, library


def test_the_oldest_constraints_are_the_floors() -> None:
    oldest, newest = pins("constraints-oldest.txt"), pins("constraints.txt")
    wanted = {one.name.lower(): one for one in requirements("core") if one.name != "tensorrt"}
    assert set(oldest) == set(wanted)
    for name, requirement in wanted.items():
        assert requirement.specifier.contains(newest[name]), name
        (floor,) = (Version(one.version) for one in requirement.specifier if one.operator == ">=")
        assert requirement.specifier.contains(oldest[name]), name
        if name != "torch":  # no older one can be had without its CUDA packages
            assert oldest[name].release[: len(floor.release)] == floor.release, name


def test_the_page_on_versions_says_what_the_packages_ask_for() -> None:
    page = (ROOT / "docs" / "versions.md").read_text()
    rows = re.findall(r"^\| (?:`(\w[\w-]*)`|Python) \| ([\d.]+) \| ([\d.]*) ?\| (.*?) \|$", page, re.M)
    project = tomllib.loads((ROOT / "core" / "pyproject.toml").read_text())["project"]
    listed = {"all": project["dependencies"], **project["optional-dependencies"]}
    asked: dict[str, tuple[str, str, list[str]]] = {"": (project["requires-python"].removeprefix(">="), "", [])}
    for extra, lines in listed.items():
        for one in map(Requirement, lines):
            bound = {kind.operator: kind.version for kind in one.specifier}
            known = asked.setdefault(one.name, (bound[">="], bound.get("<", ""), []))
            assert known[:2] == (bound[">="], bound.get("<", "")), one
            known[2].append(extra)
    assert len(rows) > 10
    for name, floor, below, extras in rows:
        wanted = asked[name]
        assert (floor, below) == wanted[:2], name
        assert not name or re.findall(r"\w+", extras) == wanted[2], name
    assert {"torch", "triton", "tensorrt_rtx", "tensorrt", "cuda-bindings"} <= {row[0] for row in rows}
