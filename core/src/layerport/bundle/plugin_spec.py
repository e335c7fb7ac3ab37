"""A layer compiled for targets, as pure data: what the engine half needs to make a TensorRT plugin without its pack.

The bundle holds all specs of a model in one file, `plugins.safetensors`; a plan holds one spec in each plugin's field
(`engine/plan_fields.py`).
It is read from files that nobody vouches for, so reading checks every length, name and type.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import layerport.parameters
from layerport.bundle.kernel_code import KernelCode, kernel_from_json, launches_of
from layerport.bundle.spec_values import IDENTIFIER, flag_of, items_of, list_of, match, text_of, whole_of
from layerport.dtypes import DType
from layerport.errors import BuildError, UsageError
from layerport.kernels.workspace import scratch_name
from layerport.sizes.expressions import parse
from layerport.sizes.output_rules import SizeSymbol
from layerport.sizes.tensors import TensorType, renamed
from layerport.system.strict_json import read_json

if TYPE_CHECKING:
    import numpy as np

    from layerport.layers.layer import BoundLayer

FORMAT, SEVERAL_LAUNCHES = 1, 2
"""The format of a file of specs, and the one of a file in which a kernel is several launches or has scratch memory."""

LIMIT = 1 << 30
_RANKS = 65  # NumPy's most axes; TensorRT takes 8
_METADATA = "layerport"
# One byte an element, so that shapes stay; kernels get addresses, whatever TensorRT calls the bytes.
_CARRIED_AS_BYTES = frozenset({DType.UINT8, DType.FLOAT8_E5M2})
_LAYER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}::[A-Za-z_][A-Za-z0-9_]{0,127}")
_CLASS = re.compile(r"[A-Za-z_][\w.]{0,255}:[A-Za-z_]\w{0,127}")


@dataclass(frozen=True, eq=False)
class PluginSpec:
    """Everything a TensorRT plugin needs to build and run one layer at one kind of place.

    plugin_class: `module:function` of the pack, called as `function(trt, spec)` with TensorRT's module, which makes the
    pack's own `IPluginV3` where a kernel cannot say it; then `kernels` is empty.
    inputs: in order, each size the symbol of its place ("x.0").  outputs: their dims are expressions over those sizes
    and over `sizes`, the data-dependent ones, which the kernel writes.  parameters: the inputs that are constants.
    images: cubins by SHA-256.
    """

    layer: str
    version: int
    inputs: tuple[TensorType, ...]
    outputs: tuple[TensorType, ...]
    sizes: tuple[SizeSymbol, ...] = ()
    parameters: frozenset[str] = frozenset()
    attributes: Mapping[str, Any] = field(default_factory=dict)
    kernels: tuple[KernelCode, ...] = ()
    images: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    plugin_class: str | None = None

    @classmethod
    def of(
        cls,
        bound: BoundLayer,
        *,
        kernels: tuple[KernelCode, ...] = (),
        images: Mapping[str, bytes] = MappingProxyType({}),
        plugin_class: str | None = None,
    ) -> PluginSpec:
        """The spec of a layer at its place in a model, with inputs, outputs and attributes filled in from there.

        Raises UsageError where the layer has no place yet, which it gets when a plugin is asked for.
        """
        layer, place = bound.layer, bound.place
        if place is None:
            raise UsageError(f"layer {layer.name} has no place in a model yet", "call this in layerport_create_plugin")
        inputs = []
        for name, tensor in place.tensors.items():
            if tensor is None:
                continue
            array = bound.parameters.get(name)
            dtype = tensor.dtype if array is None else DType.from_numpy(array.dtype)
            inputs.append(TensorType.symbolic(name, dtype, tensor.ndim if array is None else array.ndim))
        attributes = bound.parameters.attributes
        return cls(
            layer=layer.name,
            version=layer.version,
            inputs=tuple(inputs),
            outputs=renamed(place.derivation.outputs, layer.signature.output_names),
            sizes=tuple(size for size in place.derivation.size_symbols if size.upper_bound is not None),
            parameters=frozenset(argument.name for argument in layer.signature.params),
            attributes={key: list(value) if isinstance(value, tuple) else value for key, value in attributes.items()},
            kernels=kernels,
            images=images,
            plugin_class=plugin_class,
        )

    @property
    def namespace(self) -> str:
        """The plugin namespace, which is the ONNX domain and the Torch namespace."""
        return self.layer.partition("::")[0]

    @property
    def short_name(self) -> str:
        """The plugin's name inside its namespace."""
        return self.layer.partition("::")[2]

    def carrier(self, tensor: TensorType) -> DType:
        """The dtype under which TensorRT holds an input, the same bytes: int8 for constants of a type that it lacks."""
        constant = tensor.name in self.parameters
        return DType.INT8 if constant and tensor.dtype in _CARRIED_AS_BYTES else tensor.dtype

    @property
    def architectures(self) -> tuple[str, ...]:
        """The architectures for which every kernel has an image, in ascending order."""
        by_name: dict[str, set[str]] = {}
        for kernel in self.kernels:
            by_name.setdefault(kernel.name, set()).update(kernel.architectures)
        common = set.intersection(*by_name.values()) if by_name else set()
        return tuple(sorted(common, key=lambda name: int(name[3:])))

    @cached_property
    def key(self) -> str:
        """A name for this content: equal specs have equal keys."""
        return hashlib.sha256(dump(self.to_json())).hexdigest()[:24]

    @property
    def digests(self) -> frozenset[str]:
        """The digests of all images that its kernels need."""
        return frozenset(digest for code in self.kernels for step in code.steps for digest in step.images.values())

    def to_json(self) -> dict[str, Any]:
        """Everything but the images' bytes."""
        return {
            "layer": self.layer,
            "version": self.version,
            "inputs": [[one.name, one.dtype.value, one.ndim, one.name in self.parameters] for one in self.inputs],
            "outputs": [[one.name, one.dtype.value, [str(dim) for dim in one.shape]] for one in self.outputs],
            "sizes": [[size.name, str(size.upper_bound)] for size in self.sizes],
            "attributes": dict(self.attributes),
            "kernels": [kernel.to_json() for kernel in self.kernels],
            "plugin_class": self.plugin_class,
        }


