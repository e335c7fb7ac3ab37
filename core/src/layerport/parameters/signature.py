"""What a layer takes and gives, read from the annotations of its reference.

The one description that the Torch schema, the ONNX schema, the plugin and the docs are made from.  Imports
neither torch nor numpy, so `import layerport` stays light; anyone may import it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from layerport.errors import UsageError
from layerport.parameters.annotations import read_signature
from layerport.parameters.arguments import ATTRIBUTE_TYPES, MISSING, Argument, Attribute, Kind, Param, count
from layerport.parameters.attributes import WrongValueError, normalise
from layerport.sizes.output_rules import output_name

__all__ = ["ATTRIBUTE_TYPES", "MISSING", "Argument", "Attribute", "Kind", "Param", "Signature"]


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
        """The run-time inputs, in order."""
        return tuple(a for a in self.arguments if a.kind is Kind.INPUT)

    @property
    def params(self) -> tuple[Argument, ...]:
        """The tensor parameters, in order."""
        return tuple(a for a in self.arguments if a.kind is Kind.PARAM)

    @property
    def tensors(self) -> tuple[Argument, ...]:
        """Inputs and tensor parameters, in order."""
        return tuple(a for a in self.arguments if a.kind is not Kind.ATTRIBUTE)

    @property
    def attributes(self) -> tuple[Argument, ...]:
        """The attributes, in order."""
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
    def ruled(self) -> tuple[tuple[int, Argument], ...]:
        """The attributes with rules, each with its place among the arguments."""
        return tuple((place, one) for place, one in enumerate(self.arguments) if one.rules)

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
                    bound[argument.name] = value = normalise(values[argument.name], argument.type, argument.optional)
                except WrongValueError as error:
                    faults.append(f"{prefix}{argument.name}: expected {error}")
                else:
                    faults += argument.broken(value, path=path)
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
        return cls(*read_signature(function))


def _apart(name: str, taken: Iterable[str]) -> str:
    while name in taken:
        name += "_"
    return name
