"""A layer: one custom computation, written once, from which everything else is derived.

Pack authors use this module through `layerport.layer`.  It imports no framework by itself: the Torch operator is
registered by `operator`, which runs when a layer is made, and a reference is a Torch function anyway.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import layerport.layers
import layerport.parameters
from layerport.errors import UsageError
from layerport.kernels.declaration import Kernel
from layerport.parameters.signature import Signature
from layerport.system.foreign_text import describe

if TYPE_CHECKING:
    import torch

    from layerport.kernels.declaration import CudaSource, Kernel
    from layerport.kernels.triton_source import TritonSource
    from layerport.layers.binding import TorchBinding
    from layerport.layers.derivation import Derivation
    from layerport.parameters.standard_form import Parameters
    from layerport.parameters.steps import Step
    from layerport.sizes.tensors import TensorType
    from layerport.targets import Target

RESERVED_NAMESPACES = frozenset({"trt", "tensorrt", "std", "aten", "prim", "prims", "onnx", "ai", "com", ""})
_FIXED = frozenset({"name", "namespace", "short_name", "version", "reference", "signature"})
_NAME = re.compile(r"(?P<namespace>[A-Za-z_][A-Za-z0-9_]*)::(?P<name>[A-Za-z_][A-Za-z0-9_]*)")


class Converter(Protocol):
    """What brings a layer's parameters from the standard form to what its kernel wants; packs answer it."""

    def has_conversion(self, layer: Layer) -> bool:
        """Whether the parameters of this layer are changed at all."""

    def convert(self, layer: Layer, parameters: Parameters, target: Target) -> Parameters:
        """The parameters as the layer's kernel wants them."""


