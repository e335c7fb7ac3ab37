"""What a bundle computes, compared with Torch: the model, and each kernel."""

from typing import TYPE_CHECKING

from layerport.late import parts

if TYPE_CHECKING:
    from layerport.checks import kernel_checks as kernel_checks
    from layerport.checks import kernel_runs as kernel_runs
    from layerport.checks import kernel_trials as kernel_trials
    from layerport.checks import verification as verification

__getattr__ = parts(__name__)
