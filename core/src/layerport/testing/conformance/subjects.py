"""What is checked: a pack's layers with their cases, and what several checks need of one case."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

import torch

from layerport.dtypes import DType
from layerport.errors import BuildError, LayerportError, UsageError
from layerport.layers.derivation import Derivation, derive
from layerport.layers.layer import BoundLayer, Layer
from layerport.packs.host import Packs
from layerport.packs.loading import Pack
from layerport.parameters.signature import Attribute
from layerport.parameters.standard_form import Parameters
from layerport.sizes.tensors import TensorType
from layerport.targets import Target
from layerport.testing.cases import Case, DTypeChoice, LayerCase

CASE_MODULES = ("case", "cases")
_TARGET = Target("rtx", ("sm_89",))
MOST_ELEMENTS = 1 << 18
"""Of all tensors of a case: above that it is for a GPU."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A layer of a pack.  layer_case: None where its author gave none."""

    packs: Packs
    pack: Pack
    layer: Layer
    layer_case: LayerCase | None
    derivations: dict[Any, Derivation] = field(default_factory=dict)

    def cases(self, choice: DTypeChoice | None = None) -> list[Case]:
        """The cases that a CPU takes, the smallest first; of one choice of dtypes, or of all."""
        found = self.layer_case.cases() if self.layer_case is not None else ()
        fitting = [one for one in found if (choice is None or one.choice == choice) and elements(one) <= MOST_ELEMENTS]
        return sorted(fitting, key=elements)

    def every(self, choice: DTypeChoice) -> list[Case]:
        """All cases of one choice of dtypes, also those that only a GPU takes."""
        found = self.layer_case
        if found is None:
            return []
        return [one for own in (False, True) for one in found.cases(gpu_only=own) if one.choice == choice]

    def kernel_dtypes(self, case: Case) -> dict[str, DType]:
        """The dtypes of a case's tensors as a kernel sees them: parameters as the pack's conversion makes them."""
        dtypes = {name: case.dtype_of(name) for name in case.shape.shapes}
        if "layerport_convert_parameters" not in self.pack.hooks or elements(case) > MOST_ELEMENTS:
            return dtypes
        standard = self.parameters(case, case.tensors())
        try:
            converted = self.packs.convert_parameters(self.layer, standard, _TARGET, path=case.id)
        except LayerportError:
            return dtypes  # the check of the conversion says why
        return dtypes | {name: DType.from_numpy(array.dtype) for name, array in converted.items()}

    def smallest(self, choice: DTypeChoice | None = None, *, most: int = MOST_ELEMENTS) -> list[Case]:
        """The smallest case that is not empty of each form: other attributes, other tensors present, another dtype.

        One without sizes of 1 where there is one: Torch takes those for constants.  most: elements of a case.
        """
        forms: dict[str, Case] = {}
        for case in sorted(self.cases(choice), key=_has_ones):
            if 0 < elements(case) <= most and not is_empty(case):
                present = sorted(name for name, sizes in case.shape.shapes.items() if sizes is not None)
                forms.setdefault(f"{present} {sorted(case.shape.attributes.items())} {case.choice}", case)
        return list(forms.values())

    def bound(self, case: Case, tensors: Mapping[str, Any]) -> BoundLayer:
        """The layer with the parameters and attributes of a case in the standard form."""
        arguments = self.layer.signature.arguments
        inputs = {argument.name for argument in self.layer.signature.inputs}
        values = zip(arguments, case.arguments(tensors), strict=True)
        return self.layer.bind(**{argument.name: one for argument, one in values if argument.name not in inputs})

    def parameters(self, case: Case, tensors: Mapping[str, Any]) -> Parameters:
        """The parameters and attributes of a case in the standard form."""
        return self.bound(case, tensors).parameters

    def attributes(self, case: Case) -> Mapping[str, Attribute]:
        """The attributes of a case, with the defaults of the others."""
        return self.layer.signature.bind_attributes(case.shape.attributes, path=self.layer.name)

    def derivation(self, case: Case, *, channels: int | None = None) -> tuple[dict[str, TensorType | None], Derivation]:
        """The tensors with every size of an input open that the parameters leave open, and the output rule.

        channels: the axis whose sizes are known, as in every model.  Makes no tensor, so it is for cases of any size.
        """
        attributes = self.attributes(case)
        params = {argument.name for argument in self.layer.signature.params}
        shapes: dict[str, TensorType | None] = {}
        for name, sizes in case.shape.shapes.items():
            known = None if sizes is None else TensorType(name, case.dtype_of(name), tuple(sizes))
            open_sizes = tuple(
                size if channels is not None and axis == channels % len(sizes or ()) else None
                for axis, size in enumerate(sizes or ())
            )
            free = known and replace(known, shape=open_sizes)
            shapes[name] = known if name in params else free
        key = (tuple(shapes.items()), repr(attributes))
        if key not in self.derivations:
            self.derivations[key] = self._derive(case, shapes, attributes)
        derivation = self.derivations[key]
        for name in set(shapes) - params:
            if (free := shapes[name]) is not None:
                sizes = case.shape.shapes[name] or ()
                dims = [
                    sizes[axis] if f"{name}.{axis}" in derivation.fixed else dim for axis, dim in enumerate(free.shape)
                ]
                shapes[name] = replace(free, shape=tuple(dims))
        return shapes, derivation

    def _derive(self, case: Case, shapes: Mapping[str, TensorType | None], attributes: Mapping[str, Any]) -> Derivation:
        sizes = {
            f"{name}.{axis}": size for name, one in case.shape.shapes.items() for axis, size in enumerate(one or ())
        }

        def attempt(tensors: Mapping[str, TensorType | None]) -> Derivation:
            rule, name = self.layer.shapes_override, self.layer.name
            return derive(self.layer.reference, tensors, dict(attributes), layer=name, hint=sizes, rule=rule)

        try:
            return attempt(shapes)
        except BuildError:
            # A size of 1 in a parameter lets no example size follow from it: such a dim is a number in a model too.
            known = {dim for one in shapes.values() if one is not None for dim in one.shape if dim is not None}
            if 1 not in known:
                raise
            return attempt(
                {
                    name: one
                    and replace(
                        one,
                        shape=tuple(
                            sizes[f"{name}.{axis}"] if dim is None and sizes[f"{name}.{axis}"] in known else dim
                            for axis, dim in enumerate(one.shape)
                        ),
                    )
                    for name, one in shapes.items()
                }
            )


