"""What a kernel is compared with: its reference in the dtype of its inputs, and in float64 where it takes that."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

import layerport as lp
from layerport.bundle.plugin_spec import PluginSpec
from layerport.checks.kernel_runs import _reference
from layerport.dtypes import DType
from layerport.sizes.expressions import Symbol
from layerport.sizes.tensors import TensorType


@lp.layer("check_references::third")
def third(x: Tensor) -> Tensor:
    return x / 3.0


@lp.layer("check_references::float_only")
def float_only(x: Tensor) -> Tensor:
    if x.dtype == torch.float64:
        raise TypeError("not in float64")
    return x / 3.0


@lp.layer("check_references::longer")
def longer(x: Tensor) -> Tensor:
    return torch.cat((x, x)) if x.dtype == torch.float64 else x / 3.0


@lp.layer("check_references::picky")
def picky(x: Tensor) -> Tensor:
    raise ValueError("takes nothing")


X = np.array([1.0, 2.0], np.float32)


def compared(layer: lp.Layer) -> list[tuple[np.ndarray, np.ndarray | None]] | None:
    tensor = TensorType("x", DType.FLOAT32, (Symbol("x.0"),))
    spec = PluginSpec(layer.name, 1, (tensor,), (TensorType("output", DType.FLOAT32, (Symbol("x.0"),)),))
    return _reference(layer, spec, {"x": X})


def test_both_where_both_can_be() -> None:
    made = compared(third)
    assert made is not None
    ((own, wide),) = made
    assert own.dtype == np.float32 and np.array_equal(own, X / np.float32(3))
    assert wide is not None and wide.dtype == np.float64 and np.array_equal(wide, X.astype(np.float64) / 3)
    assert not np.array_equal(own, wide)


def test_its_own_dtype_alone_where_float64_is_something_else() -> None:
    for layer in (float_only, longer):
        made = compared(layer)
        assert made is not None
        ((own, wide),) = made
        assert np.array_equal(own, X / np.float32(3)) and wide is None


def test_nothing_where_it_does_not_run() -> None:
    assert compared(picky) is None
