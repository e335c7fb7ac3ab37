"""What a pack's author writes for a kernel: the source and the launch rule, as records checked when they are
made.

`tracing` turns the rule into data, `compilation` the source into cubins.  Imports nothing foreign, as pack
authors reach it through `import layerport`; anyone may import it.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, TypeAlias

from layerport.dtypes import DType
from layerport.errors import PackError, UsageError, shown
from layerport.kernels.cuda_source import CudaSource, dim_of, pieces_of
from layerport.kernels.launch_rules import AXES, constant_faults
from layerport.kernels.triton_source import TritonSource
from layerport.kernels.workspace import MOST_STEPS
from layerport.parameters.signature import Attribute, Signature
from layerport.sizes.expressions import Expr, ExprLike, as_expr
from layerport.sizes.tensors import TensorType

Dims: TypeAlias = "ExprLike | Sequence[ExprLike]"
LaunchValue: TypeAlias = "TensorType | ExprLike | float | bool | None"

_CXX_NAME = re.compile(r"[A-Za-z_]\w*(::[A-Za-z_]\w*)*")


class Launch:
    """One launch of a kernel: what a launch rule returns, one for each of the kernel's sources.

    grid, block: a size or up to three, in the order x, y, z.  args: the kernel's arguments in its order:
    tensors of the layer, what `layerport.scratch` gave, whole numbers, floats, bools, or None for a null
    pointer; their C widths are read from the compiled kernel.  shared: bytes of dynamic shared memory.  Sizes
    may be expressions.  A Triton kernel has a grid and args only: block and shared memory come out of its
    compilation.  Raises UsageError with all faults at once.
    """

    __slots__ = ("args", "block", "grid", "shared")

    def __init__(
        self, grid: Dims, block: Dims | None = None, args: Sequence[LaunchValue] = (), shared: ExprLike = 0
    ) -> None:
        faults: list[str] = []
        self.grid = _three(grid, "grid", faults)
        self.block = None if block is None else _three(block, "block", faults)
        self.shared = _size(shared, "shared", faults)
        self.args: tuple[LaunchValue, ...] = ()
        if isinstance(args, (tuple, list)):
            self.args = tuple(args)
            faults += [
                f"args[{index}] is {shown(value)}"
                for index, value in enumerate(self.args)
                if value is not None and not isinstance(value, (TensorType, Expr, int, float))
            ]
        else:
            faults.append(f"args is {shown(args)}, not a tuple")
        # A grid of 0 may be the rule of an empty tensor; tracing knows.
        grid_checked = [size for size in self.grid if not (not size.symbols() and size.evaluate({}) == 0)]
        faults += constant_faults(grid_checked if len(grid_checked) == 3 else (), self.block or (), self.shared)
        if faults:
            raise UsageError(
                "lp.Launch cannot be made of these values",
                "grid and block: up to three whole numbers or expressions from 1; "
                "args: a tuple of tensors, whole numbers, floats, bools or None",
                faults=faults,
            )


DTypes: TypeAlias = "str | Mapping[str, str]"
_DTYPE_NAMES = frozenset(str(dtype) for dtype in DType)


@dataclass(frozen=True, eq=False)
class Kernel:
    """GPU code for stated dtypes with its launch rule.

    sources: one for each launch, in the order in which they run.  dtypes: combinations; one name = all tensors
    have it, or a mapping of tensor name (or "*" for the others) to dtype.  launch: takes tensors and attributes
    of the layer by name; names that the layer does not have are its outputs, in order.  when: a predicate over
    the same names.  Raises UsageError.
    """

    name: str
    sources: tuple[CudaSource | TritonSource, ...]
    dtypes: tuple[DTypes, ...]
    launch: Callable[..., Any]
    when: Callable[..., Any] | None = None
    parameters: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        if not 1 <= len(self.sources) <= MOST_STEPS:
            raise UsageError(
                f"kernel {self.name}: it has {len(self.sources)} sources",
                f"give 1 to {MOST_STEPS}, one for each launch: lp.cuda(file, entry) or lp.triton(function)",
            )
        for source in self.sources:
            if not isinstance(source, (CudaSource, TritonSource)):
                raise UsageError(
                    f"kernel {self.name}: source is {shown(source)}",
                    "make it with lp.cuda(file, entry) or lp.triton(function)",
                )
        if not callable(self.launch) or not (self.when is None or callable(self.when)):
            raise UsageError(f"kernel {self.name}: launch and when must be functions", "decorate a function with it")
        object.__setattr__(self, "dtypes", _combinations(self.name, self.dtypes))
        object.__setattr__(self, "parameters", parameter_names(self.launch, f"kernel {self.name}: launch"))
        file = inspect.unwrap(self.launch).__code__.co_filename
        folder = os.path.dirname(os.path.abspath(file)) if not file.startswith("<") else os.getcwd()
        package = getattr(inspect.unwrap(self.launch), "__globals__", {}).get("__package__")
        object.__setattr__(
            self,
            "sources",
            tuple(
                one.anchored(folder, package) if isinstance(one, TritonSource) else one.anchored(folder)
                for one in self.sources
            ),
        )

    @property
    def in_cuda(self) -> bool:
        """Whether all of it is CUDA C++, so that one launch rule serves all sizes; Triton wants numbers."""
        return all(isinstance(one, CudaSource) for one in self.sources)

    def writes_sizes(self, signature: Signature) -> bool:
        """Whether it is in CUDA C++ and takes more than the layer's arguments and outputs: sizes that it finds out."""
        known = {argument.name for argument in signature.arguments}
        return self.in_cuda and len(set(self.parameters) - known) > signature.outputs

    def output_aliases(self, outputs: Sequence[str], known: Sequence[str], *, sizes: bool = False) -> dict[str, str]:
        """The author's names for the outputs, each with the layer's own name.

        outputs: the layer's names, in order.  known: the names of the layer's arguments.  sizes: whether more
        names may follow, of data-dependent sizes that the kernel writes.  Raises PackError.
        """
        constexprs = {name for one in self.sources if isinstance(one, TritonSource) for name in one.constexprs}
        left = [name for name in self.parameters if name not in known and name not in constexprs]
        if set(left) == set(outputs):
            return {name: name for name in left}
        if len(left) < len(outputs) or (len(left) > len(outputs) and not sizes):
            raise PackError(
                f"kernel {self.name}: launch takes {', '.join(left) or 'nothing'} "
                "beside the layer's arguments, "
                f"but the layer has {len(outputs)} outputs",
                f"name the layer's arguments ({', '.join(known)}) as it does, and each output once",
            )
        return dict(zip(left, outputs, strict=False))

    def combinations(self, signature: Signature) -> tuple[dict[str, DType], ...]:
        """For each stated combination the dtype of every tensor and output of the layer, by the layer's
        names.
        """
        arguments = [argument.name for argument in signature.arguments]
        tensors = [argument.name for argument in signature.tensors] + list(signature.output_names)
        aliases = self.output_aliases(signature.output_names, arguments, sizes=True)
        result = []
        for combination in self.dtypes:
            if isinstance(combination, str):
                result.append(dict.fromkeys(tensors, DType.of(combination)))
                continue
            named = {aliases.get(name, name): DType.of(dtype) for name, dtype in combination.items()}
            rest = named.pop("*", None)
            missing = [name for name in tensors if name not in named] if rest is None else []
            unknown = [name for name in named if name not in tensors]
            if missing or unknown:
                raise PackError(
                    f"kernel {self.name}: dtypes {_show_dtypes(combination)} do not fit the layer",
                    'name every tensor and output, or cover the others with "*"',
                    faults=[f"{name}: no dtype stated" for name in missing]
                    + [f"{name}: the layer has no such tensor, only {', '.join(tensors)}" for name in unknown],
                )
            result.append({name: dtype for name in tensors if (dtype := named.get(name, rest)) is not None})
        return tuple(result)

    def open_dims(self, signature: Signature, tensors: Mapping[str, TensorType | None]) -> tuple[str, ...]:
        """The dims in its entries, such as "x.1", that are no numbers in these tensors: it cannot be compiled."""
        aliases = self._aliases(signature)
        cuda = [one for one in self.sources if isinstance(one, CudaSource)]
        names = [name for one in cuda for _, name in pieces_of(one, self.name) if name and dim_of(name, aliases)]
        return tuple(name for name in dict.fromkeys(names) if self._size(name, aliases, tensors) is None)

    def pinned(
        self,
        signature: Signature,
        tensors: Mapping[str, TensorType | None],
        known: Mapping[str, TensorType | None],
    ) -> dict[str, TensorType | None]:
        """The tensors with the numbers of `known` for the dims in its entries, so that it can be compiled."""
        made, aliases = dict(tensors), self._aliases(signature)
        for name in self.open_dims(signature, tensors):
            key, axis = dim_of(name, aliases) or ("", 0)
            one, number = made.get(key), known.get(key)
            if one is not None and number is not None:
                made[key] = replace(one, shape=(*one.shape[:axis], number.shape[axis], *one.shape[axis + 1 :]))
        return made

    def entries(
        self,
        signature: Signature,
        dtypes: Mapping[str, DType],
        attributes: Mapping[str, Attribute],
        tensors: Mapping[str, TensorType | None] = MappingProxyType({}),
    ) -> tuple[str, ...]:
        """The name expression of each source for these dtypes (by the layer's names), attributes and sizes.

        Of a Triton function its name.  Raises PackError.
        """
        aliases = self._aliases(signature)
        return tuple(
            one.name if isinstance(one, TritonSource) else self._entry(one, aliases, dtypes, attributes, tensors)
            for one in self.sources
        )

    def _aliases(self, signature: Signature) -> dict[str, str]:
        arguments = [argument.name for argument in signature.arguments]
        return self.output_aliases(signature.output_names, arguments, sizes=True)

    def _entry(
        self,
        source: CudaSource,
        aliases: Mapping[str, str],
        dtypes: Mapping[str, DType],
        attributes: Mapping[str, Attribute],
        tensors: Mapping[str, TensorType | None],
    ) -> str:
        text = ""
        for literal, name in pieces_of(source, self.name):
            text += literal
            if name is None:
                continue
            key = aliases.get(name, name)
            if key in dtypes:
                text += dtypes[key].cxx
            elif key in attributes:
                text += self._cxx_value(key, attributes[key])
            elif (found := dim_of(name, aliases)) and found[0] in dtypes:
                size = self._size(name, aliases, tensors)
                if size is None:
                    raise PackError(
                        f"kernel {self.name}: entry {source.entry!r} has {{{name}}}, which is not known here",
                        "make that size static in the export, or take it as an argument of the kernel",
                    )
                text += str(size)
            else:
                raise PackError(
                    f"kernel {self.name}: entry {source.entry!r} has {{{name}}}, which is no tensor, size or attribute",
                    f"use one of {', '.join([*dtypes, *attributes])}, or a size such as {next(iter(dtypes), 'x')}.0",
                )
        return text

    def _size(self, name: str, aliases: Mapping[str, str], tensors: Mapping[str, TensorType | None]) -> int | None:
        """The size that a name such as "x.1" stands for; None where it is not known."""
        found = dim_of(name, aliases)
        tensor = tensors.get(found[0]) if found else None
        if found is None or tensor is None:
            return None
        if not found[1] < tensor.ndim:
            raise PackError(
                f"kernel {self.name}: its entry has {{{name}}}, but {found[0]} has {tensor.ndim} dims here",
                "name an axis from 0, or keep the kernel from such tensors with when=",
            )
        size = tensor.shape[found[1]]
        return size if isinstance(size, int) else None

    def _cxx_value(self, name: str, value: Attribute) -> str:
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, int):
            return str(value)
        if isinstance(value, str) and _CXX_NAME.fullmatch(value):
            return value
        raise PackError(
            f"kernel {self.name}: attribute {name}, which is {shown(value)}, cannot stand in a C++ template",
            "use ints, bools and C++ names there, and pass other values as arguments of the kernel",
        )


