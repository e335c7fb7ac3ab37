"""What lossy claims change in the outputs of a model: measured in Torch, on the example inputs.  Used by `pipeline`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from layerport.errors import UsageError
from layerport.front.claims import ClaimedModel
from layerport.front.export import ExportedModel
from layerport.front.leaves import plain_outputs
from layerport.front.samples import record_outputs, torch_samples
from layerport.front.sources import Source
from layerport.parameters.comparison import Loss, loss_between


def changed_outputs(source: Source, claimed: ClaimedModel) -> Any:
    """What the model gives for its example inputs with its claims in place; None where none of them loses anything."""
    if all(one.chosen is None or one.chosen.loss is None for one in claimed.claims):
        return None
    return plain_outputs(record_outputs(replace(source, model=claimed.model)))


def losses_of(source: Source, exported: ExportedModel, outputs: Any, changed: Any) -> Mapping[str, Loss]:
    """How far each output is from the model's own, by the name that the portable model gives it.

    Raises UsageError for one that has become infinite or NaN.
    """
    _, own = torch_samples(source, exported, outputs)
    _, other = torch_samples(source, exported, changed)
    found = {name: loss_between(other[name], array) for name, array in own.items()}
    if broken := [name for name, loss in found.items() if not math.isfinite(loss.error)]:
        raise UsageError(
            f"with the lossy claims {', '.join(broken)} has infinities or NaN, where the model has none",
            "name fewer modules with --lossy, or a limit",
        )
    return found
