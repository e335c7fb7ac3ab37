"""The digest of a kernel's source: another one for every change that its author could make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from layerport.kernels.cuda_source import cuda
from layerport.kernels.declaration import Kernel, Launch
from layerport.kernels.sources import source_digest


def digest(source: Any) -> str | None:
    return source_digest(Kernel("k", (source,), ("float32",), lambda x, y: Launch(1, 1, (x, y))))


def test_what_counts_of_a_kernel_in_cuda(tmp_path: Path) -> None:
    one = digest(cuda("void a();\n", "a"))
    assert one == digest(cuda("void a();\n", "a", time_limit=5)) and one is not None and len(one) == 64
    others = [
        digest(cuda("void a() ;\n", "a")),
        digest(cuda("void a();\n", "b")),
        digest(cuda("void a();\n", "a", options=("-DN=1",))),
    ]
    assert len({one, *others}) == 4


def test_headers_count_wherever_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "inner").mkdir()
    header, source = tmp_path / "inner" / "width.h", '#include "width.h"\nvoid a();'
    (tmp_path / "inner" / "a.cu").write_text(source)
    monkeypatch.chdir(tmp_path)
    seen = set()
    for content in ("// 1", "// 2"):
        header.write_text(content)
        seen.add(digest(cuda(str(tmp_path / "inner" / "a.cu"), "a")))
        seen.add(digest(cuda(source, "a", include=(str(tmp_path / "inner"),))))
    assert len(seen) == 4 and None not in seen
