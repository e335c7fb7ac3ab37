"""Layers that are copied, pickled, saved with Torch, and sent to other processes: identity and version come along."""

from __future__ import annotations

import copy
import io
import multiprocessing
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import layerport as lp
import warm
from layerport.errors import UsageError
from layerport.layers.module import LayerModule
from layerport.packs.discovery import DISABLE_VARIABLE
from layerport.packs.saved_layers import installed_layer, local_layer
from layerport.system.python_files import import_file
from packs.installer import Site

PACK = """
import torch
from torch import Tensor
import layerport as lp

@lp.layer("NAMESPACE::scaled", version=2)
def scaled(x: Tensor, scale: lp.Param, beta: float = 1.0) -> Tensor:
    return x * scale * beta

@lp.hookimpl
def layerport_layers():
    return (scaled,)
"""


@lp.layer("lp_saved::gain", version=4)
def gain(x: Tensor, weight: lp.Param, factor: float = 2.0) -> Tensor:
    return x * weight * factor


def made() -> Any:
    return gain.module(weight=torch.nn.Parameter(torch.tensor([1.0, 2.0])), factor=3.0)


def through_torch(value: Any, **options: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, **options)


@pytest.mark.parametrize(
    "travel",
    [
        copy.deepcopy,
        lambda module: pickle.loads(pickle.dumps(module)),
        lambda module: through_torch(module, weights_only=False),
        lambda module: copy.deepcopy(torch.nn.Sequential(module))[0],
    ],
)
def test_a_module_and_its_layer_come_back(travel: Any) -> None:
    module = made()
    back = travel(module)
    assert back is not module and back.layer is gain
    assert back.weight is not module.weight and back.weight.requires_grad
    x = torch.ones(3, 2)
    assert torch.equal(back(x), module(x))
    with torch.no_grad():
        back.weight.zero_()
    assert torch.equal(module(x), torch.tensor([[3.0, 6.0]] * 3))


def test_a_layer_is_one_thing_however_it_is_copied() -> None:
    assert copy.copy(gain) is gain and copy.deepcopy([gain])[0] is gain
    assert pickle.loads(pickle.dumps(gain)) is gain


def test_a_state_dict_needs_no_trust() -> None:
    module = made()
    other = gain.module(weight=torch.nn.Parameter(torch.zeros(2)), factor=3.0)
    other.load_state_dict(through_torch(module.state_dict(), weights_only=True))
    assert torch.equal(other(torch.ones(2)), module(torch.ones(2)))


def test_a_whole_module_with_weights_only_where_the_user_allows_it(site: Site) -> None:
    namespace = site.install(PACK)
    layer = import_file_of(site).scaled
    module = layer.module(scale=torch.nn.Parameter(torch.ones(2)))
    with pytest.raises(pickle.UnpicklingError):
        through_torch(module, weights_only=True)
    with torch.serialization.safe_globals([LayerModule, installed_layer]):
        back = through_torch(module, weights_only=True)
    assert back.layer is layer and layer.name == f"{namespace}::scaled"
    assert torch.equal(back(torch.ones(2)), module(torch.ones(2)))


def import_file_of(site: Site) -> Any:
    import importlib

    return importlib.import_module(site.modules[-1])


def run(code: str, *paths: Path) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    return subprocess.run([warm.python(), "-c", code], capture_output=True, text=True, env=environ, timeout=120)


LOAD = """
import pickle, sys, torch
module = pickle.load(open({file!r}, "rb"))
assert {pack!r} in sys.modules and "{other}" not in sys.modules, sorted(sys.modules)
print(module.layer, module(torch.ones(2)).tolist())
"""


def test_another_process_finds_the_layer_of_a_pack_that_is_not_imported(site: Site, tmp_path: Path) -> None:
    site.install("raise SystemExit('not asked')\n", name="other")
    namespace = site.install(PACK, name="wanted")
    module = import_file_of(site).scaled.module(scale=torch.tensor([1.0, 2.0]), beta=2.0)
    file = tmp_path / "module.pickle"
    file.write_bytes(pickle.dumps(module))
    code = LOAD.format(file=str(file), pack=site.modules[1], other=site.modules[0])
    done = run(code, site.folder)
    assert done.stdout == f"<layer {namespace}::scaled version 2> [2.0, 4.0]\n", done.stderr
    absent = run(code)
    assert f"layer {namespace}::scaled version 2 is not here: it was saved with wanted-layers 1.0" in absent.stderr
    assert "to repair: pip install wanted-layers" in absent.stderr


def test_a_pack_that_cannot_be_had_says_why(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.install("raise RuntimeError('no luck')\n", name="broken")
    site.install(PACK, name="blocked")
    monkeypatch.setenv(DISABLE_VARIABLE, "blocked")
    with pytest.raises(UsageError) as caught:
        installed_layer("lp_saved_absent::scaled", 2, "broken-layers", "1.5")
    assert caught.value.fault == (
        "layer lp_saved_absent::scaled version 2 is not here: it was saved with broken-layers 1.5"
    )
    assert caught.value.repair == "pip install broken-layers"
    first, second = caught.value.faults
    assert first.startswith("pack broken (broken-layers 1.0) is not loaded: importing") and "no luck" in first
    assert second == f"pack blocked (blocked-layers 1.0) is disabled by {DISABLE_VARIABLE}"


def test_another_version_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        installed_layer("lp_saved::gain", 3, "saved-layers", "1.5")
    assert caught.value.fault == (
        "layer lp_saved::gain is here with version 4, but version 3 is wanted: it was saved with saved-layers 1.5"
    )
    assert caught.value.repair == (
        "install the release of saved-layers that has version 3, or save the model again with version 4"
    )


def test_a_layer_of_a_file_comes_from_that_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(PACK.replace("NAMESPACE", "lp_saved_file"))
    layer = import_file(file).scaled
    stored = tmp_path / "module.pickle"
    stored.write_bytes(pickle.dumps(layer.module(scale=torch.ones(2))))
    code = f"import pickle; print(pickle.load(open({str(stored)!r}, 'rb')).layer)"
    assert run(code).stdout == "<layer lp_saved_file::scaled version 2>\n"
    file.unlink()
    absent = run(code)
    assert f"layer lp_saved_file::scaled version 2 is not here: it was saved from {file}" in absent.stderr
    assert "to repair: import the module that defines it first" in absent.stderr


def test_a_layer_of_a_module_imports_that_module(site: Site) -> None:
    (site.folder / "lp_saved_plain.py").write_text(PACK.replace("NAMESPACE", "lp_saved_plain"))
    layer = local_layer("lp_saved_plain::scaled", 2, "lp_saved_plain", "nowhere.py")
    assert layer is sys.modules["lp_saved_plain"].scaled
    with pytest.raises(UsageError, match="use the file as it was with version 1"):
        local_layer("lp_saved_plain::scaled", 1, "lp_saved_plain", "nowhere.py")


def answer(module: Any, queue: Any) -> None:
    queue.put((repr(module.layer), module(torch.ones(2)).tolist()))


def test_it_goes_to_a_spawned_process() -> None:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=answer, args=(made(), queue))
    process.start()
    said = queue.get(timeout=120)
    process.join(30)
    assert said == ("<layer lp_saved::gain version 4>", [3.0, 6.0])
