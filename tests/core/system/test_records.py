"""Records as JSON: which values they are written in, and that each record of the project is frozen."""

from __future__ import annotations

import dataclasses
import importlib
import json
import pkgutil
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

import layerport
from layerport.system.records import Record, plain


@dataclass(frozen=True)
class Inner(Record):
    name: str
    sizes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Outer(Record):
    kind: ClassVar[str] = "never written"
    one: Inner
    many: tuple[Inner, ...]
    by_name: dict[str, Any]
    nothing: None = None


def test_a_record_is_written_by_its_fields_in_values_of_json() -> None:
    made = Outer(Inner("a", (1, 2)), (Inner("b"),), {"x": Inner("c"), "y": (1.5, None)})
    written = made.to_json()
    assert written == {
        "one": {"name": "a", "sizes": [1, 2]},
        "many": [{"name": "b", "sizes": []}],
        "by_name": {"x": {"name": "c", "sizes": []}, "y": [1.5, None]},
        "nothing": None,
    }
    assert json.loads(json.dumps(written)) == written
    assert plain((made,)) == [written] and plain("text") == "text" and plain(None) is None


def kinds(of: type) -> set[type]:
    return {of} | {kind for one in of.__subclasses__() for kind in kinds(one)}


def test_each_record_of_the_project_is_frozen() -> None:
    for room in ("front", "commands", "engine"):
        package = importlib.import_module(f"layerport.{room}")
        for one in pkgutil.iter_modules(package.__path__):
            if one.name not in ("worker", "doctor_probe"):
                importlib.import_module(f"layerport.{room}.{one.name}")
    found = {kind for kind in kinds(Record) - {Record} if kind.__module__.startswith("layerport.")}
    assert len(found) > 15
    for kind in found:
        assert dataclasses.is_dataclass(kind) and kind.__dataclass_params__.frozen, kind  # type: ignore[attr-defined]


def test_what_a_build_and_a_verify_answer_with_cannot_be_changed() -> None:
    for kind in (layerport.LayerRecord, layerport.ClaimRecord, layerport.ProgressEvent, layerport.Verification):
        assert hasattr(kind, "to_json")
    event = layerport.ProgressEvent("load", "stage")
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.stage = "claim"  # type: ignore[misc]
