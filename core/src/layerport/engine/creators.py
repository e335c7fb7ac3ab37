"""The plugin creators of this process for sessions: one for each name, shared, gone with the last session.

TensorRT's registry takes one creator for each name, and at run time a creator needs nothing but the plan's own fields.
Plans name `layerport::Kernel` for all layers with kernels, which comes from the native library where that is installed;
the layers' own names are those of plugin classes of packs, and of all layers in plans of before.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

from layerport.engine import native
from layerport.engine.plugin import KERNEL_LAYER, VERSION, creator_class
from layerport.errors import BuildError

_lock = threading.Lock()
_held: dict[tuple[str, str], list[Any]] = {}
_classes: set[str] = set()


def acquire(trt: Any, layers: Iterable[str], classes: Iterable[str] = ()) -> list[str]:
    """Register a creator for all layers with kernels, and for each layer `namespace::name`; `release` the answer later.

    classes: plugin classes of installed packs that plans may name.  Raises BuildError where a stranger holds a name.
    """
    registry = trt.get_plugin_registry()
    taken: list[str] = []
    with _lock:
        _classes.update(classes)
        try:
            for layer in sorted({*layers, *([] if native.load(trt) else [KERNEL_LAYER])}):
                _take(trt, registry, layer)
                taken.append(layer)
        except BaseException:
            _give_back(trt, registry, taken)
            raise
    return taken


def release(trt: Any, layers: Iterable[str]) -> None:
    """Give back what `acquire` answered, after the engine is gone."""
    with _lock:
        _give_back(trt, trt.get_plugin_registry(), layers)


def failures(trt: Any, layers: Iterable[str]) -> list[BaseException]:
    """What the creators of these layers raised last, which TensorRT does not tell."""
    found = []
    with _lock:
        for layer in layers:
            creator = _held[trt.__name__, layer][0]
            if creator.failure is not None:
                found.append(creator.failure)
                creator.failure = None
    return found


def _take(trt: Any, registry: Any, layer: str) -> None:
    held = _held.get((trt.__name__, layer))
    if held is not None:
        held[1] += 1
        return
    namespace, _, name = layer.partition("::")
    creator = creator_class(trt)(namespace, name, {}, _classes)
    if not registry.register_creator(creator, namespace):
        raise BuildError(
            f"TensorRT has a plugin creator {layer} version {VERSION} already, which is not of a session",
            "unload the library or module that registered it, or open the bundle in another process",
        )
    _held[trt.__name__, layer] = [creator, 1]


def _give_back(trt: Any, registry: Any, layers: Iterable[str]) -> None:
    for layer in layers:
        held = _held[trt.__name__, layer]
        held[1] -= 1
        if held[1] == 0:
            registry.deregister_creator(held[0])
            del _held[trt.__name__, layer]
