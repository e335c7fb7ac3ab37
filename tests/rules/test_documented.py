"""Every hook, command, option, environment variable and public name is documented where a reader looks for it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

import layerport as lp
from layerport.cli import main
from layerport.packs import discovery as pack_discovery
from layerport.packs import hookspecs

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
pytestmark = pytest.mark.skipif(not list(DOCS.glob("*.md")), reason="docs/ is not written yet")


def text() -> str:
    return "\n".join(file.read_text() for file in [*sorted(DOCS.rglob("*.md")), *ROOT.glob("*.md")])


def missing(names: set[str]) -> list[str]:
    documented = text()
    return sorted(name for name in names if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", documented))


def test_every_hook() -> None:
    assert missing(set(hookspecs.HOOKS)) == []
    assert len(hookspecs.HOOKS) == 4


def test_every_command() -> None:
    assert missing({f"layerport {name}" for name in main.commands}) == []


def test_every_option_of_every_command() -> None:
    options = {
        option
        for command in main.commands.values()
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for option in parameter.opts
        if option.startswith("--")
    }
    assert len(options) > 15
    assert missing(options - {"--help"}) == []


def variables() -> set[str]:
    """What the code reads from the environment: literals that are a whole string."""
    found = {pack_discovery.DISABLE_VARIABLE, pack_discovery.STRICT_VARIABLE, pack_discovery.TRACE_VARIABLE}
    for file in (ROOT / "core" / "src").rglob("*.py"):
        found.update(re.findall(r'"(LAYERPORT_[A-Z_]+)"', file.read_text()))
    return found


def test_every_environment_variable() -> None:
    assert missing(variables()) == []


def test_every_public_name() -> None:
    undocumented = missing({f"lp.{name}" for name in lp.__all__})
    assert missing({name.removeprefix("lp.") for name in undocumented}) == []


def test_the_reference_page_is_what_the_code_says() -> None:
    script = DOCS / "make_reference.py"
    made = subprocess.run(
        [sys.executable, "-c", f"import runpy; print(runpy.run_path({str(script)!r})['page'](), end='')"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert made.stdout == (DOCS / "reference.md").read_text(), "run python docs/make_reference.py"


def test_links_between_documents_lead_somewhere() -> None:
    broken = []
    for file in [*DOCS.rglob("*.md"), *ROOT.glob("*.md")]:
        for link in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", file.read_text()):
            if not (file.parent / link).exists():
                broken.append(f"{file.relative_to(ROOT)}: {link}")
    assert broken == []
