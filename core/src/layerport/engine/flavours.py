"""Which flavour of TensorRT is here, and how to load it.  The only module that names TensorRT's packages."""

from __future__ import annotations

import atexit
import ctypes
import importlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any

from layerport.errors import BuildError
from layerport.system.trust import require_own_temporary
from layerport.targets import Target


@dataclass(frozen=True)
class Flavour:
    """A TensorRT distribution: its name here, its Python module, and the pip line that installs it.

    minimum: the oldest version that is used.  needs_gpu: whether it builds only on the GPU that it targets.
    """

    name: str
    module: str
    distribution: str
    install: str
    minimum: str = "0"
    needs_gpu: bool = False


FLAVOURS = {
    "rtx": Flavour("rtx", "tensorrt_rtx", "tensorrt_rtx", 'pip install "layerport[rtx]"', "1.3"),
    "tensorrt": Flavour("tensorrt", "tensorrt", "tensorrt", 'pip install "layerport[tensorrt]"', "11", needs_gpu=True),
}


def version_of(name: str) -> str | None:
    """The installed version of a flavour, from metadata alone; None where it is not installed."""
    try:
        return metadata.version(FLAVOURS[name].distribution)
    except metadata.PackageNotFoundError:
        return None


def fault_of(name: str) -> str | None:
    """Why a flavour cannot be used here, from metadata alone; None where it can."""
    from packaging.version import Version

    flavour, found = FLAVOURS[name], version_of(name)
    if found is None:
        return f"{flavour.distribution}, which is not installed here"
    if Version(found) < Version(flavour.minimum):
        return f"{flavour.distribution} {flavour.minimum} or newer; {found} is installed here"
    return None


def default_target(architectures: tuple[str, ...] = ("sm_89", "sm_120")) -> tuple[Target, str]:
    """The target of a build that names none, and why it is that one."""
    faults = {name: fault_of(name) for name in FLAVOURS}
    if faults["tensorrt"] is None and (native := native_architecture()):
        return Target("tensorrt", (native,)), "tensorrt is installed and this machine has a GPU"
    if faults["rtx"] is None:
        return Target("rtx", architectures), "tensorrt_rtx is installed and builds without a GPU"
    if faults["tensorrt"] is None:
        return Target("portable"), "tensorrt is installed, but it builds on a GPU and there is none here"
    old = [f"an engine needs {fault}" for name, fault in faults.items() if version_of(name)]
    if old:
        return Target("portable"), "; ".join(old)
    return Target("portable"), "no TensorRT is installed; " + FLAVOURS["rtx"].install + " adds one"


def on_this_machine(target: Target) -> Target:
    """The target with the architecture of the GPU here, where its flavour builds on the GPU that it targets.

    Raises BuildError where there is no GPU, or another one than the target names.
    """
    if target.flavour not in FLAVOURS or not FLAVOURS[target.flavour].needs_gpu:
        return target
    native = native_architecture()
    if native is None:
        raise BuildError(
            f"target {target.flavour} builds on the GPU that it targets, and there is none here",
            "build there, or use --target rtx:sm_89 or portable",
        )
    if target.architectures and native not in target.architectures:
        raise BuildError(
            f"target {target} is built on the GPU that it targets, and the one here is {native}",
            f"build on such a GPU, or use --target {target.flavour} for this one",
        )
    return target if target.architectures else Target(target.flavour, (native,))


def native_architecture() -> str | None:
    """The architecture of the current context's GPU, else of GPU 0, as `sm_NN`; None without a driver or GPU."""
    try:
        from cuda.bindings import driver
    except ImportError:
        return None
    try:
        if driver.cuInit(0)[0] != driver.CUresult.CUDA_SUCCESS:
            return None
        status, device = driver.cuCtxGetDevice()
        device = device if status == driver.CUresult.CUDA_SUCCESS else 0
        attribute = driver.CUdevice_attribute
        major = driver.cuDeviceGetAttribute(attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device)
        minor = driver.cuDeviceGetAttribute(attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device)
    except RuntimeError:  # cuda-bindings raises this where it finds no driver library
        return None
    if major[0] != driver.CUresult.CUDA_SUCCESS or minor[0] != driver.CUresult.CUDA_SUCCESS:
        return None
    return f"sm_{major[1]}{minor[1]}"


def require(target: Target) -> None:
    """Raise BuildError where the target's TensorRT is not installed or too old, with the pip line."""
    if target.flavour in FLAVOURS and (fault := fault_of(target.flavour)) is not None:
        raise BuildError(
            f"target {target} needs {fault}",
            f"{FLAVOURS[target.flavour].install}, or build with --target portable",
        )


def load(name: str) -> Any:
    """The Python module of a flavour, ready to parse models with plugins.  Raises BuildError."""
    flavour = FLAVOURS[name]
    if util.find_spec(flavour.module) is None:
        raise BuildError(f"{flavour.distribution} is not installed", f"install it: {flavour.install}")
    if name == "rtx":
        _load_rtx_libraries()
    try:
        return importlib.import_module(flavour.module)
    except Exception as error:
        raise BuildError(
            f"{flavour.module} does not load: {type(error).__name__}: {error}",
            "see `layerport doctor` for the driver and library versions it needs",
        ) from error


def _load_rtx_libraries() -> None:
    """Work around a packaging fault of tensorrt_rtx 1.x on Linux.

    At the first plugin its parser opens `libtensorrt_rtx.so`, without `.1`, next to itself; the wheel holds only
    `libtensorrt_rtx.so.1`, and the process aborts.  So both libraries are loaded from a private folder of links, where
    that name exists, before the Python module loads them.
    """
    found = util.find_spec("tensorrt_rtx_libs")
    if os.name != "posix" or found is None or not found.submodule_search_locations:
        return
    folder = Path(next(iter(found.submodule_search_locations)))
    main, parser = folder / "libtensorrt_rtx.so.1", folder / "libtensorrt_onnxparser_rtx.so.1"
    if not main.exists() or not parser.exists() or (folder / "libtensorrt_rtx.so").exists():
        return
    private = Path(tempfile.mkdtemp(prefix="layerport-rtx-"))
    atexit.register(shutil.rmtree, private, ignore_errors=True)
    require_own_temporary(private)
    for link, file in {"libtensorrt_rtx.so": main, main.name: main, parser.name: parser}.items():
        (private / link).symlink_to(file)
    ctypes.CDLL(str(private / main.name), mode=ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(private / parser.name), mode=ctypes.RTLD_GLOBAL)
