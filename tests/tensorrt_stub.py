"""TensorRT's real Python bindings without TensorRT: libraries of the names that they load, compiled from nothing.

The bindings find a builder, runtime or registry in none of them; classes, signatures and enums are all there.
"""

from __future__ import annotations

import shutil
import subprocess
from importlib import metadata, util
from pathlib import Path

import pytest

LIBRARIES = ("libnvinfer.so.11", "libnvinfer_plugin.so.11", "libnvonnxparser.so.11")
FUNCTIONS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)


def make(folder: Path) -> dict[str, str]:
    """Make a `tensorrt` package and its libraries in a folder; the environment variables that let Python find them.

    Skips the test where the bindings or a C++ compiler are missing.
    """
    if util.find_spec("tensorrt_bindings") is None:
        pytest.skip("tensorrt_cu13_bindings is not installed")
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no g++")
    source = folder / "stub.cpp"
    source.write_text(
        'extern "C" {\n' + "".join(f"void* {name}() {{ return nullptr; }}\n" for name in FUNCTIONS) + "}\n"
    )
    for name in LIBRARIES:
        command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(folder / name), str(source)]
        subprocess.run(command, check=True, timeout=120)
    version = bindings_version()
    package = folder / "tensorrt"
    package.mkdir()
    # What the package of this name holds, whose libraries no package index has.
    lines = ("from tensorrt_bindings import *", "from tensorrt_bindings import __version__")
    (package / "__init__.py").write_text("\n".join(lines) + "\n")
    information = folder / f"tensorrt-{version}.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: tensorrt\nVersion: {version}\n")
    return {"LD_LIBRARY_PATH": str(folder)}


def bindings_version() -> str:
    """The version of the bindings that are installed."""
    return metadata.version("tensorrt_cu13_bindings")
