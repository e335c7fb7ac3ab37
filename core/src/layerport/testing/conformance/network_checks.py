"""What must hold of a layer in a network: the whole build, from Torch to TensorRT where it is installed."""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from layerport import building
from layerport.engine import flavours
from layerport.errors import LayerportError
from layerport.testing.cases import Case, DTypeChoice
from layerport.testing.conformance.kernel_checks import kernels_of
from layerport.testing.conformance.records import FoundFaultError, NotApplicableError
from layerport.testing.conformance.subjects import Subject, elements, is_empty

_TARGET = "rtx:sm_89"
_FEW = 8
# What TensorRT has no tensors of.
_NOT_IN_TENSORRT = {"float64", "uint8", "uint16", "uint32", "uint64", "int16"}


class Network(torch.nn.Module):
    """Two instances of a layer, each on half of the inputs; the outputs of the first are used within the network."""

    def __init__(self, first: torch.nn.Module, second: torch.nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        half = len(inputs) // 2
        within = [_used(one) for one in _as_tuple(self.first(*inputs[:half]))]
        return (*within, *_as_tuple(self.second(*inputs[half:])))


class Networks(torch.nn.Module):
    """Several such networks side by side, each on its own inputs."""

    def __init__(self, networks: Sequence[Network], counts: Sequence[int]) -> None:
        super().__init__()
        self.networks, self.counts = torch.nn.ModuleList(networks), tuple(counts)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs: list[torch.Tensor] = []
        for network, count in zip(self.networks, self.counts, strict=True):
            outputs += network(*inputs[:count])
            inputs = inputs[count:]
        return tuple(outputs)


def check_network(subject: Subject, choice: DTypeChoice) -> list[str]:
    """A network with two of the layer builds and is right; each is a plugin where a kernel takes the dtypes.

    A build has a price of its own, so one is made for all dtypes.  Where that fails, each has its own, and its verdict.
    """
    case, target, notes = _wanted(subject, choice)
    if target != _TARGET or str(choice) not in _built_together(subject):
        _build(subject, [case], target)
    return notes


@functools.lru_cache(maxsize=1)
def _built_together(subject: Subject) -> frozenset[str]:
    """The dtypes whose networks build as one and are right; none where that fails."""
    choices = subject.layer_case.dtypes if subject.layer_case is not None else ()
    wanted = {str(one): _wanted_or_none(subject, one) for one in choices}
    together = {name: one[0] for name, one in wanted.items() if one is not None and one[1] == _TARGET}
    if len(together) > 1:
        with contextlib.suppress(Exception):
            _build(subject, list(together.values()), _TARGET)
            return frozenset(together)
    return frozenset()


def _wanted_or_none(subject: Subject, choice: DTypeChoice) -> tuple[Case, str, list[str]] | None:
    try:
        return _wanted(subject, choice)
    except NotApplicableError:
        return None


def _wanted(subject: Subject, choice: DTypeChoice) -> tuple[Case, str, list[str]]:
    """The case of a network for some dtypes, the target it is built for, and what is not seen there."""
    cases = subject.smallest(choice)
    if not cases:
        raise NotApplicableError("it has no case")
    # A scalar is no network's usual input, and one element no measure of how near the others are.
    usual = [
        one
        for one in subject.cases(choice)
        if not is_empty(one) and () not in one.shape.shapes.values() and elements(one) > _FEW
    ]
    case = cases[0] if cases[0] in usual else (usual or cases)[0]
    dtypes = {case.dtype_of(name).value for name, sizes in case.shape.shapes.items() if sizes is not None}
    wants_plugin = bool(kernels_of(subject, case)) or "layerport_create_plugin" in subject.pack.hooks
    notes = []
    if not wants_plugin:
        target = "portable"
    elif alien := sorted(dtypes & _NOT_IN_TENSORRT):
        target, notes = "portable", [f"not built for TensorRT, which has no {', '.join(alien)}"]
    elif fault := flavours.fault_of("rtx"):
        target, notes = "portable", [f"not built for TensorRT: it needs {fault}"]
    else:
        target = _TARGET
    return case, target, notes


def _build(subject: Subject, cases: Sequence[Case], target: str) -> None:
    """Build the networks of some cases in one, and raise FoundFaultError for what is wrong with it."""
    label = ", ".join(case.id for case in cases)
    made = [_network(subject, case) for case in cases]
    network = made[0][0] if len(made) == 1 else Networks([one for one, _ in made], [len(given) for _, given in made])
    args = tuple(one for _, given in made for one in given)
    packs: list[object] = [] if subject.pack.info.distribution is not None else [subject.pack.plugin]
    with tempfile.TemporaryDirectory() as folder:
        try:
            out = Path(folder) / "network.lp"
            report = building.build(network.eval(), out, args=args, target=target, packs=packs)
        except LayerportError as error:
            raise FoundFaultError(
                f"{label}: a network with two of it does not build for {target}: {error.fault}",
                error.repair or "see what its plugin gives",
                faults=error.faults,
            ) from error
    if report.verification is not None and not report.verification.passed:
        raise FoundFaultError(
            f"{label}: a network with two of it gives something else than Torch",
            "see `layerport verify` on a model of your own, which names the output",
        )
    layer = subject.layer
    own = [one for one in report.layers if (one.layer, one.version) == (layer.name, layer.version)]
    if len(own) != 2 * len(cases):
        raise FoundFaultError(
            f"{label}: of {2 * len(cases)} instances in a network {len(own)} are in the exported model",
            "make the reference depend on its inputs",
        )
    if target == _TARGET and (lost := [one for one in own if one.realised != "plugin"]):
        raise FoundFaultError(
            f"{label}: in a network it is {lost[0].realised}, no plugin: {lost[0].reason}",
            "let a kernel take these dtypes and sizes",
        )


def _network(subject: Subject, case: Case) -> tuple[Network, list[Any]]:
    """Two instances of the layer with the parameters of a case, and the inputs of both."""
    names = {argument.name for argument in subject.layer.signature.inputs}
    modules, args = [], []
    for seed in (0, 1):
        tensors = case.tensors(seed=seed)
        given = dict(zip(subject.layer.signature.arguments, case.arguments(tensors), strict=True))
        modules.append(
            subject.layer.module(**{one.name: value for one, value in given.items() if one.name not in names})
        )
        inputs = [value for one, value in given.items() if one.name in names]
        while inputs and inputs[-1] is None:
            inputs.pop()
        if any(one is None for one in inputs):
            raise NotApplicableError("an optional input is absent before one that is there, which no network takes")
        args += inputs
    return Network(*modules), args


def _used(tensor: torch.Tensor) -> torch.Tensor:
    return torch.logical_not(tensor) if tensor.dtype == torch.bool else tensor + tensor


def _as_tuple(value: Any) -> tuple[torch.Tensor, ...]:
    return (value,) if isinstance(value, torch.Tensor) else tuple(value)
