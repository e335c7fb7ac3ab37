"""Every error says how it is repaired, and the list of the docs knows it."""

from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]
# What is told of a layer, and raised at nobody; the one place that hands on what its callers say; and a line of a list
# of faults, which says what is expected.
WITHOUT = {
    "refused",
    "built, and this TensorRT's log does not list its kernels",
    "not tried, since the model does not tell the type of …",
    "not tried, since the size of ….… depends on data",
    "…: … at …:…: …",
    "…: expected a tensor, got …",
}


def test_every_error_has_a_repair_in_the_list() -> None:
    listing = runpy.run_path(str(ROOT / "docs" / "list_errors.py"))
    errors = listing["listed"]()
    assert len(errors) > 400
    assert {one.fault for one in errors if not one.repair.strip("… :")} == WITHOUT
    assert all(one.repair.count("…") < 8 for one in errors)


def test_a_repair_is_read_where_it_stands() -> None:
    repairs = {one.fault: one.repair for one in runpy.run_path(str(ROOT / "docs" / "list_errors.py"))["listed"]()}
    assert repairs["target …:… cannot be built"] == "choose from … / write them like sm_89"  # by a condition
    assert repairs["… is not installed"] == "install it: …"
    assert repairs["no engine of … runs here: …"] == "what the error says that it holds"
