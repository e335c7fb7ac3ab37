"""Packs: found from metadata, loaded in isolation, and what each can do wrong."""

from __future__ import annotations

import os
import re
import signal
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from layerport.packs.discovery import discover
from layerport.packs.host import Packs, load
from packs.installer import Site, show_only

HOOK = "import layerport as lp\n\n"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("layerport >> 1", "it requires 'layerport >> 1', which is no requirement; correct it in its pyproject.toml"),
        ("layerport (>=99)", "takes layerport >=99, and here is "),
        ("layerport>=99; python_version < '3'", None),
        ("layerport>=99; extra == 'more'", None),
        ("layerport-native>=99", None),
        ("layerport @ file:///nowhere", None),
        ("layerport>=99; python_version >> '3'", "which is no requirement"),
    ],
)
def test_what_a_distribution_requires_of_the_core(site: Site, line: str, said: str | None) -> None:
    site.install("good")
    with (site.folder / "fake_layers-1.0.dist-info/METADATA").open("a") as file:
        file.write(f"Requires-Dist: {line}\n")
    (pack,) = load(environ={})
    assert pack.status == ("loaded" if said is None else "failed")
    assert said is None or (pack.failure is not None and said in pack.failure)


def one(packs: Packs, name: str = "fake") -> Any:
    return next(pack for pack in packs if pack.info.name == name)


# Discovery


def test_discovery_reads_metadata_and_imports_no_pack(site: Site) -> None:
    site.install("raise SystemExit\n", name="b")
    site.install("good", name="a", version="2.1")
    found = discover(environ={})
    assert [(info.name, info.distribution, info.version) for info in found] == [
        ("a", "a-layers", "2.1"),
        ("b", "b-layers", "1.0"),
    ]
    assert [info.entry_point_value for info in found] == site.modules[::-1]
    assert not set(site.modules) & set(sys.modules)


