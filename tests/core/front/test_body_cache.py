"""Bodies on disk: a build that finds them makes the same bundle without torch.onnx, and no other body is taken."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import layerport as lp
from layerport.front import bodies, body_cache
from layerport.layers.derivation import derive
from layerport.sizes.dims import port
from layerport.sizes.tensors import TensorType
from small_models import net
from small_setup import SMALL


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAYERPORT_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many bodies each call of torch.onnx made."""
    made: list[int] = []
    real = bodies._onnx_graph
    monkeypatch.setattr(bodies, "_onnx_graph", lambda uses: made.append(len(uses)) or real(uses))
    yield made


def build(path: Path) -> dict[str, bytes]:
    lp.build(net(), path, target="portable", packs=[SMALL], verify=False)
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_a_second_build_finds_its_bodies_and_makes_the_same_bytes(tmp_path: Path, exports: list[int]) -> None:
    first = build(tmp_path / "first.lp")
    assert exports == [4]
    assert build(tmp_path / "second.lp") == first
    assert exports == [4]
    # One that is damaged or gone is made again, alone, and is the same.
    entries = sorted(path for path in (tmp_path / "cache" / "bodies").rglob("*") if path.is_file())
    entries[0].write_bytes(entries[0].read_bytes()[:-1])
    entries[1].unlink()
    assert build(tmp_path / "third.lp") == first
    assert exports == [4, 2]


def key(
    reference: Any, shapes: dict[str, TensorType | None] | None = None, name: str = "lp_bodies::layer"
) -> str | None:
    given = shapes or {"x": port("x", "float32", ("rows", 4))}
    layer: Any = SimpleNamespace(name=name, signature=SimpleNamespace(output_names=("output",)))
    node: Any = SimpleNamespace(layer=layer, tensors=given)
    return body_cache.body_key(node, derive(reference, given, {}, layer=name))


def one(x: Tensor) -> Tensor:
    return x * 2.0


def test_whatever_changes_a_body_changes_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    factor, table = 2.0, torch.arange(4.0)

    def helper(x: Tensor) -> Tensor:
        return x * factor

    def outer(x: Tensor) -> Tensor:
        return helper(x)

    def with_table(x: Tensor) -> Tensor:
        return x + table

    def branch(x: Tensor) -> Tensor:
        return x * 2.0 if x.shape[0] < 50 else x * 3.0

    def many(x: Tensor) -> Tensor:
        return torch.cumsum(x, 0) if x.shape[0] > 30 else x

    keys = [key(one), key(outer), key(with_table), key(branch), key(many)]
    assert keys[0] == keys[1] == key(lambda x: x * 2.0)  # the same program, wherever it is written
    factor = 2.0000000001
    keys += [key(outer)]
    table += 1
    keys += [key(with_table)]
    keys += [
        key(one, {"x": port("x", "float16", ("rows", 4))}),
        key(one, {"x": port("x", "float32", ("rows", 5))}),
        key(one, {"x": port("x", "float32", (3, 4))}),
        key(one, {"x": port("x", "float32", ("rows", "width"))}),
        key(one, name="lp_bodies::other"),
        key(lambda x: x + 2.0),
        key(lambda x: (x * 2.0).to(torch.float16)),
        key(lambda x: x * 2),
    ]
    monkeypatch.setattr(body_cache.metadata, "version", lambda name: "another")
    keys.append(key(one))
    assert None not in keys
    assert len(set(keys)) == len(keys) - 1


def test_a_program_that_does_not_say_everything_has_no_key() -> None:
    """The operator of a stranger stands in it by name alone."""
    with torch.library._scoped_library("lp_bodies_foreign", "FRAGMENT") as library:
        library.define("op(Tensor x) -> Tensor")
        library.impl("op", lambda x: x * 2, "CompositeExplicitAutograd")
        assert key(lambda x: torch.ops.lp_bodies_foreign.op(x)) is None
