"""Where a model comes from: `module:callable`, `file.py:callable`, an nn.Module, an ExportedProgram, an .onnx file."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import torch

from layerport.bundle.bundle import MANIFEST, MODEL
from layerport.dtypes import DType
from layerport.errors import UsageError
from layerport.parameters.frameworks.torch_dtypes import from_dtype
from layerport.sizes.dims import Ranges, is_size, parse_ranges
from layerport.system.python_files import import_file

REPAIR = (
    "a source is 'module:callable', 'file.py:callable', an .onnx file or a bundle; a callable returns (module, args), "
    "(module, args, dynamic_shapes) or a module, args being a tuple of example inputs or a dict of keyword inputs; "
    "a bare module takes them from --input NAME=DTYPE:DIMS"
)


Inputs: TypeAlias = Iterable[str] | Mapping[str, tuple[str | torch.dtype, Sequence[int | str]]]


@dataclass(frozen=True)
class Source:
    """A model with its example inputs; a path is that of an .onnx file.

    dynamic_shapes: in torch.export's form; None where every dim is static.
    """

    model: torch.nn.Module | torch.export.ExportedProgram | Path
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    dynamic_shapes: Any = None
    name: str = "model"


def open_source(
    source: Any, *, inputs: Inputs = (), ranges: Ranges = (), args: Any = None, dynamic_shapes: Any = None
) -> Source:
    """A model, or the one that a text names: `module:callable`, `file.py:callable`, an .onnx file or a bundle.

    inputs: for a bare module, as `example_inputs` takes them; names in DIMS are those that `ranges` gives sizes for.
    Raises UsageError where it does not import or returns the wrong thing.
    """
    if inputs:
        if args is not None:
            raise UsageError("example inputs are given twice", "give args or --input, not both")
        if not isinstance(source, (str, Path, torch.nn.Module)):
            raise UsageError(f"a {type(source).__name__} brings its own example inputs", "leave inputs away")
        args, dynamic_shapes = example_inputs(inputs, ranges)
    if not isinstance(source, (str, Path)):
        return as_source(source, args=args, dynamic_shapes=dynamic_shapes)
    text = str(source)
    folder = Path(text)
    if text.endswith(".onnx") or (folder / MANIFEST).is_file():
        path = folder if text.endswith(".onnx") else folder / MODEL
        return Source(path, (), dict(args or {}), None, folder.stem)
    place, separator, attribute = text.rpartition(":")
    if not separator or not place or not attribute:
        raise UsageError(f"source {text!r} names no callable", REPAIR)
    module = _import(place)
    function = getattr(module, attribute, None)
    if function is None:
        public = {name: value for name, value in vars(module).items() if callable(value) and not name.startswith("_")}
        own = [name for name, value in public.items() if getattr(value, "__module__", None) == module.__name__]
        names = sorted(own or public)
        raise UsageError(
            f"source {text!r}: {place} has no {attribute!r}", f"it has: {', '.join(names) or 'nothing callable'}"
        )
    if isinstance(function, torch.nn.Module) or not callable(function):
        result = function
    else:
        try:
            result = function()
        except Exception as error:
            raise UsageError(
                f"source {text!r} failed when called: {type(error).__name__}: {error}", "call it by itself in Python"
            ) from error
    if isinstance(result, tuple) and inputs:
        raise UsageError(f"source {text!r} brings its own example inputs", "leave --input away")
    return as_source(result, args=args, dynamic_shapes=dynamic_shapes, name=attribute, origin=f"source {text!r}")


_INPUT = re.compile(r"(?P<name>[A-Za-z_]\w*)=(?P<dtype>\w+):(?P<dims>[\w,\s]*)")


def example_inputs(inputs: Inputs, ranges: Ranges) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Seeded random inputs and their dynamic shapes.

    inputs: texts "NAME=DTYPE:DIMS", such as "x=float32:batch,3,64", or a mapping of NAME to (DTYPE, DIMS), such as
    {"x": ("float32", ("batch", 3, 64))}.  Floats are normal, whole numbers 0..9, bools both.  A name in DIMS takes its
    usual size from ranges (see `parse_ranges`).  Raises UsageError with all faults.
    """
    sizes = parse_ranges(ranges)
    generator = torch.Generator().manual_seed(0)
    values: dict[str, torch.Tensor] = {}
    shapes: dict[str, Any] = {}
    faults = []
    dims = {name: torch.export.Dim(name, min=low, max=high) for name, (low, _, high) in sizes.items()}
    for entry in _entries(inputs):
        name, dtype, axes, said = entry.name, entry.dtype, entry.axes, entry.said
        if entry.fault:
            faults.append(entry.fault)
            continue
        if name in values:
            faults.append(f"input {name} is given twice")
            continue
        unknown = [axis for axis in axes if isinstance(axis, str) and axis not in sizes]
        if unknown:
            faults.append(
                f"{said}: no size is known for {', '.join(unknown)}; add --range {unknown[0]}=MIN..USUAL..MAX"
            )
            continue
        try:
            kind = from_dtype(DType(dtype))
        except UsageError as error:
            faults.append(f"{said}: {error.fault}")
            continue
        # The usual size, but at least 2: torch.export takes an example of size 0 or 1 for a constant.
        shape = [max(2, sizes[axis][1] or sizes[axis][2]) if isinstance(axis, str) else axis for axis in axes]
        values[name] = random_tensor(shape, kind, generator)
        shapes[name] = {place: dims[axis] for place, axis in enumerate(axes) if isinstance(axis, str)}
    if faults:
        raise UsageError(
            "example inputs cannot be made",
            'write them like {"x": ("float32", (2, 16))}'
            if isinstance(inputs, Mapping)
            else "write them like --input x=float32:2,16",
            faults=faults,
        )
    return values, shapes


