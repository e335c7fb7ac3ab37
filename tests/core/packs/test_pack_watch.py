"""Hooks that change what they may only read: an error that names pack, hook and change, and everything is put back."""

from __future__ import annotations

import random
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import layerport as lp
from layerport.errors import PackError
from layerport.front.claims import claim_layers
from layerport.front.sources import Source
from layerport.packs.host import load
from layerport.packs.torch_state import RandomStates, Settings
from layerport.packs.watch import KEPT_WHOLE
from packs.installer import Site


@lp.layer("lp_watched::scaled")
def scaled(x: Tensor, weight: lp.Param) -> Tensor:
    return x * weight


class Scale(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(1.0, 5.0))
        self.register_buffer("seen", torch.zeros(2))
        self.config = config
        self.names = ["a"]
        self.eps = 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        config = types.SimpleNamespace(eps=1e-6)
        self.first = Scale(config)
        self.block = nn.Sequential(Scale(config), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.first(x))


class Pack:
    """Does something at `block.0` while it is asked, and at each call of the other hooks."""

    def __init__(self, deed: Callable[[Any], Any], hook: str = "export") -> None:
        self.deed, self.hook = deed, hook

    @lp.hookimpl
    def layerport_layers(self) -> Any:
        return (scaled,)

    @lp.hookimpl
    def layerport_export_parameters(self, module: nn.Module, name: str) -> Any:
        if self.hook == "export" and name == "block.0":
            self.deed(module)
        return scaled.bind(weight=module.weight) if isinstance(module, Scale) else None

    @lp.hookimpl
    def layerport_convert_parameters(self, layer: Any, parameters: Any, target: Any) -> Any:
        if self.hook == "convert":
            self.deed(parameters)

    @lp.hookimpl
    def layerport_create_plugin(self, layer: Any, bound: Any, target: Any) -> Any:
        if self.hook == "create":
            self.deed(bound)


@pytest.fixture(autouse=True)
def no_installed_packs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("layerport.packs.host.discover", lambda environ=None: ())
    yield


@pytest.fixture(autouse=True)
def nothing_global_is_left() -> Iterator[None]:
    settings, states = Settings(), RandomStates()
    yield
    assert settings.changes() == [] and states.changes() == []


def with_numpy(module: Any) -> None:
    module.weight.detach().numpy()[:] += 1


def set_config(module: Any) -> None:
    module.config.eps = 1e-3


def set_eps(module: Any) -> None:
    module.eps = 1e-3


def replace_forward(module: Any) -> None:
    type(module).forward = lambda self, x: x


def hook_everything(module: Any) -> None:
    torch.nn.modules.module.register_module_forward_hook(lambda *given: None)


DEEDS: list[tuple[Callable[[Any], Any], str]] = [
    (lambda module: module.weight.data.zero_(), "the values of block.0.weight"),
    (lambda module: nn.init.zeros_(module.weight), "the values of block.0.weight"),
    (lambda module: module.seen.add_(1), "the values of block.0.seen"),
    (lambda module: setattr(module.weight, "data", torch.ones(2)), "the values of block.0.weight"),
    (lambda module: module.weight.requires_grad_(False), "requires_grad of block.0.weight"),
    (lambda module: setattr(module.weight, "grad", torch.ones(4)), "the gradient of block.0.weight"),
    (lambda module: module.register_forward_hook(lambda *given: None), "forward hooks of block.0"),
    (lambda module: module.register_forward_pre_hook(lambda *given: None), "forward pre hooks of block.0"),
    (lambda module: module.register_parameter("more", None), "parameters of block.0"),
    (lambda module: module.register_buffer("more", torch.ones(1)), "buffers of block.0"),
    (lambda module: module.add_module("child", nn.ReLU()), "modules of block.0"),
    (lambda module: module.eval() if module.training else module.train(), "training of block.0"),
    (set_eps, "eps of block.0"),
    (set_config, "config.eps of first"),
    (lambda module: module.names.append("b"), "names of block.0"),
    (lambda module: delattr(module, "eps"), "eps of block.0"),
    (replace_forward, "forward of class Scale"),
    (lambda module: torch.set_default_dtype(torch.float64), "Torch's default dtype (torch.float32, now torch.float64)"),
    (lambda module: torch.set_grad_enabled(True), "Torch's gradient mode (False, now True)"),
    (lambda module: torch.use_deterministic_algorithms(True), "Torch's deterministic algorithms"),
    (lambda module: torch.set_num_threads(torch.get_num_threads() + 1), "Torch's number of threads"),
    (lambda module: torch.set_float32_matmul_precision("high"), "Torch's float32 matmul precision"),
    (lambda module: torch.set_default_device("meta"), "Torch's default device"),
    (hook_everything, "Torch's global module hooks"),
    (lambda module: torch.manual_seed(77), "Torch's random state"),
    (lambda module: torch.randn(2), "Torch's random state"),
    (lambda module: random.random(), "Python's random state"),
    (lambda module: np.random.random(), "NumPy's random state"),
]


