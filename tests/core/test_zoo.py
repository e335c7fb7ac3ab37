"""A slice of `benchmarks/zoo`: one architecture for each thing that once kept real models from building or running.

The whole zoo, beside the exporter by hand, is `tox run -e zoo`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
MODELS = {
    "clip": "sizes of no name beside two batches",
    "t5-encoder": "views that are refused with gradients",
    "mobilebert": "a length less one, which Torch keeps apart from 1",
    "segformer": "heights and widths that follow from one another, a detour through a smaller map",
}


@pytest.fixture
def zoo(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The modules of the benchmark."""
    from types import SimpleNamespace

    monkeypatch.syspath_prepend(str(FOLDER))
    from zoo import cases, judge, run

    yield SimpleNamespace(cases=cases, judge=judge, run=run)
    for name in [name for name in sys.modules if name == "zoo" or name.startswith("zoo.")]:
        del sys.modules[name]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_a_model_builds_and_runs_at_other_sizes(zoo: Any, name: str) -> None:
    entry = zoo.cases.table(("language", "vision", "multimodal"))[name]
    outcome = zoo.judge.with_layerport(entry, "portable")
    assert outcome.fault is None
    assert outcome.error < 1e-4
    assert [one["fault"] for one in outcome.others] == [None] * len(outcome.others)
    assert len(outcome.others) >= 2 and not any(one["static"] for one in outcome.others)


def side(fault: str | None = None, *others: str | None) -> dict[str, Any]:
    """What one side answers."""
    runs = [
        {"sizes": {"batch": place}, "static": False, "error": 0.0, "fault": one} for place, one in enumerate(others)
    ]
    return {"fault": fault, "error": 0.0, "others": runs, "layers": {}, "seconds": 1.0, "plan_bytes": None}


def test_what_counts_as_falling_short(zoo: Any) -> None:
    def short(theirs: dict[str, Any], ours: dict[str, Any]) -> str | None:
        answer: str | None = zoo.run.falls_short({"by hand": theirs, "layerport": ours})
        return answer

    assert short(side(), side()) is None
    assert short(side("no"), side("no")) is None
    assert short(side("no"), side()) is None
    assert short(side(), side("cannot")) == "cannot"
    assert short(side(None, None, None), side(None, None, "off by 1")) == "at {'batch': 1}: off by 1"
    assert short(side(None, None, "off by 1"), side(None, None, "off by 1")) is None
