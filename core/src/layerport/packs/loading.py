"""Loads one pack in isolation: imports it, reads its hooks, asks for its layers; a fault becomes a reason.

Only `packs` imports this file.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import io
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pluggy

from layerport.errors import PackError
from layerport.packs import hookspecs
from layerport.packs.calls import HookCall, check_layers
from layerport.packs.clock import running
from layerport.packs.discovery import PackInfo, entry_point_line, suggest
from layerport.packs.metadata import GROUP
from layerport.packs.records import suspends
from layerport.packs.requirements import core_fault
from layerport.packs.watch import watching
from layerport.system.foreign_text import frames, message, reason, shown
from layerport.system.python_files import import_file

if TYPE_CHECKING:
    from layerport.layers.layer import Layer


@dataclass(frozen=True, eq=False)
class Pack:
    """A pack as it was found and loaded.

    plugin: the object that its entry point names; None where it is disabled or failed.
    failure: why it cannot be used.  error: the exception behind that, if one was raised.
    explicit: whether the user named it (`--pack`, `packs=`), so that it wins over one only installed.
    """

    info: PackInfo
    plugin: object | None = None
    failure: str | None = None
    error: BaseException | None = field(default=None, repr=False)
    layers: tuple[Layer, ...] = ()
    hooks: Mapping[str, Callable[..., Any]] = field(default_factory=dict, repr=False)
    warnings: tuple[str, ...] = ()
    explicit: bool = False

    @property
    def status(self) -> str:
        """ "loaded", "failed" or "disabled"."""
        if self.info.disabled:
            return "disabled"
        return "loaded" if self.failure is None else "failed"


class _FaultyPackError(Exception):
    """Carries the reason why a pack cannot be used."""


@dataclass
class _Printed:
    stdout: str = ""
    stderr: str = ""
    notes: list[str] = field(default_factory=list)

    def warnings(self) -> tuple[str, ...]:
        return (*self.notes, *self._prints())

    def _prints(self) -> tuple[str, ...]:
        return tuple(
            f"printed to {stream} at import: {shown(text)}"
            for stream, text in (("stdout", self.stdout), ("stderr", self.stderr))
            if text.strip()
        )


def load_pack(info: PackInfo, *, plugin: object | None = None, explicit: bool = False, trace: bool = False) -> Pack:
    """Load the pack that `info` describes, or the given plugin object; never raises for a fault of the pack.

    KeyboardInterrupt passes, everything else that a pack can do at import becomes its failure.
    """
    fault = info.fault if info.disabled or info.fault is not None else core_fault(info)
    if info.disabled or fault is not None:
        return Pack(info, failure=fault, explicit=explicit)
    printed = _Printed()
    cause: BaseException | None
    try:
        if plugin is None:
            plugin = _import_plugin(info, printed)
        functions = read_hooks(plugin, info)
        layers: tuple[Layer, ...] = ()
        if "layerport_layers" in functions:
            call = HookCall(info, "layerport_layers", functions["layerport_layers"], trace=trace)
            layers = call.ask({}, check_layers)
    except _FaultyPackError as error:
        failure, cause = str(error), error.__cause__
    except PackError as error:
        failure, cause = error.fault.removeprefix(f"pack {info.label}: "), error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # an object of the pack's own making that cannot even be looked at
        failure, cause = f"its hooks cannot be read: {reason(error)}", error
    else:
        warnings = (*printed.warnings(), *_idle_hooks(functions, layers))
        return Pack(info, plugin, None, None, layers, MappingProxyType(functions), warnings, explicit)
    return Pack(info, failure=failure, error=cause, warnings=printed.warnings(), explicit=explicit)


def new_manager() -> pluggy.PluginManager:
    """A pluggy manager that knows the hooks and no plugin."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    return manager


def read_hooks(plugin: object, info: PackInfo) -> dict[str, Callable[..., Any]]:
    """The hook functions of a plugin, by hook, in the order of the specifications."""
    if inspect.isclass(plugin):
        raise _FaultyPackError(
            f"its entry point names the class {plugin.__qualname__}; name an instance of it, or the module"
        )
    manager = new_manager()
    _check_declarations(plugin, manager)
    try:
        manager.register(plugin, info.label)
        manager.check_pending()
    except (pluggy.PluginValidationError, ValueError) as error:
        raise _FaultyPackError(message(error)) from error
    found = {}
    for hook in hookspecs.HOOKS:
        implementations = getattr(manager.hook, hook).get_hookimpls()
        if len(implementations) > 1:
            raise _FaultyPackError(f"it implements {hook} {len(implementations)} times; keep one")
        for implementation in implementations:
            found[hook] = _with_known_arguments(implementation.function, implementation.argnames)
    if not found:
        raise _FaultyPackError("it implements no hook; mark its functions with @lp.hookimpl")
    return found


def _import_plugin(info: PackInfo, printed: _Printed) -> object:
    point = metadata.EntryPoint(info.name, info.entry_point_value, GROUP)
    what = f"importing {info.entry_point_value}"
    try:
        with watching(what, notes=printed.notes), _captured(printed), running(f"pack {info.label}: {what}"):
            plugin = _import_module(info, point, what)
    except PackError as error:
        raise _FaultyPackError(f"{error.fault}; {error.repair}") from error
    if info.distribution is None:
        return plugin
    for name in filter(None, (point.attr or "").split(".")):
        try:
            plugin = getattr(plugin, name)
        except AttributeError as error:
            raise _FaultyPackError(_no_attribute(info, point, plugin, name)) from error
    return plugin


