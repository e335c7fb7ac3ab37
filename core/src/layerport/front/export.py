"""From a Torch model with layers in place to an ONNX graph in memory, each layer one node in its own domain."""

from __future__ import annotations

import contextlib
import inspect
import logging
import re
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import onnx
import onnx_ir as ir
import torch
from onnxscript import values as onnxscript_values
from torch.utils import _pytree as pytree

from layerport.adapters.onnx_dtypes import to_dtype
from layerport.dims import DimRange, Port
from layerport.errors import BuildError
from layerport.front.sources import Source
from layerport.layers import Layer
from layerport.signature import Kind

_ATTRIBUTE_TYPES = {
    "int": onnx.defs.OpSchema.AttrType.INT,
    "bool": onnx.defs.OpSchema.AttrType.INT,
    "float": onnx.defs.OpSchema.AttrType.FLOAT,
    "str": onnx.defs.OpSchema.AttrType.STRING,
    "int[]": onnx.defs.OpSchema.AttrType.INTS,
    "bool[]": onnx.defs.OpSchema.AttrType.INTS,
    "float[]": onnx.defs.OpSchema.AttrType.FLOATS,
    "str[]": onnx.defs.OpSchema.AttrType.STRINGS,
}
_TENSOR_TYPES = [
    f"tensor({name})"
    for name in (
        *("float", "double", "float16", "bfloat16", "bool", "float8e4m3fn", "float8e5m2", "int4", "uint4"),
        *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)),
    )
]
_SYMBOL = re.compile(r"[A-Za-z_]\w*")


@dataclass(frozen=True)
class ExportedModel:
    """An ONNX graph in memory with the names and ranges of its inputs, outputs and dynamic dims."""

    model: ir.Model
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    dims: Mapping[str, DimRange]


def export_model(source: Source, model: Any, layers: Iterable[Layer], outputs: Any) -> ExportedModel:
    """Export with torch.onnx; the layers' operators become nodes `namespace::name`.

    outputs: what the model gave for the example inputs, from which the outputs get their names.
    Raises BuildError that names the module in which the export stopped.
    """
    program = model if isinstance(model, torch.export.ExportedProgram) else _trace(source, model)
    names = _dim_names(source, program)
    table = {layer.operator: translation(layer) for layer in layers}
    with quiet():
        try:
            exported = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                custom_translation_table=table,
            )
        except Exception as error:
            raise BuildError(
                f"torch.onnx cannot translate {source.name}: {_first_line(error)}",
                "make the operator that it names a layer of a pack, or replace it in the model",
            ) from error
    assert exported is not None
    graph = exported.model
    _name_outputs(graph.graph, output_names(outputs))
    _rename_dims(graph, names)
    return ExportedModel(
        graph,
        tuple(_port(value) for value in graph.graph.inputs),
        tuple(_port(value) for value in graph.graph.outputs),
        _ranges(program, names),
    )


def _trace(source: Source, model: torch.nn.Module) -> torch.export.ExportedProgram:
    try:
        with torch.no_grad():
            return torch.export.export(
                model, source.args, dict(source.kwargs) or None, dynamic_shapes=source.dynamic_shapes, strict=False
            )
    except Exception as error:
        where = _module_of(error, model)
        raise BuildError(
            f"torch.export cannot export {source.name}{where}: {_first_line(error)}",
            "make that module a layer of a pack (then its inside is not exported), remove the branch on tensor values, "
            "or try static shapes for the dims that it names",
        ) from error


