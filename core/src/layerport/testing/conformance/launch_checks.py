"""What must hold of a layer's launch rules at every shape of its case, also at those that only a GPU runs.

The rules are evaluated and nothing is launched.
"""

from __future__ import annotations

import numpy as np
import torch

from layerport.dtypes import DType
from layerport.errors import UsageError
from layerport.foreign import torch_private
from layerport.kernels.choice import Candidate, candidates
from layerport.kernels.compilation import Compilation, build_kernels
from layerport.kernels.cubin import Cubin
from layerport.kernels.launch_rules import Geometry, LaunchRule, ScalarArg, fits, resource_faults
from layerport.kernels.tracing import trace
from layerport.kernels.workspace import lay_out
from layerport.parameters.frameworks.torch_dtypes import from_dtype, to_dtype
from layerport.parameters.standard_form import Parameters
from layerport.sizes.expressions import Expr
from layerport.sizes.tensors import TensorType, renamed, sizes_of
from layerport.targets import Target
from layerport.testing.cases import Case, DTypeChoice
from layerport.testing.conformance.records import FoundFaultError, NotApplicableError
from layerport.testing.conformance.subjects import Subject, run_reference
from layerport.testing.host_outputs import greatest_sizes

_ARCHITECTURE = "sm_89"
_TARGET = Target("rtx", (_ARCHITECTURE,))
_INT = 4


def check_launches(subject: Subject, choice: DTypeChoice) -> None:
    """Every launch is within CUDA's limits, and its numbers fit the kernel's parameters."""
    layer = subject.layer
    if not layer.kernels:
        raise NotApplicableError("it has no kernel")
    launched = False
    params = {argument.name for argument in layer.signature.params}
    for case in subject.every(choice):
        if any(0 in (case.shape.shapes.get(name) or ()) for name in params):
            continue  # no model has such a parameter, and no plugin
        tensors = _tensors(subject, case)
        attributes = subject.attributes(case)
        faults = []
        for one in candidates(layer, tensors, attributes):
            if isinstance(one, Candidate):
                launched = True
                faults += [f"kernel {one.kernel.name}: {fault}" for fault in _faults(subject, case, one, tensors)]
        if faults:
            raise FoundFaultError(
                f"{case.id}: it cannot be launched with {_shown(tensors)}",
                "correct the launch rule, or keep the kernel from such sizes with when=",
                faults=faults,
            )
    if not launched:
        raise NotApplicableError(f"no kernel takes {choice}")


def _faults(subject: Subject, case: Case, one: Candidate, tensors: dict[str, TensorType | None]) -> list[str]:
    layer, kernel = subject.layer, one.kernel
    attributes = subject.attributes(case)
    sizes = sizes_of({name: tensor.resolve({}) for name, tensor in tensors.items() if tensor is not None})
    fixed = {argument.name for argument in layer.signature.params}
    traced = {
        name: tensor
        if tensor is None or name in fixed or not kernel.in_cuda
        else TensorType.symbolic(name, tensor.dtype, tensor.ndim)
        for name, tensor in tensors.items()
    }
    traced = kernel.pinned(layer.signature, traced, tensors)
    launches = trace(kernel, layer.signature, traced, attributes, layer=layer.name).launches
    try:
        geometries = launches.resolve(sizes)
        lay_out(launches.scratch, sizes)
    except UsageError as error:
        return list(error.faults or (error.fault,))
    if not any(geometries):
        outputs = [tensors[name] for name in layer.signature.output_names]
        if any(output is not None and 0 not in output.resolve({}) for output in outputs):
            return ["its grid is empty, but the outputs are not"]
        return []
    if not kernel.in_cuda and all(map(_narrow, launches.rules, geometries)):
        return []
    compilation = Compilation(kernel, layer.signature, one.dtypes, attributes, _ARCHITECTURE, layer.name, traced)
    (built,) = build_kernels([compilation])
    faults = []
    for step, rule, geometry in zip(built.steps, launches.rules, geometries, strict=True):
        if geometry is not None:
            faults += _beyond(step.cubin, rule, geometry)
    return faults