def _combinations(kernel: str, given: Any) -> tuple[DTypes, ...]:
    """What `dtypes=` states.  Raises UsageError with all faults at once."""
    if not isinstance(given, tuple):
        raise UsageError(
            f"kernel {kernel}: dtypes is {shown(given)}, not a tuple",
            'write dtypes=("float32", "float16"), each item one combination; a single one is ("float32",)',
        )
    if not given:
        raise UsageError(f"kernel {kernel}: no dtypes", 'state them: dtypes=("float32", "float16")')
    faults = []
    for place, item in enumerate(given):
        if not isinstance(item, (str, Mapping)):
            faults.append(f"dtypes[{place}] is {shown(item)}, not a name or a mapping of tensor name to dtype")
            continue
        names = item.values() if isinstance(item, Mapping) else (item,)
        faults += [
            f"dtypes[{place}]: unknown dtype {name!r}"
            for name in names
            if not (isinstance(name, str) and name in _DTYPE_NAMES)
        ]
    if faults:
        raise UsageError(f"kernel {kernel}: {faults[0]}", f"use {', '.join(DType)}", faults=faults[1:])
    return tuple(
        {name: DType.of(dtype) for name, dtype in item.items()} if isinstance(item, Mapping) else DType.of(item)
        for item in given
    )


