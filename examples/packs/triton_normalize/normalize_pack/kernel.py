"""A program for each row, BLOCK numbers at a time: a row's width is no constant when this is compiled."""

import triton
import triton.language as tl


@triton.jit
def normalize(x, y, columns, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * columns
    squares = tl.zeros([BLOCK], tl.float32)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        values = tl.load(x + row + column, mask=column < columns, other=0.0).to(tl.float32)
        squares += values * values
    length = tl.maximum(tl.sqrt(tl.sum(squares, axis=0)), eps)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        values = tl.load(x + row + column, mask=column < columns, other=0.0).to(tl.float32)
        tl.store(y + row + column, values / length, mask=column < columns)
