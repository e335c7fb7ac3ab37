"""A layer: one custom computation, written once, from which everything else is derived.

Pack authors use this module through `layerport.layer`.  It imports no framework by itself: the Torch operator is
registered by `operator`, which runs when a layer is made, and a reference is a Torch function anyway.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import layerport.layers
import layerport.parameters
from layerport.errors import UsageError, shown
from layerport.kernels.declaration import Kernel
from layerport.layers.written import Converter, WrittenLayer
from layerport.system import html
from layerport.system.foreign_text import describe

if TYPE_CHECKING:
    import torch

    from layerport.kernels.cuda_source import CudaSource
    from layerport.kernels.declaration import Kernel
    from layerport.kernels.triton_source import TritonSource
    from layerport.layers.derivation import Derivation
    from layerport.parameters.origins import Origin
    from layerport.parameters.standard_form import Parameters
    from layerport.parameters.steps import Step
    from layerport.sizes.tensors import TensorType


# What a plugin is worth its place in an engine for.
PURPOSES = ("fusion that TensorRT lacks", "not expressible", "wrong in TensorRT", "other precision or layout")
_Upgrade = TypeVar("_Upgrade", bound=Callable[[dict[str, Any]], Mapping[str, Any]])


class Layer(WrittenLayer):
    """One custom computation: identity `namespace::name` + version, signature, reference and kernels.

    Made by `layerport.layer`.  Calling it calls the Torch operator.  A copy is the layer itself; a pickle holds
    identity and version, and finds the layer again where its pack is installed.
    """

    def __init__(
        self,
        name: str,
        version: int,
        reference: Callable[..., Any],
        *,
        converter: Converter | None = None,
        find: bool | None = None,
        purpose: str | None = None,
    ) -> None:
        if purpose is not None and purpose not in PURPOSES:
            raise UsageError(f"layer {name}: its purpose is {shown(purpose)}", f"give one of: {'; '.join(PURPOSES)}")
        super().__init__(name, version, reference, converter=converter)
        self.find = find
        self.purpose = purpose
        self.spellings: tuple[Callable[..., Any], ...] = ()
        self._upgrades: dict[int, Callable[[dict[str, Any]], Mapping[str, Any]]] = {}
        self._torch = layerport.layers.operator.register_operator(self)

    def kernel(
        self,
        *sources: CudaSource | TritonSource,
        dtypes: tuple[str | Mapping[str, str], ...],
        when: Callable[..., Any] | None = None,
        name: str | None = None,
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Declare GPU code for this layer; decorates the launch rule.

        sources: `layerport.cuda(...)` or `layerport.triton(...)`; several where the kernel is several launches, one
        after the other: the rule then returns a tuple of as many `layerport.Launch`.  dtypes: a tuple; for each
        combination one dtype for all tensors, or a mapping of tensor name (or "*") to dtype.  when: a predicate over
        shapes, as `launch` sees them.
        """

        def declare(launch: Callable[..., Any]) -> Callable[..., Any]:
            self._kernels.append(
                Kernel(
                    name=name or f"{self.short_name}_{len(self._kernels)}",
                    sources=sources,
                    dtypes=dtypes,
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

    def spelling(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Add another way in which people write this computation, for the search; decorates a Torch function.

        function: takes the reference's arguments and gives what it gives.  Where a model computes the same as the
        function does, it holds the layer.  `layerport.testing.check_spellings` compares it with the reference, and so
        does every search, on the model's own numbers.  Raises UsageError for other parameters.
        """
        wanted = [argument.name for argument in self.signature.arguments]
        given = list(inspect.signature(function).parameters)
        if given != wanted:
            raise UsageError(
                f"layer {self.name}: the spelling {function.__name__} takes {', '.join(given) or 'nothing'}, "
                f"the reference {', '.join(wanted)}",
                "give it the reference's parameters, in their order",
            )
        self.spellings = (*self.spellings, function)
        return function

    def upgrade(self, *, from_version: int) -> Callable[[_Upgrade], _Upgrade]:
        """Say what attributes of an earlier version are in this one, for files that hold that; decorates a function.

        function: takes the attributes that a call of that version has, by name (a list as a tuple, one that is None not
        at all), and returns those of this version; what it leaves away has its default.  With them and the same tensors
        this version has to compute what that one did: a build from an old bundle compares with its samples.
        Raises UsageError for a version that is not before this one, or that has an upgrade already.
        """
        if type(from_version) is not int or not 1 <= from_version < self.version or from_version in self._upgrades:
            has = f"; it upgrades from {', '.join(map(str, self._upgrades))} already" if self._upgrades else ""
            raise UsageError(
                f"layer {self.name} version {self.version} cannot be upgraded from {describe(from_version)}",
                f"name a version from 1 to {self.version - 1}{has}",
            )

        def declare(function: _Upgrade) -> _Upgrade:
            self._upgrades[from_version] = function
            return function

        return declare

    def upgrades_from(self, version: int) -> bool:
        """Whether attributes of this earlier version can be upgraded."""
        return version in self._upgrades

    def upgraded(self, version: int, attributes: Mapping[str, Any]) -> dict[str, Any]:
        """The attributes of a call of an earlier version as this one has them, before they are checked.

        Raises UsageError where the upgrade returns no mapping.
        """
        function = self._upgrades[version]
        made = function(dict(attributes))
        if not isinstance(made, Mapping):
            raise UsageError(
                f"layer {self.name}: its upgrade from version {version} ({function.__name__}) returned "
                f"{describe(made)}",
                "return the attributes of this version by name, as in {**attributes, 'beta': 1.0}",
            )
        return dict(made)

    def bind(self, **values: Any) -> BoundLayer:
        """This layer with its parameters and attributes, brought to the standard form.

        values: every `Param` (any framework type) and every attribute without default, by name.
        Raises UsageError that lists all faults, each with its path.
        """
        parameters, steps = layerport.parameters.binding.convert_arguments(self.signature, values, path=self.name)
        return BoundLayer(self, parameters, {name: values.get(name) for name in parameters}, tuple(steps))

    def _repr_html_(self) -> str:
        rules = {argument.name: " and ".join(map(str, argument.rules)) for _, argument in self.signature.ruled}
        arguments = ((one.name, one.kind, one.schema_type, rules.get(one.name)) for one in self.signature.arguments)
        kernels = (
            (one.name, ", ".join(type(source).__name__ for source in one.sources), ", ".join(map(str, one.dtypes)))
            for one in self.kernels
        )
        doc = inspect.getdoc(self.reference)
        return "".join(
            (
                html.line(f"{self.name} version {self.version} ({self.origin})"),
                html.line(doc) if doc else "",
                html.table(("argument", "is", "type", "rule"), arguments),
                html.table(("kernel", "source", "dtypes"), kernels) or html.line("no kernel: the reference runs"),
            )
        )

    def module(self, **values: Any) -> torch.nn.Module:
        """An `nn.Module` that holds the parameters and applies this layer to its inputs.

        values: as in `bind`.  A tensor that is in standard form already is shared, not copied.
        """
        bound = self.bind(**values)
        return layerport.layers.module.LayerModule(self, bound.parameters, bound.sources)


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

    sources: the values as they were given, by parameter name; no longer held once the model is exported.
    steps: how each came to the standard form.  origins: where each came from, by the names of the model; known once the
    hook that bound them has answered.  place: set when a plugin is asked for; None while parameters are exported.
    loss: how far it may be from the module in whose place it stands, where that was declared; None where it may not.
    """

    layer: Layer
    parameters: Parameters
    sources: Mapping[str, Any] = field(repr=False, default_factory=dict)
    steps: tuple[Step, ...] = field(repr=False, default=())
    place: Place | None = field(repr=False, default=None)
    origins: tuple[Origin, ...] = field(repr=False, default=())
    loss: float | None = None
