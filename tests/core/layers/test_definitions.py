"""One identity defined more than once: the last definition of a file or session wins, and says so."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import layerport as lp
from layerport.errors import UsageError
from layerport.layers.definitions import same_definition, same_place
from layerport.packs.host import load
from layerport.system.python_files import import_file

HEAD = "import torch\nfrom torch import Tensor\nimport layerport as lp\n"
CELL = """
@lp.layer("{name}")
def scaled(x: Tensor) -> Tensor:
    return x * {factor}
"""
ONES = torch.ones(2)


def cell(names: dict[str, Any], text: str, filename: str) -> Any:
    exec(compile(text, filename, "exec"), names)
    return names["scaled"]


def session() -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(HEAD, names)
    return names


def refused(layer: Any, argument: Tensor = ONES) -> UsageError:
    for call in (lambda: layer(argument), lambda: layer(x=argument), lambda: lp.explain_dispatch(layer, argument)):
        with pytest.raises(UsageError) as caught:
            call()
    return caught.value


@pytest.mark.parametrize(
    "filenames",
    [
        ("<ipython-input-1-aa>", "<ipython-input-2-bb>"),
        ("/tmp/ipykernel_77/111.py", "/tmp/ipykernel_77/222.py"),
        ("<string>", "<string>"),
        ("<stdin>", "<stdin>"),
    ],
)
def test_an_edited_cell_takes_the_place_of_the_one_before(
    filenames: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    names, identity = session(), "lp_defined::cell"
    first = cell(names, CELL.format(name=identity, factor="2.0"), filenames[0])
    assert torch.equal(first(ONES), 2 * ONES)
    capsys.readouterr()
    second = cell(names, "\n" + CELL.format(name=identity, factor="3.0"), filenames[1])
    said = capsys.readouterr().err
    assert torch.equal(second(ONES), 3 * ONES) and torch.equal(torch.ops.lp_defined.cell(ONES), 3 * ONES)
    assert said == (
        f"layerport: layer {identity} at {second.origin} takes the place of the one defined before at {first.origin}; "
        "modules made with that one have to be made again\n"
    )
    error = refused(first)
    assert error.fault == f"layer {identity}, defined at {first.origin}, was defined anew at {second.origin}"
    assert "layer.module(...)" in str(error.repair)


def test_a_module_made_before_does_not_compute_the_new_reference() -> None:
    names, identity = session(), "lp_defined::held"
    module = cell(names, CELL.format(name=identity, factor="2.0"), "<ipython-input-1>").module()
    cell(names, "\n\n" + CELL.format(name=identity, factor="3.0"), "<ipython-input-2>")
    with pytest.raises(UsageError, match="was defined anew"):
        module(ONES)
    with pytest.raises(Exception, match="was defined anew"):
        torch.export.export(module, (ONES,))


def test_a_cell_run_again_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    names, text = session(), CELL.format(name="lp_defined::again", factor="2.0")
    layers = [cell(names, text, "<ipython-input-1>") for _ in range(3)]
    assert capsys.readouterr().err == ""
    assert all(torch.equal(layer(ONES), 2 * ONES) for layer in layers)
    assert len({layer.operator for layer in layers}) == 1
    last = cell(names, text.replace("2.0", "5.0"), "<ipython-input-4>")
    assert torch.equal(last(ONES), 5 * ONES)
    for layer in layers:
        refused(layer)


def test_two_layers_of_one_name_in_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "double.py"
    text = HEAD + CELL.format(name="lp_defined::double", factor="2.0") + "first = scaled\n"
    file.write_text(text + CELL.format(name="lp_defined::double", factor="3.0"))
    module = import_file(file)
    assert "takes the place of" in capsys.readouterr().err
    assert torch.equal(module.scaled(ONES), 3 * ONES)
    refused(module.first)


def test_another_version_is_another_layer(capsys: pytest.CaptureFixture[str]) -> None:
    names, identity = session(), "lp_defined::versions"
    first = cell(names, CELL.format(name=identity, factor="2.0"), "<ipython-input-1>")
    text = CELL.format(name=identity, factor="3.0").replace('")', '", version=2)')
    second = cell(names, text, "<ipython-input-2>")
    assert torch.equal(first(ONES), 2 * ONES) and torch.equal(second(ONES), 3 * ONES)
    assert capsys.readouterr().err == ""
    third = cell(names, text.replace("3.0", "4.0"), "<ipython-input-3>")
    refused(second)
    assert torch.equal(first(ONES), 2 * ONES) and torch.equal(third(ONES), 4 * ONES)


def test_other_values_of_the_enclosing_function_are_another_definition() -> None:
    def make(factor: float) -> Any:
        def reference(x: Tensor) -> Tensor:
            return x * factor

        return lp.layer("lp_defined::closure")(reference)

    first, second = make(2.0), make(3.0)
    refused(first)
    third = make(3.0)
    assert torch.equal(second(ONES), 3 * ONES) and torch.equal(third(ONES), 3 * ONES)


WITH_CLASS = """
class Options:
    FACTOR = given

def reference(x):
    return x * Options.FACTOR
"""


@pytest.mark.parametrize(
    ("one", "other", "same"), [(2, 2, True), (2, 3, False), ((1, 2), (1, 2), True), ((1, 2), (1, 2, 3), False)]
)
def test_constants_of_a_class_belong_to_the_definition(one: object, other: object, same: bool) -> None:
    code = compile(WITH_CLASS, "<string>", "exec")

    def reference(given: object) -> object:
        names: dict[str, Any] = {"__name__": "m", "given": given}
        exec(code, names)
        return names["reference"]

    assert same_definition(reference(one), reference(other)) is same


WITH_HELPER = (
    HEAD
    + """