def _beyond(cubin: Cubin, rule: LaunchRule, geometry: Geometry) -> list[str]:
    """What one launch asks beyond its compiled kernel."""
    block = geometry.block
    faults = resource_faults(cubin, block[0] * block[1] * block[2], geometry.shared)
    for place, (arg, value) in enumerate(zip(rule.args, geometry.values, strict=True)):
        size = cubin.parameter_sizes[place]
        if isinstance(arg, ScalarArg) and isinstance(arg.value, Expr) and not fits(int(value or 0), size):
            faults.append(f"argument {place} is {arg.value} = {value}, which its parameter of {size} bytes cannot hold")
    return faults


def _narrow(rule: LaunchRule, geometry: Geometry | None) -> bool:
    """Whether every whole number of a launch fits the least that a kernel declares."""
    return geometry is None or all(
        not isinstance(arg, ScalarArg) or arg.kind != "int" or fits(int(value or 0), _INT)
        for arg, value in zip(rule.args, geometry.values, strict=True)
    )


def _tensors(subject: Subject, case: Case) -> dict[str, TensorType | None]:
    """What the kernels see, with numbers for all sizes, those that depend on data at their greatest.

    No tensor is made but the parameters, whose conversion decides their types; they hold ones.
    """
    layer = subject.layer
    params = {argument.name for argument in layer.signature.params}
    tensors: dict[str, TensorType | None] = {}
    for name, sizes in case.shape.shapes.items():
        tensors[name] = None if sizes is None else TensorType(name, case.dtype_of(name), tuple(sizes))
    ones = {
        name: np.ones(tensor.resolve({}), tensor.dtype.to_numpy())
        for name, tensor in tensors.items()
        if name in params and tensor is not None
    }
    standard = Parameters(ones, subject.attributes(case))
    for name, array in subject.packs.convert_parameters(layer, standard, _TARGET, path=case.id).items():
        tensors[name] = TensorType(name, DType.from_numpy(array.dtype), tuple(map(int, array.shape)))
    return tensors | (_known_outputs(subject, case) or _ruled_outputs(subject, case))


def _known_outputs(subject: Subject, case: Case) -> dict[str, TensorType | None] | None:
    """The outputs by the reference on tensors without memory; None where their sizes depend on data.

    A derivation costs twenty times as much, and each size of a parameter has one of its own.
    """
    if subject.layer.shapes_override is not None:
        return None
    with torch_private.FakeTensorMode():
        tensors = {
            name: None if sizes is None else torch.empty(sizes, dtype=from_dtype(case.dtype_of(name)))
            for name, sizes in case.shape.shapes.items()
        }
        try:
            outputs = run_reference(subject.layer, case.arguments(tensors))
        except Exception:  # it asks for data, or mixes these with other tensors: the output rule says it
            return None
    names = subject.layer.signature.output_names
    return {
        name: TensorType(name, to_dtype(one.dtype), tuple(map(int, one.shape)))
        for name, one in zip(names, outputs, strict=True)
    }


def _ruled_outputs(subject: Subject, case: Case) -> dict[str, TensorType | None]:
    """The outputs by their rule, those sizes that depend on data at their greatest."""
    _, derivation = subject.derivation(case)
    known = sizes_of({name: sizes for name, sizes in case.shape.shapes.items() if sizes is not None})
    known |= greatest_sizes(subject.layer, derivation, known)
    tensors: dict[str, TensorType | None] = {}
    for output in renamed(derivation.outputs, subject.layer.signature.output_names):
        tensors[output.name] = TensorType(output.name, output.dtype, output.resolve(known))
    for size in derivation.size_symbols:
        tensors[size.name] = TensorType(size.name, DType.INT64, ())
    return tensors


def _shown(tensors: dict[str, TensorType | None]) -> str:
    return ", ".join(f"{name} {list(one.resolve({}))}" for name, one in tensors.items() if one is not None)
