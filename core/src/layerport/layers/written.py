"""A layer as its author wrote it, with the place for what Torch has of it: what the rest of the room works with.

Imports no framework.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, Self

from layerport.errors import UsageError
from layerport.parameters.signature import Signature
from layerport.system.foreign_text import describe

if TYPE_CHECKING:
    from layerport.kernels.declaration import Kernel
    from layerport.layers.binding import TorchBinding
    from layerport.parameters.standard_form import Parameters
    from layerport.targets import Target, TorchTarget

RESERVED_NAMESPACES = frozenset({"trt", "tensorrt", "std", "aten", "prim", "prims", "onnx", "ai", "com", ""})
_FIXED = frozenset({"name", "namespace", "short_name", "version", "reference", "signature"})
_NAME = re.compile(r"(?P<namespace>[A-Za-z_][A-Za-z0-9_]*)::(?P<name>[A-Za-z_][A-Za-z0-9_]*)")


class Converter(Protocol):
    """What brings a layer's parameters from the standard form to what its kernel wants; packs answer it."""

    def has_conversion(self, layer: Any) -> bool:
        """Whether the parameters of this layer are changed at all."""

    def convert(self, layer: Any, parameters: Parameters, target: Target | TorchTarget) -> Parameters:
        """The parameters as the layer's kernel wants them."""


class WrittenLayer:
    """Identity, signature, reference and kernels of a layer.  Its one subclass is `Layer`."""

    _torch: TorchBinding

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
    def operator_name(self) -> str:
        """What the Torch operator is called within its namespace: `name`, of version 2 `name.v2`, and so on."""
        return self.short_name if self.version == 1 else f"{self.short_name}.v{self.version}"

    @property
    def operator(self) -> Any:
        """The Torch operator overload, `torch.ops.<namespace>.<name>.default`; of version 2 `.v2`, and so on."""
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

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self
