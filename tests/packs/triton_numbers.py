"""Triton functions on narrow floating types."""

import triton
import triton.language as tl


@triton.jit
def cast(x, y, n, BLOCK: tl.constexpr):
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(x + places, mask=places < n, other=0.0)
    tl.store(y + places, values.to(y.dtype.element_ty), mask=places < n)


@triton.jit
def cast_towards_zero(x, y, n, BLOCK: tl.constexpr):
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(x + places, mask=places < n, other=0.0)
    tl.store(y + places, values.to(y.dtype.element_ty, fp_downcast_rounding="rtz"), mask=places < n)


@triton.jit
def arithmetic(x, y, n, BLOCK: tl.constexpr):
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(x + places, mask=places < n, other=0.0)
    tl.store(y + places, values * values + values, mask=places < n)
