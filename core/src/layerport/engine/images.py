"""The kernel images that the plans of this process hold, by digest, so that each plan needs to hold one only once.

An image is here as long as a plugin that keeps it, or an engine that was read meanwhile, is alive.
"""

from __future__ import annotations

import dataclasses
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from layerport.bundle.plugin_spec import PluginSpec
from layerport.errors import BuildError

_lock = threading.Lock()
_images: weakref.WeakValueDictionary[str, Image] = weakref.WeakValueDictionary()
_readers: list[list[Image]] = []


class Image:
    """The bytes of an image; hold it to keep them in the table."""

    def __init__(self, data: bytes) -> None:
        self.data = data


def keep(images: Mapping[str, bytes]) -> list[Image]:
    """Put images into the table; they stay as long as somebody holds the answer."""
    with _lock:
        kept = []
        for digest, data in images.items():
            image = _images.get(digest)
            if image is None:
                image = _images[digest] = Image(data)
            kept.append(image)
        for held in _readers:
            held.extend(kept)
    return kept


@contextmanager
def reading() -> Iterator[list[Image]]:
    """While a plan is read: the list of what its plugins keep, to be held as long as the engine is there."""
    held: list[Image] = []
    with _lock:
        _readers.append(held)
    try:
        yield held
    finally:
        with _lock:
            # By identity: lists of equal content are equal.
            _readers[:] = [one for one in _readers if one is not held]


def complete(spec: PluginSpec) -> PluginSpec:
    """The spec with all images of its kernels.  Raises BuildError where one is in no plan that is open."""
    found = dict(spec.images)
    with _lock:
        for digest in spec.digests - found.keys():
            image = _images.get(digest)
            if image is None:
                raise BuildError(
                    f"layer {spec.layer}: kernel image {digest[:12]} is in no plan that is open",
                    "build the bundle again; this plan is damaged",
                )
            found[digest] = image.data
    return dataclasses.replace(spec, images=found)
