"""The conformance kit in pytest, through the entry point `pytest11`: a test of three lines checks a whole pack.

    @pytest.mark.layerport("my_pack")
    def test_pack(layerport_check):
        layerport_check()

Imports pytest and nothing heavy: pytest loads it in every run where layerport is installed.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

import layerport.testing.conformance

_ARGUMENT = "layerport_check"
_MARK = "layerport"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", f"{_MARK}(pack, layers=(), gpu=False): the pack (or file) that {_ARGUMENT} is about"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each check of the pack that the mark names."""
    if _ARGUMENT not in metafunc.fixturenames:
        return
    mark = metafunc.definition.get_closest_marker(_MARK)
    if mark is None or not mark.args:
        raise pytest.UsageError(
            f"{metafunc.definition.nodeid} takes {_ARGUMENT}, but no mark names a pack; "
            f'decorate it with @pytest.mark.{_MARK}("my_pack")'
        )
    checks = layerport.testing.conformance.kit.checks_of(*mark.args, **mark.kwargs)
    metafunc.parametrize(_ARGUMENT, [_as_test(one) for one in checks], ids=[one.id for one in checks])


def _as_test(check: object) -> Callable[[], None]:
    def run() -> None:
        __tracebackhide__ = True
        verdict = layerport.testing.conformance.kit.judge(check)  # type: ignore[arg-type]
        if verdict.answer == "failed":
            pytest.fail(verdict.reason, pytrace=False)
        if verdict.answer == "not run":
            pytest.skip(verdict.reason)

    return run
