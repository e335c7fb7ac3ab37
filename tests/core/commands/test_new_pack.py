"""`layerport new`: the pack that it writes works as it is, names are checked, and all is written or nothing."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner
from hatchling.builders.wheel import WheelBuilder

import layerport
from layerport.cli import main
from layerport.commands import new_pack as module
from layerport.commands.new_pack import new_pack
from layerport.errors import BuildError, UsageError

# All of both takes a minute: what is of the layer and of float32, one kernel in Triton, and both wheels.
SOME = "fresh_cuda and not float16 or fresh_triton and float32 and kernel or distribution"


def run(*command: str | Path, cwd: Path, path: Path | None = None) -> str:
    """What a command prints on stdout, in a process of its own that finds nothing of this test's folders."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "PYTHONPATH"))}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_new_packs_install_and_pass_their_own_tests(tmp_path: Path) -> None:
    toolchains = [one for one in module.KERNEL_FILES if one == "cuda" or importlib.util.find_spec(one)]
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-q")
    offline = ("--no-deps", "--no-index", "--no-build-isolation")
    made = [new_pack(f"fresh_{one}", toolchain=one, layer="gate", folder=tmp_path) for one in toolchains]
    folders = [one.folder for one in made]
    run(*pip, "wheel", *offline, "-w", tmp_path, *folders, cwd=tmp_path)
    for one in made:
        wheel = tmp_path / f"{one.name}-0.1.0-py3-none-any.whl"  # for every Python, as long as it is new enough
        held = set(zipfile.ZipFile(wheel).namelist())
        kernel = f"{one.name}/gate/{module.KERNEL_FILES[one.toolchain]}"
        assert {kernel, f"{one.name}/py.typed", f"{one.name}/gate/case.py"} <= held
        assert f"{one.name}-0.1.0.dist-info/licenses/LICENSE" in held
        said = zipfile.ZipFile(wheel).read(f"{one.name}-0.1.0.dist-info/METADATA").decode()
        assert "\nRequires-Python: >=3.11\n" in said

    site = tmp_path / "site"
    run(*pip, "install", "--no-deps", "--no-index", "--target", site, *tmp_path.glob("*.whl"), cwd=tmp_path)
    tests = (sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "--import-mode=importlib")
    passed = run(*tests, *folders, "-k", SOME, cwd=tmp_path, path=site).splitlines()[-1]
    assert int(re.findall(r"(\d+) passed", passed)[0]) == 11 + 2 * len(made)
    assert "failed" not in passed and "skipped" not in passed


COMPILE = """
import pathlib, sys, warnings
warnings.simplefilter("error")
for folder in sys.argv[1:]:
    for file in pathlib.Path(folder).rglob("*.py"):
        compile(file.read_text(encoding="utf-8"), str(file), "exec")
print("compiled")
"""


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13", "3.14"])
def test_core_and_pack_are_valid_in_every_python(version: str, tmp_path: Path) -> None:
    folders = [new_pack(f"fresh_{one}", toolchain=one, folder=tmp_path).folder for one in module.KERNEL_FILES]
    code = [*folders, str(Path(layerport.__file__).parent)]
    python = f"python{version}" if version != f"{sys.version_info.major}.{sys.version_info.minor}" else sys.executable
    try:
        done = subprocess.run([python, "-c", COMPILE, *code], capture_output=True, text=True, timeout=60, check=False)
    except FileNotFoundError:
        pytest.skip(f"{python} is not here")
    if done.returncode == 127:  # a place-holder of a version manager
        pytest.skip(f"{python} is not here")
    assert (done.returncode, done.stdout) == (0, "compiled\n"), done.stderr


@pytest.mark.parametrize("toolchain", list(module.KERNEL_FILES))
def test_a_new_pack_is_in_good_style(toolchain: str, tmp_path: Path) -> None:
    root = Path(new_pack("fresh_style", toolchain=toolchain, folder=tmp_path).folder)
    run(sys.executable, "-m", "ruff", "check", "--no-cache", ".", cwd=root)
    run(sys.executable, "-m", "ruff", "format", "--no-cache", "--check", ".", cwd=root)


def test_the_wheel_of_the_core_holds_every_template() -> None:
    core = Path(layerport.__file__).parents[2]
    builder = WheelBuilder(str(core))
    held = {one.distribution_path for one in builder.recurse_included_files()}
    there = {str(file.relative_to(core / "src")) for file in core.rglob("*.template")}
    assert len(there) > 15 and there <= held


