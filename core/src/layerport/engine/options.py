"""What a build may ask of TensorRT: one checked record, the same for Python, the command line and the build worker.

Which flavour lacks which option stands in the table here and nowhere else.  Imports no TensorRT.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from layerport.errors import UsageError
from layerport.targets import Target

_SIZE = re.compile(r"(\d{1,19})\s*([KMG]iB)?")
_UNITS = {None: 0, "KiB": 10, "MiB": 20, "GiB": 30}
_HELP = "`layerport build --help` lists them"


@dataclass(frozen=True)
class Option:
    """One engine option.

    form: how its value is written.  read: its value from a text or a Python value; raises ValueError.
    lacking: the flavours that do not have it, and why.
    """

    name: str
    form: str
    summary: str
    read: Callable[[Any], Any]
    lacking: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def help(self) -> str:
        """What it does, and which flavours lack it."""
        return self.summary + (f" (not {', '.join(self.lacking)})" if self.lacking else "")


def _bytes(value: Any) -> int:
    if isinstance(value, str):
        match = _SIZE.fullmatch(value.strip())
        value = int(match[1]) << _UNITS[match[2]] if match else 0
    if type(value) is not int or not 0 < value < 1 << 63:
        raise ValueError
    return value


def _level(value: Any) -> int:
    if isinstance(value, str) and re.fullmatch(r"[0-5]", value.strip()):
        value = int(value)
    if type(value) is not int or not 0 <= value <= 5:
        raise ValueError
    return value


def _flag(value: Any) -> bool:
    if isinstance(value, str):
        value = {"true": True, "false": False}.get(value.strip().lower())
    if type(value) is not bool:
        raise ValueError
    return value


def _file(value: Any) -> str:
    if not isinstance(value, (str, Path)) or not str(value) or "\0" in str(value):
        raise ValueError
    return str(Path(value).absolute())


def _choice(*choices: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value not in choices:
            raise ValueError
        return str(value)

    return read


_NO_LEAN_RUNTIME = {"rtx": "its package has no lean runtime, which such a plan carries"}

OPTIONS = {
    one.name: one
    for one in (
        Option(
            "workspace", "BYTES", "most GPU memory that a layer may use for itself; 512MiB and 2GiB are read", _bytes
        ),
        Option(
            "optimization_level",
            "0..5",
            "how long to look for faster kernels; TensorRT's default is 3",
            _level,
            {"rtx": "it makes the same plan at every level"},
        ),
        Option(
            "timing_cache",
            "FILE",
            "measured kernel times, kept from build to build; made where it does not exist",
            _file,
            {"rtx": "it measures nothing while it builds"},
        ),
        Option(
            "version_compatible",
            "true|false",
            "the plan also loads in newer TensorRT versions",
            _flag,
            _NO_LEAN_RUNTIME,
        ),
        Option(
            "exclude_lean_runtime",
            "true|false",
            "with version_compatible: the plan carries no lean runtime, whoever loads it brings one",
            _flag,
            _NO_LEAN_RUNTIME,
        ),
        Option(
            "hardware_compatibility",
            "ampere_plus|same_compute_capability",
            "the plan also runs on other GPUs than the one it is built on",
            _choice("ampere_plus", "same_compute_capability"),
            {"rtx": "name the architectures in the target instead, such as rtx:sm_89,sm_120"},
        ),
        Option("weight_streaming", "true|false", "weights may stay in host memory while the engine runs", _flag),
        Option(
            "refit",
            "all|identical",
            "weights of the engine can be replaced: by any others, or by the same ones only",
            _choice("all", "identical"),
            {"rtx": "it builds refittable plans on a GPU only, and for one architecture"},
        ),
    )
}


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """The options of one engine build.  None, and False for a flag, is TensorRT's default.

    Checked when made: raises UsageError with all faults.  `EngineOptions.of` also checks that a target has them.
    """

    workspace: int | None = None
    optimization_level: int | None = None
    timing_cache: str | None = None
    version_compatible: bool = False
    exclude_lean_runtime: bool = False
    hardware_compatibility: str | None = None
    weight_streaming: bool = False
    refit: str | None = None

    def __post_init__(self) -> None:
        read, faults = _read({one.name: getattr(self, one.name) for one in fields(self)})
        if faults:
            raise UsageError("engine options cannot be used", _HELP, faults=faults)
        for one in fields(self):
            object.__setattr__(self, one.name, read.get(one.name, one.default))

    @classmethod
    def of(cls, values: Mapping[str, Any] | None, target: Target) -> EngineOptions:
        """The options by name, values as Python values or as texts; None for a default.

        Raises UsageError with every name that is not known, value that cannot be and option that the target lacks.
        """
        read, faults = _read(values or {})
        faults += _target_faults(read, target)
        if faults:
            raise UsageError(f"engine options cannot be used for target {target}", _HELP, faults=faults)
        return cls(**read)

    def to_json(self) -> dict[str, Any]:
        """What differs from the defaults; `EngineOptions(**value)` gives the same options."""
        given = {one.name: getattr(self, one.name) for one in fields(self)}
        return {
            one.name: given[one.name]
            for one in fields(self)
            if one.default is MISSING or given[one.name] != one.default
        }

    def recorded(self) -> dict[str, Any]:
        """What a bundle says about its plan: everything but the files of this machine."""
        return {name: value for name, value in self.to_json().items() if name != "timing_cache"}


def split_options(texts: Iterable[str]) -> dict[str, str]:
    """`NAME=VALUE` texts by name.  Raises UsageError with all faults."""
    found: dict[str, str] = {}
    faults = []
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not (name and equals):
            faults.append(f"{text!r} is not NAME=VALUE")
        elif name in found:
            faults.append(f"{name} is given twice")
        found[name] = value
    if faults:
        raise UsageError("engine options cannot be read", "write them like --option workspace=2GiB", faults=faults)
    return found


def _read(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    read: dict[str, Any] = {}
    faults = []
    for name, value in values.items():
        option = OPTIONS.get(name)
        if option is None:
            faults.append(f"{name} is not an engine option; there are {', '.join(OPTIONS)}")
        elif value is not None:
            try:
                read[name] = option.read(value)
            except ValueError:
                faults.append(f"{name} must be {option.form}, got {value!r:.80}")
    if read.get("exclude_lean_runtime") and not read.get("version_compatible"):
        faults.append("exclude_lean_runtime needs version_compatible=true")
    if (path := read.get("timing_cache")) is not None:
        faults += _file_faults(Path(path))
    return read, faults


def _file_faults(path: Path) -> list[str]:
    if path.is_dir():
        return [f"timing_cache: {path} is a folder"]
    if not path.parent.is_dir():
        return [f"timing_cache: there is no folder {path.parent}"]
    return []


def _target_faults(read: Mapping[str, Any], target: Target) -> list[str]:
    if target.flavour == "portable":
        return [f"{name}: target portable builds no engine" for name in read]
    faults = []
    for name, value in read.items():
        why = OPTIONS[name].lacking.get(target.flavour)
        if why is not None and value is not False:
            faults.append(f"{name}: {target.flavour} does not have it: {why}")
    if target.flavour == "tensorrt":
        faults += _compatibility_faults(read.get("hardware_compatibility"), target.architectures)
    return faults


def _compatibility_faults(level: str | None, architectures: tuple[str, ...]) -> list[str]:
    if len(architectures) > 1 and level != "ampere_plus":
        return [
            f"a plan of tensorrt for {', '.join(architectures)} needs hardware_compatibility=ampere_plus; "
            "without, it runs on one architecture"
        ]
    old = [name for name in architectures if int(name[3:]) < 80]
    if old and level == "ampere_plus":
        return [f"hardware_compatibility=ampere_plus begins at sm_80, the target names {', '.join(old)}"]
    return []
