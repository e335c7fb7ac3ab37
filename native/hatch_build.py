"""The step of hatchling that compiles the plugin library into the wheel.

With LAYERPORT_NATIVE_TARGET (x86_64 or aarch64) it is compiled by the package `ziglang` for glibc 2.17, else by the
system's g++ for the machine that it is.
"""

from __future__ import annotations

import os
import platform
import runpy
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

TARGETS = ("x86_64", "aarch64")


class CompileLibrary(BuildHookInterface[Any]):
    """Adds both libraries and the wheel's tag."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, before the wheel's files are gathered."""
        target = os.environ.get("LAYERPORT_NATIVE_TARGET")
        if target is None:
            compiler, machine = ["g++"], f"linux_{platform.machine()}"
            # The program's own C++ library may be an older one.
            link = ["-static-libstdc++", "-static-libgcc", "-s"]
        elif target in TARGETS:
            compiler = [sys.executable, "-m", "ziglang", "c++", "-target", f"{target}-linux-gnu.2.17"]
            machine, link = f"manylinux_2_17_{target}.manylinux2014_{target}", ["-s"]
        else:
            raise ValueError(f"LAYERPORT_NATIVE_TARGET is {target}; give one of {', '.join(TARGETS)}, or nothing")
        self._made = tempfile.TemporaryDirectory()
        folder = Path(self._made.name)
        (folder / "objects").mkdir()
        compiling = runpy.run_path(str(Path(self.root) / "compiling.py"))
        for library in compiling["compile_libraries"](compiler, folder, folder / "objects", link=link):
            build_data["force_include"][str(library)] = f"layerport_native/{library.name}"
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{machine}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Take away what was compiled."""
        self._made.cleanup()
