"""Triton functions with one fault each, which the constexpr WRONG plants: with False they are right."""

import triton
import triton.language as tl


@triton.jit
def load_past_the_end(x, y, n, WRONG: tl.constexpr, BLOCK: tl.constexpr):
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = places < n
    values = tl.load(x + places, mask=inside | WRONG, other=0.0)
    tl.store(y + places, values, mask=inside)


@triton.jit
def load_before_the_start(x, y, n, WRONG: tl.constexpr, BLOCK: tl.constexpr):
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = places < n
    before = tl.load(x + places - 1, mask=inside & ((places > 0) | WRONG), other=0.0)
    tl.store(y + places, tl.load(x + places, mask=inside, other=0.0) + 0 * before, mask=inside)


@triton.jit
def load_far_away(x, y, n, WRONG: tl.constexpr, BLOCK: tl.constexpr):
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = places < n
    values = tl.load(x + places + (1 << 30) * WRONG, mask=inside, other=0.0)
    tl.store(y + places, values, mask=inside)


@triton.jit
def store_past_the_end(x, y, n, WRONG: tl.constexpr, BLOCK: tl.constexpr):
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(x + places, mask=places < n, other=0.0)
    tl.store(y + places, values, mask=places < n + WRONG)


@triton.jit
def store_before_the_start(x, y, n, WRONG: tl.constexpr, BLOCK: tl.constexpr):
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(x + places, mask=places < n, other=0.0)
    tl.store(y + places, values, mask=places < n)
    if WRONG:
        tl.store(y + places - 1, values, mask=places < n)


@triton.jit
def store_to_an_input(x, y, n, WRONG: tl.constexpr, BLOCK: tl.constexpr):
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(x + places, mask=places < n, other=0.0)
    tl.store(y + places, values, mask=places < n)
    if WRONG:
        tl.store(x + places, values, mask=places < n)


@triton.jit
def add_to_an_input(x, y, n, WRONG: tl.constexpr, BLOCK: tl.constexpr):
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(x + places, mask=places < n, other=0.0)
    if WRONG:
        tl.atomic_add(x + places, values * 0, mask=places < n)
    tl.store(y + places, values, mask=places < n)


@triton.jit
def leave_the_last_one(x, y, n, WRONG: tl.constexpr, BLOCK: tl.constexpr):
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(x + places, mask=places < n, other=0.0)
    tl.store(y + places, values, mask=places < n - WRONG)


@triton.jit
def sum_over_undefined(x, y, n, WRONG: tl.constexpr, BLOCK: tl.constexpr):
    places = tl.arange(0, BLOCK)
    if WRONG:
        values = tl.load(x + places, mask=places < n)
    else:
        values = tl.load(x + places, mask=places < n, other=0.0)
    total = tl.sum(values, axis=0)
    tl.store(y + places, values * 0 + total, mask=places < n)


@triton.jit
def two_programs_write_one(x, y, n, WRONG: tl.constexpr, BLOCK: tl.constexpr):
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(x + places, mask=places < n, other=0.0)
    tl.store(y + places, values, mask=places < n)
    first = tl.load(x)
    tl.store(y, first + WRONG * tl.program_id(0))


@triton.jit
def read_of_another_program(x, y, n, WRONG: tl.constexpr, BLOCK: tl.constexpr):
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(x + places, mask=places < n, other=0.0)
    tl.store(y + places, values, mask=places < n)
    if WRONG:
        before = tl.load(y + places - BLOCK, mask=places >= BLOCK, other=0.0)
        tl.store(y + places, values + 0 * before, mask=places < n)
    else:
        again = tl.load(y + places, mask=places < n, other=0.0)
        tl.store(y + places, again, mask=places < n)


@triton.jit
def add_to_an_output(x, y, n, WRONG: tl.constexpr, BLOCK: tl.constexpr):
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(x + places, mask=places < n, other=0.0)
    if WRONG:
        values += tl.load(y + places, mask=places < n, other=0.0)
    tl.store(y + places, values, mask=places < n)


@triton.jit
def atomic_on_an_output(x, y, n, WRONG: tl.constexpr, BLOCK: tl.constexpr):
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(x + places, mask=places < n, other=0.0)
    if not WRONG:
        tl.store(y + places, values * 0, mask=places < n)
    tl.atomic_add(y + places, values, mask=places < n)


@triton.jit
def block_pointer(x, y, n, WRONG: tl.constexpr, BLOCK: tl.constexpr):
    start = tl.program_id(0) * BLOCK
    source = tl.make_block_ptr(x, (n,), (1,), (start,), (BLOCK,), (0,))
    target = tl.make_block_ptr(y, (n,), (1,), (start,), (BLOCK,), (0,))
    if WRONG:
        values = tl.load(source)
    else:
        values = tl.load(source, boundary_check=(0,), padding_option="zero")
    tl.store(target, values, boundary_check=(0,))


@triton.jit
def never_ends(x, y, n, WRONG: tl.constexpr, BLOCK: tl.constexpr):
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    count = 0
    while count < n:
        count += 1 - WRONG
    tl.store(y + places, tl.load(x + places, mask=places < n), mask=places < n)


@triton.jit
def lanes_write_one(x, y, n, WRONG: tl.constexpr, BLOCK: tl.constexpr):
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(x + places, mask=places < n, other=0.0)
    if WRONG:
        tl.store(y + places // 2, values, mask=places < n)
    tl.store(y + places, values, mask=places < n)
