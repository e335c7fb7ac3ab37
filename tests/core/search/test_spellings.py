"""Further ways to write a layer: found as the reference is, and compared with it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import layerport as lp
from layerport.errors import UsageError
from layerport.testing import check_spellings
from searched import search_in


def half_cat(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


def made(name: str) -> lp.Layer:
    @lp.layer(name)
    def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        turned = torch.cat((-second, first), -1)
        return x * torch.cat((cos, cos), -1) + turned * torch.cat((sin, sin), -1)

    return rotate


X, COS, SIN = torch.randn(2, 3, 8), torch.randn(3, 4), torch.randn(3, 4)


def test_a_spelling_finds_what_the_reference_does_not() -> None:
    layer = made("spelling_tests::rotate")
    assert search_in(half_cat, (X, COS, SIN), (layer,))[0].places == []
    layer.spelling(half_cat)
    check_spellings(layer, X, COS, SIN)
    (place,) = search_in(half_cat, (X, COS, SIN), (layer,))[0].places
    assert (place.grade, place.spelling) == ("formula", "half_cat")
    assert place.error is not None and place.error < 1e-5


def test_a_wrong_spelling_is_told_and_takes_no_place() -> None:
    layer = made("spelling_tests::wrong")

    @layer.spelling
    def wrong(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return half_cat(x, sin, cos)

    with pytest.raises(AssertionError, match=r"spelling wrong is off by \d.* in output"):
        check_spellings(layer, X, COS, SIN)
    findings, _ = search_in(lambda x, c, s: half_cat(x, s, c), (X, COS, SIN), (layer,))
    assert findings.places == []
    assert [one.reason.partition(":")[0] for one in findings.misses] == [
        "it is the same as a formula, and its numbers differ"
    ]


def test_a_spelling_takes_the_reference_s_arguments() -> None:
    layer = made("spelling_tests::arguments")
    with pytest.raises(UsageError, match="the spelling short takes x, cos, the reference x, cos, sin"):

        @layer.spelling
        def short(x: Tensor, cos: Tensor) -> Tensor:
            return x * cos


def test_a_layer_without_a_spelling_has_none_to_check() -> None:
    with pytest.raises(UsageError, match="layer spelling_tests::none has no spelling"):
        check_spellings(made("spelling_tests::none"), X, COS, SIN)
