"""`LayerCase`: one record per layer that tests, benchmarks and docs are all driven from.

For packs' tests and benchmarks; reached through `layerport.testing`.  Torch is imported when inputs are made.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

import layerport.parameters
import layerport.parameters.frameworks
from layerport.dtypes import DType
from layerport.errors import UsageError

if TYPE_CHECKING:
    import torch

    from layerport.layers.layer import Layer

Draw: TypeAlias = "Callable[[str, tuple[int, ...], torch.Generator], torch.Tensor]"
DTypeChoice: TypeAlias = "str | Mapping[str, str]"
_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Tolerance:
    """How far an output may be from the float64 reference: absolute + relative * |expected|."""

    absolute: float
    relative: float


@dataclass(frozen=True)
class CaseShape:
    """One set of sizes, with the reason why it is worth a test.

    shapes: by tensor argument; None for an optional one that is absent.  attributes: those that differ from their
    defaults.  gpu_only: too large for a CPU; benchmarks on a GPU run it.  values: of tensors that are not drawn,
    such as sizes or indices that have to fit the other tensors.
    """

    reason: str
    shapes: Mapping[str, tuple[int, ...] | None]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    gpu_only: bool = False
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LayerCase:
    """What a layer is tested and measured with.

    dtypes: each one dtype for all tensors, or a mapping of argument to dtype with "*" for the others.
    tolerances: by the dtype of the output.  draw: (argument, shape, generator) -> float64 values; standard normal
    values without it.  Raises UsageError with all faults at once.
    """

    layer: Layer
    shapes: Sequence[CaseShape]
    dtypes: Sequence[DTypeChoice]
    tolerances: Mapping[str, Tolerance]
    draw: Draw | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "shapes", tuple(self.shapes))
        object.__setattr__(self, "dtypes", tuple(self.dtypes))
        tensors = {argument.name: argument.optional for argument in self.layer.signature.tensors}
        attributes = {argument.name for argument in self.layer.signature.attributes}
        faults = []
        for shape in self.shapes:
            faults += [f"{shape.reason!r} has no shape for {name}" for name in tensors if name not in shape.shapes]
            faults += [
                f"{shape.reason!r} names {name}, which is no tensor" for name in set(shape.shapes) - set(tensors)
            ]
            faults += [
                f"{shape.reason!r} leaves out {name}, which is not optional"
                for name, sizes in shape.shapes.items()
                if sizes is None and not tensors.get(name, True)
            ]
            faults += [
                f"{shape.reason!r} gives values of {name}, which is no tensor of it"
                for name in shape.values
                if shape.shapes.get(name) is None
            ]
            faults += [
                f"{shape.reason!r} names {name}, which is no attribute" for name in set(shape.attributes) - attributes
            ]
        reasons = [shape.reason for shape in self.shapes]
        faults += [f"two shapes have the reason {reason!r}" for reason in set(reasons) if reasons.count(reason) > 1]
        faults += [] if self.shapes and self.dtypes else ["it needs at least one shape and one dtype"]
        if faults:
            raise UsageError(
                f"LayerCase of {self.layer.name} is at fault",
                f"its tensors are {', '.join(tensors)}, its attributes {', '.join(sorted(attributes)) or 'none'}",
                faults=sorted(faults),
            )

    def cases(self, *, gpu_only: bool = False) -> tuple[Case, ...]:
        """Every shape with every dtype: those for any machine, or those that are for a GPU only."""
        return tuple(
            Case(self, shape, choice) for shape in self.shapes if shape.gpu_only == gpu_only for choice in self.dtypes
        )


@dataclass(frozen=True)
class Case:
    """One shape of a `LayerCase` with one choice of dtypes."""

    layer_case: LayerCase
    shape: CaseShape
    choice: DTypeChoice

    @property
    def layer(self) -> Layer:
        """The layer that it is a case of."""
        return self.layer_case.layer

    @property
    def id(self) -> str:
        """A short name, such as `rms_norm-prime_batch-bfloat16`."""
        names = [self.choice] if isinstance(self.choice, str) else dict.fromkeys(self.choice.values())
        return "-".join((self.layer.short_name, re.sub(r"\W+", "_", self.shape.reason), "+".join(names)))

    def dtype_of(self, name: str) -> DType:
        """The dtype of a tensor argument."""
        if isinstance(self.choice, str):
            return DType.of(self.choice)
        return DType.of(self.choice[name] if name in self.choice else self.choice["*"])

    def tensors(self, *, seed: int = 0, device: str = "cpu") -> dict[str, torch.Tensor | None]:
        """The tensor arguments by name, the same ones for the same seed."""
        import torch

        made: dict[str, torch.Tensor | None] = {}
        for name, sizes in self.shape.shapes.items():
            if sizes is None:
                made[name] = None
                continue
            dtype = layerport.parameters.frameworks.torch_dtypes.from_dtype(self.dtype_of(name))
            if name in self.shape.values:
                made[name] = torch.tensor(self.shape.values[name], dtype=dtype, device=device).reshape(sizes)
                continue
            generator = torch.Generator(device).manual_seed(zlib.crc32(f"{self.id} {name} {seed}".encode()))
            if self.layer_case.draw is not None:
                values = self.layer_case.draw(name, sizes, generator)
            else:
                wide = torch.float32 if self.shape.gpu_only else torch.float64
                values = torch.randn(sizes, generator=generator, dtype=wide, device=device)
            made[name] = values.to(device, dtype)
        return made

    def arguments(self, tensors: Mapping[str, Any]) -> tuple[Any, ...]:
        """All arguments in the layer's order, for `layer(*...)`, `layer.reference(*...)` and `run_kernel`."""
        values = {**self.shape.attributes, **tensors}
        return tuple(self.layer.signature.bind((), values, layer=self.layer.name).values())

    def expected(self, tensors: Mapping[str, torch.Tensor | None]) -> tuple[torch.Tensor, ...]:
        """The reference's outputs, computed from these tensors in float64."""
        import torch

        wide = {
            name: tensor.double() if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() else tensor
            for name, tensor in tensors.items()
        }
        with torch.no_grad():
            answer = self.layer.reference(*self.arguments(wide))
        return (answer,) if isinstance(answer, torch.Tensor) else tuple(answer)

    def check(self, got: Any, expected: Sequence[torch.Tensor]) -> None:
        """Raise AssertionError, with the worst element, unless all outputs are within the tolerance of their dtype.

        got: one output or a tuple of them, as Torch tensors or arrays.
        """
        outputs = got if isinstance(got, (tuple, list)) else (got,)
        if len(outputs) != len(expected):
            raise AssertionError(f"{self.id}: expected {len(expected)} outputs, got {len(outputs)}")
        for name, output, wanted in zip(self.layer.signature.output_names, outputs, expected, strict=True):
            self._check_output(name, _as_tensor(output), wanted)

    def _check_output(self, name: str, got: torch.Tensor, expected: torch.Tensor) -> None:
        import torch

        if got.shape != expected.shape:
            raise AssertionError(f"{self.id}, {name}: expected shape {list(expected.shape)}, got {list(got.shape)}")
        dtype = layerport.parameters.frameworks.torch_dtypes.to_dtype(got.dtype)
        tolerance = self.layer_case.tolerances.get(dtype.value, Tolerance(0.0, 0.0))
        values, wanted = got.detach().to(expected.device, torch.float64), expected.to(torch.float64)
        allowed = tolerance.absolute + tolerance.relative * wanted.abs()
        # A NaN or an infinity must be met by the same; anything else that is not finite is infinitely wrong.
        same = (values == wanted) | (values.isnan() & wanted.isnan())
        excess = torch.where(same, -torch.inf, ((values - wanted).abs() - allowed).nan_to_num(torch.inf, torch.inf))
        if excess.numel() == 0 or float(excess.max()) <= 0:
            return
        worst = int(excess.argmax())
        index = (
            [int(part) for part in torch.unravel_index(torch.tensor(worst), expected.shape)] if expected.ndim else []
        )
        wrong = int((excess > 0).sum())
        raise AssertionError(
            f"{self.id}, {name} ({dtype.value}): {wrong} of {excess.numel()} elements are wrong; the worst is {index}: "
            f"expected {float(wanted.reshape(-1)[worst]):.9g}, got {float(values.reshape(-1)[worst]):.9g}, "
            f"allowed difference {float(allowed.reshape(-1)[worst]):.3g}"
        )


def _as_tensor(value: Any) -> torch.Tensor:
    import torch

    if isinstance(value, torch.Tensor):
        return value
    tensor = layerport.parameters.conversion.from_standard(
        layerport.parameters.conversion.to_standard(value).array, "torch"
    )
    assert isinstance(tensor, torch.Tensor)
    return tensor
