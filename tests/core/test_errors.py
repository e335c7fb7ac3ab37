"""Errors: a fault with its values, then the repair, and an exit code for each kind."""

from __future__ import annotations

import pickle

import pytest

from layerport.errors import BuildError, LayerportError, PackError, UsageError, VerifyError


def test_a_message_has_the_fault_the_list_and_the_repair() -> None:
    error = UsageError("two faults", "mend them", faults=["first", "second"])
    assert str(error) == "two faults\n  - first\n  - second\n  to repair: mend them"
    assert (error.fault, error.repair, error.faults) == ("two faults", "mend them", ("first", "second"))
    assert str(BuildError("only this")) == "only this"


@pytest.mark.parametrize(
    ("kind", "code"), [(VerifyError, 1), (UsageError, 2), (PackError, 3), (BuildError, 4), (LayerportError, 4)]
)
def test_exit_codes(kind: type[LayerportError], code: int) -> None:
    assert kind("x").exit_code == code
    assert issubclass(kind, LayerportError)


def test_an_error_survives_an_executor() -> None:
    error = pickle.loads(pickle.dumps(BuildError("fault", "repair", faults=["one"])))
    assert type(error) is BuildError
    assert str(error) == "fault\n  - one\n  to repair: repair"