def _module_of(error: BaseException, model: torch.nn.Module) -> str:
    """The innermost module on the error's stack, which says where in the model the export stopped."""
    paths = {id(module): path for path, module in model.named_modules()}
    found = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        module = frame.f_locals.get("self")
        if isinstance(module, torch.nn.Module) and id(module) in paths:
            found = f" in module {paths[id(module)] or '(root)'} ({type(module).__name__})"
    return found


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def translation(layer: Layer) -> Callable[..., Any]:
    """The function by which torch.onnx writes one call of the layer's operator as a node."""
    schema = _schema(layer)
    operator = onnxscript_values.Op(onnxscript_values.Opset(layer.namespace, 1), layer.short_name, schema)
    tensors = [argument.kind is not Kind.ATTRIBUTE for argument in layer.signature.arguments]
    names = [argument.name for argument in layer.signature.arguments]
    defaults = [argument.default for argument in layer.signature.arguments]

    def translate(*args: Any, **kwargs: Any) -> Any:
        values = [
            args[place] if place < len(args) else kwargs.get(name, defaults[place]) for place, name in enumerate(names)
        ]
        inputs = [value for value, tensor in zip(values, tensors, strict=True) if tensor]
        while inputs and inputs[-1] is None:
            inputs.pop()
        attributes = {
            name: value
            for name, value, tensor in zip(names, values, tensors, strict=True)
            if not tensor and value is not None
        }
        return operator(*inputs, **attributes)

    return translate


def _schema(layer: Layer) -> onnx.defs.OpSchema:
    option = onnx.defs.OpSchema.FormalParameterOption
    tensors = layer.signature.tensors
    outputs = layer.signature.output_names
    return onnx.defs.OpSchema(
        layer.short_name,
        layer.namespace,
        1,
        doc=layer.reference.__doc__ or "",
        inputs=[
            onnx.defs.OpSchema.FormalParameter(
                tensor.name,
                f"T_{tensor.name}",
                param_option=option.Optional if tensor.optional else option.Single,
            )
            for tensor in tensors
        ],
        outputs=[onnx.defs.OpSchema.FormalParameter(name, f"T_{name}") for name in outputs],
        type_constraints=[
            (f"T_{name}", _TENSOR_TYPES, "") for name in (*(tensor.name for tensor in tensors), *outputs)
        ],
        attributes=[
            onnx.defs.OpSchema.Attribute(argument.name, _ATTRIBUTE_TYPES[argument.type], "", required=False)
            for argument in layer.signature.attributes
        ],
    )


def output_names(outputs: Any) -> list[str]:
    """Names for the outputs: the keys of a dict or record, "output" for one tensor, else "output_0" and so on."""
    leaves = [(path, leaf) for path, leaf in pytree.tree_flatten_with_path(outputs)[0] if leaf is not None]
    if len(leaves) == 1 and not leaves[0][0]:
        return ["output"]
    names = []
    for path, _ in leaves:
        text = "_".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)
        text = re.sub(r"\W", "_", text)
        names.append(text if text and not text[0].isdigit() else f"output_{text}")
    if len(set(names)) < len(names):
        names = [f"output_{place}" for place in range(len(names))]
    return names


def _name_outputs(graph: ir.Graph, names: list[str]) -> None:
    """Give the outputs these names.  torch.onnx would not look whether an input or inner value has one of them."""
    inputs = {value.name for value in graph.inputs}
    others = [*graph.initializers.values(), *(value for node in graph.all_nodes() for value in node.outputs)]
    taken = {*inputs, *names, *(value.name for value in others)}

    def free(name: str) -> str:
        while name in taken:
            name += "_"
        taken.add(name)
        return name

    for value in others:
        if value.name in names and not value.is_graph_output():
            value.name = free(value.name)
    for value, name in zip(graph.outputs, names, strict=True):
        value.name = free(name) if name in inputs else name


def _dim_names(source: Source, program: torch.export.ExportedProgram) -> dict[str, str]:
    """Torch's symbols (s59) by the names that the user gave their dims, else `<input>_dim<axis>`."""
    given = _given_names(source)
    names: dict[str, str] = {}
    user_inputs = set(program.graph_signature.user_inputs)
    place = -1
    for node in program.graph.nodes:
        if node.op != "placeholder" or node.name not in user_inputs:
            continue
        place += 1
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor):
            continue
        for axis, size in enumerate(value.shape):
            symbol = str(size)
            if isinstance(size, torch.SymInt) and symbol not in names and _SYMBOL.fullmatch(symbol):
                name = given.get((place, axis)) or f"{node.name}_dim{axis}"
                while name in names.values():
                    name += "_"
                names[symbol] = name
    return names


