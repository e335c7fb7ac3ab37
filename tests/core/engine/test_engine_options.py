"""Engine options: read from Python and from texts, refused with every fault at once, and really set on TensorRT."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import layerport as lp
from layerport.cli import main
from layerport.engine.configuring import TimingCache, configure, set_architectures
from layerport.engine.options import OPTIONS, EngineOptions, split_options
from layerport.errors import BuildError, UsageError
from layerport.targets import Target
from small_models import net
from small_setup import ENGINE, SMALL, Built, python

RTX = Target("rtx", ("sm_89", "sm_120"))
FULL = Target("tensorrt", ("sm_90",))


def refused(values: dict[str, Any], target: Target = FULL) -> tuple[str, ...]:
    with pytest.raises(UsageError) as caught:
        EngineOptions.of(values, target)
    assert caught.value.fault == f"engine options cannot be used for target {target}"
    assert caught.value.repair == "`layerport build --help` lists them"
    return caught.value.faults


# Reading them.


def test_the_table_and_the_record_name_the_same_options() -> None:
    assert list(OPTIONS) == [one.name for one in dataclasses.fields(EngineOptions)]


def test_texts_and_python_values_mean_the_same(tmp_path: Path) -> None:
    typed = {
        "workspace": 2 << 30,
        "optimization_level": 4,
        "timing_cache": tmp_path / "cache",
        "version_compatible": True,
        "exclude_lean_runtime": True,
        "hardware_compatibility": "ampere_plus",
        "weight_streaming": True,
        "refit": "identical",
    }
    texts = split_options(
        [
            "workspace=2GiB",
            "optimization_level=4",
            f"timing_cache={tmp_path}/cache",
            "version_compatible=true",
            "exclude_lean_runtime=True",
            "hardware_compatibility=ampere_plus",
            "weight_streaming=true",
            "refit=identical",
        ]
    )
    found = EngineOptions.of(typed, FULL)
    assert found == EngineOptions.of(texts, FULL)
    assert found.to_json() == {**typed, "timing_cache": str(tmp_path / "cache")}
    assert EngineOptions(**json.loads(json.dumps(found.to_json()))) == found
    assert "timing_cache" not in found.recorded() and len(found.recorded()) == 7
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.workspace = 1  # type: ignore[misc]


def test_nothing_and_none_are_the_defaults() -> None:
    assert EngineOptions.of(None, FULL) == EngineOptions.of({}, Target("portable")) == EngineOptions()
    assert EngineOptions.of(dict.fromkeys(OPTIONS), RTX).to_json() == {}
    assert EngineOptions.of({"version_compatible": False}, RTX).to_json() == {}


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ("1KiB", 1 << 10), ("512 MiB", 512 << 20), (" 8GiB ", 8 << 30), (str((1 << 63) - 1), (1 << 63) - 1)],
)
def test_sizes(text: str, size: int) -> None:
    assert EngineOptions.of({"workspace": text}, RTX).workspace == size


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("workspace", 0), ("workspace", -1), ("workspace", "1.5GiB"), ("workspace", "1GB"), ("workspace", True),
        ("workspace", 1 << 63), ("workspace", "99999999999GiB"), ("workspace", ""), ("optimization_level", 6),
        ("optimization_level", "-1"), ("optimization_level", True), ("optimization_level", 2.0),
        ("version_compatible", "yes"), ("version_compatible", 1), ("weight_streaming", ""), ("refit", "ALL"),
        ("refit", True), ("refit", ["all"]), ("hardware_compatibility", "none"), ("timing_cache", ""),
        ("timing_cache", 3), ("timing_cache", "a\0b"),
    ],
)  # fmt: skip
def test_values_that_cannot_be(name: str, value: Any) -> None:
    assert refused({name: value}) == (f"{name} must be {OPTIONS[name].form}, got {value!r}",)
    with pytest.raises(UsageError):
        EngineOptions(**{name: value})


@given(st.dictionaries(st.sampled_from([*OPTIONS, "x", ""]), st.text() | st.integers() | st.booleans() | st.none()))
def test_whatever_is_given_is_a_record_or_a_usage_error(values: dict[str, Any]) -> None:
    try:
        found = EngineOptions.of(values, FULL)
    except UsageError as error:
        assert error.faults
    else:
        assert EngineOptions(**json.loads(json.dumps(found.to_json()))) == found


def test_all_faults_come_at_once(tmp_path: Path) -> None:
    values = {"workspace": "lots", "speed": 9, "exclude_lean_runtime": True, "timing_cache": tmp_path / "no" / "cache"}
    assert refused(values) == (
        "workspace must be BYTES, got 'lots'",
        f"speed is not an engine option; there are {', '.join(OPTIONS)}",
        "exclude_lean_runtime needs version_compatible=true",
        f"timing_cache: there is no folder {tmp_path / 'no'}",
    )
    assert refused({"timing_cache": tmp_path}) == (f"timing_cache: {tmp_path} is a folder",)


def test_texts_that_are_no_options() -> None:
    with pytest.raises(UsageError) as caught:
        split_options(["workspace", "refit=all", "=1", " refit = identical"])
    assert caught.value.faults == ("'workspace' is not NAME=VALUE", "'=1' is not NAME=VALUE", "refit is given twice")
    assert caught.value.repair == "write them like --option workspace=2GiB"
    assert split_options(["timing_cache=a=b"]) == {"timing_cache": "a=b"}


# What a flavour lacks.


def test_what_rtx_lacks(tmp_path: Path) -> None:
    values = {
        "workspace": 1 << 30,
        "weight_streaming": True,
        "optimization_level": 3,
        "timing_cache": tmp_path / "cache",
        "version_compatible": True,
        "hardware_compatibility": "ampere_plus",
        "refit": "all",
    }
    assert refused(values, RTX) == (
        "optimization_level: rtx does not have it: it makes the same plan at every level",
        "timing_cache: rtx does not have it: it measures nothing while it builds",
        "version_compatible: rtx does not have it: its package has no lean runtime, which such a plan carries",
        "hardware_compatibility: rtx does not have it: name the architectures in the target instead, such as "
        "rtx:sm_89,sm_120",
        "refit: rtx does not have it: it builds refittable plans on a GPU only, and for one architecture",
    )
    assert refused({"workspace": 1}, Target("portable")) == ("workspace: target portable builds no engine",)


def test_architectures_of_a_plan_of_tensorrt() -> None:
    two = Target("tensorrt", ("sm_80", "sm_90"))
    assert refused({}, two) == (
        "a plan of tensorrt for sm_80, sm_90 needs hardware_compatibility=ampere_plus; "
        "without, it runs on one architecture",
    )
    assert refused({"hardware_compatibility": "same_compute_capability"}, two) == refused({}, two)
    assert EngineOptions.of({"hardware_compatibility": "ampere_plus"}, two).hardware_compatibility == "ampere_plus"
    assert refused({"hardware_compatibility": "ampere_plus"}, Target("tensorrt", ("sm_75", "sm_86"))) == (
        "hardware_compatibility=ampere_plus begins at sm_80, the target names sm_75",
    )


# The command line and the bundle.


def test_the_command_line_lists_and_refuses(tmp_path: Path) -> None:
    shown = " ".join(CliRunner().invoke(main, ["build", "--help"]).output.split())
    assert all(f"{one.name}={one.form}" in shown for one in OPTIONS.values())
    assert "TensorRT's default is 3 (not rtx)" in shown
    arguments = ["build", "no.py:model", "-o", str(tmp_path / "out.lp"), "--target", "rtx:sm_89"]
    pytest.importorskip("tensorrt_rtx")
    done = CliRunner().invoke(main, [*arguments, "--option", "workspace=0", "--option", "refit=all"])
    assert done.exit_code == 2
    assert "workspace must be BYTES, got '0'" in done.stderr and "refit: rtx does not have it" in done.stderr
    done = CliRunner().invoke(main, [*arguments, "--option", "workspace"])
    assert (done.exit_code, "'workspace' is not NAME=VALUE" in done.stderr) == (2, True)
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_says_which_options_its_plan_has(tmp_path: Path, engine_bundle: Built) -> None:
    out = tmp_path / "streamed.lp"
    given = {"weight_streaming": "true", "workspace": "1GiB"}
    lp.build(net(), out, target=ENGINE, packs=[SMALL], verify=False, options=given)
    entries = [lp.Bundle.open(path).manifest["targets"][0] for path in (out, engine_bundle.path)]
    assert [entry["options"] for entry in entries] == [{"weight_streaming": True, "workspace": 1 << 30}, {}]
    plans = [(path / entries[0]["file"]).read_bytes() for path in (out, engine_bundle.path)]
    assert plans[0] != plans[1]


# Setting them.


class Config:
    """A builder config that takes everything, or nothing."""

    def __init__(self, *, takes: bool = True, **more: Any) -> None:
        self.__dict__.update(more)
        self.takes = takes
        self.pools: dict[str, int] = {}
        self.flags: set[str] = set()
        self.capabilities: dict[int, str] = {}

    def set_memory_pool_limit(self, pool: str, size: int) -> None:
        self.pools[pool] = size if self.takes else 7

    def get_memory_pool_limit(self, pool: str) -> int:
        return self.pools[pool]

    def set_flag(self, flag: str) -> None:
        self.flags |= {flag} if self.takes else set()

    def get_flag(self, flag: str) -> bool:
        return flag in self.flags

    def set_compute_capability(self, capability: str, place: int) -> bool:
        self.capabilities[place] = capability
        return self.takes


def names(*names: str) -> Any:
    return SimpleNamespace(**{name: name for name in names})


TRT: Any = SimpleNamespace(
    MemoryPoolType=names("WORKSPACE"),
    HardwareCompatibilityLevel=names("AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY"),
    BuilderFlag=names("VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME", "WEIGHT_STREAMING", "REFIT", "REFIT_IDENTICAL"),
    ComputeCapability=names("SM89", "SM120"),
)


def logger() -> Any:
    return SimpleNamespace(errors=["it said no"], warnings=[])


def test_every_option_reaches_tensorrt() -> None:
    config = Config()
    every = EngineOptions(
        workspace=5,
        optimization_level=0,
        version_compatible=True,
        exclude_lean_runtime=True,
        hardware_compatibility="same_compute_capability",
        weight_streaming=True,
        refit="identical",
    )
    assert configure(TRT, config, every, logger()) is None
    assert config.pools == {"WORKSPACE": 5}
    assert config.flags == {"VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME", "WEIGHT_STREAMING", "REFIT_IDENTICAL"}
    assert config.builder_optimization_level == 0  # type: ignore[attr-defined]
    assert config.hardware_compatibility_level == "SAME_COMPUTE_CAPABILITY"  # type: ignore[attr-defined]
    untouched = Config()
    before = dict(vars(untouched))
    configure(TRT, untouched, EngineOptions(), logger())
    assert vars(untouched) == before
    refittable = Config()
    configure(TRT, refittable, EngineOptions(refit="all"), logger())
    assert refittable.flags == {"REFIT"}


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"workspace": 1 << 62}, f"workspace: {1 << 62} was asked for, it has 7"),
        ({"weight_streaming": True}, "weight_streaming: True was asked for, it has False"),
        ({"refit": "all"}, "refit: True was asked for, it has False"),
    ],
)
def test_what_tensorrt_does_not_take_is_an_error(options: dict[str, Any], fault: str) -> None:
    with pytest.raises(BuildError) as caught:
        configure(TRT, Config(takes=False), EngineOptions(**options), logger())
    assert caught.value.fault == f"TensorRT does not take the option {fault}"
    assert caught.value.faults == ("it said no",)


def test_the_last_three_errors_are_told() -> None:
    log: Any = SimpleNamespace(errors=[f"error {number}" for number in range(7)])
    last = ("error 4", "error 5", "error 6")
    with pytest.raises(BuildError) as caught:
        configure(TRT, Config(takes=False), EngineOptions(refit="all"), log)
    assert caught.value.faults == last
    with pytest.raises(BuildError) as caught:
        set_architectures(TRT, Config(takes=False), ["sm_89"], log)
    assert caught.value.faults == last


def test_architectures_reach_tensorrt() -> None:
    config = Config()
    set_architectures(TRT, config, ["sm_89", "sm_120"], logger())
    assert config.capabilities == {0: "SM89", 1: "SM120"}
    assert config.num_compute_capabilities == 2  # type: ignore[attr-defined]
    for takes, name in ((False, "sm_89"), (True, "sm_121")):
        with pytest.raises(BuildError, match=f"this version of TensorRT does not build for {name}"):
            set_architectures(TRT, Config(takes=takes), [name], logger())


def test_the_real_builder_config_takes_them() -> None:
    pytest.importorskip("tensorrt_rtx")
    code = (
        "from layerport.engine import configuring, flavours, worker\n"
        "from layerport.engine.options import EngineOptions\n"
        "trt = flavours.load('rtx'); logger = worker._logger(trt, lambda event: None)\n"
        "config = configuring.make_builder(trt, logger).create_builder_config()\n"
        "configuring.set_architectures(trt, config, ['sm_89', 'sm_120'], logger)\n"
        "configuring.configure(trt, config, EngineOptions(workspace=1 << 30, optimization_level=4,\n"
        "    version_compatible=True, exclude_lean_runtime=True, weight_streaming=True, refit='identical'), logger)\n"
        "assert config.get_flag(trt.BuilderFlag.REFIT_IDENTICAL) and config.builder_optimization_level == 4\n"
        "assert (logger.errors, logger.warnings) == ([], [])\n"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr


# The timing cache.


class Cache:
    """A timing cache whose bytes are b"cache:" and its entries, joined by commas."""

    def __init__(self, data: bytes) -> None:
        self.entries = set(data.removeprefix(b"cache:").split(b",")) - {b""}

    def combine(self, other: Cache, ignore_mismatch: bool) -> bool:
        assert ignore_mismatch is False
        self.entries |= other.entries
        return True

    def serialize(self) -> bytes:
        return b"cache:" + b",".join(sorted(self.entries))


class Timed(Config):
    """A builder config that knows timing caches; `said` are the log's errors and warnings."""

    def __init__(self, said: Any, *, takes: bool = True) -> None:
        super().__init__(takes=takes)
        self.said = said
        self.cache: Cache | None = None

    def create_timing_cache(self, data: bytes) -> Cache:
        if data and not data.startswith(b"cache:"):
            self.said.warnings.append("Failed to deserialize timing cache.")
            data = b""
        return Cache(data)

    def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
        assert ignore_mismatch is False
        self.cache = cache
        return self.takes