@dataclass(frozen=True)
class _Entry:
    """One input that was asked for, or what is wrong with it.  said: it in the words of whoever wrote it."""

    said: str
    name: str = ""
    dtype: str = ""
    axes: tuple[int | str, ...] = ()
    fault: str | None = None


def _entries(inputs: Inputs) -> Iterator[_Entry]:
    if isinstance(inputs, Mapping):
        for name, value in inputs.items():
            yield _entry_of(name, value)
        return
    for text in (inputs,) if isinstance(inputs, str) else inputs:
        match = _INPUT.fullmatch(text.strip()) if isinstance(text, str) else None
        if match is None or match["dtype"] not in DType.__members__.values():
            fault = f"{text!r} is not NAME=DTYPE:DIMS with a dtype such as float32 or int64"
            yield _Entry(repr(text), fault=fault)
            continue
        axes = (axis.strip() for axis in match["dims"].split(",") if axis.strip())
        made = tuple(int(axis) if axis.isdigit() else axis for axis in axes)
        yield _Entry(repr(text), match["name"], match["dtype"], made)


def _entry_of(name: Any, value: Any) -> _Entry:
    """An entry of a mapping."""
    said = f"input {name!r:.80}"
    if not isinstance(name, str) or not name.isidentifier():
        return _Entry(said, fault=f"{name!r:.80} is not the name of an input")
    if isinstance(value, torch.Tensor):
        return _Entry(said, fault=f"{said} is a tensor already; give tensors as args={{name: tensor}}")
    if not isinstance(value, (tuple, list)) or len(value) != 2 or not isinstance(value[1], (tuple, list)):
        return _Entry(said, fault=f"{said}: {value!r:.80} is not (DTYPE, DIMS)")
    dtype, axes = value
    dtype = str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype) else dtype
    if not isinstance(dtype, str) or dtype not in DType.__members__.values():
        return _Entry(said, fault=f"{said}: {dtype!r:.80} is not a dtype such as float32 or int64")
    if wrong := [axis for axis in axes if not (is_size(axis) or (isinstance(axis, str) and axis.isidentifier()))]:
        return _Entry(said, fault=f"{said}: {wrong[0]!r:.80} is neither a size nor the name of a dim")
    return _Entry(said, name, dtype, tuple(axis if isinstance(axis, str) else int(axis) for axis in axes))


def random_tensor(shape: Sequence[int], dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """Normal floats, whole numbers 0..9, or both bools."""
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.randint(0, 2 if dtype is torch.bool else 10, shape, generator=generator).to(dtype)


def as_source(
    value: Any, *, args: Any = None, dynamic_shapes: Any = None, name: str = "model", origin: str = "source"
) -> Source:
    """A Source from what a user hands over: a module with its inputs, a tuple of them, or an ExportedProgram."""
    if isinstance(value, tuple):
        if not 2 <= len(value) <= 3:
            raise UsageError(f"{origin} gave a tuple of {len(value)}: {_kinds(value)}", REPAIR)
        args = value[1]
        dynamic_shapes = value[2] if len(value) == 3 else dynamic_shapes
        value = value[0]
    if isinstance(value, torch.export.ExportedProgram):
        example: Any = value.example_inputs or ((), {})
        return Source(value, tuple(example[0]), dict(example[1]), None, name)
    if isinstance(value, torch.jit.ScriptModule):
        raise UsageError(f"{origin} gave a TorchScript module", "give the nn.Module it was made from")
    if not isinstance(value, torch.nn.Module):
        raise UsageError(f"{origin} gave a {type(value).__name__}, not an nn.Module", REPAIR)
    if args is None:
        raise UsageError(f"{origin} gave no example inputs for {type(value).__name__}", REPAIR)
    if isinstance(args, Mapping):
        return Source(value, (), dict(args), dynamic_shapes, name)
    if isinstance(args, torch.Tensor):
        args = (args,)
    if not isinstance(args, (tuple, list)):
        raise UsageError(f"{origin} gave example inputs of type {type(args).__name__}", REPAIR)
    return Source(value, tuple(args), {}, dynamic_shapes, name)


def _import(place: str) -> ModuleType:
    """The module of a source, with its folder importable meanwhile, as `python file.py` would have it."""
    is_file = place.endswith(".py")
    folder = str(Path(place).resolve().parent) if is_file else ""
    sys.path.insert(0, folder)
    try:
        return import_file(place) if is_file else importlib.import_module(place)
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"{place} does not import: {type(error).__name__}: {error}",
            "run it by itself in Python to see the whole trace; a file is named with its .py ending",
        ) from error
    finally:
        sys.path.remove(folder)


def _kinds(values: tuple[Any, ...]) -> str:
    return ", ".join(type(value).__name__ for value in values)
