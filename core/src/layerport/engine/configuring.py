"""What the build worker sets on TensorRT's builder config, with a look at whether TensorRT took it.

A setter of TensorRT that refuses a value says so in its log and goes on with the default; here that is an error.
The module of the flavour is passed in.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from layerport.engine.options import EngineOptions
from layerport.errors import BuildError

_REFIT = {"all": "REFIT", "identical": "REFIT_IDENTICAL"}


def configure(trt: Any, config: Any, options: EngineOptions, logger: Any) -> TimingCache | None:
    """Set the options on a builder config; the timing cache comes back, to be saved after the build.

    Raises BuildError for an option that TensorRT does not take.
    """
    if options.workspace is not None:
        pool = trt.MemoryPoolType.WORKSPACE
        config.set_memory_pool_limit(pool, options.workspace)
        _taken("workspace", options.workspace, config.get_memory_pool_limit(pool), logger)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
        _taken("optimization_level", options.optimization_level, config.builder_optimization_level, logger)
    if options.hardware_compatibility is not None:
        level = getattr(trt.HardwareCompatibilityLevel, options.hardware_compatibility.upper())
        config.hardware_compatibility_level = level
        _taken("hardware_compatibility", level, config.hardware_compatibility_level, logger)
    flags = {
        "version_compatible": trt.BuilderFlag.VERSION_COMPATIBLE if options.version_compatible else None,
        "exclude_lean_runtime": trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME if options.exclude_lean_runtime else None,
        "weight_streaming": trt.BuilderFlag.WEIGHT_STREAMING if options.weight_streaming else None,
        "refit": getattr(trt.BuilderFlag, _REFIT[options.refit]) if options.refit else None,
    }
    for name, flag in flags.items():
        if flag is not None:
            config.set_flag(flag)
            _taken(name, True, config.get_flag(flag), logger)
    return None if options.timing_cache is None else TimingCache(config, Path(options.timing_cache), logger)


def make_builder(trt: Any, logger: Any) -> Any:
    """TensorRT's builder.  Raises BuildError where it cannot start here."""
    try:
        return trt.Builder(logger)
    except TypeError as error:  # what the bindings raise where the library gives no builder
        raise BuildError(
            "TensorRT cannot start here",
            "see `layerport doctor`: tensorrt needs a GPU and a driver that is new enough for it",
            faults=logger.errors[-3:],
        ) from error


def set_architectures(trt: Any, config: Any, architectures: Sequence[str], logger: Any) -> None:
    """What the plan is built for, in the flavour that builds without the GPU that it targets."""
    config.num_compute_capabilities = len(architectures)
    for place, name in enumerate(architectures):
        member = getattr(trt.ComputeCapability, name.replace("_", "").upper(), None)
        if member is None or not config.set_compute_capability(member, place):
            raise BuildError(
                f"this version of TensorRT does not build for {name}",
                "leave it out of the target, or install a newer one",
                faults=logger.errors[-3:],
            )


def _taken(name: str, asked: Any, found: Any, logger: Any) -> None:
    if asked != found:
        raise BuildError(
            f"TensorRT does not take the option {name}: {asked} was asked for, it has {found}",
            "leave the option out, or choose another value",
            faults=logger.errors[-3:],
        )


class TimingCache:
    """A file of measured kernel times, attached to a builder config."""

    def __init__(self, config: Any, path: Path, logger: Any) -> None:
        """Read the file, or begin anew where there is none.

        Raises BuildError for a file that TensorRT cannot use here: it would go on with an empty cache, and the file,
        which may be anything, would be overwritten in the end.
        """
        self._config, self._path, self._logger = config, path, logger
        data = self._content()
        said = len(logger.errors), len(logger.warnings)
        self._cache = self._make(data)
        taken = self._cache is not None and config.set_timing_cache(self._cache, False)
        news = [*logger.errors[said[0] :], *logger.warnings[said[1] :]]
        if not taken or (data and news):
            raise BuildError(
                f"timing cache {path} cannot be used by this TensorRT on this GPU",
                "delete it, or name another file: each TensorRT version and GPU model needs its own",
                faults=news[:5],
            )

    def save(self) -> None:
        """Write what was measured, together with what other builds wrote meanwhile.

        A file that cannot be written is a warning: the engine is built already.
        """
        try:
            if (data := self._content()) and (other := self._make(data)) is not None:
                self._cache.combine(other, False)
            _replace(self._path, memoryview(self._cache.serialize()))
        except (OSError, BuildError) as error:
            self._logger.warnings.append(f"the timing cache {self._path} was not written: {error}")

    def _make(self, data: bytes) -> Any:
        return self._config.create_timing_cache(data)

    def _content(self) -> bytes:
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise BuildError(
                f"timing cache {self._path} cannot be read: {error.strerror}", "name another file"
            ) from error


def _replace(path: Path, data: memoryview) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
