"""What the tests of Triton kernels share: kernels of one input and one output, and how they are compiled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import layerport as lp
from layerport.dtypes import DType
from layerport.errors import LayerportError, PackError
from layerport.kernels.compilation import BuiltKernel, Compilation, build_kernels
from layerport.kernels.declaration import Kernel
from layerport.parameters.signature import Signature
from layerport.sizes.expressions import Symbol
from layerport.sizes.tensors import TensorType
from layerport.system.disk_cache import DiskCache
from layerport.system.python_files import import_file
from small_setup import TESTS

PACK = TESTS / "packs" / "triton_pack.py"
FUNCTIONS = TESTS / "packs" / "triton_functions.py"
ARCHITECTURES = ("sm_80", "sm_89", "sm_90", "sm_120")
BLOCK = 64


@pytest.fixture(name="store")
def store_fixture(tmp_path: Path) -> DiskCache:
    """An empty cache."""
    return DiskCache(tmp_path / "cache")


@pytest.fixture(scope="module", name="pack")
def pack_fixture() -> Any:
    """The module of the pack of Triton layers."""
    return import_file(str(PACK))


def reference(x: Tensor) -> Tensor:
    return x.clone()


SIGNATURE = Signature.of(reference)


def kernel(
    name: str,
    launch: Callable[..., lp.Launch] | None = None,
    file: Path = FUNCTIONS,
    **options: Any,
) -> Kernel:
    """A kernel of one input and one output."""
    options.setdefault("constexprs", {"BLOCK": BLOCK})

    def usual(x: TensorType, y: TensorType) -> lp.Launch:
        return lp.Launch(grid=lp.cdiv(x.numel(), BLOCK), args=(x, y, x.numel()))

    return Kernel(name, (lp.triton(f"{file}:{name}", **options),), ("float32",), launch or usual)


def tensors(*shape: Any, dtype: DType = DType.FLOAT32) -> dict[str, TensorType | None]:
    known = tuple(Symbol(size) if isinstance(size, str) else size for size in shape or (1000,))
    return {"x": TensorType("x", dtype, known), "output": TensorType("output", dtype, known)}


def build(
    made: Kernel,
    store: DiskCache,
    *architectures: str,
    of: Mapping[str, TensorType | None] | None = None,
    signature: Signature = SIGNATURE,
    attributes: Mapping[str, Any] | None = None,
) -> tuple[BuiltKernel, ...]:
    given = of or tensors()
    dtypes = {name: tensor.dtype for name, tensor in given.items() if tensor is not None}
    return build_kernels(
        [
            Compilation(made, signature, dtypes, attributes or {}, one, "p::one", given)
            for one in architectures or ("sm_89",)
        ],
        cache=store,
    )


def fault(made: Kernel, store: DiskCache, kind: type[LayerportError] = PackError, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        build(made, store, **options)
    return str(caught.value)


def many(x: Tensor, bias: Tensor | None, flag: bool = True, factor: float = 2.0, wide: int = 1) -> Tensor:
    values = x if bias is None else x + bias
    return (values * factor if flag else values) + wide


MANY = Signature.of(many)


def launch_many(
    x: TensorType, bias: TensorType | None, y: TensorType, flag: bool, factor: float, wide: int
) -> lp.Launch:
    return lp.Launch(grid=lp.cdiv(x.numel(), 64), args=(x, bias, y, x.numel(), wide, flag, factor))


def shift_kernel() -> Kernel:
    source = lp.triton(f"{FUNCTIONS}:shift", constexprs={"OUT": lambda y: y.dtype})
    return Kernel("shift", (source,), ("float32",), launch_many)


def passing(*args: Any) -> Callable[..., lp.Launch]:
    def launch(x: TensorType, y: TensorType) -> lp.Launch:
        objects = {"x": x, "y": y}
        return lp.Launch(grid=1, args=tuple(objects.get(arg, arg) if isinstance(arg, str) else arg for arg in args))

    return launch


def line_of(text: str) -> int:
    return FUNCTIONS.read_text().splitlines().index(text) + 1
