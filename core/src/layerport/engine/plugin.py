"""The one TensorRT plugin class, made from a plugin spec, and its creator.

Used by the build worker, and by a session before it deserialises a plan.  The module of the flavour is passed in.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Container, Iterable, Mapping
from typing import Any

from layerport.bundle.plugin_spec import PluginSpec
from layerport.engine import images, plan_fields
from layerport.engine.dim_expressions import lower
from layerport.engine.flavours import native_architecture
from layerport.engine.runner import KernelRunner, fitting_architecture, greatest_workspace
from layerport.errors import BuildError
from layerport.kernels.workspace import WORKSPACE
from layerport.parameters.frameworks.tensorrt_dtypes import from_dtype
from layerport.system.foreign_text import reason

KEY_FIELD = "layerport_spec"
NAMESPACE, NAME, VERSION = "layerport", "Kernel", "1"
KERNEL_LAYER = f"{NAMESPACE}::{NAME}"
"""The plugin of all layers with kernels, as a creator is named; `native/` makes the same one in C++."""


def plugin_base(trt: Any) -> type[Any]:
    """The base class of a pack's own plugin: `Class(spec)` answers TensorRT from its spec, all but `enqueue`.

    trt: the module of the TensorRT flavour, which the function that `PluginSpec.plugin_class` names is given.
    A subclass may override any method of `IPluginV3OneBuild` and `IPluginV3OneRuntime`; one with state of its own
    overrides `clone`.
    """

    class SpecPlugin(trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime):  # type: ignore[misc]
        """What a build asks, and what a plan keeps; nothing that runs."""

        def __init__(self, spec: PluginSpec) -> None:
            trt.IPluginV3.__init__(self)
            trt.IPluginV3OneCore.__init__(self)
            trt.IPluginV3OneBuild.__init__(self)
            trt.IPluginV3OneRuntime.__init__(self)
            self.spec = spec
            self.plugin_namespace = spec.namespace
            self.plugin_name = spec.short_name
            self.plugin_version = VERSION
            self.num_outputs = len(spec.outputs) + len(spec.sizes)
            # Equal specs hold equal kernels, so what TensorRT measured of one holds for the other.
            self.timing_cache_id = spec.key
            self._types = [from_dtype(spec.carrier(one), trt) for one in spec.inputs]
            self._types += [from_dtype(tensor.dtype, trt) for tensor in spec.outputs]
            self._types += [trt.DataType.INT64] * len(spec.sizes)

        # What a build asks.

        def get_capability_interface(self, kind: Any) -> Any:
            return self

        def clone(self) -> Any:
            return type(self)(self.spec)

        def get_output_data_types(self, input_types: Any) -> Any:
            return self._types[len(self.spec.inputs) :]

        def get_output_shapes(self, inputs: Any, shape_inputs: Any, builder: Any) -> Any:
            env: dict[str, Any] = {
                f"{tensor.name}.{axis}": dims[axis]
                for tensor, dims in zip(self.spec.inputs, inputs, strict=True)
                for axis in range(len(dims))
            }
            for place, size in enumerate(self.spec.sizes):
                bound = lower(size.greatest, builder, env)
                env[size.name] = builder.declare_size_tensor(len(self.spec.outputs) + place, bound, bound)
            answers = []
            for tensor in self.spec.outputs:
                dims = trt.DimsExprs(tensor.ndim)
                for axis, dim in enumerate(tensor.dims):
                    dims[axis] = lower(dim, builder, env)
                answers.append(dims)
            return answers + [trt.DimsExprs(0) for _ in self.spec.sizes]

        def supports_format_combination(self, place: int, tensors: Any, num_inputs: int) -> bool:
            description = tensors[place].desc
            return bool(description.format == trt.TensorFormat.LINEAR and description.type == self._types[place])

        def configure_plugin(self, inputs: Any, outputs: Any) -> None:
            pass

        def get_workspace_size(self, inputs: Any, outputs: Any) -> int:
            return 0

        def get_valid_tactics(self) -> list[int]:
            return []

        # What a plan keeps.

        def _kept(self) -> Collection[str]:
            """The digests of the kernels' images that the field keeps."""
            return ()

        def get_fields_to_serialize(self) -> Any:
            data = plan_fields.write_field(self.spec, self._kept())
            self._field = trt.PluginField(KEY_FIELD, data, trt.PluginFieldType.INT8)
            return trt.PluginFieldCollection([self._field])

        # What a run asks.

        def attach_to_context(self, context: Any) -> Any:
            return self.clone()

        def set_tactic(self, tactic: int) -> None:
            pass

        def on_shape_change(self, inputs: Any, outputs: Any) -> None:
            pass

        def enqueue(
            self, input_desc: Any, output_desc: Any, inputs: Any, outputs: Any, workspace: int, stream: int
        ) -> None:
            raise NotImplementedError(f"the plugin class {self.spec.plugin_class} has no enqueue")

    return SpecPlugin


