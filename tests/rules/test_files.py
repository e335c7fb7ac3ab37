"""Rules on the files themselves: their length, their docstrings, no path of one machine, the direction of imports."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIMIT = 400
TEXT = {".py", ".md", ".toml", ".ini", ".txt", ".cu", ".h", ".cpp", ".yml", ".yaml", ".cfg", ""}
# "/tmp" as such is no path of one machine; these are.
MACHINE = re.compile(r"/(?:work|home|root|Users)/\w")


@cache
def files() -> tuple[Path, ...]:
    """What belongs to the project: tracked, or new and not ignored."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no git here to say which files belong to the project")
    return tuple(path for name in listed if (path := ROOT / name).is_file() and path.suffix in TEXT)


def test_no_code_file_is_too_long() -> None:
    # Tests are lists of cases, which may be long.
    code = [file for file in files() if file.suffix in (".py", ".cu", ".h", ".cpp") and "tests" not in file.parts]
    assert len(code) > 80
    long = {str(file.relative_to(ROOT)): n for file in code if (n := len(file.read_text().splitlines())) > LIMIT}
    assert long == {}


def test_every_module_says_why_it_exists() -> None:
    without = [
        str(file.relative_to(ROOT))
        for file in files()
        if file.suffix == ".py" and file.read_text().strip() and not ast.get_docstring(ast.parse(file.read_text()))
    ]
    assert without == []


def test_no_path_of_one_machine() -> None:
    found = [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()[:80]}"
        for file in files()
        if file != Path(__file__)
        for number, line in enumerate(file.read_text(errors="replace").splitlines(), 1)
        if MACHINE.search(line)
    ]
    assert found == []


def test_the_direction_of_imports() -> None:
    pytest.importorskip("importlinter")
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 broken" in done.stdout


def test_the_core_names_no_pack_and_no_model_library() -> None:
    named = [
        f"{file.relative_to(ROOT)}: {word}"
        for file in (ROOT / "core" / "src").rglob("*.py")
        for word in re.findall(r"^\s*(?:import|from) (layerport_builtin_layers|transformers)\b", file.read_text(), re.M)
    ]
    assert named == []