def _import_module(info: PackInfo, point: metadata.EntryPoint, what: str) -> object:
    process = os.getpid()
    try:
        if info.distribution is None:
            return import_file(info.entry_point_value)
        return importlib.import_module(point.module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        verb = "exited with" if isinstance(error, SystemExit) else "raised"
        raise _FaultyPackError(f"{what} {verb} {reason(error)}{_place(error)}") from error
    finally:
        if os.getpid() != process:
            os._exit(1)  # the pack has forked, and there must not be two of us


def _no_attribute(info: PackInfo, point: metadata.EntryPoint, holder: object, name: str) -> str:
    """What is wrong where the object of an entry point is not there."""
    public = [one for one in vars(holder) if not one.startswith("_")]
    if any(one in hookspecs.HOOKS for one in public):
        value = point.module
    else:
        near = suggest(name, public)
        value = f"{point.module}:{near[0]}" if near else point.module
    where = getattr(holder, "__name__", type(holder).__name__)
    line = entry_point_line(info.name, value)
    return f"its entry point names {info.entry_point_value!r}, but {where} has no {name}; {line}"


class _Kept(io.StringIO):
    """What a pack prints; closing it, as if it were the process's own stream, does nothing."""

    def close(self) -> None:
        pass


@contextlib.contextmanager
def _captured(printed: _Printed) -> Iterator[None]:
    """Keep what is printed, also what native code and child processes write to stdout's descriptor."""
    out, err = _Kept(), _Kept()
    with contextlib.ExitStack() as stack:
        native = None
        saved: dict[int, int] = {}
        # A process without a stdout has none to protect, and one without a writable disk loads packs too.
        for stream in (sys.stdout, sys.__stdout__):
            with contextlib.suppress(OSError, ValueError):
                if stream is not None:
                    stream.flush()
        with contextlib.suppress(OSError, ValueError):
            for number in range(3):
                with contextlib.suppress(OSError):
                    saved[number] = os.dup(number)
            native = stack.enter_context(tempfile.TemporaryFile())
            os.dup2(native.fileno(), 1)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                yield
        finally:
            printed.stdout, printed.stderr = out.getvalue(), err.getvalue()
            for number, copy in saved.items():
                os.dup2(copy, number)
                os.close(copy)
            if native is not None:
                native.seek(0)
                printed.stdout += native.read().decode(errors="replace")


def _check_declarations(plugin: object, manager: pluggy.PluginManager) -> None:
    """Find what pluggy would take in silence or explain badly."""
    for name in dir(plugin):
        options = manager.parse_hookimpl_opts(plugin, name)
        function = inspect.getattr_static(plugin, name, None)
        if options is None:
            if name in hookspecs.HOOKS and inspect.isfunction(function):
                raise _FaultyPackError(f"its function {name} is not marked; decorate it with @lp.hookimpl")
            continue
        hook = options.get("specname") or name
        function = getattr(plugin, name)
        if hook not in hookspecs.HOOKS:
            if options.get("optionalhook"):
                continue
            # The prefix, which all hooks share, would make every name look near to one of them.
            stems = {name.removeprefix("layerport_") for name in hookspecs.HOOKS}
            near = suggest(hook.removeprefix("layerport_"), stems)
            hint = f"did you mean layerport_{near[0]}?" if near else f"the hooks are {', '.join(hookspecs.HOOKS)}"
            raise _FaultyPackError(f"it declares an unknown hook {hook}; {hint}")
        if options.get("hookwrapper") or options.get("wrapper"):
            raise _FaultyPackError(f"its {hook} is a hook wrapper; a pack answers for itself, so take that option out")
        if kind := suspends(function):
            raise _FaultyPackError(f"its {hook} is {kind}; return a record (a tuple for several) instead")
        _check_arguments(hook, function)


def _check_arguments(hook: str, function: Callable[..., Any]) -> None:
    allowed = hookspecs.HOOKS[hook]
    listed = f"({', '.join(allowed)})"
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise _FaultyPackError(f"its {hook} takes {parameter}, which stays empty; {hook} is called with {listed}")
        if parameter.name not in allowed and parameter.default is parameter.empty:
            near = suggest(parameter.name, allowed)
            hint = f"did you mean {near[0]}?" if near else "take it out"
            raise _FaultyPackError(f"its {hook} takes {parameter.name!r}, but is called with {listed}; {hint}")


def _with_known_arguments(function: Callable[..., Any], names: tuple[str, ...]) -> Callable[..., Any]:
    """A hook may take fewer arguments than its specification has."""

    def call(**arguments: Any) -> Any:
        return function(*(arguments[name] for name in names))

    return call


def _idle_hooks(functions: Mapping[str, Any], layers: tuple[Layer, ...]) -> tuple[str, ...]:
    idle = [name for name in ("layerport_convert_parameters", "layerport_create_plugin") if name in functions]
    if layers or not idle:
        return ()
    return (f"it provides no layer, so its {' and '.join(idle)} will never be asked",)


def _place(error: BaseException) -> str:
    """The last line of the pack's own that the error passed through."""
    passed = [one for one in frames(error) if not one[0].f_code.co_filename.startswith("<frozen ")]
    if not passed or passed[-1][0].f_code.co_filename == __file__:
        return ""
    frame, line = passed[-1]
    return f" ({frame.f_code.co_filename}:{line})"