@dataclass(frozen=True, eq=False)
class PluginSet:
    """The plugin specs of one model: specs by key, and for each node its key and the parameters in converted form.

    A node's parameters are listed only where the converted form differs from the standard form in the portable model.
    """

    specs: Mapping[str, PluginSpec]
    nodes: Mapping[str, str]
    parameters: Mapping[str, Mapping[str, np.ndarray[Any, Any]]] = field(default_factory=dict)


def format_of(spec: PluginSpec) -> int:
    """The format number that a reader of this spec has to know."""
    several = any(len(kernel.steps) > 1 or kernel.scratch for kernel in spec.kernels)
    return SEVERAL_LAUNCHES if several else FORMAT


def to_bytes(plugins: PluginSet) -> bytes:
    """The set as one safetensors file.  The same set gives the same bytes."""
    import numpy as np

    tensors: dict[str, np.ndarray[Any, Any]] = {}
    for spec in plugins.specs.values():
        for digest, image in spec.images.items():
            tensors[f"image.{digest}"] = np.frombuffer(image, dtype=np.uint8)
    parameters: dict[str, dict[str, list[Any]]] = {}
    for node, arrays in plugins.parameters.items():
        for name, array in arrays.items():
            raw = np.frombuffer(np.ascontiguousarray(array).tobytes(), dtype=np.uint8)
            digest = hashlib.sha256(raw.tobytes()).hexdigest()
            tensors[f"parameter.{digest}"] = raw
            parameters.setdefault(node, {})[name] = [digest, array.dtype.name, list(array.shape)]
    header = {
        "format": max((format_of(spec) for spec in plugins.specs.values()), default=FORMAT),
        "specs": {key: spec.to_json() for key, spec in plugins.specs.items()},
        "nodes": dict(plugins.nodes),
        "parameters": parameters,
    }
    return b"".join(layerport.parameters.safetensors.write(tensors, {_METADATA: dump(header).decode()}))


def from_bytes(data: bytes | bytearray) -> PluginSet:
    """The set that `to_bytes` wrote.  Raises BuildError where the bytes are not that, each image checked by digest."""
    try:
        return _read(data)
    except BuildError:
        raise
    except Exception as error:
        raise BuildError(
            f"plugin specs cannot be read: {type(error).__name__}: {error}",
            "build the bundle again; this one is damaged",
        ) from error


def _read(data: bytes | bytearray) -> PluginSet:
    import numpy as np

    if not 8 <= len(data) <= LIMIT:
        raise BuildError(f"plugin specs of {len(data)} bytes cannot be read", f"they have 8 to {LIMIT} bytes")
    length = int.from_bytes(data[:8], "little")
    if length > len(data) - 8:
        raise BuildError(
            f"plugin specs are cut short: the header says {length} bytes, {len(data) - 8} are there",
            "build the bundle again",
        )
    tensors, metadata = layerport.parameters.safetensors.read(data, "the file of plugin specs")
    header = read_json(metadata[_METADATA].encode(), infinite=True)  # an attribute may be -inf
    if header["format"] not in (FORMAT, SEVERAL_LAUNCHES):
        raise BuildError(
            f"plugin specs have format {header['format']!r}, this layerport reads up to {SEVERAL_LAUNCHES}",
            "build the bundle again, or install the layerport that wrote it",
        )
    images: dict[str, bytes] = {}
    stored: dict[str, bytes] = {}
    for name, tensor in tensors.items():
        kind, _, digest = name.partition(".")
        raw = tensor.tobytes()
        if hashlib.sha256(raw).hexdigest() != digest:
            raise BuildError(
                f"{kind} {digest[:12]} does not have the content it is named after", "build the bundle again"
            )
        (images if kind == "image" else stored)[digest] = raw
    specs = {key: spec_from_json(value, images) for key, value in header["specs"].items()}
    for key, spec in specs.items():
        if spec.key != key:
            raise BuildError(f"plugin spec {key} has the content of {spec.key}", "build the bundle again")
    nodes = {text_of(node): text_of(key) for node, key in header["nodes"].items()}
    unknown = sorted(set(nodes.values()) - set(specs))
    if unknown:
        raise BuildError(
            f"nodes name plugin specs that are not there: {', '.join(unknown[:5])}", "build the bundle again"
        )
    parameters = {
        node: {
            name: np.frombuffer(stored[digest], dtype=DType(dtype).to_numpy()).reshape(shape)
            for name, (digest, dtype, shape) in arrays.items()
        }
        for node, arrays in header["parameters"].items()
    }
    return PluginSet(specs, nodes, parameters)


