"""Packs as real wheels: a project each, built by hatchling, installed by pip into a folder."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hatchling.builders.wheel import WheelBuilder


@dataclass(frozen=True)
class Project:
    """A pack to build.

    name: of its distribution; its one module is called the same, with underscores.  source: of that module.
    point: the name of its entry point, group: where that stands; "" for no entry point.  files: further ones.
    """

    name: str
    source: str
    version: str = "1.0"
    point: str | None = None
    group: str = "layerport"
    requires: tuple[str, ...] = ("layerport",)
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def module(self) -> str:
        return self.name.replace("-", "_")

    @property
    def pyproject(self) -> str:
        point = self.module if self.point is None else self.point
        entry = f'[project.entry-points."{self.group}"]\n{point} = "{self.module}"\n' if self.group else ""
        return (
            '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n\n'
            f'[project]\nname = "{self.name}"\nversion = "{self.version}"\nrequires-python = ">=3.11"\n'
            f"dependencies = {list(self.requires)!r}\n\n{entry}\n"
            f'[tool.hatch.build.targets.wheel]\ninclude = ["*.py"]\n'
        )


def build_wheel(project: Project, folder: Path) -> Path:
    """Write the project below a folder and build its wheel there."""
    root = folder / f"{project.name}-{project.version}"
    root.mkdir(parents=True)
    (root / "pyproject.toml").write_text(project.pyproject)
    for name, text in {f"{project.module}.py": project.source, **project.files}.items():
        (root / name).write_text(text)
    with contextlib.redirect_stdout(io.StringIO()):
        (wheel,) = WheelBuilder(str(root)).build(directory=str(folder), versions=["standard"])
    return Path(wheel)


def install(wheels: Iterable[Path], site: Path) -> None:
    """Let pip install wheels into a folder, without what they require."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "install", "--no-deps", "--no-index"]
    subprocess.run([*command, "--target", str(site), *map(str, wheels)], check=True, timeout=120)
