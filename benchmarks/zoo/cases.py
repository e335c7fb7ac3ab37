"""What a model of the zoo is: a module, inputs for any sizes, the sizes of the example and others; and their table.

The files beside this one fill the table; `run.py` and the tests read it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

GROUPS = ("language", "vision", "audio", "multimodal", "diffusion", "timm")
NAMED = ("batch", "sequence")
SIZES: dict[str, tuple[int, ...]] = {"batch": (2, 3, 1), "sequence": (12, 7, 21)}


@dataclass(frozen=True)
class Case:
    """A model in eval mode and how to feed it.

    inputs: gives the keyword inputs for sizes such as batch=2, sequence=12.
    sizes: for each of its arguments the example's size first, then the others; one size alone is a static dim.
    """

    model: nn.Module
    inputs: Callable[..., dict[str, Any]]
    sizes: dict[str, tuple[int, ...]]

    def at(self, place: int) -> dict[str, int]:
        """The sizes of the example (0) or of another run; a dim with fewer sizes keeps its last."""
        return {name: sizes[min(place, len(sizes) - 1)] for name, sizes in self.sizes.items()}

    @property
    def runs(self) -> int:
        """How many choices of sizes there are, with the example's."""
        return max((len(sizes) for sizes in self.sizes.values()), default=1)

    def feed(self, sizes: dict[str, int]) -> dict[str, Any]:
        """The inputs for these sizes, the same at each call."""
        torch.manual_seed(1)
        return self.inputs(**sizes)

    def dynamic_shapes(self) -> dict[str, Any]:
        """In torch.export's form: the axes that change when a size does; named for batch and sequence, else AUTO."""
        example = self.at(0)
        base = self.feed(example)
        shapes: dict[str, Any] = {name: {} if isinstance(value, Tensor) else None for name, value in base.items()}
        for name, sizes in self.sizes.items():
            if len(sizes) == 1:
                continue
            dim = torch.export.Dim(name, min=1, max=2 * max(sizes)) if name in NAMED else None
            for key, value in self.feed({**example, name: sizes[1]}).items():
                if not isinstance(value, Tensor):
                    continue
                for axis, (before, after) in enumerate(zip(base[key].shape, value.shape, strict=True)):
                    if before != after:
                        exact = dim is not None and (before, after) == sizes[:2] and axis not in shapes[key]
                        shapes[key][axis] = dim if exact else torch.export.Dim.AUTO
        return shapes


@dataclass(frozen=True)
class Entry:
    """One line of the table."""

    name: str
    group: str
    make: Callable[[], tuple[Any, ...]]
    sizes: dict[str, tuple[int, ...]]

    def case(self) -> Case:
        """The model, made anew with the same weights."""
        torch.manual_seed(0)
        model, inputs = self.make()
        return Case(stir(model.eval()), inputs, self.sizes)


_TABLE: dict[str, Entry] = {}


def zoo(name: str, **sizes: tuple[int, ...] | int) -> Callable[[Callable[[], tuple[Any, ...]]], Callable[[], Any]]:
    """Enter a factory, which gives (module, inputs), under a name.

    sizes: of the arguments of `inputs`: the example's and others; without any, those of `SIZES` for "batch".
    """

    def enter(make: Callable[[], tuple[Any, ...]]) -> Callable[[], Any]:
        group = make.__module__.rpartition(".")[2].removesuffix("_models")
        if name in _TABLE:
            raise ValueError(f"{name} is there twice; choose another name")
        told = {key: (value,) if isinstance(value, int) else value for key, value in sizes.items()}
        _TABLE[name] = Entry(name, group, make, {"batch": SIZES["batch"], **told})
        return make

    return enter


def table(groups: Iterable[str] = GROUPS) -> dict[str, Entry]:
    """The models of these groups by name, in the order of the files."""
    for group in groups:
        importlib.import_module(f"zoo.{group}_models")
    return dict(_TABLE)


def stir(model: nn.Module) -> nn.Module:
    """Move weights that start as ones or zeros, which would hide a wrong scale, shift or gate."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point() and (parameter.ndim < 2 or not bool(parameter.any())):
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def ids(batch: int, sequence: int, most: int = 99) -> Tensor:
    """Token ids below `most`."""
    return torch.randint(3, most, (batch, sequence))


def mask(batch: int, sequence: int) -> Tensor:
    """An attention mask that leaves the end of the first row out."""
    made = torch.ones(batch, sequence, dtype=torch.int64)
    made[0, -(sequence // 4) :] = 0 if sequence >= 4 else 1
    return made


def image(batch: int, height: int = 32, width: int | None = None, channels: int = 3) -> Tensor:
    """Normal pixels."""
    return torch.randn(batch, channels, height, width or height)
