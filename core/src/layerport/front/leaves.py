"""What a model takes and gives, tensor by tensor with their names: records are taken apart by their fields.

For `pipeline` and `export`.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from layerport.errors import UsageError
from layerport.foreign.torch_private import pytree

_CACHE_REPAIR = (
    "build without the cache: model.config.use_cache = False, or use_cache=False among the inputs; to keep it, wrap "
    "the model in a module that takes and gives its tensors, [(layer.keys, layer.values) for layer in cache.layers], "
    "and makes the cache of them inside, DynamicCache(pairs)"
)


def output_names(outputs: Any) -> list[str]:
    """Names for the outputs: the keys or fields of a record, "output" for one tensor, else "output_0" and so on.

    In the order of Torch's leaves, without those that are None.
    """
    leaves = [(path, leaf) for path, leaf in _leaves(outputs) if leaf is not None]
    if len(leaves) == 1 and not leaves[0][0]:
        return ["output"]
    names = []
    for path, _ in leaves:
        text = re.sub(r"\W", "_", "_".join(path))
        names.append(text if text and not text[0].isdigit() else f"output_{text}")
    if len(set(names)) < len(names):
        names = [f"output_{place}" for place in range(len(names))]
    return names


def refuse_caches(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Raise UsageError where example inputs hold the key-value cache of a generating model, which is no tensor."""
    leaves = [*_leaves(args, ("args",)), *_leaves(dict(kwargs))]
    faults = [
        f"input {'.'.join(path)} is a {type(leaf).__name__}, not a tensor" for path, leaf in leaves if _is_cache(leaf)
    ]
    if faults:
        raise UsageError("the example inputs are not all tensors", _CACHE_REPAIR, faults=faults)


def check_outputs(outputs: Any) -> None:
    """Raise UsageError, with all of them by name, where outputs are no tensors."""
    leaves = [leaf for _, leaf in _leaves(outputs) if leaf is not None]
    wrong = {
        name: leaf
        for name, leaf in zip(output_names(outputs), leaves, strict=True)
        if not isinstance(leaf, torch.Tensor)
    }
    if wrong:
        raise UsageError(
            "the model's outputs are not all tensors",
            _CACHE_REPAIR if any(map(_is_cache, wrong.values())) else "return tensors only",
            faults=[f"output {name} is a {type(leaf).__name__}, not a tensor" for name, leaf in wrong.items()],
        )


def with_plain_outputs(model: torch.nn.Module, outputs: Any) -> Any:
    """The outputs with records that Torch cannot take apart as dicts; the model, which is ours, gives them so too."""
    made = plain_outputs(outputs)
    if made is not outputs:
        forward = model.forward

        @functools.wraps(forward)
        def run(*args: Any, **kwargs: Any) -> Any:
            return plain_outputs(forward(*args, **kwargs))

        model.forward = run
    return made


def plain_outputs(value: Any) -> Any:
    """Dicts in place of mappings and dataclasses that pytree does not know; the same object where there are none."""
    if not pytree.tree_is_leaf(value):
        children, spec = pytree.tree_flatten(value, is_leaf=lambda one: one is not value)
        made = [plain_outputs(child) for child in children]
        changed = any(new is not old for new, old in zip(made, children, strict=True))
        return pytree.tree_unflatten(made, spec) if changed else value
    fields = None if isinstance(value, torch.Tensor) or _is_cache(value) else _fields(value)
    return value if fields is None else {name: plain_outputs(held) for name, held in fields.items()}


def _leaves(value: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    if pytree.tree_is_leaf(value):
        return [(path, value)]
    children = pytree.tree_leaves(value, is_leaf=lambda one: one is not value)
    names = _names(value, children)
    return [leaf for name, child in zip(names, children, strict=True) for leaf in _leaves(child, (*path, name))]


def _names(value: Any, children: Sequence[Any]) -> list[str]:
    """One name for each child of a node: the key that pytree gives, else the field that holds it, else its place."""
    try:
        paths = [path for path, _ in pytree.tree_flatten_with_path(value, is_leaf=lambda one: one is not value)[0]]
    except ValueError:  # registered without keys
        fields = _fields(value)
        left = list((vars(value) if hasattr(value, "__dict__") else {}).items() if fields is None else fields.items())
        names = []
        for place, child in enumerate(children):
            name = next((name for name, held in left if held is child), None)
            if name is not None:
                left = [one for one in left if one[0] != name]
            names.append(str(place) if name is None else name)
        return names
    return [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for (key,) in paths]


def _fields(value: Any) -> dict[str, Any] | None:
    """What a mapping or dataclass holds by name, None for anything else."""
    if isinstance(value, Mapping):
        return {str(key): held for key, held in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return None


def _is_cache(value: Any) -> bool:
    """By the look of its class: `DynamicCache`, `EncoderDecoderCache`, `StaticCache`."""
    return any(base.__name__.endswith("Cache") for base in type(value).__mro__)
