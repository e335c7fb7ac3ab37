"""Torch's symbolic sizes as size expressions: the same numbers, or an error that names the part without a form."""

from __future__ import annotations

from typing import Any

import pytest
import sympy
from torch.utils._sympy import functions

from layerport.errors import UsageError
from layerport.layers.sympy_sizes import from_sympy
from layerport.sizes.expressions import Symbol, parse

X, Y = Symbol("x.0"), Symbol("x.1")
# Torch annotates only some of them.
torch_sympy: Any = functions
S, T = sympy.symbols("s t", integer=True, nonnegative=True)
FLOAT = torch_sympy.ToFloat


@pytest.mark.parametrize(
    ("expr", "text"),
    [
        (sympy.Integer(3), "3"),
        (2 * S - 3 * T + 1, "2*x.0 - 3*x.1 + 1"),
        (S**3, "x.0*x.0*x.0"),
        (torch_sympy.FloorDiv(S + 1, 2), "(x.0 + 1)//2"),
        (torch_sympy.CleanDiv(S, T), "x.0//x.1"),
        (torch_sympy.Mod(S, 4), "x.0 - 4*(x.0//4)"),
        (torch_sympy.PythonMod(S, 4), "x.0 - 4*(x.0//4)"),
        (torch_sympy.ModularIndexing(S, 2, 3), "x.0//2 - 3*(x.0//6)"),
        (torch_sympy.Max(S, T, 4), "max(4, x.0, x.1)"),
        (torch_sympy.Min(S, 4), "min(4, x.0)"),
        (torch_sympy.LShift(S, 3), "8*x.0"),
        (torch_sympy.Where(S < T, S, T), "where(x.0 < x.1, x.0, x.1)"),
        (sympy.Piecewise((S, S < T), (T, sympy.Eq(S, 3)), (0, True)), None),
        (torch_sympy.CeilToInt(torch_sympy.IntTrueDiv(S, T)), "ceildiv(x.0, x.1)"),
        (torch_sympy.FloorToInt(torch_sympy.IntTrueDiv(S, 3)), "x.0//3"),
        (torch_sympy.TruncToInt(1.5 * FLOAT(S)), "3*x.0//2"),
        (torch_sympy.FloorToInt(0.75 * FLOAT(S) + 0.5), "(3*x.0 + 2)//4"),
        (
            torch_sympy.TruncToInt(0.5 * FLOAT(S - T)),
            "where(2*x.0 - 2*x.1 < 0, ceildiv(x.0 - x.1, 2), (x.0 - x.1)//2)",
        ),
        (sympy.And(S < 3, sympy.Ne(T, 2)), "and(x.0 < 3, x.1 != 2)"),
        (sympy.Or(sympy.Eq(S, 3), T >= 2), "or(1 < x.1, x.0 == 3)"),
        (sympy.true, "1"),
        (sympy.false, "0"),
        (sympy.Not(torch_sympy.Max(S, 3) < T, evaluate=False), None),
        (S**16, None),
        (torch_sympy.Identity(S + 1), "x.0 + 1"),
        (torch_sympy.CeilToInt(0.75 * FLOAT(S) + 0.5), "ceildiv(3*x.0 + 2, 4)"),
        (torch_sympy.FloorToInt(0.75 * FLOAT(S) + 0.5 * FLOAT(T)), None),
        (torch_sympy.FloorToInt(torch_sympy.FloatTrueDiv(FLOAT(S), sympy.Float(8.0)) + 0.5), "(x.0 + 4)//8"),
        (torch_sympy.FloorToInt(torch_sympy.FloatTrueDiv(1.5 * FLOAT(S), sympy.Float(4.0))), "3*x.0//8"),
        (torch_sympy.FloorToInt(torch_sympy.IntTrueDiv(S, T)), "x.0//x.1"),
        (torch_sympy.TruncToInt(torch_sympy.FloatTrueDiv(1.5 * FLOAT(S), 0.5 * FLOAT(T))), None),
        (torch_sympy.TruncToInt(float(2**20) * FLOAT(S)), "1048576*x.0"),
        (torch_sympy.TruncToInt(2.0**-20 * FLOAT(S)), "x.0//1048576"),
    ],
)
def test_torch_sizes_become_expressions(expr: Any, text: str | None) -> None:
    made = from_sympy(expr, {"s": X, "t": Y})
    if text is not None:
        assert made.structurally_equals(parse(text)), made
    for s, t in ((3, 2), (4, 7), (10, 3), (3, 5), (12, 12)):
        value = expr.subs({S: s, T: t})
        assert made.evaluate({"x.0": s, "x.1": t}) == int(bool(value) if value in (sympy.true, sympy.false) else value)


@pytest.mark.parametrize(
    ("expr", "part"),
    [
        (sympy.sqrt(S), "sqrt|Pow"),
        (sympy.Integer(2) ** S, r"Pow\(2, s\)"),
        (S / 2, "1/2 is no arithmetic"),
        (torch_sympy.TruncToInt(0.1 * FLOAT(S)), "0.1"),
        (torch_sympy.TruncToInt(torch_sympy.FloatPow(FLOAT(S), 0.5)), "FloatPow"),
        (torch_sympy.RoundToInt(0.5 * FLOAT(S)), "RoundToInt"),
        (torch_sympy.TruncToInt(torch_sympy.FloatTrueDiv(FLOAT(S), FLOAT(T)) * 1.5), "FloatTrueDiv"),
        (torch_sympy.TruncToInt(FLOAT(S) * FLOAT(T)), "is no arithmetic"),
        (torch_sympy.TruncToInt(float(2**20 + 1) * FLOAT(S)), "1048577"),
        (torch_sympy.TruncToInt(2.0**-21 * FLOAT(S)), "is no arithmetic"),
        (torch_sympy.FloorToInt(torch_sympy.FloatTrueDiv(FLOAT(S), sympy.Float(3.0)) + 0.5), "FloatTrueDiv"),
        (torch_sympy.FloorToInt(torch_sympy.FloatTrueDiv(FLOAT(S), sympy.Float(-4.0)) + 0.5), "FloatTrueDiv"),
        (S**17, "Pow"),
        (sympy.Symbol("z"), "the size z is the size of no argument"),
        (sympy.Piecewise((S, S < T)), "Piecewise"),
    ],
)
def test_what_is_no_whole_number_arithmetic_is_an_error(expr: Any, part: str) -> None:
    with pytest.raises(UsageError, match=part):
        from_sympy(expr, {"s": X, "t": Y})
