"""Finds operators that write to tensors they should only read, and puts the tensors back.

Cloning every weight beforehand would take a model's memory twice.  A dispatch mode sees each write before it happens,
so only what is written is copied.  Used by the front half and around hook calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from layerport.foreign import torch_private
from layerport.foreign.torch_private import TorchDispatchMode, pytree


class ReadOnly(TorchDispatchMode):
    """Keeps named tensors as they are: what operators write to their memory within the block is undone at its end.

    tensors: by name.  It sees operators and the exchange of `.data`; not what NumPy or C++ write to the memory behind
    Torch's back.
    """

    # Torch asks this before it lets a higher-order operator (a scan, a condition) run within a mode.
    supports_higher_order_operators = True

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tensors: list[tuple[str, torch.Tensor, torch.Tensor]] = []
        self._names: dict[int, list[str]] = {}  # by storage
        self._before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}
        for name, tensor in tensors.items():
            if _has_memory(tensor):
                alias = tensor.detach()
                self._tensors.append((name, tensor, alias))
                self._names.setdefault(_key(alias), []).append(name)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "namespace", None) not in _DECLARED:
            return self._run_opaque(func, args, kwargs)
        for place, name in _written(func):
            value = kwargs.get(name) if place is None or place >= len(args) else args[place]
            for tensor in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(tensor, torch.Tensor) and _has_memory(tensor):
                    self._keep(tensor.untyped_storage())
        return func(*args, **kwargs)

    def _run_opaque(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operator whose inside is not seen, and whose schema may be wrong: compare what it was given."""
        given = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        new = []
        for tensor in given:
            if _has_memory(tensor) and self._keep(storage := tensor.untyped_storage()):
                new.append(storage)
        try:
            return func(*args, **kwargs)
        finally:
            for storage in new:
                if _same_bytes(storage, self._before[id(storage)][1]):
                    del self._before[id(storage)]

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)  # type: ignore[no-untyped-call]
        self._put_back()

    def written(self) -> list[str]:
        """The names of the tensors whose memory was written so far, or whose `.data` was exchanged."""
        names = [name for key in self._before for name in self._names[key]]
        exchanged = [name for name, tensor, alias in self._tensors if _is_exchanged(tensor, alias)]
        return list(dict.fromkeys([*names, *exchanged]))

    def shares(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor lies in memory that was written, so that the end of the block changes it."""
        return _has_memory(tensor) and _key(tensor) in self._before

    def _keep(self, storage: torch.UntypedStorage) -> bool:
        """Keep what is in a storage; False where it is none of ours or is kept already."""
        key = id(storage)
        if key not in self._names or key in self._before:
            return False
        self._before[key] = (storage, storage.clone())
        return True

    def _put_back(self) -> None:
        for storage, before in self._before.values():
            if storage.nbytes() != before.nbytes():
                storage.resize_(before.nbytes())
            storage.copy_(before)
        for _, tensor, alias in self._tensors:
            if _is_exchanged(tensor, alias):
                tensor.data = alias


def unwatched() -> Any:
    """A block in which no `ReadOnly` around it sees anything: for what has one of its own, or needs none."""
    return torch_private.disabled_modes()


def named_tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The parameters and buffers of a module, by path."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


# The namespaces whose schemas say rightly what an operator writes.
_DECLARED = frozenset({"aten", "prims", "prim"})
_cache: dict[Any, tuple[tuple[int | None, str], ...]] = {}


def _written(func: Any) -> tuple[tuple[int | None, str], ...]:
    """Position (None where it has none) and name of each argument that an operator writes, as its schema says."""
    found = _cache.get(func)
    if found is None:
        arguments = torch_private.schema(func).arguments
        found = _cache[func] = tuple(
            (None if argument.kwarg_only else place, argument.name)
            for place, argument in enumerate(arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        )
    return found


def _has_memory(tensor: torch.Tensor) -> bool:
    """Whether operators write to the tensor's own storage; a sparse, quantised or meta tensor has none to keep."""
    return tensor.layout is torch.strided and tensor.device.type != "meta" and not _is_wrapper(tensor)


def _is_wrapper(tensor: torch.Tensor) -> bool:
    # A subclass such as a DTensor holds other tensors; its own storage is a stand-in.
    return isinstance(tensor, torch.Tensor) and hasattr(type(tensor), "__tensor_flatten__")


def _same_bytes(one: torch.UntypedStorage, other: torch.UntypedStorage) -> bool:
    raw = [torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage) for storage in (one, other)]
    return torch.equal(*raw)


def _key(tensor: torch.Tensor) -> int:
    """Which storage it is: as long as a tensor holds one, Torch gives the same object for it."""
    return id(tensor.untyped_storage())


def _is_exchanged(tensor: torch.Tensor, alias: torch.Tensor) -> bool:
    return (
        _key(tensor) != _key(alias)
        or tensor.shape != alias.shape
        or tensor.stride() != alias.stride()
        or tensor.storage_offset() != alias.storage_offset()
    )


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors agree bit for bit, NaN included."""
    if one.shape != other.shape or one.dtype != other.dtype or one.layout != other.layout:
        return False
    if torch.equal(one, other):
        return True
    if not (one.is_floating_point() or one.is_complex()) or one.layout is not torch.strided:
        return False
    raw = [tensor.detach().resolve_conj().contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)]
    return torch.equal(*raw)