def parameter_names(function: Callable[..., Any], label: str) -> tuple[str, ...]:
    """The names that a launch rule or predicate takes.  Raises UsageError where they cannot be matched by
    name.
    """
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(function).parameters.values()
    for parameter in parameters:
        if parameter.kind not in kinds:
            raise UsageError(f"{label} takes {parameter}", "name each argument; they are passed by name")
    return tuple(parameter.name for parameter in parameters)


def _three(sizes: Dims, name: str, faults: list[str]) -> tuple[Expr, Expr, Expr]:
    given = list(sizes) if isinstance(sizes, (tuple, list)) else [sizes]
    if not 1 <= len(given) <= 3:
        faults.append(f"{name} has {len(given)} dims, allowed are 1 to 3")
    padded = [*given, 1, 1, 1]
    x, y, z = (_size(padded[index], f"{name} {axis}", faults) for index, axis in enumerate(AXES))
    return x, y, z


def _size(value: Any, name: str, faults: list[str]) -> Expr:
    if not isinstance(value, bool):
        try:
            return as_expr(value)
        except UsageError:
            pass
    faults.append(f"{name} is {shown(value)}, not a whole number or an expression")
    return as_expr(1)


def _show_dtypes(combination: Mapping[str, str]) -> str:
    return "{" + ", ".join(f"{name}: {dtype}" for name, dtype in combination.items()) + "}"
