"""The ONNX bodies of layers on disk, so that torch.onnx need not make a body that it made before.

A body is decided by the exported reference, operator by operator, and by those who translate it.  So its key is made of
the exported program itself and never of the reference's source: whatever the reference calls shows in the program.
"""

from __future__ import annotations

import functools
import hashlib
from importlib import metadata
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from onnx import FunctionProto
from torch.fx import GraphModule, Node

from layerport.front.nodes import LayerNode
from layerport.layers.derivation import Derivation
from layerport.system.disk_cache import DiskCache, cache_key, default_cache

_TRANSLATORS = ("torch", "onnxscript", "onnx-ir", "onnx", "numpy")
# Torch's own: of a foreign operator the program shows the name only, not what it does.
_KNOWN = frozenset({"aten", "prims", "prim", "higher_order", "_operator", "math", "torch", "torch.sym"})
_PLAIN = (int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)
_SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)


class _Unknown(Exception):
    """Something in a program that its text does not describe."""


def body_key(node: LayerNode, derivation: Derivation) -> str | None:
    """The key of a node's body; None where the program does not say everything that decides it."""
    try:
        program = _describe(derivation)
    except _Unknown:
        return None
    tensors = [[name, shape is not None] for name, shape in node.tensors.items()]
    return cache_key(
        {
            "program": program,
            "layer": node.layer.name,
            "tensors": tensors,
            "outputs": list(node.layer.signature.output_names),
            "translators": {name: metadata.version(name) for name in _TRANSLATORS},
            "default dtype": str(torch.get_default_dtype()),
            "made by": _makers(),
        }
    )


def load_body(key: str) -> ir.Function | None:
    """The body of this key, where it was made before."""
    found = _cache().get(key)
    return None if found is None else ir.serde.deserialize_function(FunctionProto.FromString(found[1]))


def save_body(key: str, function: ir.Function) -> None:
    """Keep a body for later builds."""
    _cache().put(key, {}, ir.serde.serialize_function(function).SerializeToString(deterministic=True))


def _cache() -> DiskCache:
    return default_cache("bodies")


@functools.cache
def _makers() -> str:
    """A digest of the code of this project that turns a program into a body."""
    files = (Path(__file__).with_name("bodies.py"), Path(__file__))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def _describe(derivation: Derivation) -> list[Any]:
    """The exported program as plain values, with what its export knew of sizes."""
    program = derivation.program
    shapes, sizes = derivation.example
    held = {**program.state_dict, **program.constants}
    return [
        [(name, one.dtype.value, [str(dim) for dim in one.shape]) for name, one in shapes.items()],
        dict(sizes),
        {str(symbol): str(limits) for symbol, limits in program.range_constraints.items()},
        [str(one) for one in derivation.constraints],
        [list(one) for one in derivation.equalities],
        dict(derivation.fixed),
        str(program.graph_signature),
        {name: _tensor(value) for name, value in held.items()},
        [
            [name, *_nodes(module)]
            for name, module in program.graph_module.named_modules()
            if isinstance(module, GraphModule)
        ],
    ]


def _nodes(module: GraphModule) -> list[list[Any]]:
    places = {one: place for place, one in enumerate(module.graph.nodes)}
    return [
        [
            node.op,
            _target(node),
            _value(node.args, places),
            _value(node.kwargs, places),
            _meta(node.meta.get("val")),
        ]
        for node in module.graph.nodes
    ]


def _target(node: Node) -> str:
    target: Any = node.target
    if isinstance(target, str):
        return target
    # Operators have a namespace, functions of Python a module.
    namespace = str(getattr(target, "namespace", None) or getattr(target, "__module__", None))
    if namespace not in _KNOWN:
        raise _Unknown(str(target))
    return f"{namespace} {getattr(target, '__name__', target)}"


def _value(value: Any, places: dict[Node, int]) -> Any:
    if isinstance(value, Node):
        return f"%{places[value]}"
    if isinstance(value, (list, tuple)):
        return [type(value).__name__, *(_value(one, places) for one in value)]
    if isinstance(value, dict):
        return {str(key): _value(one, places) for key, one in value.items()}
    if isinstance(value, slice):
        return ["slice", *(_value(one, places) for one in (value.start, value.stop, value.step))]
    if isinstance(value, _SYMBOLIC):
        return f"{type(value).__name__} {value}"
    if isinstance(value, _PLAIN):
        return f"{type(value).__name__} {value!r}"
    raise _Unknown(type(value).__name__)


def _meta(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return [str(value.dtype), [str(size) for size in value.shape], [str(step) for step in value.stride()]]
    if isinstance(value, (list, tuple)):
        return [_meta(one) for one in value]
    if isinstance(value, (*_SYMBOLIC, *_PLAIN)):
        return f"{type(value).__name__} {value}"
    raise _Unknown(type(value).__name__)


def _tensor(value: Any) -> list[Any]:
    if type(value) not in (torch.Tensor, torch.nn.Parameter) or value.device.type != "cpu":
        raise _Unknown(type(value).__name__)
    raw = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return [str(value.dtype), list(value.shape), hashlib.sha256(raw).hexdigest()]