class Layer:
    """One custom computation: identity `namespace::name` + version, signature, reference and kernels.

    Made by `layerport.layer`.  Calling it calls the Torch operator.  A copy is the layer itself; a pickle holds
    identity and version, and finds the layer again where its pack is installed.
    """

    def __init__(
        self, name: str, version: int, reference: Callable[..., Any], *, converter: Converter | None = None
    ) -> None:
        match = _NAME.fullmatch(name) if isinstance(name, str) else None
        if match is None or match["namespace"].lower() in RESERVED_NAMESPACES:
            raise UsageError(
                f"layer name {name!r} is not 'namespace::name' with two identifiers and a namespace of your own",
                "name it like 'my_pack::my_layer'; these namespaces are taken: "
                + ", ".join(sorted(RESERVED_NAMESPACES - {""})),
            )
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise UsageError(
                f"layer {name}: version {version!r} is not a whole number from 1",
                "start at version=1 and raise it when the meaning of the layer changes",
            )
        self.name = str.__str__(name)  # a subclass of str may compare as it likes
        self.namespace: str = match["namespace"]
        self.short_name: str = match["name"]
        self.version = int.__int__(version)
        self.reference = reference
        self.converter = converter
        self.signature = Signature.of(reference)
        self._record = self.signature.record
        self.shapes_override: Callable[..., Any] | None = None
        self._kernels: list[Kernel] = []
        functools.update_wrapper(self, reference, updated=())  # the function's own attributes are not the layer's

        self._torch: TorchBinding = layerport.layers.operator.register_operator(self)

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        """The kernels of the layer, in the order in which they were declared."""
        return tuple(self._kernels)

    @property
    def origin(self) -> str:
        """Where the reference stands: `file:line`."""
        code = inspect.unwrap(self.reference).__code__
        return f"{code.co_filename}:{code.co_firstlineno}"

    @property
    def operator(self) -> Any:
        """The Torch operator overload, `torch.ops.<namespace>.<name>.default`."""
        return self._torch.operator

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # torch.compile knows the operator only; anywhere else the function behind it saves a Python call.
        binding = self._torch
        is_compiling = binding.is_compiling  # a method call would look for a method first
        if kwargs or is_compiling():
            result = binding.operator(*args, **kwargs)
        else:
            result = binding.direct(*args)
        return result if self._record is None else self._record(*result)

    def __setattr__(self, name: str, value: object) -> None:
        if name in _FIXED and name in self.__dict__:
            raise UsageError(
                f"layer {self.name}: its {name} is fixed, and cannot become {describe(value)}",
                "define another layer with @layerport.layer",
            )
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        return f"<layer {self.name} version {self.version}>"

    def __copy__(self) -> Layer:
        return self

    def __deepcopy__(self, memo: object) -> Layer:
        return self

    def kernel(
        self,
        source: CudaSource | TritonSource,
        *,
        dtypes: Sequence[str | Mapping[str, str]],
        when: Callable[..., Any] | None = None,
        name: str | None = None,
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Declare GPU code for this layer; decorates the launch rule.

        source: `layerport.cuda(...)` or `layerport.triton(...)`.  dtypes: for each supported combination one dtype
        for all tensors, or a mapping of tensor name (or "*") to dtype.  when: a predicate over shapes, as `launch`
        sees them.
        """

        def declare(launch: Callable[..., Any]) -> Callable[..., Any]:
            self._kernels.append(
                Kernel(
                    name=name or f"{self.short_name}_{len(self._kernels)}",
                    source=source,
                    dtypes=dtypes,  # type: ignore[arg-type]
                    launch=launch,
                    when=when,
                )
            )
            return launch

        return declare

    def shape_rule(self, rule: Callable[..., Any]) -> Callable[..., Any]:
        """Override the derived output rule: decorates a function of the layer's arguments.

        Tensors arrive with `.shape` (ints and expressions) and `.dtype`; it returns `(dtype, dims)` for each output.
        """
        self.shapes_override = rule
        return rule

    def backward(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Write the backward pass, which is otherwise derived from the reference; decorates a function.

        function: takes by name the arguments and outputs that it needs, and `grad_<output>` for each output
        (`grad_output` where there is one); returns one gradient for each tensor argument, in order, None for what has
        none.  Written with differentiable Torch operations, it can itself be differentiated.
        `layerport.testing.check_backward` compares it with the reference.  Raises UsageError for other parameters.
        """
        self._torch.backward = layerport.layers.autograd.WrittenBackward(self, function)
        return function

    def bind(self, **values: Any) -> BoundLayer:
        """This layer with its parameters and attributes, brought to the standard form.

        values: every `Param` (any framework type) and every attribute without default, by name.
        Raises UsageError that lists all faults, each with its path.
        """
        parameters, steps = layerport.parameters.binding.convert_arguments(self.signature, values, path=self.name)
        return BoundLayer(self, parameters, {name: values.get(name) for name in parameters}, tuple(steps))

    def module(self, **values: Any) -> torch.nn.Module:
        """An `nn.Module` that holds the parameters and applies this layer to its inputs.

        values: as in `bind`.  A tensor that is in standard form already is shared, not copied.
        """
        return layerport.layers.module.LayerModule(self.bind(**values))


@dataclass(frozen=True, eq=False)
class Place:
    """Where in a model a bound layer stands, known once the model is exported.

    tensors: dtype and dims of each tensor argument, None where an optional one is absent.
    derivation: the layer's output rule there.  module: the path of its module, for messages.
    """

    tensors: Mapping[str, TensorType | None]
    derivation: Derivation
    module: str


@dataclass(frozen=True, eq=False)
class BoundLayer:
    """A layer with the parameters of one place in a model, in the standard form.

    sources: the values as they were given, by parameter name.  steps: how each came to the standard form.
    place: set when a plugin is asked for; None while parameters are exported.
    """

    layer: Layer
    parameters: Parameters
    sources: Mapping[str, Any] = field(repr=False, default_factory=dict)
    steps: tuple[Step, ...] = field(repr=False, default=())
    place: Place | None = field(repr=False, default=None)
