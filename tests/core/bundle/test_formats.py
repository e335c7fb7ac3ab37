"""What earlier versions wrote is read: a bundle of each format number, made by a version that wrote it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from layerport.bundle.bundle import FORMAT, MANIFEST, PLUGINS, Bundle
from layerport.bundle.plugin_spec import FORMAT as SPEC_FORMAT
from layerport.bundle.plugin_spec import SEVERAL_LAUNCHES, from_bytes
from layerport.checks.verification import verify
from layerport.commands.reports import inspect_bundle
from layerport.engine.plan_fields import MAGIC, Search, read_plan

TESTS = Path(__file__).parents[2]
BUNDLES = sorted((TESTS / "formats").glob("bundle_*"))
PAGE = TESTS.parent / "docs" / "versions.md"


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_a_bundle_of_before(bundle: Path) -> None:
    number = int(bundle.name.removeprefix("bundle_"))
    assert json.loads((bundle / MANIFEST).read_text())["format"] == number
    summary = inspect_bundle(bundle)
    assert summary.to_json()["counts"]["lp_small::norm"] == {"plugin": 2}
    answer = verify(bundle, device="cpu", kernels=False)
    assert answer.passed and len(answer.outputs) == 1


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_the_specs_and_the_fields_of_before(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    plugins = from_bytes(opened.file(PLUGINS).read_bytes())
    assert {spec.layer for spec in plugins.specs.values()} == {"lp_small::norm", "lp_small::scale"}
    (target,) = opened.manifest["targets"]
    plan = opened.file(target["file"])
    search = Search()
    search.feed(plan.read_bytes())
    fields = read_plan(plan, search.places)
    assert fields.count == 2 * target["plugins"] and not fields.missing  # TensorRT keeps each twice


def test_every_number_has_its_fixture_and_stands_on_the_page() -> None:
    assert [path.name for path in BUNDLES] == [f"bundle_{number}" for number in range(1, FORMAT + 1)]
    stated = dict(re.findall(r"^\| ([a-z' ]+?)(?: \(.*?\))? \| (\d+(?:, or \d+)?) \|", PAGE.read_text(), re.M))
    assert stated == {
        "bundle": str(FORMAT),
        "plugin specs": f"{SPEC_FORMAT}, or {SEVERAL_LAUNCHES}",
        "a plugin's field in a plan": f"{MAGIC[-1]}, or {MAGIC[-1] + 1}",
    }


def test_a_newer_number_is_refused_by_name(tmp_path: Path) -> None:
    text = (BUNDLES[-1] / MANIFEST).read_text()
    (tmp_path / MANIFEST).write_text(text.replace(f'"format": {FORMAT}', f'"format": {FORMAT + 1}'))
    with pytest.raises(Exception, match=rf"has format {FORMAT + 1}, this layerport reads {FORMAT}"):
        Bundle.open(tmp_path)