def plugin_class(trt: Any) -> type[Any]:
    """The class of the plugins that launch kernels, over the base classes of one flavour's module."""

    class KernelPlugin(plugin_base(trt)):  # type: ignore[misc]
        """A TensorRT plugin whose every answer comes from its spec.

        Its kernels are its tactics, numbered from 1 in the layer's order.  A tactic is a preference: that kernel runs
        wherever its predicate holds, the first other one that fits elsewhere, so that each is right for every shape.
        A build that cannot measure takes the first tactic, which is the layer's own order.

        kept: the digests of the images that its field in the plan keeps.
        """

        def __init__(self, spec: PluginSpec, kept: Collection[str] = (), tactic: int = 0) -> None:
            super().__init__(spec)
            self.plugin_namespace = NAMESPACE
            self.plugin_name = NAME
            self.kept = frozenset(kept)
            self._images = images.keep({digest: spec.images[digest] for digest in self.kept})
            self.metadata_string = spec.layer  # what TensorRT's inspector shows
            self._names = (
                tuple(tensor.name for tensor in spec.inputs),
                (*(tensor.name for tensor in spec.outputs), *(size.name for size in spec.sizes)),
            )
            self._kernels = list(dict.fromkeys(kernel.name for kernel in spec.kernels))
            self._tactic = tactic
            self._runner: KernelRunner | None = None
            self._pointers = dict.fromkeys((*self._names[0], *self._names[1]), 0)

        def clone(self) -> Any:
            return KernelPlugin(self.spec, self.kept, self._tactic)

        def get_valid_tactics(self) -> list[int]:
            return list(range(1, len(self._kernels) + 1)) if len(self._kernels) > 1 else []

        def _kept(self) -> Collection[str]:
            return self.kept

        # What a run asks.  Only a GPU can show these in TensorRT; their parts are tested without one.

        def attach_to_context(self, context: Any) -> Any:
            made = self.clone()
            device = native_architecture()
            if device is not None and fitting_architecture(self.spec.architectures, device) is not None:
                made.load()  # now: a CUDA graph may be captured at the first run, and nothing may be loaded in one
            return made

        def load(self) -> KernelRunner:
            """The kernels, loaded for the GPU of this process.  Raises BuildError where there is none."""
            if self._runner is None:
                device = native_architecture()
                if device is None:
                    raise BuildError(f"layer {self.spec.layer} cannot run: no CUDA driver or GPU", "run it on a GPU")
                self._runner = KernelRunner(images.complete(self.spec), device)
                self.set_tactic(self._tactic)
            return self._runner

        def set_tactic(self, tactic: int) -> None:
            if not 0 <= tactic <= len(self._kernels):
                raise BuildError(
                    f"layer {self.spec.layer} has {len(self._kernels)} kernels, tactic {tactic} was asked for",
                    "build the bundle again",
                )
            self._tactic = tactic
            if self._runner is not None:
                self._runner.prefer(self._kernels[tactic - 1] if tactic else None)

        def get_workspace_size(self, inputs: Any, outputs: Any) -> int:
            most = {tensor.name: tuple(one.max) for tensor, one in zip(self.spec.inputs, inputs, strict=True)}
            return greatest_workspace(self.spec, most)

        def on_shape_change(self, inputs: Any, outputs: Any) -> None:
            self.load().set_shapes(
                {tensor.name: tuple(one.dims) for tensor, one in zip(self.spec.inputs, inputs, strict=True)}
            )

        def enqueue(
            self, input_desc: Any, output_desc: Any, inputs: Any, outputs: Any, workspace: int, stream: int
        ) -> None:
            pointers = self._pointers
            for name, address in zip(self._names[0], inputs, strict=True):
                pointers[name] = address
            for name, address in zip(self._names[1], outputs, strict=True):
                pointers[name] = address
            pointers[WORKSPACE] = workspace
            assert self._runner is not None
            self._runner.launch(pointers, stream)

    return KernelPlugin


