"""Sources: what a text may name, and what is said where it names the wrong thing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from layerport.errors import UsageError
from layerport.front.sources import REPAIR, as_source, example_inputs, open_source
from small_models import Net, bare, net, sample
from small_setup import MODELS


def refused(source: Any, **options: Any) -> UsageError:
    with pytest.raises(UsageError) as caught:
        open_source(source, **options)
    return caught.value


def test_a_file_and_a_module() -> None:
    for text in (f"{MODELS}:net", "small_models:net"):
        source = open_source(text)
        assert type(source.model).__name__ == "Net"
        assert (len(source.args), dict(source.kwargs), source.name) == (1, {}, "net")
        assert source.dynamic_shapes[0].keys() == {0}
    assert type(open_source("small_models:MODEL_OBJECT", args=(sample(),)).model) is torch.nn.Identity


def test_a_file_may_import_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "lp_neighbour.py").write_text("WIDTH = 5\n")
    (tmp_path / "source.py").write_text(
        "import torch\nfrom lp_neighbour import WIDTH\n\ndef model():\n"
        "    return torch.nn.Linear(WIDTH, 1), (torch.zeros(1, WIDTH),)\n"
    )
    path = list(sys.path)
    source = open_source(f"{tmp_path / 'source.py'}:model")
    assert source.args[0].shape == (1, 5)
    assert sys.path == path


@pytest.mark.parametrize("text", ["", "file.py", ":net", "file.py:", "net"])
def test_a_text_that_names_no_callable(text: str) -> None:
    error = refused(text)
    assert error.fault == f"source {text!r} names no callable"
    assert error.repair == REPAIR and "'module:callable'" in REPAIR


def test_a_source_that_is_not_there() -> None:
    error = refused("not_there_at_all:model")
    assert error.fault.startswith("not_there_at_all does not import: ModuleNotFoundError: No module named")
    assert "named with its .py ending" in str(error.repair)
    error = refused("nowhere/file.py:model")
    assert error.fault == "there is no file 'nowhere/file.py'"


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import not_there_either\n", "ModuleNotFoundError: No module named 'not_there_either'"),
        ("def model(:\n", "SyntaxError: "),
        ("raise SystemExit(3)\n", "SystemExit: 3"),
        ("1 / 0\n", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_source_that_does_not_import(tmp_path: Path, code: str, why: str) -> None:
    file = tmp_path / "broken.py"
    file.write_text(code)
    error = refused(f"{file}:model")
    assert error.fault.startswith(f"{file} does not import: {why}")
    assert error.__cause__ is not None
    assert "run it by itself in Python" in str(error.repair)
    assert str(tmp_path) not in sys.path


def test_an_attribute_that_is_not_there() -> None:
    error = refused("small_models:nett")
    assert error.fault == "source 'small_models:nett': small_models has no 'nett'"
    assert "net, net_fp16" in str(error.repair)


def test_a_callable_that_raises() -> None:
    error = refused("small_models:fails")
    assert error.fault == "source 'small_models:fails' failed when called: ValueError: no weights here"
    assert isinstance(error.__cause__, ValueError)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("a_number", "source 'small_models:a_number' gave a int, not an nn.Module"),
        ("NOT_CALLABLE", "source 'small_models:NOT_CALLABLE' gave a int, not an nn.Module"),
        ("a_pair_of_wrong_things", "source 'small_models:a_pair_of_wrong_things' gave a str, not an nn.Module"),
        ("four", "source 'small_models:four' gave a tuple of 4: Net, tuple, NoneType, NoneType"),
        ("bare", "source 'small_models:bare' gave no example inputs for Net"),
        ("scripted", "source 'small_models:scripted' gave a TorchScript module"),
    ],
)
def test_a_callable_that_returns_the_wrong_thing(name: str, fault: str) -> None:
    error = refused(f"small_models:{name}")
    assert error.fault == fault
    assert error.repair


def test_example_inputs_in_every_form() -> None:
    x = sample()
    assert as_source(Net(), args=x).args == (x,)
    assert as_source(Net(), args=[x]).args == (x,)
    source = as_source(Net(), args={"x": x})
    assert (source.args, dict(source.kwargs)) == ((), {"x": x})
    with pytest.raises(UsageError, match="source gave example inputs of type int"):
        as_source(Net(), args=3)


def test_an_exported_program_brings_its_own_inputs() -> None:
    model, args, shapes = net()
    program = torch.export.export(model, args, dynamic_shapes=shapes)
    source = as_source(program)
    assert source.model is program and torch.equal(source.args[0], args[0])


def test_inputs_from_texts() -> None:
    values, shapes = example_inputs(["x=float16:rows, 4", "ids=int64:2", "on=bool:"], ["rows=1..3..8"])
    assert (values["x"].shape, values["x"].dtype) == ((3, 4), torch.float16)
    assert values["ids"].dtype == torch.int64 and int(values["ids"].max()) <= 9
    assert values["on"].shape == () and values["on"].dtype == torch.bool
    assert shapes["x"].keys() == {0} and shapes["x"][0].__name__ == "rows"
    again, _ = example_inputs(["x=float16:rows, 4"], ["rows=1..3..8"])
    assert torch.equal(values["x"], again["x"])


def test_inputs_by_name_are_those_of_the_texts() -> None:
    given = {"x": ("float16", ("rows", 4)), "ids": (torch.int64, [2]), "on": ("bool", ())}
    texts = ["x=float16:rows, 4", "ids=int64:2", "on=bool:"]
    values, shapes = example_inputs(given, {"rows": (1, 3, 8)})
    for found, wanted in zip((values, shapes), example_inputs(texts, ["rows=1..3..8"]), strict=True):
        assert found.keys() == wanted.keys()
    for name, value in example_inputs(texts, ["rows=1..3..8"])[0].items():
        assert torch.equal(values[name], value) and values[name].dtype == value.dtype
    assert shapes["x"].keys() == {0} and shapes["x"][0].__name__ == "rows"


def test_all_faults_of_inputs_by_name_at_once() -> None:
    given: Any = {
        "x": ("float99", (2,)),
        3: ("float32", (1,)),
        "y": ("float32", ("n", "m", 2)),
        "tensor": sample(),
        "text": "float32:2",
        "flat": ("float32", 2),
        "axis": ("float32", (2, -1, "a b")),
        "complex": (torch.complex64, (2,)),
        "packed": ("int4", (2,)),
        "good": ("int8", (2,)),
    }
    error = refused("small_models:bare", inputs=given)
    assert error.fault == "example inputs cannot be made"
    assert error.faults == (
        "input 'x': 'float99' is not a dtype such as float32 or int64",
        "3 is not the name of an input",
        "input 'y': no size is known for n, m; add --range n=MIN..USUAL..MAX",
        "input 'tensor' is a tensor already; give tensors as args={name: tensor}",
        "input 'text': 'float32:2' is not (DTYPE, DIMS)",
        "input 'flat': ('float32', 2) is not (DTYPE, DIMS)",
        "input 'axis': -1 is neither a size nor the name of a dim",
        "input 'complex': 'complex64' is not a dtype such as float32 or int64",
        "input 'packed': torch has no tensors of int4",
    )
    assert error.repair == 'write them like {"x": ("float32", (2, 16))}'
    assert "'x=float32:2' is given twice" not in str(refused("small_models:bare", inputs=["x=int4:2", "z"]))
    twice = refused("small_models:bare", inputs=["x=float32:2", "x=float32:3"])
    assert twice.faults == ("input x is given twice",)


def test_a_module_takes_inputs_by_name_and_what_has_its_own_refuses_them() -> None:
    source = open_source(bare(), inputs={"x": ("float32", ("rows", 16))}, ranges={"rows": (1, 4, 8)})
    assert source.kwargs["x"].shape == (4, 16) and source.dynamic_shapes["x"].keys() == {0}
    assert "a tuple brings its own example inputs" in str(refused(net(), inputs={"x": ("float32", (2, 16))}))
    both = refused(bare(), inputs={"x": ("float32", (2, 16))}, args=(sample(),))
    assert both.fault == "example inputs are given twice"


def test_a_bare_module_with_inputs_from_texts() -> None:
    source = open_source("small_models:bare", inputs=["x=float32:rows,16"], ranges=["rows=1..4..8"])
    assert source.kwargs["x"].shape == (4, 16)
    assert source.dynamic_shapes["x"].keys() == {0}


def test_all_faults_of_input_texts_at_once() -> None:
    error = refused("small_models:bare", inputs=["x=float99:2", "=float32:1", "y=float32:n,m,2", "z=int8:2"])
    assert error.fault == "example inputs cannot be made"
    assert error.faults == (
        "'x=float99:2' is not NAME=DTYPE:DIMS with a dtype such as float32 or int64",
        "'=float32:1' is not NAME=DTYPE:DIMS with a dtype such as float32 or int64",
        "'y=float32:n,m,2': no size is known for n, m; add --range n=MIN..USUAL..MAX",
    )


def test_inputs_given_twice() -> None:
    assert refused("small_models:net", inputs=["x=float32:3,16"]).fault == (
        "source 'small_models:net' brings its own example inputs"
    )
    assert refused("small_models:bare", inputs=["x=float32:3,16"], args=(sample(),)).fault == (
        "example inputs are given twice"
    )