def spec_from_json(value: Mapping[str, Any], images: Mapping[str, bytes], *, complete: bool = True) -> PluginSpec:
    """The spec that `PluginSpec.to_json` wrote, with those of the images that it names.

    complete: whether all of them must be there.  Raises BuildError, and ValueError or the like for other content.
    """
    layer = match(_LAYER, value["layer"])
    kernels = tuple(kernel_from_json(kernel) for kernel in list_of(value["kernels"]))
    wanted = {digest for kernel in kernels for step in kernel.steps for digest in step.images.values()}
    missing = sorted(wanted - set(images))
    if missing and complete:
        raise BuildError(f"layer {layer}: kernel image {missing[0][:12]} is not there", "build the bundle again")
    plugin_class = value["plugin_class"]
    rows = [list_of(row, 4) for row in list_of(value["inputs"])]
    spec = PluginSpec(
        layer=layer,
        version=whole_of(value["version"]),
        inputs=tuple(
            TensorType.symbolic(match(IDENTIFIER, name), DType(dtype), whole_of(rank, below=_RANKS))
            for name, dtype, rank, _ in rows
        ),
        outputs=tuple(
            TensorType(match(IDENTIFIER, name), DType(dtype), tuple(parse(dim) for dim in list_of(dims)))
            for name, dtype, dims in (list_of(row, 3) for row in list_of(value["outputs"]))
        ),
        sizes=tuple(
            SizeSymbol(match(IDENTIFIER, name), parse(bound))
            for name, bound in (list_of(row, 2) for row in list_of(value["sizes"]))
        ),
        parameters=frozenset(name for name, _, _, is_one in rows if flag_of(is_one)),
        attributes=dict(items_of(value["attributes"])),
        kernels=kernels,
        images={digest: images[digest] for digest in sorted(wanted & set(images))},
        plugin_class=None if plugin_class is None else match(_CLASS, plugin_class),
    )
    _check_names(spec)
    return spec


def dump(value: Any) -> bytes:
    """JSON text that is the same for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=True).encode()


def _check_names(spec: PluginSpec) -> None:
    """Each tensor has a name of its own, and launches and outputs use only what is known when they need it."""
    names = [one.name for one in (*spec.inputs, *spec.outputs)] + [one.name for one in spec.sizes]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise BuildError(f"layer {spec.layer}: two tensors are named {twice[0]}", "build the bundle again")
    known = frozenset[str]().union(*(one.symbols() for one in spec.inputs))
    bounds = [one.upper_bound.symbols() for one in spec.sizes if one.upper_bound is not None]
    used = frozenset[str]().union(*(one.symbols() for one in spec.outputs), *bounds)
    if unknown := sorted(used - known - {one.name for one in spec.sizes}):
        raise BuildError(
            f"layer {spec.layer}: an output's size uses {', '.join(unknown)}, a size of no input",
            "build the bundle again",
        )
    for kernel in spec.kernels:
        # A launch is computed from the inputs' sizes; others, such as those that depend on data, are not known then.
        used = launches_of(kernel).symbols() | (frozenset() if kernel.guard is None else kernel.guard.symbols())
        if unknown := sorted(used - known):
            raise BuildError(
                f"layer {spec.layer}, kernel {kernel.name}: its launch uses {', '.join(unknown)}, a size of no input",
                "launch for sizes of the inputs: one that depends on data is known after the launch only",
            )
        own = {scratch_name(place) for place in range(len(kernel.scratch))}
        pointers = {name for step in kernel.steps for name in step.launch.pointers}
        if unknown := sorted(pointers - {*names, *own}):
            raise BuildError(
                f"layer {spec.layer}, kernel {kernel.name}: its launch passes {', '.join(unknown)}, which is no tensor",
                "build the bundle again",
            )
