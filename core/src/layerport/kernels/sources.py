"""What identifies a kernel's source: a bundle names it, so that a check later runs the code that was compiled.

The front half writes it into the manifest, the check of kernels compares it.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from layerport.kernels.cuda_source import CudaSource
from layerport.kernels.declaration import Kernel
from layerport.kernels.toolchains.cuda_includes import local_headers
from layerport.kernels.toolchains.triton_functions import find_function
from layerport.kernels.triton_source import TritonSource


def source_digest(kernel: Kernel) -> str | None:
    """A digest of everything that the author wrote for a kernel; None where it cannot be told.

    Of CUDA C++ the text, its own headers, the entry and the options; of Triton the function with all that it calls.
    """
    digests = [_digest(source, kernel.name) for source in kernel.sources]
    if None in digests or len(digests) == 1:
        return None if None in digests else digests[0]
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()


def _digest(source: CudaSource | TritonSource, kernel: str) -> str | None:
    if isinstance(source, CudaSource):
        base = source.folder or os.getcwd()
        path = source.path
        folder = os.path.abspath(base if path is None else path.parent)
        include = [os.path.abspath(Path(base, each)) for each in source.include]
        text = source.read()
        headers = local_headers(text, folder, include)
        if headers is None:
            return None
        told: object = [text, headers, source.entry, source.options]
    else:
        told = [str(find_function(source, f"kernel {kernel}").cache_key), source.alignment]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()
