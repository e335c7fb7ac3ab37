"""The samples of a bundle: the example inputs and Torch's outputs for them, for `verify` anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from layerport.bundle import SAMPLES
from layerport.conversion import to_standard
from layerport.errors import UsageError
from layerport.front.export import ExportedModel
from layerport.front.sources import Source
from layerport.parameters import Parameters


def write_samples(source: Source, exported: ExportedModel, outputs: Any, folder: Path) -> None:
    """Write the inputs and outputs by the names that the portable model gives them.

    Raises UsageError where the model has inputs or outputs that are no tensors, so that they cannot be told apart.
    """
    example = (source.args, dict(source.kwargs))
    given = [leaf for leaf in pytree.tree_leaves(example) if isinstance(leaf, torch.Tensor)]
    gave = [leaf for leaf in pytree.tree_leaves(outputs) if leaf is not None]
    arrays = {}
    for kind, leaves, ports in (("input", given, exported.inputs), ("output", gave, exported.outputs)):
        if len(leaves) != len(ports):
            raise UsageError(
                f"the model has {len(leaves)} {kind} tensors in Torch and {len(ports)} in ONNX "
                f"({', '.join(port.name for port in ports)})",
                f"give the model a forward whose {kind}s are all tensors and all used",
            )
        for leaf, port in zip(leaves, ports, strict=True):
            if not isinstance(leaf, torch.Tensor):
                raise UsageError(
                    f"{kind} {port.name} is a {type(leaf).__name__}, not a tensor", f"make every {kind} a tensor"
                )
            arrays[f"{kind}.{port.name}"] = to_standard(leaf.detach(), path=port.name).array
    Parameters(arrays, {}).save(folder / SAMPLES)
