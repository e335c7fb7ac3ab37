"""The zoo: many broken packs, installed side by side as wheels; each says what is wrong with it, none stops another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import warm
from packs import zoo_hooks, zoo_imports, zoo_metadata
from packs.zoo import PLAIN, BrokenPack, install

PACKS = (*zoo_metadata.PACKS, *zoo_imports.PACKS, *zoo_hooks.PACKS)
GOOD = BrokenPack("zoo_good", PLAIN, "NAMESPACE::plain", status="loaded")
DEADLY = ",".join(pack.name for pack in PACKS if pack.ends)
SECONDS = 6
MEMORY = 1 << 30
BUILDS = Path(__file__).parents[2] / "packs/zoo_builds.py"
BUILT = [pack for pack in PACKS if not pack.ends and not pack.in_the_way]
names = [pack.name for pack in PACKS]


@dataclass
class Zoo:
    """folder: where all are installed beside which Torch can be imported; damaged: the others, and the good one."""

    folder: Path
    damaged: Path

    def run(self, *command: str, folders: Any = None, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run Python with the zoo installed, or with these folders of it; a fresh one, unless Torch can be imported."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("LAYERPORT_ST")}
        path = os.pathsep.join([*map(str, folders or (self.folder, self.damaged)), *filter(None, sys.path)])
        return subprocess.run(
            [warm.python() if folders == [self.folder] else sys.executable, *command],
            env={**inherited, "PYTHONPATH": path, **environment},
            capture_output=True,
            text=True,
            timeout=280,
            cwd=self.folder.parent,
        )


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    folder, damaged, wheels = (tmp_path_factory.mktemp(name) for name in ("zoo", "damaged", "wheels"))
    install((*(pack for pack in PACKS if not pack.in_the_way), GOOD), folder, wheels)
    install((pack for pack in PACKS if pack.in_the_way), damaged, wheels)
    return Zoo(folder, damaged)


@pytest.fixture(scope="module")
def judged(zoo: Zoo) -> Mapping[str, Any]:
    """One `packs --load` over the whole zoo."""
    code = (
        "import json, sys\nfrom layerport.commands.packs import packs_report\n"
        f"print(json.dumps(packs_report(load=True, seconds={SECONDS}, memory={MEMORY}).to_json()))\n"
    )
    done = zoo.run("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return dict(json.loads(done.stdout))


@pytest.fixture(scope="module")
def built(zoo: Zoo) -> Mapping[str, Any]:
    """The build that needs none of them, and those that need one."""
    wanted = [(pack.name, pack.text(pack.layer), pack.target) for pack in BUILT if pack.needed != ""]
    done = zoo.run(str(BUILDS), json.dumps(wanted), folders=[zoo.folder], LAYERPORT_DISABLE_PACKS=DEADLY)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def lines_of(report: Mapping[str, Any], pack: BrokenPack) -> list[Mapping[str, Any]]:
    return [one for one in report["packs"] if one["name"] == pack.row]


def test_the_zoo_is_large() -> None:
    assert len(set(names)) == len(PACKS) >= 60


@pytest.mark.parametrize("pack", PACKS, ids=names)
def test_what_loading_says(judged: Mapping[str, Any], pack: BrokenPack) -> None:
    found = lines_of(judged, pack)
    assert found, [one["name"] for one in judged["packs"]]
    status = "loaded" if pack.name == "zoo_forks" else pack.status
    for one in found:
        told = " ".join([str(one["reason"]), *one["layers"], *one["warnings"]])
        assert one["status"] == status, told
        assert pack.text(pack.said) in told
        assert len(told) < 2000 and "\x1b" not in told


def test_none_stops_another(judged: Mapping[str, Any]) -> None:
    (good,) = lines_of(judged, GOOD)
    assert (good["status"], good["layers"], good["warnings"]) == ("loaded", ["zoo_good::plain"], [])
    assert [one["layer"] for one in judged["conflicts"]] == ["zoo_contested::plain"]


LISTED = [pack for pack in PACKS if pack.is_listed]


def test_what_the_metadata_shows_is_listed_without_an_import(zoo: Zoo) -> None:
    done = zoo.run("-c", "from layerport.cli import main; main(['packs', '--json'])")
    assert done.returncode == 0 and done.stderr == ""
    report = json.loads(done.stdout)
    for pack in LISTED:
        found = lines_of(report, pack)
        assert found and all(pack.text(pack.said) in one["reason"] for one in found), pack.name
    others = [one["name"] for pack in PACKS if not pack.is_listed for one in lines_of(report, pack) if one["reason"]]
    assert others == []


@pytest.mark.parametrize("pack", BUILT, ids=lambda pack: pack.name)
def test_a_build_that_does_not_need_it(built: Mapping[str, Any], pack: BrokenPack) -> None:
    free = built["free"]
    assert (free["exit_code"], free["text"], free["left"], free["unchanged"]) == (0, "", ["out.lp"], True)
    said = pack.text(pack.said if pack.build is None else pack.build)
    label = pack.row if pack.build is None else ""
    if said:
        assert any(said in one and label in one for one in free["warnings"]), free["warnings"]
    else:
        assert not any(one.startswith(f"pack {pack.name} ") for one in free["warnings"])


@pytest.mark.parametrize("pack", [one for one in BUILT if one.needed != ""], ids=lambda pack: pack.name)
def test_a_build_that_needs_it(built: Mapping[str, Any], pack: BrokenPack) -> None:
    result = built[pack.name]
    assert result["exit_code"] == 3, result["text"]
    assert pack.text(pack.said if pack.needed is None else pack.needed) in result["text"]
    assert "to repair: " in result["text"] and result["left"] == [] and result["unchanged"]


def test_the_process_is_afterwards_what_it_was(built: Mapping[str, Any]) -> None:
    assert built["process"] == {"same": True, "strict": False}


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        ([], 0, "note: pack zoo_exit (zoo-exit 1.0) failed to load: importing zoo_exit exited with SystemExit: 0"),
        (
            ["--claim", "zoo_mute::plain"],
            3,
            "error: layer zoo_mute::plain is not there, because pack zoo_mute (zoo-mute",
        ),
    ],
)
def test_the_command(zoo: Zoo, tmp_path: Path, arguments: list[str], code: int, text: str) -> None:
    model = tmp_path / "model.py"
    model.write_text("import torch\n\ndef make():\n    return torch.nn.Linear(2, 2).eval(), (torch.ones(1, 2),)\n")
    command = ["build", f"{model}:make", "-o", str(tmp_path / "out.lp"), "--target", "portable", *arguments]
    code_text = f"from layerport.cli import main; main({command!r})"
    done = zoo.run("-c", code_text, folders=[zoo.folder], LAYERPORT_DISABLE_PACKS=DEADLY)
    assert done.returncode == code, done.stdout + done.stderr
    assert text in done.stdout + done.stderr and "Traceback" not in done.stderr
    assert (tmp_path / "out.lp").exists() == (code == 0)


def test_a_pack_that_is_in_the_way_of_torch_itself(zoo: Zoo, tmp_path: Path) -> None:
    command = ["build", "model.py:make", "-o", str(tmp_path / "out.lp"), "--target", "portable"]
    done = zoo.run("-c", f"from layerport.cli import main; main({command!r})", folders=[zoo.damaged])
    assert done.returncode == 3 and "Traceback" not in done.stderr
    assert "error: importing Torch would wait for ever, because it reads the entry points of every" in done.stderr
    for pack in PACKS:
        if pack.in_the_way:
            assert f"- pack {pack.row} ({pack.called} 1.0): {pack.text(pack.said)}" in done.stderr
