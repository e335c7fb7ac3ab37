"""One tensor description: its dims as sizes, symbols and texts."""

from __future__ import annotations

import pytest

from layerport.dtypes import DType
from layerport.errors import UsageError
from layerport.sizes.expressions import Const, Symbol
from layerport.sizes.tensors import TensorType, renamed, sizes_of

BATCH = Symbol("batch")
X = TensorType("x", DType.FLOAT16, (BATCH, 8, None, Const(3)))


def test_what_it_says_of_its_dims() -> None:
    assert X.shape == (BATCH, 8, None, 3) and isinstance(X.shape[3], int)
    assert (X.ndim, X.itemsize, str(X)) == (4, 2, "x: float16[batch, 8, ?, 3]")
    assert [str(dim) for dim in X.dims] == ["batch", "8", "x.2", "3"]
    assert X.symbols() == {"batch", "x.2"}
    assert str(X.by_place()) == "x: float16[x.0, 8, x.2, 3]"
    assert TensorType.symbolic("x", DType.FLOAT16, 2) == TensorType("x", DType.FLOAT16, (Symbol("x.0"), Symbol("x.1")))


def test_its_sizes() -> None:
    known = TensorType("x", DType.FLOAT16, (BATCH, 8))
    assert known.resolve({"batch": 5}) == (5, 8)
    assert str(known.numel()) == "8*batch" and TensorType("x", DType.INT8, (4, 6)).numel() == 24
    assert TensorType("x", DType.INT8, ()).numel() == 1
    with pytest.raises(UsageError, match="x: axis 2 has no known size"):
        X.resolve({"batch": 5})
    assert sizes_of({"x": (2, 3), "y": (7,)}) == {"x.0": 2, "x.1": 3, "y.0": 7}


@pytest.mark.parametrize("dim", [-1, True, 2.0, "n"])
def test_a_dim_that_is_none(dim: object) -> None:
    with pytest.raises(UsageError, match=f"x: axis 1 of a tensor is {dim!r}"):
        TensorType("x", DType.INT8, (0, dim))  # type: ignore[arg-type]


def test_equal_tensors() -> None:
    same = TensorType("x", DType.FLOAT16, (Symbol("batch"), 8, None, 3))
    assert same == X and hash(X) == hash(same)
    for other in (("y", X.dtype, X.shape), ("x", DType.FLOAT32, X.shape), ("x", X.dtype, (BATCH, 8, None))):
        assert TensorType(*other) != X
    assert X != "x"


def test_other_names() -> None:
    first, second = renamed((X, X), ("a", "b"))
    assert (first.name, second.name) == ("a", "b") and first.shape == X.shape and first.dtype == X.dtype
    with pytest.raises(ValueError, match="zip"):
        renamed((X,), ("a", "b"))
