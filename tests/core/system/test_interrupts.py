"""SIGTERM and SIGHUP are an exception as Ctrl-C is; it comes at a good moment and is not lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from layerport import cli
from layerport.bundle import staging
from layerport.errors import BuildError
from layerport.system import interrupts
from layerport.system.interrupts import SIGNALS, Interrupted
from small_setup import python


@pytest.fixture(autouse=True)
def usual_handlers() -> Iterator[None]:
    """A job in the background ignores Ctrl-C."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_an_exception_in_the_block_only(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as caught, interrupts.raised():
        signal.raise_signal(number)
    assert caught.value.number == number
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda number, frame: None])
def test_what_somebody_has_set_stays(handler: signal._HANDLER) -> None:
    signal.signal(signal.SIGHUP, handler)
    with interrupts.raised():
        assert signal.getsignal(signal.SIGHUP) is handler
        signal.raise_signal(signal.SIGHUP)


def test_outside_the_main_thread_nothing_is_set() -> None:
    seen = []

    def look() -> None:
        with interrupts.raised(), interrupts.put_off():
            seen.extend(signal.getsignal(number) for number in SIGNALS)

    before = [signal.getsignal(number) for number in SIGNALS]
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == before


@pytest.mark.parametrize("number", SIGNALS)
def test_an_interrupt_within_a_finaliser_comes_again(number: signal.Signals) -> None:
    class Finalised:
        def __del__(self) -> None:
            signal.raise_signal(number)

    with pytest.raises(Interrupted) as caught, interrupts.raised():
        Finalised()
        time.sleep(5)
    assert caught.value.number == number


def test_other_faults_of_finalisers_are_told_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda lost: told.append(lost.exc_value))

    class Finalised:
        def __del__(self) -> None:
            raise ValueError("mine")

    with interrupts.raised():
        Finalised()
    assert str(told) == "[ValueError('mine')]"


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_waits_for_the_end_of_what_must_be_whole(number: signal.Signals) -> None:
    done = False
    with pytest.raises(Interrupted) as caught, interrupts.raised(), interrupts.put_off():
        signal.raise_signal(number)
        signal.raise_signal(number)
        done = True
    assert done and caught.value.number == number


def test_a_handler_of_the_users_own_is_put_off_and_put_back() -> None:
    heard: list[int] = []

    def mine(number: int, frame: object) -> None:
        heard.append(number)

    signal.signal(signal.SIGTERM, mine)
    with interrupts.put_off():
        signal.raise_signal(signal.SIGTERM)
        assert heard == []
    assert heard == [signal.SIGTERM] and signal.getsignal(signal.SIGTERM) is mine


def test_put_off_changes_no_default_action() -> None:
    with interrupts.put_off():
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def command(*numbers: int) -> click.Command:
    @click.command()
    @cli.exits
    def sends() -> int:
        for number in numbers:
            os.kill(os.getpid(), number)
        time.sleep(5)
        return 0

    return sends


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGINT, 130, "error: interrupted; nothing was written\n"),
        (signal.SIGTERM, 143, "error: ended by SIGTERM; nothing was written\n"),
        (signal.SIGHUP, 129, "error: ended by SIGHUP; nothing was written\n"),
    ],
)
def test_a_command_says_by_what_it_was_ended(number: int, code: int, said: str) -> None:
    result = CliRunner().invoke(command(number))
    assert (result.exit_code, result.stderr) == (code, said)


@pytest.mark.parametrize("error", [RecursionError("half imported"), SystemExit(3), BuildError("a fault", "a repair")])
def test_what_native_code_makes_of_an_interrupt_is_an_interrupt(error: BaseException) -> None:
    @click.command()
    @cli.exits
    def loses_it() -> int:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        except KeyboardInterrupt:
            raise error from None
        return 0

    result = CliRunner().invoke(loses_it)
    assert (result.exit_code, result.stderr) == (143, "error: ended by SIGTERM; nothing was written\n")


def test_an_error_without_an_interrupt_is_itself() -> None:
    @click.command()
    @cli.exits
    def fails() -> int:
        raise BuildError("a fault", "a repair")

    result = CliRunner().invoke(fails)
    assert (result.exit_code, result.stderr) == (4, "error: a fault\n  to repair: a repair\n")


def test_nohup_is_heeded() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert CliRunner().invoke(command(signal.SIGHUP, signal.SIGTERM)).exit_code == 143


WRITES = """
import os, signal, sys
from layerport import building, cli
out, number = sys.argv[1], int(sys.argv[2])
def build(source, out, **options):
    os.mkdir(out)
    os.kill(os.getpid(), number)
building.build = build
cli.main(["build", "x.py:x", "-o", out])
"""


def test_an_interrupt_after_the_bundle_was_written_says_so(tmp_path: Path) -> None:
    out = f"{tmp_path}/a.lp"
    done = subprocess.run(
        [sys.executable, "-c", WRITES, out, str(int(signal.SIGTERM))], capture_output=True, text=True, check=False
    )
    assert done.returncode == 143
    assert done.stderr == f"error: ended by SIGTERM; {out} was written before that\n"


LIBRARY = """
import signal, sys
from layerport import building
from small_models import net
from small_setup import ENGINE, SMALL
if sys.argv[2] == "own":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(77))
def tell(event):
    if event.stage == sys.argv[3] and event.kind == "stage":
        signal.raise_signal(signal.SIGTERM)
handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
try:
    building.build(net(), sys.argv[1], target=ENGINE, packs=[SMALL], progress=tell)
finally:
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
"""


@pytest.mark.parametrize(("handler", "code"), [("own", 77), ("none", -signal.SIGTERM)])
def test_as_a_library_the_handlers_are_the_programs(tmp_path: Path, handler: str, code: int) -> None:
    pytest.importorskip("tensorrt_rtx")
    less = {"LAYERPORT_FIND": "0", "LAYERPORT_DISABLE_PACKS": "builtin_layers"}  # what takes time before the engine
    done = python(LIBRARY, f"{tmp_path}/a.lp", handler, "engine", environment=less)
    assert done.returncode == code, done.stderr
    left = os.listdir(tmp_path)
    if handler == "own":
        assert left == []
    else:  # ended at once; the next build clears it away
        assert len(left) == 1 and left[0].endswith(".partial")
        staging.clear(tmp_path)
        assert os.listdir(tmp_path) == []
