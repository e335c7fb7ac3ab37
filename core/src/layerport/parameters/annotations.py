"""Reads a layer's signature from the annotations of its reference: for `Signature.of`, and only that.

Imports neither torch nor numpy: a tensor annotation is recognised by the name of its class.
"""

from __future__ import annotations

import collections.abc
import inspect
import keyword
import math
import sys
import types
import typing
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from layerport.errors import UsageError
from layerport.parameters.arguments import MISSING, SCALARS, TENSOR, Argument, Kind, Param, count, show_value
from layerport.parameters.attributes import WrongValueError, normalise
from layerport.parameters.rules import Rule, WrongRuleError, broken, choices, rules_of

_SEQUENCES = (list, tuple, collections.abc.Sequence)
_ALLOWED = (
    "torch.Tensor (a run-time input), lp.Param (a constant tensor), int, float, bool, str, "
    "list[...] or Sequence[...] or tuple[..., ...] of one of these four, or Optional of any of them; with Literal for "
    "choices, and Annotated for ranges and lengths"
)
# Attributes that the core itself puts on the ONNX node of a layer.
_RESERVED = frozenset({"plugin_namespace", "plugin_version"})
_RESERVED_PREFIX = "layerport_"


class Read(NamedTuple):
    """The fields of a `Signature`."""

    arguments: tuple[Argument, ...]
    outputs: int
    output_names: tuple[str, ...]
    record: type[Any] | None


def read_signature(function: Callable[..., Any]) -> Read:
    """What the annotations of a reference say.  Raises UsageError with all faults at once."""
    reader = _Reader(function)
    signature = reader.read()
    if signature is None:
        raise UsageError(
            f"{reader.name}: {count(len(reader.faults), 'fault')} in the signature",
            f"an argument may be {_ALLOWED}",
            faults=reader.faults,
        )
    return signature


def _schema_refusal(argument: Argument) -> str | None:
    """Why torch's schema grammar cannot hold this default, if it cannot."""
    default = argument.default
    if default is MISSING or default is None:
        return None
    items = default if isinstance(default, tuple) else (default,)
    if isinstance(default, tuple) and (argument.type == "str[]" or argument.optional):
        return f"a torch schema has no default for {argument.schema_type} except None"
    if any(isinstance(item, float) and item and not sys.float_info.min <= abs(item) < math.inf for item in items):
        return "a torch schema has no infinite, NaN or subnormal default"
    return None


