"""Modules that no pack claims though they look like one of its layers: for the report, so that a miss is seen.

By names alone, of the layer and of what stands in the module: what the packs know of models is theirs.
"""

from __future__ import annotations

import dis
import functools
import inspect
import re
import types
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from layerport.layers.layer import Layer
from layerport.packs.host import Packs
from layerport.parameters.signature import Kind
from layerport.system.records import Record

_OPERATORS = {"*": "mul", "+": "add", "-": "sub", "/": "div", "@": "matmul"}
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
# A shorter name stands in too many others: `norm` in LayerNorm, BatchNorm, normalize.
_SHORTEST = 5


@dataclass(frozen=True)
class Lookalike(Record):
    """The modules of one class that look like a layer and are not claimed.

    module: the path of the first.  count: how many there are.  reason: what is known of why.
    paths: those of all, which a report leaves out.
    """

    module: str
    module_class: str
    count: int
    layer: str
    reason: str
    paths: tuple[str, ...] = field(default=(), repr=False)

    def to_json(self) -> dict[str, Any]:
        """The entry as a program reads it."""
        entries = super().to_json().items()
        return {name.removeprefix("module_"): value for name, value in entries if name != "paths"}

    def without(self, taken: Collection[tuple[str, str]]) -> Lookalike | None:
        """The entry without the modules in which its layer was found; None where none is left.

        taken: layer and module of each place.
        """
        found = [module for layer, module in taken if layer == self.layer]
        left = [path for path in self.paths if not any(f"{one}.".startswith(f"{path}.") for one in found)]
        return replace(self, module=left[0], count=len(left), paths=tuple(left)) if left else None


def find_lookalikes(
    model: torch.nn.Module, packs: Packs, asked: Collection[torch.nn.Module], refused: Collection[str]
) -> tuple[Lookalike, ...]:
    """The classes of a model that look like a layer that a pack claims modules for, except where one was asked for.

    asked: the modules that packs answered for; what lies within them is not looked at.  refused: layers left out.
    """
    layers = [
        layer
        for layer in packs.layers
        if layer.name not in refused and "layerport_export_parameters" in packs.owner(layer).hooks
    ]
    within = {part for module in asked for part in module.modules()}
    classes = {type(module) for module in asked}
    groups: dict[tuple[type, Layer], list[tuple[str, torch.nn.Module]]] = {}
    for path, module in model.named_modules():
        if module in within:
            continue
        for layer in layers:
            if _looks_like(module, layer):
                groups.setdefault((type(module), layer), []).append((path, module))
    return tuple(
        Lookalike(
            found[0][0],
            kind.__name__,
            len(found),
            layer.name,
            _reason(found[0][1], layer, kind in classes),
            tuple(path for path, _ in found),
        )
        for (kind, layer), found in groups.items()
    )


def _looks_like(module: torch.nn.Module, layer: Layer) -> bool:
    """Whether the class is named like the layer, or as its reference's text calls it, or has its words within."""
    name = type(module).__name__
    words = layer.short_name.lower().split("_")
    if not _acronyms(layer).isdisjoint(_words(name)):
        return True
    joined = "".join(words)
    if len(joined) >= _SHORTEST and joined in "".join(_words(name)):
        return True
    return len(words) > 1 and set(words) <= {*_words(name), *_inside(module)}


@functools.lru_cache(maxsize=1000)
def _acronyms(layer: Layer) -> frozenset[str]:
    """What the first paragraph of the reference's docstring names in capitals, such as GLU."""
    text = (inspect.getdoc(layer.reference) or "").partition("\n\n")[0]
    return frozenset(word.lower() for word in re.findall(r"\b[A-Z]{3,}\b", text))


def _words(name: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(name)]


def _inside(module: torch.nn.Module) -> Iterator[str]:
    """The classes of the children, and the names and operators in the forward."""
    for child in module.children():
        yield type(child).__name__.lower()
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    if code is not None:
        yield from _words_of_code(code)


@functools.lru_cache(maxsize=1000)
def _words_of_code(code: types.CodeType) -> frozenset[str]:
    names = {part for name in code.co_names for part in name.lower().split("_")}
    operators = (one.argrepr.rstrip("=") for one in dis.get_instructions(code) if one.opname == "BINARY_OP")
    return frozenset({*names, *(_OPERATORS[one] for one in operators if one in _OPERATORS)})


def _reason(module: torch.nn.Module, layer: Layer, is_claimed_elsewhere: bool) -> str:
    arguments = layer.signature.arguments
    inputs = [argument.name for argument in arguments if argument.kind is Kind.INPUT]
    rest = [argument.name for argument in arguments if argument.kind is not Kind.INPUT]
    which = (
        "no pack answers for this one, others of its class are claimed"
        if is_claimed_elsewhere
        else ("no pack answers for its class")
    )
    has = f"forward({_listed(_forward_names(module))}) and {_listed(_own_tensors(module)) or 'no tensors'}"
    takes = f"({_listed(inputs)}) with {_listed(rest) or 'nothing else'}"
    return f"{which}; it has {has}, the layer takes {takes}"


def _forward_names(module: torch.nn.Module) -> list[str]:
    try:
        return list(inspect.signature(type(module).forward).parameters)[1:]
    except (TypeError, ValueError):
        return ["?"]


def _own_tensors(module: torch.nn.Module) -> list[str]:
    named = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    return [f"{name}{list(tensor.shape)}" for name, tensor in named] + [
        f"{name} ({type(child).__name__})" for name, child in module.named_children()
    ]


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names if len(names) <= 6 else [*names[:6], "..."])
