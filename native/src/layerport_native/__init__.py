"""The plugin library with which TensorRT opens layerport's engines without Python, as files.

`library()` is for `IPluginRegistry.load_library` and `trtexec --dynamicPlugins`, `static_library()` for programs that
only open plugin libraries.  It imports nothing.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["library", "static_library"]
__version__ = "0.1.0"


def library() -> Path:
    """The library that a plugin registry of TensorRT loads.  Raises FileNotFoundError where it was not compiled."""
    return _file("liblayerport_plugins.so")


def static_library() -> Path:
    """The library that registers its plugin when it is opened, after TensorRT.

    Raises FileNotFoundError where it was not compiled.
    """
    return _file("liblayerport_plugins_static.so")


def _file(name: str) -> Path:
    path = Path(__file__).with_name(name)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; install layerport-native again")
    return path
