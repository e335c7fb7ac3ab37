"""What a layer takes and gives, read from the annotations of its reference.

The one description that the Torch schema, the ONNX schema, the plugin and the docs are made from.  Imports
neither torch nor numpy, so `import layerport` stays light; anyone may import it.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import layerport.parameters
from layerport.errors import UsageError
from layerport.sizes.output_rules import output_name

if TYPE_CHECKING:
    from torch import Tensor

    Param: TypeAlias = Tensor
else:

    class Param:
        """The annotation of a tensor parameter: a constant of the engine.  Type checkers see torch.Tensor."""


class Missing(Enum):
    """The type of MISSING, which says that an argument has no default (None is a default of its own)."""

    MISSING = "missing"

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = Missing.MISSING

Scalar: TypeAlias = int | float | bool | str
Attribute: TypeAlias = Scalar | tuple[Scalar, ...] | None
"""An attribute in the standard form; a list is a tuple there."""

TENSOR: Final = "tensor"
SCALARS: Mapping[type, str] = {int: "int", float: "float", bool: "bool", str: "str"}
ATTRIBUTE_TYPES: Final = (*SCALARS.values(), *(f"{name}[]" for name in SCALARS.values()))


class Kind(StrEnum):
    """What an argument is at run time."""

    INPUT = "input"
    PARAM = "param"
    ATTRIBUTE = "attribute"


@dataclass(frozen=True)
class Argument:
    """One argument of a layer.

    type: "tensor" or one of ATTRIBUTE_TYPES.  default: MISSING, None for an absent optional, or a value in
    the standard form (lists as tuples).
    """

    name: str
    kind: Kind
    type: str
    optional: bool = False
    default: Attribute | Literal[Missing.MISSING] = MISSING

    def __post_init__(self) -> None:
        allowed = ATTRIBUTE_TYPES if self.kind is Kind.ATTRIBUTE else (TENSOR,)
        if self.type not in allowed:
            raise UsageError(
                f"argument {self.name!r}: {self.kind} cannot have type {self.type!r}",
                f"use {', '.join(allowed)}",
            )
        if isinstance(self.default, list):
            object.__setattr__(self, "default", tuple(self.default))

    @property
    def required(self) -> bool:
        return self.default is MISSING

    @property
    def schema_type(self) -> str:
        return ("Tensor" if self.type == TENSOR else self.type) + ("?" if self.optional else "")

    def __str__(self) -> str:
        text = f"{self.schema_type} {self.name}"
        return text if self.default is MISSING else f"{text}={_schema_literal(self.default)}"


@dataclass(frozen=True)
class Signature:
    """The arguments of a layer in order, and its number of outputs.

    output_names: "output", or "output0", "output1", ..., where the author gave none (a trailing underscore
    keeps them apart from an argument of the same name).  record: the NamedTuple that the reference returns, if it does.
    """

    arguments: tuple[Argument, ...]
    outputs: int = 1
    output_names: tuple[str, ...] = ()
    record: type[Any] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "arguments", tuple(self.arguments))
        names = [argument.name for argument in self.arguments]
        if self.outputs < 1:
            raise UsageError(f"a layer needs at least one output, got {self.outputs}", "return a tensor")
        if not self.output_names:
            plain = (output_name(place, self.outputs) for place in range(self.outputs))
            object.__setattr__(self, "output_names", tuple(_apart(name, names) for name in plain))
        if len(self.output_names) != self.outputs:
            raise UsageError(
                f"{self.outputs} outputs, but {len(self.output_names)} output names", "name each output once"
            )
        every = [*names, *self.output_names]
        if twice := sorted({name for name in every if every.count(name) > 1}):
            raise UsageError(f"names used twice in one signature: {', '.join(twice)}", "rename all but one")

    @property
    def inputs(self) -> tuple[Argument, ...]:
        return tuple(a for a in self.arguments if a.kind is Kind.INPUT)

    @property
    def params(self) -> tuple[Argument, ...]:
        return tuple(a for a in self.arguments if a.kind is Kind.PARAM)

    @property
    def tensors(self) -> tuple[Argument, ...]:
        return tuple(a for a in self.arguments if a.kind is not Kind.ATTRIBUTE)

    @property
    def attributes(self) -> tuple[Argument, ...]:
        return tuple(a for a in self.arguments if a.kind is Kind.ATTRIBUTE)

    def __getitem__(self, name: str) -> Argument:
        for argument in self.arguments:
            if argument.name == name:
                return argument
        raise KeyError(name)

    def schema(self, name: str) -> str:
        """The text for `torch.library.Library.define`: "scaled_swish(Tensor x, float beta=1.0) -> Tensor"."""
        returns = "Tensor" if self.outputs == 1 else f"({', '.join(['Tensor'] * self.outputs)})"
        return f"{name}({', '.join(map(str, self.arguments))}) -> {returns}"

    @cached_property
    def defaults(self) -> tuple[Attribute, ...]:
        """What a call has for each argument that it leaves away; None for one that it may not."""
        return tuple(None if argument.default is MISSING else argument.default for argument in self.arguments)

    def bind(self, args: Sequence[Any], named: Mapping[str, Any], *, layer: str) -> dict[str, Any]:
        """The arguments of a call by name, in order, defaults filled in.

        An optional tensor may be left away.  Raises UsageError with all faults at once.
        """
        names = [argument.name for argument in self.arguments]
        given = dict(zip(names, args, strict=False))
        may_lack = {one.name for one in self.arguments if one.optional or not one.required}
        faults = [f"{name} is missing" for name in names if name not in given.keys() | named.keys() | may_lack]
        faults += [f"{name} is given twice" for name in named if name in given]
        faults += [f"{name} is not an argument" for name in named if name not in names]
        faults += [f"{len(args)} arguments are given"] if len(args) > len(names) else []
        given |= named
        if faults:
            raise UsageError(f"layer {layer} takes {', '.join(names)}", "call it as the layer", faults=faults)
        return {name: given.get(name, default) for name, default in zip(names, self.defaults, strict=True)}

    def bind_attributes(self, values: Mapping[str, Any], *, path: str = "") -> dict[str, Attribute]:
        """Every attribute in the standard form, defaults filled in, in the order of the signature.

        An int is taken for a float, a bool never for an int; lists become tuples; NumPy scalars and tensors
        of no dimension count as the number they hold.  Raises UsageError with all faults at once.
        """
        bound, faults = self.check_attributes(values, path=path)
        if faults:
            what = f"{path or 'the layer'}: {count(len(faults), 'attribute')} at fault"
            raise UsageError(what, "give the attributes as the layer's signature names them", faults=faults)
        return bound

    def check_attributes(self, values: Mapping[str, Any], *, path: str = "") -> tuple[dict[str, Attribute], list[str]]:
        """As `bind_attributes`, but hands the faults back, for a caller that has more of them to report."""
        bound: dict[str, Attribute] = {}
        faults: list[str] = []
        prefix = f"{path}." if path else ""
        for argument in self.attributes:
            if argument.name in values:
                try:
                    bound[argument.name] = normalise(values[argument.name], argument.type, argument.optional)
                except WrongValueError as error:
                    faults.append(f"{prefix}{argument.name}: expected {error}")
            elif argument.default is MISSING:
                faults.append(f"{prefix}{argument.name}: expected {argument.schema_type}, got nothing")
            else:
                bound[argument.name] = argument.default
        known = [argument.name for argument in self.attributes]
        faults += [
            f"{prefix}{name}: no such attribute, known: {', '.join(known) or 'none'}"
            for name in values
            if name not in known
        ]
        return bound, faults

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Signature:
        """The signature of a reference, from its annotations.  Raises UsageError with all faults at once."""
        return layerport.parameters.annotations.read_signature(function)


class WrongValueError(Exception):
    """Carries "<wanted>, got <value>"."""


def count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _apart(name: str, taken: Iterable[str]) -> str:
    while name in taken:
        name += "_"
    return name


def normalise(value: Any, type_name: str, optional: bool = False) -> Attribute:
    """`value` as an attribute of this type, in the standard form."""
    wanted = type_name + ("?" if optional else "")
    if type(value) not in (int, float, bool, str, list, tuple, types.NoneType):
        try:
            value = layerport.parameters.conversion.to_plain(value, type_name)
        except UsageError as error:
            raise WrongValueError(f"{wanted}, got {error.fault}") from None
    if value is None:
        if optional:
            return None
        raise WrongValueError(f"{wanted}, got None")
    if not type_name.endswith("[]"):
        return _normalise_scalar(value, type_name, wanted)
    if not isinstance(value, (list, tuple)):
        raise WrongValueError(f"{wanted}, got {show_value(value)}")
    items = []
    for index, item in enumerate(value):
        if type(item) not in (int, float, bool, str):
            item = _plain_item(item, wanted, index)
        items.append(_normalise_scalar(item, type_name[:-2], wanted, f" at index {index}"))
    return tuple(items)


def _plain_item(item: Any, wanted: str, index: int) -> Any:
    try:
        return layerport.parameters.conversion.to_plain(item)
    except UsageError as error:
        raise WrongValueError(f"{wanted}, got {error.fault} at index {index}") from None


def _normalise_scalar(value: Any, type_name: str, wanted: str, where: str = "") -> Scalar:
    fault = WrongValueError(f"{wanted}, got {show_value(value)}{where}")
    if type_name == "float":
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise fault
        try:
            return float(value)
        except OverflowError:
            raise fault from None
    if type_name == "int":
        if isinstance(value, bool) or not isinstance(value, int):
            raise fault
        if not -(2**63) <= value < 2**63:
            raise WrongValueError(f"{wanted} of 64 bits, got {value}{where}")
        return int(value)
    if type_name == "bool":
        if not isinstance(value, bool):
            raise fault
        return value
    if not isinstance(value, str):
        raise fault
    if "\0" in value or any(0xD800 <= ord(character) < 0xE000 for character in value):
        raise WrongValueError(f"{wanted} of UTF-8 text without NUL, got {value!r}{where}")
    return str(value)


def show_value(value: Any) -> str:
    if value is None:
        return "None"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def _schema_literal(value: Attribute) -> str:
    if isinstance(value, str):
        # Torch's schema parser reads octal escapes byte by byte and nothing else reliably.
        body = "".join(chr(b) if 32 <= b < 127 and b not in (0x22, 0x5C) else f"\\{b:03o}" for b in value.encode())
        return f'"{body}"'
    if isinstance(value, tuple):
        return f"[{', '.join(_schema_literal(item) for item in value)}]"
    return repr(value)
