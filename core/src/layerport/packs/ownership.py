"""Who owns a layer where several packs provide it, and who goes first where several answer.

Never a guess: the pack that the user prefers, else the one that the user names, else nobody.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from layerport.errors import PackError, UsageError
from layerport.packs.discovery import DISABLE_VARIABLE
from layerport.packs.loading import Pack

if TYPE_CHECKING:
    from layerport.layers.layer import Layer

INSTALLED = 1 << 20
"""The rank of a pack that nobody has named."""


@dataclass(frozen=True)
class Ownership:
    """What the packs of a process come to.

    owners: by identity, of each that can be used.  layers: its versions, the newest first.
    conflicts: the packs that dispute an identity.  shared: those that dispute a whole namespace.
    notes: each layer that is used instead of another pack's.
    """

    owners: Mapping[str, Pack]
    layers: Mapping[str, tuple[Layer, ...]]
    conflicts: Mapping[str, tuple[Pack, ...]]
    shared: Mapping[str, tuple[Pack, ...]]
    notes: tuple[str, ...]


def ranks(packs: Iterable[Pack], preferred: Sequence[Pack]) -> dict[Pack, int]:
    """How early each pack goes: the preferred in their order, then those that the user names, then all others."""
    return {
        pack: preferred.index(pack) if pack in preferred else len(preferred) if pack.explicit else INSTALLED
        for pack in packs
    }


def ownership(packs: Iterable[Pack], rank: Mapping[Pack, int]) -> Ownership:
    """Who provides what.

    A namespace belongs to one pack: packs that share one, none of which the user has named, dispute all of it.
    """
    providers: dict[str, dict[Pack, list[Layer]]] = {}
    sharers: dict[str, dict[Pack, None]] = {}
    for pack in packs:
        for layer in pack.layers:
            providers.setdefault(layer.name, {}).setdefault(pack, []).append(layer)
            sharers.setdefault(layer.namespace, {})[pack] = None
    shared = {
        namespace: tuple(sharing)
        for namespace, sharing in sharers.items()
        if len(sharing) > 1 and all(rank[pack] == INSTALLED for pack in sharing)
    }
    owners: dict[str, Pack] = {}
    layers: dict[str, tuple[Layer, ...]] = {}
    conflicts: dict[str, tuple[Pack, ...]] = {}
    notes = []
    for identity, provided in sorted(providers.items()):
        first = first_of(provided, rank)
        if first is None:
            best = min(rank[pack] for pack in provided)
            conflicts[identity] = tuple(pack for pack in provided if rank[pack] == best)
        elif sharing := shared.get(identity.partition("::")[0]):
            conflicts[identity] = sharing
        else:
            owners[identity] = first
            layers[identity] = tuple(sorted(provided[first], key=lambda layer: -layer.version))
            if others := [pack for pack in provided if pack is not first]:
                notes.append(
                    f"layer {identity}: {versions(identity, [first])} is used, not {versions(identity, others)}"
                )
    return Ownership(owners, layers, conflicts, shared, tuple(notes))


def first_of(packs: Iterable[Pack], rank: Mapping[Pack, int]) -> Pack | None:
    """The pack that goes before all others; None where nothing says which does."""
    packs = list(packs)
    best = min(rank[pack] for pack in packs)
    first = [pack for pack in packs if rank[pack] == best]
    return first[0] if len(first) == 1 else None


def how_to_choose(pack: str) -> str:
    """What to write where several packs answer, one of which has this address."""
    return f"prefer one, as in --prefer {pack} or prefer=[{pack!r}], or block the others with {DISABLE_VARIABLE}=name"


def contested(identity: str, rivals: Sequence[Pack]) -> PackError:
    """The error where a disputed layer is asked for."""
    repair = how_to_choose(rivals[0].info.address)
    own = [pack for pack in rivals if any(layer.name == identity for layer in pack.layers)]
    if len(own) > 1:
        faults = [versions(identity, [pack]) for pack in own]
        return PackError(f"layer {identity} is provided by {len(own)} packs", repair, faults=faults)
    namespace = identity.partition("::")[0]
    return PackError(
        f"layer {identity} is of the namespace {namespace}, which {len(rivals)} packs use and one may",
        repair,
        faults=[
            f"pack {pack.info.label}: {', '.join(one.name for one in pack.layers if one.namespace == namespace)}"
            for pack in rivals
        ],
    )


def versions(identity: str, packs: Iterable[Pack]) -> str:
    """The versions of a layer that packs provide, in a sentence."""
    found = ((pack, layer.version) for pack in packs for layer in pack.layers if layer.name == identity)
    return " and ".join(f"version {version} from pack {pack.info.label}" for pack, version in found)


def no_version(pack: Pack, layers: Sequence[Layer], version: int) -> UsageError:
    """The error where a layer is there in other versions than the one that is asked for."""
    newest = layers[0]
    here = " and ".join(str(layer.version) for layer in reversed(layers))
    own = pack.info.distribution or pack.info.name
    repair = (
        f"install a release of {own} that has version {version}"
        if version > newest.version
        else f"install a release of {own} that has version {version}, or have the pack say what such attributes are "
        f"now, with @{newest.reference.__name__}.upgrade(from_version={version})"
    )
    return UsageError(
        f"layer {newest.name} version {version} is asked for, pack {pack.info.label} has version {here}", repair
    )
