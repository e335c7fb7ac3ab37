"""A model searched by itself, without a build: for tests of the search."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch

from layerport.foreign.torch_private import pytree
from layerport.front.comparison import compare
from layerport.front.complex_numbers import with_real_pairs
from layerport.front.exporter import quiet
from layerport.layers.derivation import any_size
from layerport.layers.layer import Layer
from layerport.search.searching import Findings, search

_DEFER: dict[str, Any] = {"prefer_deferred_runtime_asserts_over_guards": True}  # as a build does


def program_of(model: Any, args: tuple[Any, ...], shapes: Any = None) -> torch.export.ExportedProgram:
    """The exported program of a module or a function, functional, with Torch's own operators."""
    module = model if isinstance(model, torch.nn.Module) else Function(model)
    with torch.no_grad(), any_size():
        program = torch.export.export(module.eval(), args, dynamic_shapes=shapes, strict=False, **_DEFER)
        program = program.run_decompositions({})
        with_real_pairs(program)
        return program


def search_in(
    model: Any, args: tuple[Any, ...], layers: Sequence[Layer], shapes: Any = None, *, asked: Sequence[str] = ()
) -> tuple[Findings, torch.export.ExportedProgram]:
    """What is found in a model, and the program with it.  The program gives what the model gives, or this raises.

    asked: layers that are searched whatever their authors say.
    """
    with quiet():
        return _search_in(model, args, layers, shapes, asked)


def _search_in(
    model: Any, args: tuple[Any, ...], layers: Sequence[Layer], shapes: Any, asked: Sequence[str]
) -> tuple[Findings, torch.export.ExportedProgram]:
    program = program_of(model, args, shapes)
    with torch.no_grad():
        runs = copy.deepcopy(model) if isinstance(model, torch.nn.Module) else Function(model)
        wanted = runs(*copy.deepcopy(args))
    findings = search(program, layers, pytree.tree_leaves(args), compared, asked=asked)
    if not findings.places:
        return findings, program
    got = program.module()(*copy.deepcopy(args))
    for one, other in zip(pytree.tree_leaves(wanted), pytree.tree_leaves(got), strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        tolerance = 1e-5 if one.dtype == torch.float32 else 2e-2
        torch.testing.assert_close(other, one, rtol=tolerance, atol=tolerance, equal_nan=True)
    return findings, program


def compared(expected: Sequence[Any], got: Sequence[Any]) -> tuple[float, str | None]:
    difference = compare(expected, got)
    return difference.error, difference.fault


class Function(torch.nn.Module):
    """A function as a module, with tensors that it may take as parameters: `weight` and so on."""

    def __init__(self, function: Any, **tensors: torch.Tensor) -> None:
        super().__init__()
        self._function = function
        for name, tensor in tensors.items():
            self.register_parameter(name, torch.nn.Parameter(tensor))

    def forward(self, *args: Any) -> Any:
        return self._function(*args, **dict(self.named_parameters()))