class _Reader:
    """Reads one function's annotations and gathers every fault on the way."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.name = getattr(function, "__qualname__", None) or repr(function)
        self.faults: list[str] = []

    def read(self) -> Read | None:
        try:
            signature = inspect.signature(self.function)
        except (TypeError, ValueError) as error:
            self.faults.append(f"its arguments cannot be read ({error}); use a plain function")
            return None
        arguments = [a for p in signature.parameters.values() if (a := self._argument(p)) is not None]
        required = [a for a in arguments if a.kind is Kind.INPUT and not a.optional]
        if not required and not self.faults:
            self.faults.append("no run-time tensor input: annotate at least one argument as torch.Tensor")
        names = self._outputs(signature.return_annotation)
        if self.faults:
            return None
        named = tuple(name for name in names if name is not None)
        record, _ = self._resolve(signature.return_annotation)
        return Read(tuple(arguments), len(names), named, record if named else None)

    def _argument(self, parameter: inspect.Parameter) -> Argument | None:
        name, fault = parameter.name, self._fault
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            stars = "*" if parameter.kind is parameter.VAR_POSITIONAL else "**"
            return fault(f"argument {stars}{name}", "a layer has a fixed list of arguments; name each one")
        if parameter.kind is not parameter.POSITIONAL_OR_KEYWORD:
            only = "keyword-only" if parameter.kind is parameter.KEYWORD_ONLY else "positional-only"
            return fault(f"argument {name!r}", f"{only}; take the bare * or / out of the signature")
        if reason := _name_refusal(name):
            return fault(f"argument {name!r}", reason)
        if parameter.annotation is parameter.empty:
            return fault(f"argument {name!r}", "no annotation")
        annotation, resolved = self._resolve(parameter.annotation)
        if not resolved:
            return fault(f"argument {name!r}", str(annotation))
        read = _read_annotation(annotation)
        if isinstance(read, str):
            return fault(f"argument {name!r}", f"unsupported annotation {_show_annotation(annotation)}{read}")
        kind, type_name, optional, rules = read
        default: Any = MISSING if parameter.default is parameter.empty else parameter.default
        if default is not MISSING:
            try:
                if kind is Kind.ATTRIBUTE:
                    default = normalise(default, type_name, optional)
                    if faults := broken(rules, default):
                        raise WrongValueError(f"{type_name} {' and '.join(faults)}, got {show_value(default)}")
                elif default is not None or not optional:
                    raise WrongValueError(f"{'None' if optional else 'no default'}, got {show_value(default)}")
            except WrongValueError as error:
                hint = "; annotate it as Optional" if default is None and not optional else ""
                return fault(f"argument {name!r}: default", f"expected {error}{hint}")
        argument = Argument(name, kind, type_name, optional, default, rules)
        if reason := _schema_refusal(argument):
            return fault(
                f"argument {name!r}: default {show_value(default)}",
                f"{reason}; make it Optional, default None, and let the reference fill the value in",
            )
        return argument

    def _outputs(self, annotation: Any) -> tuple[str | None, ...]:
        """One entry per output: its name, or None; empty after a fault."""
        if annotation is inspect.Signature.empty:
            self._fault("return", "no annotation; use torch.Tensor, or tuple[Tensor, Tensor] for several")
            return ()
        annotation, resolved = self._resolve(annotation)
        if not resolved:
            self._fault("return", str(annotation))
            return ()
        fields = _output_fields(annotation)
        if fields is None:
            self._fault(
                "return",
                f"unsupported annotation {_show_annotation(annotation)}; use torch.Tensor, or tuple[Tensor, "
                "Tensor] with each of 2 or more written out, or a NamedTuple of 2 or more",
            )
            return ()
        for name in fields:
            if name is not None and (reason := _name_refusal(name)):
                self._fault(f"output {name!r}", reason)
        return fields

    def _fault(self, what: str, why: str) -> None:
        self.faults.append(f"{what}: {why}")

    def _resolve(self, annotation: Any) -> tuple[Any, bool]:
        """The annotation as an object, each on its own so that one bad name does not hide another."""
        holder = types.SimpleNamespace(__annotations__={"it": annotation})
        function = inspect.unwrap(self.function)
        code = getattr(function, "__code__", None)
        cells = getattr(function, "__closure__", None) or ()
        local = {}
        for name, cell in zip(code.co_freevars if code else (), cells, strict=False):
            try:
                local[name] = cell.cell_contents
            except ValueError:  # a name of the enclosing function that is bound later
                continue
        try:
            resolved = typing.get_type_hints(holder, getattr(function, "__globals__", {}), local, include_extras=True)[
                "it"
            ]
        except Exception as error:  # an annotation is code of the author's: it may raise anything
            return (
                f"annotation {annotation!r} cannot be resolved ({error}); import its names at module level, "
                "outside `if TYPE_CHECKING`"
            ), False
        return resolved, True


def _name_refusal(name: str) -> str | None:
    if not name.isascii() or not name.isidentifier() or keyword.iskeyword(name):
        return "a torch schema and ONNX need a name of ASCII letters, digits and underscores"
    if name in _RESERVED or name.startswith(_RESERVED_PREFIX):
        return "this name is reserved for attributes that layerport itself puts on the ONNX node"
    return None


def _is_tensor(annotation: Any) -> bool:
    return _named(annotation, "torch", "Tensor")


def _named(annotation: Any, module: str, name: str) -> bool:
    found = (getattr(annotation, "__module__", None), getattr(annotation, "__qualname__", None))
    return isinstance(annotation, type) and found == (module, name)


def _members(annotation: Any) -> tuple[Any, ...] | None:
    """The members of a union, None for anything else."""
    origin = typing.get_origin(annotation)
    return typing.get_args(annotation) if origin in (typing.Union, types.UnionType) else None


def _bare(annotation: Any) -> Any:
    """An annotation without what stands behind it in `Annotated`."""
    return typing.get_args(annotation)[0] if typing.get_origin(annotation) is typing.Annotated else annotation


def _read_annotation(annotation: Any) -> tuple[Kind, str, bool, tuple[Rule, ...]] | str:
    """Kind, type, optional and rules; or a hint to add to the error, perhaps empty."""
    if typing.get_origin(annotation) is typing.Annotated:
        inner, *metadata = typing.get_args(annotation)
        read = _read_annotation(inner)
        if isinstance(read, str) or read[0] is not Kind.ATTRIBUTE:
            return read
        try:
            return (*read[:3], (*read[3], *rules_of(metadata, read[1])))
        except WrongRuleError as error:
            return f"; {error}"
    if typing.get_origin(annotation) is typing.Literal:
        values = typing.get_args(annotation)
        kinds = {type(value) for value in values}
        if len(kinds) != 1 or not kinds <= set(SCALARS):
            return "; the values of a Literal are all of one of int, bool and str"
        return Kind.ATTRIBUTE, SCALARS[kinds.pop()], False, (choices(values),)
    members = _members(annotation)
    if members is not None:
        rest = [member for member in members if member is not types.NoneType]
        if len(rest) != 1 or len(rest) == len(members):
            return "; one type, or one type and None"
        read = _read_annotation(rest[0])
        return read if isinstance(read, str) else (read[0], read[1], True, read[3])
    if annotation is Param:
        return Kind.PARAM, TENSOR, False, ()
    if _is_tensor(annotation):
        return Kind.INPUT, TENSOR, False, ()
    if isinstance(annotation, type) and annotation in SCALARS:
        return Kind.ATTRIBUTE, SCALARS[annotation], False, ()
    origin, items = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in _SEQUENCES:
        if origin is tuple:
            if len(items) != 2 or items[1] is not Ellipsis:
                return "; a tuple attribute is written tuple[int, ...]"
            items = items[:1]
        read = _read_annotation(items[0])
        if isinstance(read, str) and read:
            return read
        if isinstance(read, str) or read[1] not in SCALARS.values() or read[2]:
            return "; a list holds int, float, bool or str"
        return Kind.ATTRIBUTE, f"{read[1]}[]", False, tuple(replace(rule, of_items=True) for rule in read[3])
    if annotation in _SEQUENCES:
        return "; say what it holds, as in list[int]"
    if isinstance(annotation, type) and any(map(_is_tensor, annotation.__mro__)):
        return "; use torch.Tensor for a run-time input, lp.Param for a constant"
    return ""


def _output_fields(annotation: Any) -> tuple[str | None, ...] | None:
    annotation = _bare(annotation)
    if _is_tensor(annotation):
        return (None,)
    if typing.get_origin(annotation) is tuple:
        items = typing.get_args(annotation)
        return (None,) * len(items) if len(items) >= 2 and all(_is_tensor(_bare(one)) for one in items) else None
    names = getattr(annotation, "_fields", ())
    if isinstance(annotation, type) and issubclass(annotation, tuple) and len(names) >= 2:
        try:
            hints = typing.get_type_hints(annotation)
        except Exception:  # the class is the author's; the caller reports the annotation as a whole
            return None
        return tuple(names) if all(_is_tensor(hints.get(name)) for name in names) else None
    return None


def _show_annotation(annotation: Any) -> str:
    if isinstance(annotation, type) and typing.get_origin(annotation) is None:
        module = annotation.__module__
        return annotation.__qualname__ if module == "builtins" else f"{module}.{annotation.__qualname__}"
    return str(annotation)