@pytest.mark.parametrize(("deed", "change"), DEEDS, ids=[f"{n}: {change}" for n, (_, change) in enumerate(DEEDS)])
def test_what_an_export_hook_changes(deed: Callable[[Any], Any], change: str) -> None:
    model, x = Net().eval(), torch.ones(2, 4)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(PackError) as caught:
        claim_layers(Source(model, (x,)), load(Pack(deed)))
    assert caught.value.fault.startswith("pack Pack (passed in: Pack): layerport_export_parameters changed ")
    assert change in caught.value.fault
    assert "read it only" in str(caught.value.repair)
    after = model.state_dict()
    assert after.keys() == state.keys() and all(torch.equal(after[name], state[name]) for name in state)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert torch.equal(model(x), x * torch.arange(1.0, 5.0).square())


def test_what_is_written_behind_torchs_back_is_found_but_not_put_back() -> None:
    with pytest.raises(PackError) as caught:
        claim_layers(Source(Net().eval(), (torch.ones(2, 4),)), load(Pack(with_numpy)))
    assert "the values of block.0.weight (behind Torch's back: they cannot be put back)" in caught.value.fault


def test_clearing_the_children_of_the_model() -> None:
    class Clears(Pack):
        @lp.hookimpl
        def layerport_export_parameters(self, module: nn.Module, name: str) -> Any:
            if name == "":
                module._modules.clear()

    with pytest.raises(PackError) as caught:
        claim_layers(Source(Net().eval(), (torch.ones(2, 4),)), load(Clears(print)))
    assert caught.value.fault.endswith("layerport_export_parameters changed modules of the root module")


def test_a_hook_that_changes_something_and_raises_is_put_back_too() -> None:
    def both(module: Any) -> None:
        module.weight.data.zero_()
        torch.manual_seed(1)
        raise ValueError("after that")

    model = Net().eval()
    with pytest.raises(PackError, match="raised ValueError: after that"):
        claim_layers(Source(model, (torch.ones(2, 4),)), load(Pack(both)))
    assert torch.equal(model.block[0].weight, torch.arange(1.0, 5.0))


@pytest.mark.parametrize("hook", ["convert", "create"])
def test_the_step_hooks(hook: str) -> None:
    weight = nn.Parameter(torch.arange(4.0))
    bound = scaled.bind(weight=weight)

    def ask(deed: Callable[[Any], Any]) -> str:
        packs = load(Pack(deed, hook))
        with pytest.raises(PackError) as caught:
            if hook == "convert":
                packs.convert_parameters(scaled, bound.parameters, None, path="block.0")  # type: ignore[arg-type]
            else:
                packs.create_plugin(scaled, bound, None, path="block.0")  # type: ignore[arg-type]
        name = "layerport_convert_parameters" if hook == "convert" else "layerport_create_plugin"
        start = f"pack Pack (passed in: Pack): {name} for layer lp_watched::scaled at block.0 changed "
        assert caught.value.fault.startswith(start)
        assert torch.equal(weight, torch.arange(4.0))
        return caught.value.fault.removeprefix(start)

    def array(given: Any) -> Any:
        return (given if hook == "convert" else given.parameters)["weight"]

    def more_kernels(given: Any) -> None:
        scaled._kernels.append(None)  # type: ignore[arg-type]

    assert ask(lambda given: array(given).__imul__(7)) == "the values of weight"
    assert ask(lambda given: torch.from_numpy(array(given)).zero_()) == "the values of weight"
    assert ask(lambda given: torch.manual_seed(3)) == "Torch's random state"
    assert ask(more_kernels) == "layer lp_watched::scaled"
    scaled._kernels.clear()
    if hook == "create":
        assert ask(lambda given: given.sources["weight"].data.zero_()) == "the values of weight"