def test_the_command_says_what_it_wrote_and_never_overwrites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["new", "fresh_words", "--json"])
    assert done.exit_code == 0 and '"toolchain": "cuda"' in done.output
    written = {str(file.relative_to("fresh_words")) for file in Path("fresh_words").rglob("*") if file.is_file()}
    assert written == {
        ".github/workflows/tests.yml",
        ".gitignore",
        "CHANGELOG.md",
        "LICENSE",
        "README.md",
        "pyproject.toml",
        "src/fresh_words/__init__.py",
        "src/fresh_words/plugin.py",
        "src/fresh_words/py.typed",
        "src/fresh_words/scaled_swish/__init__.py",
        "src/fresh_words/scaled_swish/case.py",
        "src/fresh_words/scaled_swish/kernel.cu",
        "src/fresh_words/scaled_swish/reference.py",
        "tests/test_pack.py",
        "tox.ini",
    }
    texts = {file: (Path("fresh_words") / file).read_text() for file in written}
    assert not [file for file, text in texts.items() if "_pack_" in text or "_layer_" in text or "$pack" in text]
    assert "${{ matrix.python }}" in texts[".github/workflows/tests.yml"]

    (Path("fresh_words") / "mine.txt").write_text("kept")
    done = CliRunner().invoke(main, ["new", "fresh_words"])
    assert done.exit_code == 2
    assert "fresh_words is there already, kept; choose another name or another folder" in done.output
    Path("fresh_link").symlink_to("nowhere")
    assert CliRunner().invoke(main, ["new", "fresh_link"]).exit_code == 2
    assert sorted(one.name for one in tmp_path.iterdir()) == ["fresh_link", "fresh_words"]
    assert (Path("fresh_words") / "mine.txt").read_text() == "kept"


@pytest.mark.parametrize(
    ("name", "layer", "faults"),
    [
        ("My-Pack", "1st", ["as in 'my_pack'", "as in 'st'"]),
        ("../escape", "ok", ["as in 'escape'"]),
        ("", "ok", ["the pack's name '' is no identifier"]),
        ("a" * 65, "ok", ["at most 64"]),
        ("naïve", "ok", ["as in 'na_ve'"]),
        ("class", "lambda", ["'class' is a word of Python's own", "'lambda' is a word of Python's own"]),
        ("aten", "torch", ["the name 'aten' is reserved", "'torch' is used in the template itself"]),
        ("layerport_more", "ok", ["the name 'layerport_more' is reserved"]),
        ("json", "ok", ["the name 'json' is a module of Python's own"]),
        ("pluggy", "ok", ["the name 'pluggy' is taken by an installed package"]),
    ],
)
def test_all_that_is_wrong_with_names_is_said_at_once(name: str, layer: str, faults: list[str], tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        new_pack(name, layer=layer, toolchain="hip", folder=tmp_path)
    said = "\n".join(error.value.faults)
    for fault in [*faults, "there is no toolchain 'hip'; choose one of cuda, triton"]:
        assert fault in said
    assert len(error.value.faults) == len(faults) + 1
    assert list(tmp_path.iterdir()) == []


def test_the_name_of_an_installed_pack_is_taken(site: object, tmp_path: Path) -> None:
    site.install("good", name="swish", distribution="swish-layers")  # type: ignore[attr-defined]
    for name in ("swish", "swish_layers"):
        with pytest.raises(UsageError) as error:
            new_pack(name, folder=tmp_path / "site")
        assert error.value.faults == (f"the name {name!r} is taken by the installed pack swish (swish-layers 1.0)",)


def test_nothing_is_left_where_the_disk_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Path.write_text

    def full(self: Path, *args: object, **options: object) -> int:
        if self.name == "tox.ini":
            raise OSError(28, "No space left on device")
        return write(self, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(BuildError, match="cannot be written to .*: No space left on device"):
        new_pack("fresh_words", folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="cannot be written to"):
        new_pack("fresh_words", folder=tmp_path / "missing")


def test_somebody_who_takes_the_name_meanwhile_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = module.rename_new

    def late(source: Path, target: Path) -> None:
        target.mkdir()
        (target / "theirs").touch()
        rename(source, target)

    monkeypatch.setattr(module, "rename_new", late)
    with pytest.raises(UsageError, match="is there already, kept"):
        new_pack("fresh_words", folder=tmp_path)
    assert [str(one.relative_to(tmp_path)) for one in tmp_path.rglob("*")] == ["fresh_words", "fresh_words/theirs"]
