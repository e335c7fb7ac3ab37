"""What the commands print for programs: the keys and types of each answer, held against a file that no test writes.

`json_forms.json` was recorded before the answers became records.  A key that is added goes into it by hand; one that
goes away, or changes its type, into the changelog too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from layerport.cli import main
from small_setup import MODELS, SMALL, Built

RECORDED = Path(__file__).with_name("json_forms.json")
# Their keys are names that the model, the packs or the machine give.
BY_NAME = {
    "counts",
    "files",
    "tools",
    "failed_packs",
    "kernel_sources",
    "attributes",
    "options",
    "profile",
    "rules",
    "unsearched",
    "absent",
}


def form(value: Any, key: str = "") -> Any:
    """The keys and types of a JSON value: of a list those that any of its items has."""
    if isinstance(value, dict):
        if key in BY_NAME or (key in ("inputs", "outputs")):
            return {"*": merged(map(form, value.values()))} if value else {}
        return {name: form(one, name) for name, one in value.items()}
    if isinstance(value, list):
        return [merged(map(form, value))] if value else []
    return type(value).__name__


def merged(forms: Any) -> Any:
    """Forms that may stand in one place as one: records key by key, plain values as their types."""
    found: list[Any] = []
    for one in forms:
        if one not in found:
            found.append(one)
    if len(found) > 1 and all(isinstance(one, dict) for one in found):
        return {
            key: merged(one[key] for one in found if key in one) for key in dict.fromkeys(k for f in found for k in f)
        }
    if len(found) > 1 and all(isinstance(one, list) for one in found):
        return [merged(item for one in found for item in one)]
    return (
        found[0] if len(found) == 1 else " or ".join(sorted({kind for one in found for kind in str(one).split(" or ")}))
    )


def faults(found: Any, recorded: Any, path: str = "") -> list[str]:
    """Where a form is not one that was recorded: another key, or a type that may not stand there."""
    if isinstance(found, dict) and isinstance(recorded, dict):
        wrong = [f"{path}.{key}: only on one side" for key in sorted(found.keys() ^ recorded.keys())]
        return wrong + [
            fault
            for key in sorted(found.keys() & recorded.keys())
            for fault in faults(found[key], recorded[key], f"{path}.{key}")
        ]
    if isinstance(found, list) and isinstance(recorded, list):
        return [fault for one in found for fault in faults(one, recorded[0] if recorded else "nothing", f"{path}[]")]
    if isinstance(found, str) and isinstance(recorded, str) and set(found.split(" or ")) <= set(recorded.split(" or ")):
        return []
    return [f"{path}: {found}, not {recorded}"]


def answers(bundle: Path, folder: Path) -> dict[str, Any]:
    """The answer of each command that has one for programs."""
    source = f"{MODELS}:net"
    small = ("--pack", SMALL)
    commands: dict[str, tuple[Any, ...]] = {
        "build": (
            "build",
            source,
            "-o",
            folder / "a.lp",
            "--target",
            "portable",
            *small,
            "--no-claim",
            "lp_small::gate",
        ),
        "verify": ("verify", bundle, *small),
        "run": ("run", bundle, "-o", folder / "outputs"),
        "bench": ("bench", bundle, "--seconds", "0.01", "--device", "cpu"),
        "inspect": ("inspect", bundle),
        "explain": ("explain", source, *small),
        "packs": ("packs",),
        "packs --load": ("packs", "--load", *small),
        "layers": ("layers", *small),
        "doctor": ("doctor",),
    }
    found = {}
    for name, arguments in commands.items():
        result = CliRunner().invoke(main, [*map(str, arguments), "--json"])
        assert result.exit_code == 0, result.output
        found[name] = json.loads(result.stdout)
    found["manifest"] = json.loads((bundle / "manifest.json").read_text())
    return found


@pytest.mark.filterwarnings("ignore")
def test_what_programs_read_is_as_it_was(engine_bundle: Built, tmp_path: Path) -> None:
    found = {name: form(value) for name, value in answers(engine_bundle.path, tmp_path).items()}
    found["build with an engine"] = form(engine_bundle.report)
    recorded = json.loads(RECORDED.read_text())
    assert [fault for name in {*found, *recorded} for fault in faults(found.get(name), recorded.get(name), name)] == []


def test_a_form_tells_types_and_keys_apart() -> None:
    whole = form({"a": 1, "b": [{"c": None}, {"c": "x", "d": 1.0}]})
    assert whole == {"a": "int", "b": [{"c": "NoneType or str", "d": "float"}]}
    assert form({"counts": {"any::name": {"plugin": 1}}}) == {"counts": {"*": {"plugin": "int"}}}
    assert faults(form({"a": 1, "b": []}), whole) == [] and faults(whole, whole) == []
    assert faults(form({"a": "x", "b": [{"c": 1, "d": 1.0}], "e": 0}), whole) == [
        ".e: only on one side",
        ".a: str, not int",
        ".b[].c: int, not NoneType or str",
    ]
