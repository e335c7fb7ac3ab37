"""Damaged inputs of fixed seeds for all that layerport reads from strangers; `tox run -e fuzz` reads many more."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from fuzz.mutations import bytes_mutation, expression_mutation, json_mutation
from fuzz.run import BUNDLE, NAMES, _read_all, fuzz

# The manifest has many places; a model and samples are run where they are read.
RUNS = {"manifest": 2000, "model": 400, "samples": 400}


@pytest.mark.parametrize("name", NAMES)
def test_damaged_inputs_are_refused_or_read(name: str, tmp_path: Path) -> None:
    found = fuzz(name, BUNDLE, runs=RUNS.get(name, 1000), keep=tmp_path)
    assert not found["findings"], "\n\n".join(one["what"] + "\n" + one["trace"] for one in found["findings"])
    assert found["runs"] == RUNS.get(name, 1000)
    # Where all were refused at the door, or none, nothing was tried.
    assert found["refused"] > found["runs"] // 10 and found["read"] > 10


def test_the_fuzzer_finds_what_is_planted() -> None:
    def read(data: bytes) -> None:
        if data == b"key":
            raise KeyError("key")
        if data == b"memory":
            try:
                raise MemoryError
            except MemoryError as error:
                from layerport.errors import BuildError

                raise BuildError("cannot be read") from error

    answer: dict[str, Any] = {"runs": 0, "refused": 0, "read": 0, "slowest": 0.0, "findings": []}
    note: Any = bytearray(1 << 16)
    _read_all(read, [b"fine", b"key", b"memory"], note, answer, start=7)
    assert [(one["number"], one["what"].split()[0]) for one in answer["findings"]] == [
        (8, "KeyError"),
        (9, "BuildError"),
    ]
    assert answer["read"] == 1


@pytest.mark.parametrize("mutate", [bytes_mutation, json_mutation, expression_mutation])
def test_damage_follows_from_its_seed_and_damages(mutate: Any) -> None:
    sound = json.dumps({"a": [1, {"b": "n + 1"}], "c": "min(n, 4)"}).encode()
    made = [mutate(sound, Random(seed)) for seed in range(200)]
    assert made == [mutate(sound, Random(seed)) for seed in range(200)]
    assert len(set(made)) > 100
