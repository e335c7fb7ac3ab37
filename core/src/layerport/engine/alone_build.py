"""Builds the decomposed form of each layer alone and reads from the build log which kernels it became.

It fuses much alone, and a plugin is a wall to its fusion, so this is what a plugin has to be worth.  The kernels are
those that TensorRT lists in its build log, which needs no GPU.  For the build worker.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx.inliner

from layerport.bundle.plugin_spec import PluginSpec, from_bytes
from layerport.engine import configuring, flavours
from layerport.engine.alone import Alone
from layerport.errors import BuildError, UsageError
from layerport.parameters.frameworks.onnx_dtypes import from_dtype
from layerport.sizes.expressions import parse

# How TensorRT begins the list of what its plan runs, one line each.
_LIST = "Layers:\n"
_NAME = re.compile(r"Name: (?P<name>[^,]*), LayerType: (?P<kind>\w+)")
# It lists what computes sizes on the host, too.
_ON_THE_HOST = ("shape_call",)


def build_alone(request: Mapping[str, Any]) -> list[Alone]:
    """Build the body of each distinct plugin as a network of its own.

    request: model, plugins (paths of a portable model and its specs), dims (the smallest, usual and largest size of
    each), flavour, architectures.
    """
    trt = flavours.load(request["flavour"])
    model = onnx.load(request["model"], load_external_data=False)
    plugins = from_bytes(Path(request["plugins"]).read_bytes())
    shapes = _types(model)
    groups: dict[Any, list[onnx.NodeProto]] = {}
    for node in model.graph.node:  # those inside of loops and branches are not built alone
        if node.name in plugins.nodes:
            inputs = tuple(shapes[name].SerializeToString() if name in shapes else None for name in node.input)
            groups.setdefault((plugins.nodes[node.name], node.op_type, node.overload, inputs), []).append(node)
    found = []
    for nodes in groups.values():
        spec = plugins.specs[plugins.nodes[nodes[0].name]]
        kernels, fault = None, None
        logger = _listening(trt)
        builder = configuring.make_builder(trt, logger)
        try:
            kernels = _kernels(trt, builder, logger, _network_of(model, nodes[0], spec, shapes), request)
        except BuildError as error:
            fault = ": ".join([error.fault, *error.faults[:1]])
        found.append(Alone(spec.layer, tuple(one.name for one in nodes), kernels, fault))
    return found


def _network_of(
    model: onnx.ModelProto, node: onnx.NodeProto, spec: PluginSpec, shapes: Mapping[str, onnx.TypeProto]
) -> onnx.ModelProto:
    """A model of this node's body alone, whose inputs are the node's, its parameters among them."""
    inputs = [name for name in dict.fromkeys(node.input) if name]
    if unknown := [name for name in inputs if name not in shapes]:
        raise BuildError(f"not tried, since the model does not tell the type of {', '.join(unknown)}")
    outputs = [
        onnx.helper.make_tensor_value_info(name, int(from_dtype(one.dtype)), None)
        for name, one in zip(node.output, spec.outputs, strict=True)
        if name
    ]
    graph = onnx.helper.make_graph(
        [node], "alone", [onnx.ValueInfoProto(name=name, type=shapes[name]) for name in inputs], outputs
    )
    made = onnx.ModelProto(ir_version=model.ir_version, graph=graph)
    made.opset_import.extend(model.opset_import)
    made.functions.extend(model.functions)
    return onnx.inliner.inline_local_functions(made)


def _kernels(
    trt: Any, builder: Any, logger: Any, model: onnx.ModelProto, request: Mapping[str, Any]
) -> tuple[str, ...]:
    network = builder.create_network()
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model.SerializeToString()):
        reasons = [parser.get_error(place).desc() for place in range(parser.num_errors)]
        raise BuildError("refused", faults=[*reasons, *logger.errors][:3])
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if not flavours.FLAVOURS[request["flavour"]].needs_gpu:
        configuring.set_architectures(trt, config, request["architectures"][:1], logger)
    profile = builder.create_optimization_profile()
    for value in model.graph.input:
        least, usual, greatest = _ranges(value.name, value.type, request["dims"])
        if least != greatest:
            profile.set_shape(value.name, least, usual, greatest)
    if config.add_optimization_profile(profile) < 0 or builder.build_serialized_network(network, config) is None:
        raise BuildError("refused", faults=logger.errors[-1:])
    if logger.listed is None:
        raise BuildError("built, and this TensorRT's log does not list its kernels")
    return tuple(logger.listed)


def _ranges(name: str, kind: onnx.TypeProto, dims: Mapping[str, Sequence[int]]) -> list[list[int]]:
    """The smallest, usual and largest shape of an input.  Raises BuildError where the model does not tell a size."""
    environments = [{dim: sizes[place] for dim, sizes in dims.items()} for place in range(3)]
    shape = []
    for axis, dim in enumerate(kind.tensor_type.shape.dim):
        try:
            size = parse(dim.dim_param or str(dim.dim_value if dim.HasField("dim_value") else "?"))
            shape.append(sorted(int(size.evaluate(env)) for env in environments))
        except UsageError:
            raise BuildError(f"not tried, since the size of {name}.{axis} depends on data") from None
    return [[sizes[place] for sizes in shape] for place in range(3)]


def _types(model: onnx.ModelProto) -> dict[str, onnx.TypeProto]:
    """The type of each value that the model tells: of its inputs, its constants, and what lies between."""
    graph = model.graph
    found = {one.name: one.type for one in (*graph.input, *graph.value_info, *graph.output) if one.HasField("type")}
    for one in graph.initializer:
        found[one.name] = onnx.helper.make_tensor_type_proto(one.data_type, list(one.dims))
    return found


def _listening(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.listed: list[str] | None = None

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(message)
            elif message.startswith(_LIST):
                self.listed = [
                    match["name"]
                    for line in message.partition("\n\n")[0].splitlines()
                    if (match := _NAME.match(line)) and match["kind"] not in _ON_THE_HOST
                ]

    return Logger()
