"""A structural copy of a model: new modules, shared parameters.  The user's model is never changed."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from layerport.errors import UsageError
from layerport.foreign import torch_private
from layerport.foreign.torch_private import pytree

_PLAIN = frozenset({torch.Tensor, bool, int, float, str, type(None)})


def structural_copy(model: torch.nn.Module) -> torch.nn.Module:
    """A copy of the module tree, in eval mode, that holds the very same parameters; buffers are its own.

    A forward writes to buffers often and they are small; a pass that must not change the parameters runs within
    `ReadOnly`.  Raises UsageError where a parameter has no shape yet, or the model cannot be copied.
    """
    memo: dict[int, Any] = {}
    for name, parameter in model.named_parameters():
        if torch.nn.parameter.is_lazy(parameter):
            raise UsageError(
                f"parameter {name} of {type(model).__name__} has no shape yet",
                "run the model once on its example inputs before it is built",
            )
        memo[id(parameter)] = parameter
    try:
        with _ComputedTensorsToo():
            copied = copy.deepcopy(model, memo)
    except Exception as error:
        raise UsageError(
            f"model {type(model).__name__} cannot be copied: {type(error).__name__}: {error}",
            "make the attribute that cannot be copied lazily, or define __deepcopy__ for it",
        ) from error
    return copied.eval()


class _ComputedTensorsToo(TorchFunctionMode):
    """Copies what autograd has computed as constants, which Torch's own copy refuses.

    A module holds such tensors where its forward keeps what it made, as buffers or as plain attributes.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.Tensor.__deepcopy__ and not args[0].is_leaf:
            return args[0].detach().clone()
        return function(*args, **(kwargs or {}))


def copy_of_inputs(values: Any) -> Any:
    """Inputs for a forward that may write to them: tensors cloned, other objects copied, modules shared.

    Tensors that share memory share it in the copy too, unless they are a small part of it.
    Raises UsageError for an object that cannot be copied.
    """
    leaves, structure = pytree.tree_flatten(values)
    if _are_plain(leaves):  # the usual case, and many times faster than Python's own copy
        return pytree.tree_unflatten(
            [leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves], structure
        )
    memo: dict[int, Any] = {}
    for leaf in leaves:
        if isinstance(leaf, torch.nn.Module):
            memo[id(leaf)] = leaf
        elif isinstance(leaf, torch.Tensor) and _is_a_small_part(leaf):
            memo[id(leaf)] = leaf.detach().clone()
    try:
        with _ComputedTensorsToo():
            return copy.deepcopy(values, memo)
    except Exception as error:
        raise UsageError(
            f"an example input cannot be copied: {type(error).__name__}: {error}",
            "give tensors, numbers, texts and containers of them",
        ) from error


def _are_plain(leaves: list[Any]) -> bool:
    """Whether they are constants and contiguous tensors of which no two share memory and none wants a gradient."""
    if not all(type(leaf) in _PLAIN for leaf in leaves):
        return False
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    if any(tensor.layout is not torch.strided or tensor.requires_grad for tensor in tensors):
        return False
    storages = [tensor.untyped_storage() for tensor in tensors]
    return len(set(map(id, storages))) == len(tensors) and all(tensor.is_contiguous() for tensor in tensors)


def _is_a_small_part(tensor: torch.Tensor) -> bool:
    return tensor.layout is torch.strided and tensor.untyped_storage().nbytes() > 4 * tensor.nbytes


def replace_everywhere(model: torch.nn.Module, old: torch.nn.Module, new: torch.nn.Module) -> None:
    """Put `new` at every path of the model where `old` stands, so that a module used twice stays one module."""
    for parent in model.modules():
        children = torch_private.children(parent)
        for name, child in children.items():
            if child is old:
                children[name] = new
