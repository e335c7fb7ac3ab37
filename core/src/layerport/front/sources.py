"""Where a model comes from: `module:callable`, `file.py:callable`, an nn.Module, an ExportedProgram, an .onnx file."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from layerport.bundle.bundle import MANIFEST, MODEL
from layerport.dtypes import DType
from layerport.errors import UsageError
from layerport.parameters.frameworks.torch_dtypes import from_dtype
from layerport.sizes.dims import parse_ranges
from layerport.system.python_files import import_file

REPAIR = (
    "a source is 'module:callable', 'file.py:callable', an .onnx file or a bundle; a callable returns (module, args), "
    "(module, args, dynamic_shapes) or a module, args being a tuple of example inputs or a dict of keyword inputs; "
    "a bare module takes them from --input NAME=DTYPE:DIMS"
)


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
    text: str, *, inputs: Iterable[str] = (), ranges: Iterable[str] = (), args: Any = None, dynamic_shapes: Any = None
) -> Source:
    """The model that a source text names: `module:callable`, `file.py:callable`, an .onnx file or a bundle.

    inputs: "NAME=DTYPE:DIMS" for a bare module, DIMS being sizes and names that `ranges` gives sizes for.
    Raises UsageError where it does not import or returns the wrong thing.
    """
    if inputs:
        if args is not None:
            raise UsageError("example inputs are given twice", "give args or --input, not both")
        args, dynamic_shapes = example_inputs(inputs, ranges)
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


def example_inputs(texts: Iterable[str], ranges: Iterable[str]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Seeded random inputs and their dynamic shapes from "NAME=DTYPE:DIMS", such as "x=float32:batch,3,64".

    Floats are normal, whole numbers 0..9, bools both.  A name in DIMS takes its usual size from ranges
    ("batch=1..4..8").  Raises UsageError with all faults.
    """
    sizes = parse_ranges(ranges)
    generator = torch.Generator().manual_seed(0)
    values: dict[str, torch.Tensor] = {}
    shapes: dict[str, Any] = {}
    faults = []
    dims = {name: torch.export.Dim(name, min=low, max=high) for name, (low, _, high) in sizes.items()}
    for text in texts:
        match = _INPUT.fullmatch(text.strip())
        if match is None or match["dtype"] not in DType.__members__.values():
            faults.append(f"{text!r} is not NAME=DTYPE:DIMS with a dtype such as float32 or int64")
            continue
        axes = [axis.strip() for axis in match["dims"].split(",") if axis.strip()]
        unknown = [axis for axis in axes if not axis.isdigit() and axis not in sizes]
        if unknown:
            faults.append(
                f"{text!r}: no size is known for {', '.join(unknown)}; add --range {unknown[0]}=MIN..USUAL..MAX"
            )
            continue
        # The usual size, but at least 2: torch.export takes an example of size 0 or 1 for a constant.
        shape = [int(axis) if axis.isdigit() else max(2, sizes[axis][1] or sizes[axis][2]) for axis in axes]
        dtype = from_dtype(DType(match["dtype"]))
        values[match["name"]] = random_tensor(shape, dtype, generator)
        shapes[match["name"]] = {place: dims[axis] for place, axis in enumerate(axes) if not axis.isdigit()}
    if faults:
        raise UsageError("example inputs cannot be made", "write them like --input x=float32:2,16", faults=faults)
    return values, shapes


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