def _has_ones(case: Case) -> bool:
    return any(1 in (sizes or ()) for sizes in case.shape.shapes.values())


def elements(case: Case) -> int:
    """How many elements all tensors of a case have together."""
    total = 0
    for sizes in case.shape.shapes.values():
        if sizes is not None:
            count = 1
            for size in sizes:
                count *= size
            total += count
    return total


def is_empty(case: Case) -> bool:
    """Whether a tensor of a case has no element."""
    return any(sizes is not None and 0 in sizes for sizes in case.shape.shapes.values())


def run_reference(layer: Layer, args: Sequence[Any]) -> tuple[torch.Tensor, ...]:
    """The reference's outputs, without gradients."""
    with torch.no_grad():
        answer = layer.reference(*args)
    return (answer,) if isinstance(answer, torch.Tensor) else tuple(answer)


def subjects_of(packs: Packs, pack: Pack, only: Sequence[str] = ()) -> list[Subject]:
    """The layers of a pack, each with its case; only those named, in full or without namespace.

    Raises UsageError for a layer that the pack does not have.
    """
    for name in only:
        if not any(name in (layer.name, layer.short_name) for layer in pack.layers):
            known = ", ".join(layer.name for layer in pack.layers) or "none"
            raise UsageError(f"pack {pack.info.label} has no layer {name!r}", f"its layers: {known}")
    found = {id(case.layer): case for module in _case_modules(pack) for case in _cases_in(module)}
    return [
        Subject(packs, pack, layer, found.get(id(layer)))
        for layer in pack.layers
        if not only or layer.name in only or layer.short_name in only
    ]


def _cases_in(module: ModuleType) -> Iterator[LayerCase]:
    for value in vars(module).values():
        for one in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(one, LayerCase):
                yield one


def _case_modules(pack: Pack) -> Iterator[ModuleType]:
    """The pack's own module, and every module of its package that is named `case` or `cases`."""
    plugin = pack.plugin
    if isinstance(plugin, ModuleType):
        yield plugin
    if pack.info.distribution is None:
        return
    package = sys.modules.get(pack.info.package)
    for found in pkgutil.walk_packages(getattr(package, "__path__", ()), f"{pack.info.package}."):
        if found.name.rpartition(".")[2] in CASE_MODULES:
            yield importlib.import_module(found.name)
