"""The checks of a pack in order, and the verdict on each.  For `child` and the pytest plugin."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from layerport.errors import LayerportError
from layerport.packs import host
from layerport.packs.loading import Pack
from layerport.system.foreign_text import frames, reason
from layerport.testing.cases import DTypeChoice
from layerport.testing.conformance import (
    distribution_checks,
    gpu_checks,
    kernel_checks,
    launch_checks,
    network_checks,
    onnx_checks,
    reference_checks,
)
from layerport.testing.conformance.records import (
    FAILED,
    NOT_RUN,
    PASSED,
    Check,
    FoundFaultError,
    NotApplicableError,
    Verdict,
)
from layerport.testing.conformance.subjects import Subject, subjects_of

_OF_LAYERS: dict[str, Callable[[Subject], Sequence[str] | None]] = {
    "record": reference_checks.check_record,
    "gradients": reference_checks.check_gradients,
    "spellings": reference_checks.check_spellings_of,
}
_OF_DTYPES: dict[str, Callable[..., Sequence[str] | None]] = {
    "reference": reference_checks.check_reference,
    "operator": reference_checks.check_operator,
    "shapes": reference_checks.check_shapes,
    "onnx": onnx_checks.check_onnx,
    "conversion": kernel_checks.check_conversion,
    "compilation": kernel_checks.check_compilation,
    "plugin": kernel_checks.check_plugin,
    "launch": launch_checks.check_launches,
    "kernel": kernel_checks.check_kernels,
    "sanitizer": kernel_checks.check_sanitizer,
    "network": network_checks.check_network,
}
_ON_GPU: dict[str, Callable[..., Sequence[str] | None]] = {
    "gpu_numbers": gpu_checks.check_gpu_numbers,
    "gpu_streams": gpu_checks.check_gpu_streams,
    "gpu_graph": gpu_checks.check_gpu_graph,
}
NAMES = ("pack", "distribution", *_OF_LAYERS, *_OF_DTYPES, *_ON_GPU)
"""What is checked: of the pack, of each layer, of each layer in each dtype of its case; on a GPU if one is asked."""


def checks_of(name: str, *, layers: Sequence[str] = (), gpu: bool = False) -> list[Check]:
    """The checks of an installed pack or of a file; of some of its layers only.

    gpu: with those on this machine's GPU.  A pack that does not load has one check, which fails.  Raises UsageError for
    a pack or a layer that is not there, or where there is no GPU.
    """
    if gpu:
        gpu_checks.require_gpu()
    packs: host.Packs | None = None
    try:
        packs = host.load(name)
        pack = next(one for one in packs if one.explicit)
        subjects = subjects_of(packs, pack, layers)
    except LayerportError as error:
        if error.exit_code == 2:
            raise
        return [Check("pack", None, None, functools.partial(_raise, error))]
    checks = [Check("pack", None, None, functools.partial(_check_pack, pack, packs.notes))]
    if pack.info.distribution is not None:
        run = functools.partial(distribution_checks.check_distribution, pack)
        checks.append(Check("distribution", None, None, run))
    names = [subject.layer.name for subject in subjects]
    for subject in subjects:
        layer = subject.layer.name
        if names.count(layer) > 1:
            layer += f" version {subject.layer.version}"
        checks += [
            Check(name, layer, None, functools.partial(run, subject))
            for name, run in _OF_LAYERS.items()
            if name != "spellings" or subject.layer.spellings
        ]
        for choice in subject.layer_case.dtypes if subject.layer_case is not None else ():
            checks += [
                Check(name, layer, _text(choice), functools.partial(run, subject, choice))
                for name, run in (_OF_DTYPES | (_ON_GPU if gpu else {})).items()
                if name != "conversion" or "layerport_convert_parameters" in pack.hooks
            ]
    return checks


def judge(check: Check) -> Verdict:
    """Run a check; whatever the pack does within it but end the process is its verdict."""
    try:
        notes = check.run()
    except NotApplicableError as error:
        return Verdict(NOT_RUN, str(error))
    except (FoundFaultError, LayerportError) as error:
        return Verdict(FAILED, str(error))
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        passed = frames(error)
        place = f"{passed[-1][0].f_code.co_filename}:{passed[-1][1]}" if passed else "what raises it"
        return Verdict(FAILED, str(FoundFaultError(f"raises {reason(error)}", f"correct {place}")))
    return Verdict(PASSED, notes=tuple(notes or ()))


def _text(choice: DTypeChoice) -> str:
    if isinstance(choice, str):
        return choice
    return "+".join(f"{name}:{dtype}" for name, dtype in choice.items())


def _check_pack(pack: Pack, notes: Sequence[str]) -> Sequence[str]:
    if pack.warnings:
        raise FoundFaultError(f"pack {pack.info.label} loads, but not cleanly", "mend each", faults=list(pack.warnings))
    if not pack.layers:
        raise FoundFaultError(f"pack {pack.info.label} provides no layer", "return them from layerport_layers")
    return [note for note in notes if any(f"layer {layer.name}:" in note for layer in pack.layers)]


def _raise(error: LayerportError) -> None:
    raise error