def _given_names(source: Source) -> dict[tuple[int, int], str]:
    """(place of the flat input, axis) -> the name of its torch.export.Dim."""
    if source.dynamic_shapes is None:
        return {}
    example = (source.args, dict(source.kwargs))
    shapes = source.dynamic_shapes
    if isinstance(shapes, Mapping):
        order = [*_argument_names(source), *source.kwargs]
        shapes = [shapes.get(name) for name in dict.fromkeys(order)]
    flat, _ = pytree.tree_flatten([*example[0], *example[1].values()])
    axes = _flatten_shapes([*example[0], *example[1].values()], list(shapes))
    names = {}
    for place in range(len(flat)):
        spec = axes[place] if place < len(axes) else None
        items = spec.items() if isinstance(spec, Mapping) else enumerate(spec or ())
        for axis, dim in items:
            name = dim if isinstance(dim, str) else getattr(dim, "__name__", None)
            if name and _SYMBOL.fullmatch(name):
                names[(place, axis)] = name
    return names


def _argument_names(source: Source) -> list[str]:
    assert isinstance(source.model, torch.nn.Module)
    return list(inspect.signature(source.model.forward).parameters)[: len(source.args)]


def _flatten_shapes(values: list[Any], shapes: list[Any]) -> list[Any]:
    """One shape spec per flat leaf of the values; None for a whole subtree without one."""
    flat: list[Any] = []
    for value, shape in zip(values, [*shapes, *[None] * (len(values) - len(shapes))], strict=False):
        if isinstance(value, Mapping):
            children = list(value.values())
            specs = [shape.get(key) if isinstance(shape, Mapping) else None for key in value]
            flat += _flatten_shapes(children, specs)
        elif isinstance(value, (list, tuple)):
            specs = list(shape) if isinstance(shape, (list, tuple)) else [None] * len(value)
            flat += _flatten_shapes(list(value), specs)
        else:
            flat.append(shape)
    return flat


def _rename_dims(model: ir.Model, names: Mapping[str, str]) -> None:
    def rename(value: ir.Value | None) -> None:
        if value is None or value.shape is None:
            return
        value.shape = ir.Shape(
            [
                dim if isinstance(dim, int) else _SYMBOL.sub(lambda m: names.get(m[0], m[0]), str(dim))
                for dim in value.shape
            ]
        )

    for value in model.graph.inputs:
        rename(value)
    for node in model.graph.all_nodes():
        for value in node.outputs:
            rename(value)


def _port(value: ir.Value) -> Port:
    if value.dtype is None or value.shape is None or value.name is None:
        raise BuildError(f"the exported model does not say the type of {value.name}", "state it in the ONNX file")
    dims = tuple(dim if isinstance(dim, int) else str(dim) for dim in value.shape)
    return Port(value.name, str(to_dtype(value.dtype)), dims)


def _ranges(program: torch.export.ExportedProgram, names: Mapping[str, str]) -> dict[str, DimRange]:
    ranges = {}
    hints = _hints(program)
    for symbol, limits in program.range_constraints.items():
        name = names.get(str(symbol))
        if name is None:
            continue
        # Torch says 2 where nothing was stated, because it treats sizes 0 and 1 apart while it traces.
        least = 1 if int(limits.lower) <= 2 else int(limits.lower)
        greatest = int(limits.upper) if limits.upper < 2**31 else None
        usual = hints.get(str(symbol), least)
        ranges[name] = DimRange(name, least, usual, greatest)
    return ranges


def _hints(program: torch.export.ExportedProgram) -> dict[str, int]:
    """The example's size of each symbol."""
    hints: dict[str, int] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder" and isinstance(node.meta.get("val"), torch.Tensor):
            for size in node.meta["val"].shape:
                if isinstance(size, torch.SymInt) and size.node.has_hint():
                    hints[str(size)] = int(size.node.hint)
    return hints


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the exporter's remarks on packages it does not need and its own deprecations."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            yield
    finally:
        logger.setLevel(level)
