"""A Triton function that only the process that makes it can reach."""

import triton
import triton.language as tl


def make():
    @triton.jit
    def inner(x, y, n, BLOCK: tl.constexpr):
        places = tl.arange(0, BLOCK)
        tl.store(y + places, tl.load(x + places, mask=places < n), mask=places < n)

    return inner
