"""Torch's ONNX exporter, called in one place: a traced program to ONNX, each layer's operator as a node of its own."""

from __future__ import annotations

import contextlib
import functools
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import onnx
import torch
from onnxscript import values as onnxscript_values

from layerport.foreign import torch_private
from layerport.foreign.names import replaced
from layerport.foreign.torch_modules import ONNX_LOGGER
from layerport.front.lost_constants import bring_back
from layerport.front.nodes import VERSION
from layerport.layers.layer import Layer
from layerport.parameters.signature import Kind

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


def to_onnx(program: torch.export.ExportedProgram, layers: Iterable[Layer] = ()) -> torch.onnx.ONNXProgram:
    """The program as ONNX; the layers' operators become nodes `namespace::name`.  Raises what torch.onnx raises."""
    table = {layer.operator: translation(layer) for layer in layers}
    # The graph was traced without gradients, and some of its views are refused with them.
    with quiet(), _made_once(), torch.no_grad():
        exported = torch.onnx.export(program, dynamo=True, verbose=False, custom_translation_table=table)
    assert exported is not None
    bring_back(exported.model.graph)
    return exported


def translation(layer: Layer) -> Callable[..., Any]:
    """The function by which torch.onnx writes one call of the layer's operator as a node."""
    schema = _schema(layer)
    operator = onnxscript_values.Op(onnxscript_values.Opset(layer.namespace, 1), layer.short_name, schema)
    tensors = [argument.kind is not Kind.ATTRIBUTE for argument in layer.signature.arguments]
    names = [argument.name for argument in layer.signature.arguments]

    def translate(*args: Any, **kwargs: Any) -> Any:
        values = list(layer.signature.bind(args, kwargs, layer=layer.name).values())
        inputs = [value for value, tensor in zip(values, tensors, strict=True) if tensor]
        while inputs and inputs[-1] is None:
            inputs.pop()
        attributes = {
            name: value
            for name, value, tensor in zip(names, values, tensors, strict=True)
            if not tensor and value is not None
        }
        result = operator(*inputs, **attributes)
        first = result[0] if isinstance(result, (tuple, list)) else result
        first.producer().metadata_props[VERSION] = str(layer.version)
        return result

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


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the exporter's remarks on packages it does not need and its own deprecations."""
    logger = logging.getLogger(ONNX_LOGGER)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _made_once() -> Iterator[None]:
    """Let torch.onnx keep what it knows of its 500 operators, which each export would read anew (0.5 s)."""
    functions = onnxscript_values.TracedOnnxFunction
    with torch_private.operators_listed_once(), torch_private.signatures_kept(functions):
        parsed = vars(functions).get("function_ir")
        if not isinstance(parsed, property) or parsed.fget is None:  # another thread has done it, or it is gone
            yield
            return
        kept = functools.cached_property(parsed.fget)
        kept.__set_name__(functions, "function_ir")
        with replaced(functions, "function_ir", kept):
            yield
