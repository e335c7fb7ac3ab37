"""Looks at native libraries and the GPU in a process of its own, where a crash or a hang costs nothing.

Only `doctor` runs this file, as a script with `-m`.  It prints one line of JSON last.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from layerport.engine import native
from layerport.errors import BuildError
from layerport.foreign.tested import NEWEST, newer_than_tested

# CUdevice_attribute in cuda.h
_MAJOR, _MINOR = 75, 76


def probe() -> dict[str, Any]:
    """What loads here: each entry is a dictionary with `error`, or with what was found."""
    return {
        "driver": _guarded(_driver),
        "nvrtc": _guarded(_nvrtc),
        "headers": _guarded(_headers),
        "tensorrt_rtx": _guarded(lambda: _version_of("tensorrt_rtx")),
        "tensorrt": _guarded(lambda: _version_of("tensorrt")),
        "plugin library": _guarded(_plugin_library),
        **{f"{library} names": _guarded(partial(_names, library)) for library in NEWEST if newer_than_tested(library)},
    }


def _guarded(look: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return look()
    except Exception as error:  # whatever a broken installation raises is the finding
        text = " ".join(str(error).split())
        return {"error": f"{type(error).__name__}: {text[:300]}"}


def _driver() -> dict[str, Any]:
    library = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    code = library.cuInit(0)
    version, count = ctypes.c_int(), ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(version))
    found: dict[str, Any] = {"cuda": f"{version.value // 1000}.{version.value % 1000 // 10}", "gpus": []}
    if code:
        found["no_gpu"] = f"cuInit returned {code}"
        return found
    library.cuDeviceGetCount(ctypes.byref(count))
    for index in range(count.value):
        device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
        if library.cuDeviceGet(ctypes.byref(device), index):
            continue
        library.cuDeviceGetName(name, len(name), device)
        numbers = []
        for attribute in (_MAJOR, _MINOR):
            number = ctypes.c_int()
            library.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
            numbers.append(number.value)
        found["gpus"].append({"name": name.value.decode(errors="replace"), "arch": "sm_{}{}".format(*numbers)})
    return found


def _nvrtc() -> dict[str, Any]:
    nvrtc: Any = importlib.import_module("cuda.bindings.nvrtc")
    code, major, minor = nvrtc.nvrtcVersion()
    if code != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        return {"error": f"nvrtcVersion returned {code.name}"}
    return {"version": f"{major}.{minor}"}


def _headers() -> dict[str, Any]:
    pathfinder: Any = importlib.import_module("cuda.pathfinder")
    folder = pathfinder.find_nvidia_header_directory("cudart")
    if folder is None or not os.path.isfile(os.path.join(folder, "cuda_fp16.h")):
        return {"error": "cuda_fp16.h is not found"}
    return {"folder": folder}


def _names(library: str) -> dict[str, Any]:
    """The private names that a library newer than the tested ones lacks, with what is done instead."""
    names = importlib.import_module(f"layerport.foreign.{library}_private")
    return {"missing": [f"it has no {name.path} ({name.use}): {name.gone}" for name in names.missing()]}


def _version_of(module: str) -> dict[str, Any]:
    if importlib.util.find_spec(module) is None:
        return {"error": "not installed", "absent": True}
    return {"version": str(importlib.import_module(module).__version__)}


def _plugin_library() -> dict[str, Any]:
    """Into which TensorRT the plugin library really loads."""
    if native.library() is None or native.library(registers_itself=True) is None:
        return {"error": "it was not compiled", "absent": True}
    takes, refused = [], []
    for name in ("tensorrt_rtx", "tensorrt"):
        try:
            trt: Any = importlib.import_module(name)
        except Exception:  # the finding of that TensorRT says why
            continue
        try:
            native.load(trt)
            takes.append(f"{name} {trt.__version__}")
        except BuildError as error:
            refused.append(error.fault)
    return {"error": "; ".join(refused)} if refused else {"takes": takes}


if __name__ == "__main__":
    print("\n" + json.dumps(probe()))
    sys.stdout.flush()
