"""The plugin library of the distribution `layerport-native`, which does in C++ what `plugin` does in Python.

Where it is not installed, the Python plugin stands in: the same plans, more time of the host for each launch.
"""

from __future__ import annotations

from importlib import util
from pathlib import Path
from typing import Any

from layerport.engine.plugin import NAME, NAMESPACE, VERSION
from layerport.errors import BuildError

PACKAGE = "layerport_native"
FILE, STATIC_FILE = "liblayerport_plugins.so", "liblayerport_plugins_static.so"


def library(*, registers_itself: bool = False) -> Path | None:
    """The plugin library for this machine, None where `layerport-native` is not installed.

    registers_itself: the build for programs that only open plugin libraries.
    """
    spec = util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).with_name(STATIC_FILE if registers_itself else FILE)
    return path if path.is_file() else None


def is_registered(trt: Any) -> bool:
    """Whether the registry of this TensorRT has the plugin, whoever loaded it."""
    return trt.get_plugin_registry().get_creator(NAME, VERSION, NAMESPACE) is not None


def load(trt: Any) -> bool:
    """Load the library into this TensorRT for the rest of the process; False where it is not installed.

    Raises BuildError where TensorRT does not take it.
    """
    path = library()
    if path is None:
        return False
    if not is_registered(trt) and (trt.get_plugin_registry().load_library(str(path)) is None or not is_registered(trt)):
        raise BuildError(
            f"TensorRT {trt.__version__} does not take the plugin library {path}",
            "update layerport-native, or uninstall it: layerport then does the same in Python",
        )
    return True