def creator_class(trt: Any) -> type[Any]:
    """The creator class over the base class of one flavour's module."""
    generic = plugin_class(trt)

    class KernelCreator(trt.IPluginCreatorV3One):  # type: ignore[misc]
        """Makes plugins of one name: of `layerport::Kernel` from the node's or the plan's field, which holds the spec.

        A layer with its own plugin class has a creator of its own, whose nodes name the spec by its key; so had all
        layers in plans of before.
        """

        def __init__(
            self, namespace: str, name: str, specs: Mapping[str, PluginSpec], allow_classes: bool | Container[str]
        ) -> None:
            trt.IPluginCreatorV3One.__init__(self)
            self.name = name
            self.plugin_namespace = namespace
            self.plugin_version = VERSION
            self.field_names = trt.PluginFieldCollection([trt.PluginField(KEY_FIELD, b"", trt.PluginFieldType.CHAR)])
            self.failure: BaseException | None = None
            self._specs = specs
            self._allow_classes = allow_classes

        def create_plugin(self, name: str, fields: Any, phase: Any) -> Any:
            try:
                return self._create(name, fields, phase)
            except BaseException as error:
                # TensorRT swallows what a creator raises and speaks of a null plugin; the caller wants the reason.
                self.failure = error
                raise

        def _create(self, name: str, fields: Any, phase: Any) -> Any:
            found = [one for one in fields if one.name == KEY_FIELD]
            if not found:
                raise BuildError(f"node {name} names no plugin spec", "build the bundle again")
            data = bytes(found[0].data)
            if phase == trt.TensorRTPhase.BUILD and self.plugin_namespace != NAMESPACE:
                spec = self._specs[data.rstrip(b"\0").decode()]
            else:
                spec = plan_fields.read_field(data)
            if spec.plugin_class is None:
                return generic(spec, list(spec.images))
            allowed = self._allow_classes
            if not (allowed if isinstance(allowed, bool) else spec.plugin_class in allowed):
                raise BuildError(
                    f"layer {spec.layer} has its own plugin class {spec.plugin_class}",
                    "install the pack that provides it",
                )
            return _imported(spec.layer, spec.plugin_class)(trt, spec)

    return KernelCreator


def _imported(layer: str, plugin_class: str) -> Any:
    """A pack's own plugin class.  Raises BuildError where it cannot be imported."""
    module, _, attribute = plugin_class.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:
        raise BuildError(
            f"layer {layer}: its plugin class {plugin_class} cannot be imported: {reason(error)}",
            "install the pack that provides it, where the engine is built and run",
        ) from error


def register_creators(
    trt: Any, layers: Iterable[str], specs: Mapping[str, PluginSpec], *, allow_classes: bool = False
) -> list[Any]:
    """Register a creator for each name `namespace::name` and return them; keep them as long as they are needed."""
    registry = trt.get_plugin_registry()
    make: Callable[..., Any] = creator_class(trt)
    creators = []
    for layer in sorted(set(layers)):
        namespace, _, name = layer.partition("::")
        creator = make(namespace, name, specs, allow_classes)
        if not registry.register_creator(creator, namespace):
            raise BuildError(
                f"TensorRT has a plugin creator {layer} version {VERSION} already",
                "use one bundle's plugins in a process",
            )
        creators.append(creator)
    return creators
