"""Triton's private names: each is there, and one that is gone is named where a kernel needs it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hidden_names import hide
from layerport.errors import BuildError
from layerport.foreign import triton_private

pytest.importorskip("triton")
NAMES = {name.path: name for name in triton_private.NAMES}
KERNEL: Any = None
NEEDS: dict[str, Callable[[], object]] = {
    "triton.runtime.interpreter": triton_private.interpreter,
    "triton._C.libtriton.ir": lambda: triton_private.lower(KERNEL, KERNEL, KERNEL, {}),
    "triton.compiler.compiler.ASTSource": lambda: triton_private.lower(KERNEL, KERNEL, KERNEL, {}),
    "triton.runtime.jit.get_jit_fn_file_line": lambda: triton_private.place(KERNEL),
    "triton.runtime.jit._normalize_ty": lambda: triton_private.stated_type("i32"),
    "triton.runtime.interpreter._get_np_dtype": lambda: triton_private.numpy_dtype(KERNEL),
    "triton.runtime.interpreter._convert_float": lambda: triton_private.compute_with(
        lambda before: before, lambda *_: None
    ),
    "triton.runtime.interpreter._ir.ROUNDING_MODE.RTZ": triton_private.towards_zero,
    "triton.runtime.interpreter._interpreter": lambda: triton_private.guard_memory(lambda memory: memory),
    "triton.runtime.interpreter.interpreter_builder": triton_private.builder,
    "triton.runtime.interpreter.TensorHandle": lambda: triton_private.handle(0, KERNEL),
}


def test_each_name_has_a_case() -> None:
    assert set(NEEDS) == set(NAMES) - {"triton.compiler.compiler.make_backend"}  # found on the way to another


def test_every_name_is_in_this_triton() -> None:
    assert triton_private.missing() == []


@pytest.mark.parametrize("path", NEEDS)
def test_what_needs_a_name_that_is_gone_says_which(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, [path])
    with pytest.raises(BuildError, match="layerport is tested with triton up to 3") as caught:
        NEEDS[path]()
    assert f"has no {path}, which layerport needs for this: {NAMES[path].use}" in caught.value.fault
