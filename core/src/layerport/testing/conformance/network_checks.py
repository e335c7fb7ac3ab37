"""What must hold of a layer in a network: the whole build, from Torch to TensorRT where it is installed."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from layerport import building
from layerport.engine import flavours
from layerport.errors import LayerportError
from layerport.testing.cases import Case, DTypeChoice
from layerport.testing.conformance.kernel_checks import kernels_of
from layerport.testing.conformance.records import FoundFaultError, NotApplicableError
from layerport.testing.conformance.subjects import Subject, is_empty

_TARGET = "rtx:sm_89"
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


def check_network(subject: Subject, choice: DTypeChoice) -> list[str]:
    """A network with two of the layer builds and is right; each is a plugin where a kernel takes the dtypes."""
    cases = subject.smallest(choice)
    if not cases:
        raise NotApplicableError("it has no case")
    # A scalar is no network's usual input.
    usual = [one for one in subject.cases(choice) if not is_empty(one) and () not in one.shape.shapes.values()]
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
    _build(subject, case, target)
    return notes


def _build(subject: Subject, case: Case, target: str) -> None:
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
    network = Network(*modules).eval()
    packs: list[object] = [] if subject.pack.info.distribution is not None else [subject.pack.plugin]
    with tempfile.TemporaryDirectory() as folder:
        try:
            report = building.build(network, Path(folder) / "network.lp", args=tuple(args), target=target, packs=packs)
        except LayerportError as error:
            raise FoundFaultError(
                f"{case.id}: a network with two of it does not build for {target}: {error.fault}",
                error.repair or "see what its plugin gives",
                faults=error.faults,
            ) from error
    if report.verification is not None and not report.verification.passed:
        raise FoundFaultError(
            f"{case.id}: a network with two of it gives something else than Torch",
            "see `layerport verify` on a model of your own, which names the output",
        )
    own = [one for one in report.layers if one.layer == subject.layer.name]
    if len(own) != 2:
        raise FoundFaultError(
            f"{case.id}: of two instances in a network {len(own)} are in the exported model",
            "make the reference depend on its inputs",
        )
    if target == _TARGET and (lost := [one for one in own if one.realised != "plugin"]):
        raise FoundFaultError(
            f"{case.id}: in a network it is {lost[0].realised}, no plugin: {lost[0].reason}",
            "let a kernel take these dtypes and sizes",
        )


def _used(tensor: torch.Tensor) -> torch.Tensor:
    return torch.logical_not(tensor) if tensor.dtype == torch.bool else tensor + tensor


def _as_tuple(value: Any) -> tuple[torch.Tensor, ...]:
    return (value,) if isinstance(value, torch.Tensor) else tuple(value)
