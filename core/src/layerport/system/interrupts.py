"""Signals that end a program: Ctrl-C and its like, as an exception that comes at a good moment and is not lost.

`layerport.build` leaves the handlers of signals to the program that calls it; the command line sets its own.  Imports
nothing foreign; anyone may import it.
"""

from __future__ import annotations

import _thread
import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
# An interrupt that was lost comes again after this time.
_AGAIN_SECONDS = 0.02


class Interrupted(KeyboardInterrupt):
    """What `raised` makes of a signal.  number: which one."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = signal.Signals(number)


class Raised:
    """The signals in a block of `raised`.

    over: once it is set, a signal does what it does to any program.  number: of the first that came.
    """

    over = False
    number: int | None = None

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Let an error that came after an interrupt be that interrupt again, in this block.

        Native code makes another error of it, or loses it and leaves a library half imported.
        """
        try:
            yield
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if self.number is None:
                raise
            again = Interrupted(self.number)
            for note in getattr(error, "__notes__", ()):
                again.add_note(note)
            raise again from error


@contextlib.contextmanager
def raised() -> Iterator[Raised]:
    """Let Ctrl-C, SIGTERM and SIGHUP raise `Interrupted` in this block; for programs of our own.

    A signal that is ignored (nohup) or that somebody handles is left as it is, and so are all outside the main thread.
    """
    state = Raised()
    if threading.current_thread() is not threading.main_thread():
        yield state
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    ours = [number for number, handler in before.items() if handler in (signal.SIG_DFL, signal.default_int_handler)]
    unraisable = sys.unraisablehook

    def raise_it(number: int, frame: FrameType | None) -> None:
        if state.over:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        state.number = state.number or number
        raise Interrupted(number)

    def come_again(lost: Any) -> None:
        # Raised inside a finaliser, it has ended nothing but that.
        if isinstance(lost.exc_value, Interrupted):
            threading.Timer(_AGAIN_SECONDS, _thread.interrupt_main, (lost.exc_value.number,)).start()
        else:
            unraisable(lost)

    try:
        sys.unraisablehook = come_again
        for number in ours:
            signal.signal(number, raise_it)
        yield state
    finally:
        state.over = True
        for number in ours:
            signal.signal(number, before[number])
        sys.unraisablehook = unraisable


@contextlib.contextmanager
def put_off() -> Iterator[None]:
    """Let signals that raise wait until the block ends: for what must not be left half done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []
    waiting = True
    before = {number: handler for number in SIGNALS if callable(handler := signal.getsignal(number))}

    def wait(number: int, frame: FrameType | None) -> None:
        if waiting:
            caught.append(number)
        else:  # one that comes while the handlers are put back
            before[signal.Signals(number)](number, frame)

    try:
        for number in before:
            signal.signal(number, wait)
        yield
    finally:
        waiting = False
        for number, handler in before.items():
            signal.signal(number, handler)
    for first in caught[:1]:
        before[signal.Signals(first)](first, None)
