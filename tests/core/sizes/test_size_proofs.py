"""Conditions on sizes: proven, refuted with the smallest sizes, or left open; never wrong."""

from __future__ import annotations

import itertools
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layerport.sizes import proofs
from layerport.sizes.expressions import Expr, Symbol, as_expr, cdiv, maximum, minimum, parse, where
from layerport.sizes.proofs import prove

SIZES = st.sampled_from([Symbol("a"), Symbol("b"), *map(as_expr, (0, 1, 2, 3, 7))])


def grown(inner: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
    operations = [
        lambda x, y: x + y,
        lambda x, y: x - y,
        lambda x, y: x * y,
        lambda x, y: x // (y * y + 1),
        lambda x, y: cdiv(x, y * y + 2),
        lambda x, y: x % (y * y + 2),
        minimum,
        maximum,
        lambda x, y: where(x < y, x, y + 1),
    ]
    return st.builds(lambda make, x, y: as_expr(make(x, y)), st.sampled_from(operations), inner, inner)


NUMBERS = st.recursive(SIZES, grown, max_leaves=6)
COMPARISONS = [
    lambda x, y: x == y,
    lambda x, y: x != y,
    lambda x, y: x < y,
    lambda x, y: (x <= y) | (y == 3),
    lambda x, y: (x <= y + 2) & (y < 7),
]


@given(st.sampled_from(COMPARISONS), NUMBERS, NUMBERS, st.integers(0, 4), st.integers(0, 9))
@settings(max_examples=300, deadline=None)
def test_it_finds_what_trying_all_sizes_finds(compare, left: Expr, right: Expr, low: int, width: int) -> None:
    condition = as_expr(compare(left, right))
    names = sorted(condition.symbols())
    span = range(low, low + width + 1)
    false = [
        dict(zip(names, point, strict=True))
        for point in itertools.product(span, repeat=len(names))
        if not condition.evaluate(dict(zip(names, point, strict=True)))
    ]
    finding = prove(condition, dict.fromkeys(names, (low, low + width)))
    assert not finding.open and finding.proven is (not false)
    assert all(point in false for point in finding.counterexamples)
    if false:
        assert sum(finding.counterexamples[0].values()) == min(sum(point.values()) for point in false)
    assert finding.complete is (len(false) == len(finding.counterexamples))


@given(st.sampled_from(COMPARISONS), NUMBERS, NUMBERS, st.integers(-2, 4), st.integers(0, 5))
@settings(max_examples=300, deadline=None)
def test_intervals_alone_find_it_too(compare, left: Expr, right: Expr, low: int, width: int) -> None:
    condition = as_expr(compare(left, right))
    names = sorted(condition.symbols())
    points = itertools.product(range(low, low + width + 1), repeat=len(names))
    holds = all(condition.evaluate(dict(zip(names, point, strict=True))) for point in points)
    with mock.patch.object(proofs, "_POINTS_IN_A_BOX", 0):
        finding = proofs.prove(condition, dict.fromkeys(names, (low, low + width)))
    assert not finding.open and finding.proven is holds


@pytest.mark.parametrize(
    ("text", "proven", "smallest"),
    [
        ("n % 2 == 0", False, {"n": 1}),
        ("n != 1", False, {"n": 1}),
        ("n//2 <= n", True, None),
        ("n < 100000", False, {"n": 100000}),
        ("n * m < 2**0", False, {"n": 1, "m": 1}),
        ("n != m", False, {"n": 1, "m": 1}),
        ("n + m >= 2", True, None),
    ],
)
def test_sizes_without_limit(text: str, proven: bool, smallest: dict[str, int] | None) -> None:
    condition = parse(text.replace("2**0", "1"))
    finding = prove(condition, dict.fromkeys(condition.symbols(), (1, None)))
    assert finding.proven is proven
    assert (finding.counterexamples[0] if smallest else None) == smallest
    assert all(not condition.evaluate(point) for point in finding.counterexamples)


def test_one_size_in_a_wide_range() -> None:
    finding = prove(parse("a*b != 3071*4001"), {"a": (1, 4096), "b": (4000, 4096)})
    assert finding.counterexamples == ({"a": 3071, "b": 4001},) and finding.complete


def test_numbers_beyond_64_bits() -> None:
    finding = prove(parse("a*b*c*d > 0"), dict.fromkeys("abcd", (2**20, 2**20 + 1)))
    assert finding.proven


def test_a_division_by_zero_is_no_proof() -> None:
    finding = prove(parse("n//(m - 3) < 7"), {"n": (1, 2), "m": (1, 9)})
    assert finding.counterexamples == ({"m": 3, "n": 1}, {"m": 3, "n": 2}) and finding.complete


@pytest.mark.parametrize(
    ("text", "proven"),
    [
        # Each can be decided by intervals alone: no box of these ranges is small enough to be tried size by size.
        ("a * b >= 9", True),
        ("a * b * c >= 28", False),
        ("or(a < 3, b >= 3)", True),
        ("where(a < 3, 0, b) >= 3", True),
        ("where(a >= 3, b, 0) >= 3", True),
        ("where(a < b, a, b) >= 3", True),
        ("where(a < b, a, b) >= 4", False),
        ("where(a < b, 0, b) >= 3", False),
        ("-(a * b) <= -9", True),
        ("min(a, b) >= 3", True),
        ("max(a, 2*b) >= 7", False),
        ("not(a < 3)", True),
        ("and(a >= 3, b < 3)", False),
    ],
)
def test_wide_ranges_are_decided_by_their_ends(text: str, proven: bool) -> None:
    condition = parse(text)
    finding = prove(condition, dict.fromkeys(condition.symbols(), (3, 10**9)))
    assert finding.proven is proven
    assert all(not condition.evaluate(point) for point in finding.counterexamples)
    assert bool(finding.counterexamples) is not proven


def test_a_size_that_is_known_beside_a_wide_range() -> None:
    wide = (3, 10**9)
    for text, proven in (
        ("or(n == 3, m < 3)", True),
        ("or(n == 4, m < 3)", False),
        ("n == m", False),
        ("or(n != 3, m < 3)", False),
    ):
        assert prove(parse(text), {"n": (3, 3), "m": wide}).proven is proven


@pytest.mark.parametrize("text", ["a // (b - 4) >= -1", "a // (b - 4) <= 10**9", "ceildiv(a, b - 4) >= -1"])
def test_a_division_by_zero_somewhere_in_a_wide_range(text: str) -> None:
    assert not prove(parse(text.replace("10**9", "1000000000")), dict.fromkeys("ab", (3, 10**9))).proven