def test_a_folder_that_is_on_the_path_twice_is_read_once(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.install("good")
    show_only(monkeypatch, lambda: metadata.distributions(path=[str(site.folder)] * 2))
    (info,) = discover(environ={})
    assert info.fault is None
    assert one(load(environ={})).status == "loaded"


def test_an_earlier_copy_on_the_path_hides_a_later_one(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.install("good", version="1.0")
    other = tmp_path / "other" / "fake_layers-2.0.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: fake-layers\nVersion: 2.0\n")
    monkeypatch.syspath_prepend(str(other.parent))
    assert discover(environ={}) == ()


@pytest.mark.parametrize(
    ("points", "fault"),
    [
        ("fake", "its entry_points.txt cannot be read"),
        ("fake = not a module", "'not a module' is not of the form module or module:object"),
        ("layerport = x", "the name 'layerport' belongs to the core; rename the entry point"),
    ],
)
def test_damaged_metadata_is_one_packs_own_fault(site: Site, points: str, fault: str) -> None:
    site.install("good", name="fine")
    site.install("good", points=points)
    faults = {info.distribution: info.fault for info in discover(environ={})}
    assert faults["fine-layers"] is None
    assert fault in str(faults["fake-layers"])
    assert [pack.info.distribution for pack in load(environ={}).failed] == ["fake-layers"]


def test_metadata_without_a_version_is_listed(site: Site) -> None:
    site.install("good")
    (site.folder / "fake_layers-1.0.dist-info" / "METADATA").write_text("Name: fake-layers\n")
    assert site.info("fake").label == "fake (fake-layers unknown)"


def test_two_entry_points_of_one_name_both_stay_out(site: Site) -> None:
    site.install("good", distribution="first", version="1.1")
    site.install("good", distribution="second", version="2.2")
    faults = [info.fault for info in discover(environ={})]
    assert faults == [
        (
            "2 entry points are named 'fake': first 1.1 and second 2.2; uninstall all but one, "
            f"name the wanted distribution, as in --prefer {name}, or the other one in LAYERPORT_DISABLE_PACKS"
        )
        for name in ("first", "second")
    ]
    assert [pack.status for pack in load(environ={})] == ["failed", "failed"]
    packs = load(environ={"LAYERPORT_DISABLE_PACKS": "first"})
    assert [(pack.info.distribution, pack.status) for pack in packs] == [
        ("first", "disabled"),
        ("second", "loaded"),
    ]


@pytest.mark.parametrize("piped", ["METADATA", "entry_points.txt", "RECORD", "../acme.py"])
def test_a_pipe_keeps_nobody_waiting_who_looks_for_packs_without_a_group(site: Site, piped: str) -> None:
    info = site.folder / "acme-1.0.dist-info"
    info.mkdir()
    files = {
        "METADATA": "Metadata-Version: 2.1\nName: acme\nVersion: 1.0\nRequires-Dist: layerport\n",
        "entry_points.txt": "[acme.plugins]\nacme = acme\n",
        "RECORD": "acme.py,,\n",
        "../acme.py": "import layerport as lp\n\n@lp.hookimpl\ndef layerport_layers():\n    return ()\n",
    }
    for name, text in files.items():
        (info / name).write_text(text)
    assert [one.name for one in discover(environ={}, unregistered=True)] == ["acme"]
    (info / piped).unlink()
    os.mkfifo(info / piped)
    before = signal.signal(signal.SIGALRM, lambda number, frame: pytest.fail("it waits for the pipe"))
    signal.alarm(20)
    try:
        found = discover(environ={}, unregistered=True)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    # Without its entry points it is still a pack that nobody finds.
    assert [one.name for one in found] == (["acme"] if piped == "entry_points.txt" else [])


# Loading


def test_a_good_pack_brings_its_layers(site: Site) -> None:
    namespace = site.install("good")
    packs = load(environ={})
    assert [layer.name for layer in packs.layers] == [f"{namespace}::double", f"{namespace}::swish"]
    assert packs.layer(f"{namespace}::swish").version == 3
    assert packs.owner(packs.layers[0]).info.label == "fake (fake-layers 1.0)"
    assert (one(packs).status, one(packs).warnings, packs.warnings) == ("loaded", (), ())


BROKEN = {
    "import": (
        "import not_there_at_all\n",
        r"raised ModuleNotFoundError: No module named 'not_there_at_all' \(.*fake_pack_\d+\.py:1\)",
    ),
    "syntax": ("def broken(:\n", r"importing fake_pack_\d+ raised SyntaxError: invalid syntax"),
    "exit": ("import sys\nsys.exit(3)\n", r"importing fake_pack_\d+ exited with SystemExit: 3 "),
    "odd exception": (
        "class Odd(BaseException):\n    pass\nraise Odd('odd')\n", r"importing fake_pack_\d+ raised Odd: odd"
    ),
    "misspelt hook": (
        HOOK + "@lp.hookimpl\ndef layerport_export_paramters(module, name):\n    return None\n",
        r"it declares an unknown hook layerport_export_paramters; did you mean layerport_export_parameters\?",
    ),
    "hook without prefix": (
        HOOK + "@lp.hookimpl\ndef layers():\n    return ()\n",
        r"it declares an unknown hook layers; did you mean layerport_layers\?",
    ),
    "unlike any hook": (
        HOOK + "@lp.hookimpl\ndef quux():\n    return ()\n",
        r"unknown hook quux; the hooks are layerport_layers, layerport_export_parameters, ",
    ),
    "argument": (
        HOOK + "@lp.hookimpl\ndef layerport_export_parameters(modul, name):\n    return None\n",
        (r"its layerport_export_parameters takes 'modul', but is called with \(module, name\); "
        r"did you mean module\?"),
    ),
    "foreign argument": (
        HOOK + "@lp.hookimpl\ndef layerport_layers(config):\n    return ()\n",
        r"its layerport_layers takes 'config', but is called with \(\); take it out",
    ),
    "star arguments": (
        HOOK + "@lp.hookimpl\ndef layerport_layers(**kwargs):\n    return ()\n",
        r"its layerport_layers takes \*\*kwargs, which stays empty",
    ),
    "generator": (
        HOOK + "@lp.hookimpl\ndef layerport_layers():\n    yield 1\n",
        r"its layerport_layers is a generator function; return a record",
    ),
    "coroutine": (
        HOOK + "@lp.hookimpl\nasync def layerport_layers():\n    return ()\n",
        r"its layerport_layers is an async function",
    ),
    "wrapper": (
        HOOK + "@lp.hookimpl(wrapper=True)\ndef layerport_layers():\n    return (yield)\n",
        r"its layerport_layers is a hook wrapper; a pack answers for itself",
    ),
    "twice": (
        HOOK + "@lp.hookimpl\ndef layerport_layers():\n    return ()\n\n"
        "@lp.hookimpl(specname='layerport_layers')\ndef more():\n    return ()\n",
        r"it implements layerport_layers 2 times; keep one",
    ),
    "unmarked": (
        "def layerport_layers():\n    return ()\n",
        r"its function layerport_layers is not marked; decorate it with @lp.hookimpl",
    ),
    "empty": ("x = 1\n", r"it implements no hook; mark its functions with @lp.hookimpl"),
    "list": (
        HOOK + "@lp.hookimpl\ndef layerport_layers():\n    return []\n",
        r"layerport_layers returned list \[\], expected a tuple of layers",
    ),
    "none": (
        HOOK + "@lp.hookimpl\ndef layerport_layers():\n    return None\n",
        r"layerport_layers returned NoneType None, expected a tuple of layers",
    ),
    "not layers": (
        HOOK + "@lp.hookimpl\ndef layerport_layers():\n    return (print,)\n",
        (r"layerport_layers returned builtin_function_or_method <built-in function print> at index 0, "
        r"expected a layer"),
    ),
    "hook raises": (
        HOOK + "@lp.hookimpl\ndef layerport_layers():\n    raise KeyError('key')\n",
        r"layerport_layers raised KeyError: 'key'",
    ),
    "layer refused": (
        HOOK + "@lp.layer('trt::mine')\ndef mine(x):\n    return x\n",
        r"raised UsageError: layer name 'trt::mine' is not 'namespace::name'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_pack_says_why_and_stops_nobody_else(site: Site, case: str) -> None:
    source, failure = BROKEN[case]
    namespace = site.install("good", name="fine")
    site.install(source)
    packs = load(environ={})
    assert re.search(failure, one(packs).failure), one(packs).failure
    assert one(packs).plugin is None
    assert packs.layer(f"{namespace}::double").version == 1


def test_one_layer_instead_of_a_tuple_is_told_to_write_a_tuple(site: Site) -> None:
    site.install((Path(__file__).parents[2] / "packs/good.py").read_text().replace("(swish, double)", "swish"))
    (failed,) = load(environ={}).failed
    assert failed.failure == "layerport_layers returned one layer, expected a tuple of layers"
    assert "return (swish,)" in str(failed.error)


def test_a_layer_returned_twice_is_a_fault(site: Site) -> None:
    text = (Path(__file__).parents[2] / "packs/good.py").read_text()
    namespace = site.install(text.replace("(swish, double)", "(double, double)"))
    (failed,) = load(environ={}).failed
    assert failed.failure == f"layerport_layers returned {namespace}::double more than once"


def test_an_optional_hook_of_a_later_version_is_let_through(site: Site) -> None:
    text = "@lp.hookimpl(optionalhook=True)\ndef layerport_future():\n    return 1\n\n"
    site.install(HOOK + text + "@lp.hookimpl\ndef layerport_layers():\n    return ()\n")
    assert one(load(environ={})).status == "loaded"


def test_an_entry_point_may_name_an_object_but_not_a_class(site: Site) -> None:
    text = (
        HOOK
        + "class Hooks:\n    @lp.hookimpl\n    def layerport_layers(self):\n        return ()\n\n"
        + "hooks = Hooks()\n"
    )
    site.install(text, name="ok", points="ok = MODULE:hooks")
    site.install(text, name="bad", points="bad = MODULE:Hooks")
    for path, module in zip(sorted(site.folder.glob("*.dist-info")), reversed(site.modules), strict=True):
        points = path / "entry_points.txt"
        points.write_text(points.read_text().replace("MODULE", module))
    packs = load(environ={})
    assert one(packs, "ok").status == "loaded"
    assert one(packs, "bad").failure == ("its entry point names the class Hooks; name an instance of it, or the module")


def test_two_entry_points_of_one_object_are_not_two_packs(site: Site) -> None:
    namespace = site.install("good", name="a")
    site.install("good", name="b", points=f"b = {site.modules[0]}")
    packs = load(environ={})
    assert one(packs, "b").failure == (
        "its entry point names the same object as pack a (a-layers 1.0); uninstall one of the two"
    )
    assert packs.layer(f"{namespace}::double") in packs.layers


def test_ctrl_c_during_an_import_passes(site: Site) -> None:
    site.install("raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        load(environ={})


def test_what_a_pack_prints_at_import_is_a_warning_and_not_on_stdout(
    site: Site, capfd: pytest.CaptureFixture[str]
) -> None:
    site.install("prints")
    packs = load(environ={})
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == "hello from a hook\n"
    assert one(packs).warnings == (
        "printed to stdout at import: hello from python\\x1b[31m hello from native code hello from a child",
        "printed to stderr at import: a complaint",
    )


def test_hooks_that_are_never_asked_are_a_warning(site: Site) -> None:
    site.install(HOOK + "@lp.hookimpl\ndef layerport_convert_parameters(layer):\n    return None\n")
    assert one(load(environ={})).warnings == (
        "it provides no layer, so its layerport_convert_parameters will never be asked",
    )


# Entry points that miss


@pytest.mark.parametrize(
    "group", ["layerport.packs", "layerports", "layer_port", "Layerport", "layerport-layers", "layerprot"]
)
def test_a_group_that_is_nearly_ours_is_noticed(site: Site, group: str) -> None:
    site.install("good", points="")
    folder = next(site.folder.glob("*.dist-info"))
    (folder / "entry_points.txt").write_text(f"[console_scripts]\nx = y:z\n\n[{group}]\nfake = {site.modules[0]}\n")
    (info,) = discover(environ={})
    assert (info.name, info.distribution) == ("fake", "fake-layers")
    assert info.fault == (
        f'its entry point is in the group {group!r}; write fake = "{site.modules[0]}" under '
        "[project.entry-points.layerport] in its pyproject.toml"
    )
    (pack,) = load(environ={})
    assert pack.status == "failed" and pack.failure == info.fault


@pytest.mark.parametrize("group", ["importlib_port", "layers", "console_scripts", "portlayer", "airport"])
def test_other_groups_are_nobody_of_ours(site: Site, group: str) -> None:
    site.install("good", points="")
    folder = next(site.folder.glob("*.dist-info"))
    (folder / "entry_points.txt").write_text(f"[{group}]\nfake = {site.modules[0]}\n")
    assert discover(environ={}) == ()


def test_an_entry_point_whose_module_is_absent(site: Site) -> None:
    package = site.folder / "lp_absent"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('imported')\n")
    (package / "plugin.py").write_text("")
    site.install("good", name="top", points="top = lp_nowhere.plugin")
    site.install("good", name="sub", points="sub = lp_absent.plugins")
    faults = {info.name: info.fault for info in discover(environ={})}
    assert faults == {
        "top": "its entry point names 'lp_nowhere.plugin', but there is no module lp_nowhere; "
        'write top = "MODULE" under [project.entry-points.layerport] in its pyproject.toml',
        "sub": "its entry point names 'lp_absent.plugins', but there is no module lp_absent.plugins; "
        'write sub = "lp_absent.plugin" under [project.entry-points.layerport] in its pyproject.toml',
    }


@pytest.mark.parametrize(
    ("source", "attribute", "value"),
    [("good", "plugin", "{module}"), ("class Plugin:\n    pass\n\nplugin = Plugin()\n", "plugins", "{module}:plugin")],
)
def test_an_entry_point_whose_object_is_absent(site: Site, source: str, attribute: str, value: str) -> None:
    site.install(source, points="")
    module = site.modules[0]
    folder = next(site.folder.glob("*.dist-info"))
    (folder / "entry_points.txt").write_text(f"[layerport]\nfake = {module}:{attribute}\n")
    failure = one(load(environ={})).failure
    assert failure == (
        f"its entry point names '{module}:{attribute}', but {module} has no {attribute}; write fake = "
        f'"{value.format(module=module)}" under [project.entry-points.layerport] in its pyproject.toml'
    )