from typing import NamedTuple

FACTOR = {factor}

class Parts(NamedTuple):
    low: Tensor
    high: Tensor

def parts(x):
    return Parts(x * FACTOR, x + 1)

@lp.layer("{name}")
def scaled(x: Tensor) -> Parts:
    return below(parts(x))

def below(x):
    return Parts(x[0] * {below}, x[1] * 1)
"""
)


def twice(tmp_path: Path, name: str, **changed: str) -> tuple[ModuleType, ModuleType]:
    """One file as a module and as a pack file, edited in between."""
    values = {"factor": "2.0", "below": "1.0"}
    file = tmp_path / "helped.py"
    file.write_text(WITH_HELPER.format(name=name, **values))
    spec = importlib.util.spec_from_file_location(f"plain_{name[-3:]}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if changed:
        file.write_text(WITH_HELPER.format(name=name, **(values | changed)))
    return module, import_file(file)


def test_one_file_imported_twice_is_one_definition(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = twice(tmp_path, "lp_defined::two")
    assert capsys.readouterr().err == ""
    for module in (first, second, first):
        assert torch.equal(module.scaled(ONES)[0], 2 * ONES)
    assert first.scaled.operator is second.scaled.operator


@pytest.mark.parametrize(("name", "changed"), [("factor", "3.0"), ("below", "7.0")])
def test_what_the_reference_refers_to_counts(tmp_path: Path, name: str, changed: str) -> None:
    first, second = twice(tmp_path, f"lp_defined::ref_{name}", **{name: changed})
    refused(first.scaled)
    assert torch.equal(second.scaled(ONES)[0], ONES * float(changed) * (1 if name == "factor" else 2))


def test_two_files_are_two_places(tmp_path: Path) -> None:
    layers = []
    for name in ("one", "two"):
        file = tmp_path / f"{name}.py"
        file.write_text(HEAD + CELL.format(name="lp_defined::apart", factor="2.0"))
        layers.append(import_file(file).scaled)
    with pytest.raises(UsageError, match="is defined twice"):
        layers[1](ONES)
    assert torch.equal(layers[0](ONES), 2 * ONES)
    assert not same_place(layers[0].reference, layers[1].reference)


def test_values_that_cannot_be_compared_are_different() -> None:
    assert same_definition(object(), object()) is False
    assert same_definition([1, (2, None)], [1, (2, None)]) is True
    assert same_definition([1], [1.0]) is False
    assert same_definition({"a": 1}, {"a": 2}) is False


# Files read anew


def test_an_edited_file_is_read_anew_and_an_unchanged_one_is_not(tmp_path: Path) -> None:
    file = tmp_path / "model.py"
    file.write_text("VALUE = 2.0\n")
    first = import_file(file)
    assert import_file(file) is first
    os.utime(file)
    assert import_file(file) is first
    stamp = file.stat()
    file.write_text("VALUE = 3.0\n")  # as long as before, and as old
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    second = import_file(file)
    assert second is not first and (first.VALUE, second.VALUE) == (2.0, 3.0)
    assert sys.modules[second.__name__] is second


def test_an_edited_file_that_fails_is_tried_again(tmp_path: Path) -> None:
    file = tmp_path / "model.py"
    file.write_text("VALUE = 1\n")
    import_file(file)
    file.write_text("raise RuntimeError('half done')\n")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="half done"):
            import_file(file)
    file.write_text("VALUE = 4\n")
    assert import_file(file).VALUE == 4


def test_an_edited_pack_file_gives_its_new_layers(tmp_path: Path) -> None:
    file = tmp_path / "pack.py"
    hook = "\n@lp.hookimpl\ndef layerport_layers():\n    return (scaled,)\n"
    file.write_text(HEAD + CELL.format(name="lp_defined::packed", factor="2.0") + hook)
    before = load(str(file)).layer("lp_defined::packed")
    file.write_text(HEAD + CELL.format(name="lp_defined::packed", factor="4.0") + hook)
    after = load(str(file)).layer("lp_defined::packed")
    assert after is not before and torch.equal(after(ONES), 4 * ONES)
    refused(before)


CODE = 'extern "C" __global__ void scale(const float* x, float* y) {{ y[0] = {expression}; }}\n'


def test_an_edited_kernel_source_or_header_is_read_anew(tmp_path: Path) -> None:
    (tmp_path / "scale.cu").write_text('#include "factor.h"\n' + CODE.format(expression="x[0] * FACTOR"))
    (tmp_path / "factor.h").write_text("#define FACTOR 2.0f\n")
    (tmp_path / "pack.py").write_text(
        HEAD
        + CELL.format(name="lp_defined::compiled", factor="2.0")
        + '\n@scaled.kernel(lp.cuda("scale.cu", "scale"), dtypes=("float32",))\n'
        + "def launch(x, y):\n    return lp.Launch(1, 1, (x, y))\n"
    )
    layer = import_file(tmp_path / "pack.py").scaled

    def cubin() -> str:
        built = layer._torch.cuda.compile("sm_89", torch.empty(1, device="meta"))
        return str(built.steps[0].cubin.digest)

    digests = [cubin()]
    (tmp_path / "factor.h").write_text("#define FACTOR 3.0f\n")
    digests.append(cubin())
    (tmp_path / "scale.cu").write_text(CODE.format(expression="x[0] * 7.0f"))
    digests.append(cubin())
    assert len(set(digests)) == 3