def test_a_large_array_is_looked_at_in_parts() -> None:
    bound = scaled.bind(weight=torch.zeros(KEPT_WHOLE))
    with pytest.raises(PackError) as caught:
        load(Pack(lambda given: given["weight"].__iadd__(1), "convert")).convert_parameters(
            scaled,
            bound.parameters,
            None,  # type: ignore[arg-type]
        )
    assert caught.value.fault.endswith("changed the values of weight (too many to be put back)")


def test_hooks_that_only_read_are_let_be() -> None:
    def reads(module: Any) -> None:
        (1 + module.weight.detach().float()).numpy().copy()
        module.weight.clone().zero_()
        torch.randn(2, generator=torch.Generator().manual_seed(0))
        with torch.enable_grad():
            (module.weight * 2).sum()
        list(module.named_modules()), module.state_dict(), repr(module)

    claimed = claim_layers(Source(Net().eval(), (torch.ones(2, 4),)), load(Pack(reads)))
    assert [claim.status for claim in claimed.claims] == ["claimed", "claimed"]


# At import


def installed(site: Site, line: str) -> Any:
    site.install(
        f"import random\nimport torch\nimport layerport as lp\n\n{line}\n\n@lp.hookimpl\n"
        "def layerport_layers():\n    return ()\n"
    )
    (pack,) = load(environ={})
    return pack


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    from packs.installer import make_site

    monkeypatch.undo()
    return make_site(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("line", "change"),
    [
        ("torch.set_default_dtype(torch.float64)", "Torch's default dtype (torch.float32, now torch.float64)"),
        ("torch.set_grad_enabled(False)", "Torch's gradient mode (True, now False)"),
        ("torch.set_default_device('meta')", "Torch's default device (None, now meta)"),
    ],
)
def test_a_setting_changed_at_import_fails_that_pack_alone(site: Site, line: str, change: str) -> None:
    pack = installed(site, line)
    assert pack.status == "failed"
    assert pack.failure.startswith(f"importing {pack.info.entry_point_value} changed {change}; read it only")


def test_random_numbers_drawn_at_import_are_put_back_with_a_word(site: Site) -> None:
    pack = installed(site, "torch.manual_seed(5); random.seed(5)")
    assert pack.status == "loaded"
    assert pack.warnings == (
        "it changed Torch's random state at import, which was put back",
        "it changed Python's random state at import, which was put back",
    )


def test_a_pack_that_is_the_first_to_import_torch(tmp_path: Path) -> None:
    import subprocess
    import sys

    file = tmp_path / "pack.py"
    file.write_text("import torch\nimport layerport as lp\ntorch.set_default_dtype(torch.float64)\n")
    code = (
        "import sys\nfrom layerport.packs.host import load\nfrom layerport.errors import PackError\n"
        "assert 'torch' not in sys.modules\n"
        f"try:\n    load({str(file)!r}, environ={{}})\nexcept PackError as error:\n    print(error.fault)\n"
        "import torch\nprint(torch.get_default_dtype())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "changed Torch's default dtype (torch.float32, now torch.float64)" in done.stdout, done.stderr
    assert done.stdout.endswith("torch.float32\n")


# What an export hook gets wrong by name


@pytest.mark.parametrize(
    ("bind", "words"),
    [
        (lambda module: scaled.bind(weight=module.wieght), "raised AttributeError: 'Scale' object has no attribute"),
        (lambda module: scaled.bind(wieght=module.weight), "lp_watched::scaled"),
        (lambda module: scaled.bind(), "lp_watched::scaled"),
        (lambda module: scaled.bind(weight=module.weight, eps=1e-6), "lp_watched::scaled"),
    ],
)
def test_names_that_do_not_exist(bind: Callable[[Any], Any], words: str) -> None:
    class Binds(Pack):
        @lp.hookimpl
        def layerport_export_parameters(self, module: nn.Module) -> Any:
            return bind(module) if isinstance(module, Scale) else None

    with pytest.raises(PackError) as caught:
        claim_layers(Source(Net().eval(), (torch.ones(2, 4),)), load(Binds(print)))
    text = str(caught.value)
    assert "layerport_export_parameters at first (Scale)" in text and "pack Binds" in text and words in text
    if words.startswith("lp"):
        assert "weight" in text or "wieght" in text or "eps" in text
