"""In which order of its threads a case's kernel runs on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from layerport.testing import Case

ORDERS: tuple[str | int, ...] = ("forward", "backward", 20240229)


def ordered(cases: Sequence[Case], *, every: bool) -> Any:
    """Parameters case and order: each case in one of them, another one than its neighbours, or in every order."""
    return pytest.mark.parametrize(
        ("case", "order"),
        [
            pytest.param(case, order, id=f"{case.id}-{order}")
            for place, case in enumerate(cases)
            for order in (ORDERS if every else ORDERS[place % 3 : place % 3 + 1])
        ],
    )
