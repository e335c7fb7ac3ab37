"""Whether the spellings of a layer give what its reference gives.  For packs' tests; through `layerport.testing`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from layerport.errors import UsageError

if TYPE_CHECKING:
    from layerport.layers.layer import Layer


def check_spellings(layer: Layer, *args: Any, tolerance: float = 1e-9) -> None:
    """Raise AssertionError unless every spelling of a layer gives what its reference gives.

    args: those of a call; floating-point tensors are taken in float64.  tolerance: the largest difference that is
    allowed, beside the largest value of an output.  Raises UsageError for a layer without a spelling.
    """
    import torch

    if not layer.spellings:
        raise UsageError(f"layer {layer.name} has no spelling", "write one with @layer.spelling")
    wide = [one.double() if isinstance(one, torch.Tensor) and one.is_floating_point() else one for one in args]
    with torch.no_grad():
        wanted = _outputs(layer.reference(*wide))
        for spelling in layer.spellings:
            got = _outputs(spelling(*wide))
            if [(one.dtype, one.shape) for one in got] != [(one.dtype, one.shape) for one in wanted]:
                raise AssertionError(f"layer {layer.name}: spelling {spelling.__name__} gives other types or shapes")
            for name, one, expected in zip(layer.signature.output_names, got, wanted, strict=True):
                largest = float(expected.abs().max()) if expected.numel() else 0.0
                error = float((one - expected).abs().max()) if expected.numel() else 0.0
                if not error <= tolerance * max(1.0, largest):
                    raise AssertionError(
                        f"layer {layer.name}: spelling {spelling.__name__} is off by {error:.3g} in {name}"
                    )


def _outputs(answer: Any) -> tuple[Any, ...]:
    return tuple(answer) if isinstance(answer, (tuple, list)) else (answer,)
