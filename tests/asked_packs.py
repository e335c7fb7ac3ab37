"""What packs answer for one module, which stands somewhere in a model: for tests of the export hook."""

from __future__ import annotations

from typing import Any

import torch

from layerport.packs.host import Pack, Packs


def export_parameters(packs: Packs, module: torch.nn.Module, path: str) -> list[tuple[Pack, tuple[Any, ...]]]:
    """Each pack's candidates for the module at this path; raises PackError for any pack that fails."""
    *parents, name = path.split(".")
    root = here = torch.nn.Module() if path else module
    for parent in parents:
        here.add_module(parent, torch.nn.Module())
        here = here.get_submodule(parent)
    if path:
        here.add_module(name, module)
    return packs.export_model(root, strict=True).found.get(path, [])
