"""The samples of a bundle: the example inputs and the reference outputs for them, for `verify` anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from layerport.bundle.bundle import SAMPLES, write_hashed
from layerport.errors import UsageError
from layerport.foreign.torch_private import pytree
from layerport.front.copies import copy_of_inputs, structural_copy
from layerport.front.export import ExportedModel
from layerport.front.sources import Source
from layerport.packs.torch_state import preserved
from layerport.packs.torch_writes import ReadOnly, named_tensors
from layerport.parameters.conversion import to_standard
from layerport.parameters.standard_form import Parameters
from layerport.sizes.tensors import TensorType


def record_outputs(source: Source) -> Any:
    """What a Torch source gives for its example inputs, in a pass of its own that changes nothing.

    It runs a structural copy on copied inputs; parameters that its forward writes to, settings and random states are
    put back, also when it raises.  Raises UsageError where the model fails on its inputs.
    """
    model: Any = source.model
    is_program = isinstance(model, torch.export.ExportedProgram)
    # A program's operators show all that it writes, so its buffers need no copies.
    with preserved():
        runs = model.module() if is_program else structural_copy(model)
        with ReadOnly(named_tensors(runs)) as kept:
            return own_memory(run_model(runs, source), kept)


def run_model(model: torch.nn.Module, source: Source) -> Any:
    """Run a model on copies of the example inputs; raises UsageError where it fails."""
    args, kwargs = copy_of_inputs((source.args, dict(source.kwargs)))
    try:
        with torch.no_grad():
            return model(*args, **kwargs)
    except Exception as error:
        raise UsageError(
            f"the model {type(source.model).__name__} fails on its own example inputs: {type(error).__name__}: {error}",
            "run model(*args) by itself in Python and mend the example inputs",
        ) from error


def own_memory(values: Any, kept: ReadOnly) -> Any:
    """The values with those tensors cloned that the end of a `ReadOnly` block would change."""
    return pytree.tree_map(
        lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) and kept.shares(leaf) else leaf, values
    )


def torch_samples(source: Source, exported: ExportedModel, outputs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The example inputs and Torch's outputs, as arrays by the names that the portable model gives them.

    Raises UsageError where the model has inputs or outputs that are no tensors, so that they cannot be told apart.
    """
    example = (source.args, dict(source.kwargs))
    given = [leaf for leaf in pytree.tree_leaves(example) if isinstance(leaf, torch.Tensor)]
    gave = [leaf for leaf in pytree.tree_leaves(outputs) if leaf is not None]
    return _named("input", given, exported.inputs), _named("output", gave, exported.outputs)


def _named(kind: str, leaves: Sequence[Any], ports: Sequence[TensorType]) -> dict[str, Any]:
    if len(leaves) != len(ports):
        raise UsageError(
            f"the model has {len(leaves)} {kind} tensors in Torch and {len(ports)} in ONNX "
            f"({', '.join(port.name for port in ports)})",
            f"give the model a forward whose {kind}s are all tensors and all used",
        )
    arrays = {}
    for leaf, port in zip(leaves, ports, strict=True):
        if not isinstance(leaf, torch.Tensor):
            raise UsageError(
                f"{kind} {port.name} is a {type(leaf).__name__}, not a tensor", f"make every {kind} a tensor"
            )
        arrays[port.name] = to_standard(leaf.detach(), path=port.name).array
    return arrays


def write_samples(inputs: Mapping[str, Any], outputs: Mapping[str, Any], folder: Path) -> str:
    """Write arrays by name as the bundle's samples; the SHA-256 of the file."""
    arrays = {f"input.{name}": array for name, array in inputs.items()}
    arrays |= {f"output.{name}": array for name, array in outputs.items()}
    samples = Parameters({name: np.asarray(array, order="C") for name, array in arrays.items()}, {})
    return write_hashed(folder / SAMPLES, samples.pieces())
