"""What the user wants to become of layers in an engine: a plugin, the reference's operators, or what fits."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from layerport.errors import UsageError, shown

AUTO, AS_PLUGIN, DECOMPOSE = "auto", "plugin", "decompose"
WAYS = (AUTO, AS_PLUGIN, DECOMPOSE)
Realise: TypeAlias = str | Mapping[str, str] | Collection[str]


@dataclass(frozen=True)
class Ways:
    """How each layer is realised.

    every: for layers that are not named.  named: for those that are.  by_decompose: the names that `decompose` gave.
    """

    every: str = AUTO
    named: Mapping[str, str] = field(default_factory=dict)
    by_decompose: frozenset[str] = frozenset()

    @classmethod
    def of(cls, realise: Realise, decompose: Collection[str] = ()) -> Ways:
        """The ways that `layerport.build` was given.

        realise: a way for all layers, a mapping of layer to way, or texts such as "plugin" and "ns::name=plugin".
        decompose: layers whose way is "decompose".  Raises UsageError with all faults at once.
        """
        if isinstance(realise, Mapping):
            pairs = list(realise.items())
        else:
            texts = [realise] if isinstance(realise, str) else list(realise)
            split = [(text, text.rpartition("=")) for text in texts if isinstance(text, str)]
            pairs = [(layer, way) for text, (layer, _, way) in split]
            pairs += [(shown(text), "") for text in texts if not isinstance(text, str)]
        pairs += [(layer, DECOMPOSE) for layer in decompose]
        chosen: dict[str, str] = {}
        faults = []
        for layer, way in pairs:
            label = layer or "all layers"
            if way not in WAYS:
                faults.append(f"{label}: {way!r} is no way to realise a layer")
            elif chosen.setdefault(layer, way) != way:
                faults.append(f"{label}: asked for as {chosen[layer]} and as {way}")
        if faults:
            raise UsageError(
                "the layers cannot be realised as asked for",
                f"give one of {', '.join(WAYS)} for all layers, or LAYER=WAY for one, such as my_pack::my_layer=plugin",
                faults=faults,
            )
        return cls(chosen.pop("", AUTO), chosen, frozenset(decompose))

    def __getitem__(self, layer: str) -> str:
        """The way of a layer, by its name."""
        return self.named.get(layer, self.every)

    def said(self, layer: str) -> str:
        """The option that says so."""
        if layer in self.by_decompose:
            return f"--decompose {layer}"
        return f"--realise {layer}={self.named[layer]}" if layer in self.named else f"--realise {self.every}"