def cached(path: Path, said: Any = None, **more: Any) -> tuple[TimingCache, Timed]:
    said = said or SimpleNamespace(errors=[], warnings=["something earlier"])
    config = Timed(said, **more)
    found = configure(TRT, config, EngineOptions(timing_cache=str(path)), said)
    assert found is not None
    return found, config


def measure(config: Timed, entry: bytes) -> None:
    assert config.cache is not None
    config.cache.entries.add(entry)


def test_a_timing_cache_grows_from_build_to_build(tmp_path: Path) -> None:
    path = tmp_path / "times"
    first, config = cached(path)
    measure(config, b"a")
    assert not path.exists()
    first.save()
    assert path.read_bytes() == b"cache:a"
    second, config = cached(path)
    assert config.cache is not None and config.cache.entries == {b"a"}
    other, elsewhere = cached(path)
    measure(config, b"b")
    measure(elsewhere, b"c")
    other.save()
    second.save()
    assert path.read_bytes() == b"cache:a,b,c"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_no_timing_cache_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"precious")
    with pytest.raises(BuildError) as caught:
        cached(path)
    assert caught.value.fault == f"timing cache {path} cannot be used by this TensorRT on this GPU"
    assert "delete it, or name another file" in str(caught.value.repair)
    assert caught.value.faults == ("Failed to deserialize timing cache.",)
    assert path.read_bytes() == b"precious"


def test_a_timing_cache_of_another_gpu_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "times"
    path.write_bytes(b"cache:a")
    with pytest.raises(BuildError, match="cannot be used by this TensorRT on this GPU"):
        cached(path, takes=False)


def test_a_timing_cache_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    said = SimpleNamespace(errors=[], warnings=[])
    cache, _ = cached(folder / "times", said)
    folder.rmdir()
    cache.save()
    (warning,) = said.warnings
    assert warning.startswith(f"the timing cache {folder / 'times'} was not written: ")
