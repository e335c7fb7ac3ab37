"""What TensorRT for RTX compiles when an engine starts, kept on disk, so that the next start need not compile it.

Only `engine_session` imports it.  An entry is for one plan, version of TensorRT, kind of GPU and driver; TensorRT looks
once more whether it fits before it uses it.
"""

from __future__ import annotations

import hashlib
import threading
from typing import Any

from layerport.engine.gpu import Gpu
from layerport.system.disk_cache import cache_key, default_cache

_FORMAT = 1


class RuntimeCache:
    """The compiled code of one engine, in the disk cache.

    data: the plan.  version: of TensorRT.  The GPU's context must be current in every call.
    """

    def __init__(self, gpu: Gpu, data: bytes | bytearray, version: str) -> None:
        self._key = cache_key(
            {
                "format": _FORMAT,
                "plan": hashlib.sha256(data).hexdigest(),
                "tensorrt": version,
                "gpu": [gpu.name, gpu.architecture],
                "driver": gpu.driver_version,
            }
        )
        self._store = default_cache("runtime")
        self._lock = threading.Lock()
        self._cache: Any = None
        self._kept = b""

    def use(self, runtime_config: Any) -> None:
        """Let the contexts of a configuration take code from the cache and add theirs to it."""
        with self._lock:
            if self._cache is None:
                cache = runtime_config.create_runtime_cache()
                found = self._store.get(self._key)
                if cache is not None and found is not None and cache.deserialize(found[1]):
                    self._kept = hashlib.sha256(found[1]).digest()
                self._cache = cache
            if self._cache is not None:
                runtime_config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Write what was compiled meanwhile."""
        with self._lock:
            memory = self._cache.serialize() if self._cache is not None else None
            data = bytes(memory) if memory is not None else b""
            digest = hashlib.sha256(data).digest()
            if data and digest != self._kept:
                self._store.put(self._key, {}, data)
                self._kept = digest

    def close(self) -> None:
        """Write what was compiled, and give TensorRT's cache back, before its engine."""
        try:
            self.save()
        finally:
            self._cache = None
