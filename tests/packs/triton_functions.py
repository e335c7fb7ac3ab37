"""The Triton functions of the tests: in a file of their own, which only what compiles or runs them imports."""

import triton
import triton.language as tl


@triton.jit
def square(value):
    return value * value


@triton.jit
def rms_norm(x, weight, y, columns, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    places = tl.arange(0, BLOCK)
    inside = places < columns
    values = tl.load(x + row * columns + places, mask=inside, other=0.0).to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(square(values), axis=0) / columns + eps)
    factors = tl.load(weight + places, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + row * columns + places, (values * scale * factors).to(y.dtype.element_ty), mask=inside)


@triton.jit
def shift(x, bias, y, n: tl.int64, wide, flag, factor, OUT: tl.constexpr, BLOCK: tl.constexpr = 64):
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = places < n
    values = tl.load(x + places, mask=inside, other=0.0)
    if bias is not None:
        values += tl.load(bias + places, mask=inside, other=0.0)
    values = tl.where(flag, values * factor, values) + wide
    tl.store(y + places, values.to(OUT), mask=inside)


@triton.jit
def without_mask(x, y, n, BLOCK: tl.constexpr):
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + places, tl.load(x + places), mask=places < n)


@triton.jit
def store_without_mask(x, y, n, BLOCK: tl.constexpr):
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + places, tl.load(x + places, mask=places < n))


@triton.jit
def copy(x, y, n, BLOCK: tl.constexpr):
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + places, tl.load(x + places, mask=places < n), mask=places < n)


@triton.jit
def overwrite(x, y, n, BLOCK: tl.constexpr):
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + places, tl.load(x + places, mask=places < n), mask=places < n)
    tl.store(x + places, 0.0, mask=places < n)


@triton.jit
def total_of_undefined(x, y, n, BLOCK: tl.constexpr):
    places = tl.arange(0, BLOCK)
    total = tl.sum(tl.load(x + places, mask=places < n), axis=0)
    tl.store(y + places, tl.zeros((BLOCK,), tl.float32) + total, mask=places < n)


@triton.jit
def last_program_wins(x, y, n, BLOCK: tl.constexpr):
    places = tl.arange(0, BLOCK)
    tl.store(y + places, tl.load(x + places, mask=places < n) * 0 + tl.program_id(0), mask=places < n)


@triton.jit
def count(x, y, n, BLOCK: tl.constexpr):
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.atomic_add(y + places * 0 + n, tl.load(x + places, mask=places < n, other=0.0))


@triton.jit
def prints(x, y, n, BLOCK: tl.constexpr):
    tl.device_print("from the kernel", n)
    places = tl.arange(0, BLOCK)
    tl.store(y + places, tl.load(x + places, mask=places < n), mask=places < n)


@triton.jit
def does_not_compile(x, y, n, BLOCK: tl.constexpr):
    places = tl.arange(0, BLOCK)
    tl.store(y + places, tl.load(x + places) + tl.arange(0, BLOCK * 2))


@triton.jit
def wrong_inside(values):
    kept = values + 1
    return kept.no_such_thing


@triton.jit
def calls_what_does_not_compile(x, y, n, BLOCK: tl.constexpr):
    places = tl.arange(0, BLOCK)
    tl.store(y + places, wrong_inside(tl.load(x + places)))


@triton.jit
def with_descriptor(x, y, n, BLOCK: tl.constexpr):
    source = tl.make_tensor_descriptor(x, shape=[n], strides=[1], block_shape=[BLOCK])
    places = tl.arange(0, BLOCK)
    tl.store(y + places, source.load([0]), mask=places < n)


@triton.autotune(configs=[triton.Config({"BLOCK": 64})], key=["n"])
@triton.jit
def tuned(x, y, n, BLOCK: tl.constexpr):
    places = tl.arange(0, BLOCK)
    tl.store(y + places, tl.load(x + places, mask=places < n), mask=places < n)


not_triton = 3


@triton.jit
def scaled(x, y, n: tl.int64, factor, BLOCK: tl.constexpr):
    places = tl.arange(0, BLOCK)
    inside = places < n
    values = tl.load(x + places, mask=inside, other=0.0) * factor
    tl.static_assert(values.dtype == tl.float32)
    tl.store(y + places, (values + (n * 2000000000 > n)).to(y.dtype.element_ty), mask=inside)


@triton.jit
def wrong_assembly(x, y, n, BLOCK: tl.constexpr):
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(x + places, mask=places < n)
    made = tl.inline_asm_elementwise("no.such.instruction $0, $1;", "=r,r", [values], tl.float32, True, 1)
    tl.store(y + places, made, mask=places < n)


@triton.jit
def numbered(x, y, n, BLOCK: tl.constexpr):
    place = (tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)) * tl.num_programs(2) + tl.program_id(2)
    tl.store(y + place, tl.load(x + place))
