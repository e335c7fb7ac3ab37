"""The check of a pack as a distribution: each thing that a wheel lacks is named, with what to write."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from layerport.testing.conformance.kit import checks_of, judge
from layerport.testing.conformance.records import Verdict
from packs.installer import Site

METADATA = """Metadata-Version: 2.4
Name: wheeled
Version: 1.2
Summary: A pack.
Requires-Python: >=3.11
License-Expression: Apache-2.0
Requires-Dist: layerport[build]>=0.1
Requires-Dist: pytest; extra == "tests"
"""
PLUGIN = '''
from torch import Tensor

import layerport as lp


@lp.layer("NAMESPACE::double")
def double(x: Tensor) -> Tensor:
    """2 * x."""
    return x * 2


@double.kernel(lp.cuda("kernels/double.cu", "twice<{x}>"), dtypes=("float32",))
def launch(x, output):
    return lp.Launch(grid=1, block=1, args=(x, output))


@lp.hookimpl
def layerport_layers():
    return (double,)
'''
FILES = {
    "__init__.py": "",
    "plugin.py": PLUGIN,
    "py.typed": "",
    "kernels/double.cu": '#include "shared.cuh"\n',
    "kernels/shared.cuh": "// what both need\n",
}
_numbers = iter(range(100))


class Wheel(NamedTuple):
    """What is installed.  unlisted: files that are there and not of the distribution."""

    metadata: str = METADATA
    files: dict[str, str] = FILES
    unlisted: tuple[str, ...] = ()
    editable: bool = False


@pytest.fixture
def names(site: Site) -> Iterator[list[str]]:
    made: list[str] = []
    yield made
    for name in [one for one in sys.modules if one.partition(".")[0] in made]:
        del sys.modules[name]


def check(site: Site, wheel: Wheel, names: list[str]) -> Verdict:
    package = f"wheeled_{next(_numbers)}"
    names.append(package)
    for file, text in wheel.files.items():
        path = site.folder / package / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("NAMESPACE", package))
    info = site.folder / "wheeled-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(wheel.metadata)
    (info / "entry_points.txt").write_text(f"[layerport]\n{package} = {package}.plugin\n")
    if wheel.editable:
        source = {"url": (site.folder / package).as_uri(), "dir_info": {"editable": True}}
        (info / "direct_url.json").write_text(json.dumps(source))
    listed = [f"{package}/{file},," for file in wheel.files if file not in wheel.unlisted]
    (info / "RECORD").write_text("\n".join([*listed, "wheeled-1.2.dist-info/METADATA,,"]) + "\n")
    importlib.invalidate_caches()
    try:
        (verdict,) = [judge(one) for one in checks_of(package) if one.name == "distribution"]
    finally:
        shutil.rmtree(info)
    return verdict


def test_a_whole_wheel_passes_and_an_editable_one_says_what_it_hides(site: Site, names: list[str]) -> None:
    assert check(site, Wheel(), names) == Verdict("passed")
    editable = check(site, Wheel(unlisted=tuple(FILES), editable=True), names)
    assert editable.answer == "passed"
    assert editable.notes[0].startswith("installed in editable mode: what the wheel holds was not seen")


def without(text: str) -> str:
    return "".join(line for line in METADATA.splitlines(keepends=True) if text not in line)


@pytest.mark.parametrize(
    ("wheel", "says"),
    [
        (Wheel(without("layerport")), 'it does not require layerport: write dependencies = ["layerport>=..."]'),
        (Wheel(METADATA.replace("layerport[build]>=0.1", "layerport; extra == 'x'")), "does not require layerport"),
        (Wheel(METADATA + "Requires-Dist: no such thing\n"), "'no such thing', which no installer reads"),
        (Wheel(without("Summary")), "its metadata has no Summary: write description"),
        (Wheel(without("Requires-Python")), "its metadata has no Requires-Python: write requires-python"),
        (Wheel(without("License")), "its metadata has no licence"),
        (Wheel(files={name: text for name, text in FILES.items() if name != "py.typed"}), "has no file py.typed"),
        (Wheel(unlisted=("kernels/double.cu",)), "kernels/double.cu is not of the distribution: put it into the wheel"),
        (Wheel(unlisted=("kernels/shared.cuh",)), "kernels/shared.cuh is not of the distribution"),
        (Wheel(unlisted=("plugin.py",)), "plugin.py, which the distribution has not installed"),
        (
            Wheel(
                files={
                    **{name: text for name, text in FILES.items() if "/" not in name},
                    "plugin.py": PLUGIN.replace('"kernels/', '"../kernels/'),
                    "../kernels/double.cu": "",
                },
                editable=True,
            ),
            "lies outside the package",
        ),
    ],
)
def test_what_a_wheel_lacks_is_named(wheel: Wheel, says: str, site: Site, names: list[str]) -> None:
    verdict = check(site, wheel, names)
    assert verdict.answer == "failed" and says in verdict.reason, verdict
    assert "distribution wheeled 1.2 is not complete" in verdict.reason
    assert "to repair: correct its pyproject.toml" in verdict.reason
