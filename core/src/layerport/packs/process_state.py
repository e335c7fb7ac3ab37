"""What belongs to the whole process and not to a pack: read, compared, put back.

For `watch`.  Torch's own settings are in `torch_state`.
"""

from __future__ import annotations

import builtins
import contextlib
import io
import locale
import operator
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGALRM", "SIGCHLD", "SIGPIPE", "SIGUSR1", "SIGUSR2")
_HOOKS = ((sys, "excepthook"), (sys, "unraisablehook"), (sys, "displayhook"), (threading, "excepthook"))
_STREAMS = ("stdin", "stdout", "stderr", "__stdout__", "__stderr__")
_MISSING: Any = object()
_left: list[threading.Thread] = []


class _Fact(NamedTuple):
    """name: what a message calls it.  write: puts a value back; `read` gives the value again then."""

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], None]


def _folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was deleted
        return None


def _to_folder(value: str | None) -> None:
    if value is not None:
        with contextlib.suppress(OSError):
            os.chdir(value)


def _write_path(value: list[str]) -> None:
    sys.path[:] = value


def _hooks() -> list[Any]:
    return [getattr(module, name) for module, name in _HOOKS]


def _write_hooks(value: list[Any]) -> None:
    for (module, name), hook in zip(_HOOKS, value, strict=True):
        setattr(module, name, hook)


def _handlers() -> dict[int, Any]:
    if threading.current_thread() is not threading.main_thread():
        return {}  # nobody else may set one
    return {number: signal.getsignal(number) for name in _SIGNALS if (number := getattr(signal, name, None))}


def _write_handlers(value: dict[int, Any]) -> None:
    for number, handler in value.items():
        if handler is not None and signal.getsignal(number) != handler:
            signal.signal(number, handler)


def _alarm() -> bool:
    return hasattr(signal, "getitimer") and signal.getitimer(signal.ITIMER_REAL)[0] > 0


def _write_alarm(value: bool) -> None:
    if not value:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _everything_filtered() -> list[Any]:
    """The filters that take every warning: those for one message or category may belong to a library."""
    return [one for one in warnings.filters if one[1] is None and one[2] is Warning and one[3] is None and one[4] == 0]


def _write_filters(value: list[Any]) -> None:
    added = [one for one in _everything_filtered() if one not in value]
    warnings.filters[:] = [one for one in warnings.filters if one not in added]  # type: ignore[index]
    with warnings.catch_warnings():
        pass  # it tells the warnings module that the filters have changed


def _logging() -> tuple[Any, ...]:
    logging = sys.modules.get("logging")
    return () if logging is None else (logging.root.level, list(logging.root.handlers), logging.root.manager.disable)


def _write_logging(value: tuple[Any, ...]) -> None:
    if value:
        logging = sys.modules["logging"]
        logging.root.setLevel(value[0])
        logging.root.handlers[:] = value[1]
        logging.root.manager.disable = value[2]


def _write_locale(value: str) -> None:
    locale.setlocale(locale.LC_ALL, value)


def _trace() -> tuple[Any, Any]:
    return sys.gettrace(), sys.getprofile()


def _write_trace(value: tuple[Any, Any]) -> None:
    sys.settrace(value[0])
    sys.setprofile(value[1])


_FACTS = (
    _Fact("the working directory", _folder, _to_folder),
    _Fact("sys.path", lambda: list(sys.path), _write_path),
    _Fact("the handling of exceptions (sys.excepthook and the like)", _hooks, _write_hooks),
    _Fact("the handling of signals", _handlers, _write_handlers),
    _Fact("an alarm", _alarm, _write_alarm),
    _Fact("the filters of warnings", _everything_filtered, _write_filters),
    _Fact("the root logger", _logging, _write_logging),
    _Fact("the locale", lambda: locale.setlocale(locale.LC_ALL), _write_locale),
    _Fact("the recursion limit", sys.getrecursionlimit, sys.setrecursionlimit),
    _Fact("the trace function", _trace, _write_trace),
)


def is_kept_from_ending() -> bool:
    """Whether a thread that a pack has left runs on, for which Python would wait at its end."""
    return any(one.is_alive() for one in _left)


class ProcessState:
    """The process at one moment.  `changes` also looks at threads, which nobody can put back."""

    def __init__(self) -> None:
        self._values = [fact.read() for fact in _FACTS]
        self._environment = dict(os.environ)
        self._modules = dict(sys.modules)
        self._builtins = dict(vars(builtins))
        self._streams = {name: getattr(sys, name) for name in _STREAMS}
        self._open = {name for name, stream in self._streams.items() if not getattr(stream, "closed", True)}
        self._threads = set(threading.enumerate())
        self._is_unchanged = False

    def changes(self) -> list[str]:
        """What is otherwise than then, such as "the working directory"."""
        found = [fact.name for fact, before in zip(_FACTS, self._values, strict=True) if fact.read() != before]
        found += [f"{name} in os.environ" for name in self._changed_environment()]
        found += [f"sys.modules[{name!r}]" for name in self._changed_modules()]
        found += [f"builtins.{name}" for name in self._changed_builtins()]
        found += [f"sys.{name}" for name in self._changed_streams()]
        self._is_unchanged = not found
        return found

    def threads(self) -> list[str]:
        """The threads started since that keep the process from ending; noted for `is_kept_from_ending`."""
        left = [one for one in threading.enumerate() if one not in self._threads and not one.daemon]
        _left.extend(left)
        return [one.name for one in left]

    def restore(self) -> None:
        """Put back what has changed, but for threads."""
        if self._is_unchanged:
            return
        for fact, before in zip(_FACTS, self._values, strict=True):
            if fact.read() != before:
                fact.write(before)
        for name in self._changed_environment():
            if name in self._environment:
                os.environ[name] = self._environment[name]
            else:
                del os.environ[name]
        for name in self._changed_modules():
            sys.modules[name] = self._modules[name]
        for name in self._changed_builtins():
            setattr(builtins, name, self._builtins[name])
        again: dict[int, Any] = {}
        for name in self._changed_streams():
            stream = self._streams[name]
            if name in self._open and stream.closed:
                stream = again.setdefault(id(stream), None) or _opened_again(name.strip("_"))
                again[id(self._streams[name])] = stream
            setattr(sys, name, stream)

    def _changed_environment(self) -> list[str]:
        """What the user has set, and switches of ours; a library that a pack imports may set more for itself."""
        before, now = self._environment, os.environ
        changed = [name for name, value in before.items() if now.get(name) != value]
        return changed + [name for name in now if name.startswith("LAYERPORT_") and name not in before]

    def _changed_modules(self) -> list[str]:
        return _replaced(self._modules, sys.modules)

    def _changed_builtins(self) -> list[str]:
        return [name for name in _replaced(self._builtins, vars(builtins)) if name != "_"]

    def _changed_streams(self) -> list[str]:
        return [
            name
            for name, stream in self._streams.items()
            if getattr(sys, name) is not stream or (name in self._open and stream.closed)
        ]


def _replaced(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    if all(map(operator.is_, before.values(), map(now.get, before))):
        return []  # the usual case, for thousands of modules
    return [name for name, one in before.items() if now.get(name, _MISSING) is not one]


def _opened_again(name: str) -> Any:
    number = {"stdin": 0, "stdout": 1, "stderr": 2}[name]
    mode = "r" if name == "stdin" else "w"
    try:
        return open(number, mode, encoding="utf-8", errors="backslashreplace", closefd=False)
    except OSError:  # the descriptor is closed too
        return io.StringIO()
