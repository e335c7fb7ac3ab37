"""What must hold of a layer's kernels on a GPU, called as Torch calls them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from layerport.errors import UsageError
from layerport.layers.cuda_operator import CudaOperator
from layerport.testing.cases import Case, DTypeChoice
from layerport.testing.conformance.records import FoundFaultError, NotApplicableError
from layerport.testing.conformance.subjects import Subject, elements, is_empty

_TURNS = 20
Tensors = Mapping[str, torch.Tensor | None]


class _NoKernelError(Exception):
    """The kernel that is asked for does not take this case."""


def require_gpu() -> None:
    """Raise UsageError where Torch has no GPU here."""
    if not torch.cuda.is_available():
        raise UsageError("there is no GPU here that Torch can use", "leave out --gpu; `layerport doctor` says why")


def check_gpu_numbers(subject: Subject, choice: DTypeChoice) -> None:
    """Each kernel gives what the reference gives in float64, at every shape, also at those for a GPU only."""
    for case, name, call in _runs(subject, subject.every(choice), choice):
        inputs = case.tensors(device="cuda")
        got = call(*case.arguments(inputs))
        torch.cuda.synchronize()
        _compare(case, got, inputs, f"kernel {name}", "correct the kernel, or a tolerance that is too small")


def check_gpu_streams(subject: Subject, choice: DTypeChoice) -> None:
    """Launches on two streams at once do not disturb each other."""
    for case, name, call in _runs(subject, _largest(subject, choice), choice):
        both = [case.tensors(seed=seed, device="cuda") for seed in (1, 2)]
        streams = [torch.cuda.Stream() for _ in both]
        for inputs in both:
            call(*case.arguments(inputs))  # compiles and converts
        torch.cuda.synchronize()
        outputs: list[Any] = [None, None]
        for _ in range(_TURNS):
            for place, (stream, inputs) in enumerate(zip(streams, both, strict=True)):
                with torch.cuda.stream(stream):
                    outputs[place] = call(*case.arguments(inputs))
        torch.cuda.synchronize()
        for inputs, got in zip(both, outputs, strict=True):
            what, repair = f"kernel {name} on two streams", "keep nothing in __device__ variables between launches"
            _compare(case, got, inputs, what, repair)


def check_gpu_graph(subject: Subject, choice: DTypeChoice) -> None:
    """A captured CUDA graph computes anew from its inputs when it is replayed."""
    if any(kernel.writes_sizes(subject.layer.signature) for kernel in subject.layer.kernels):
        raise NotApplicableError("Torch waits for a size that depends on data, which it cannot while it captures")
    for case, name, call in _runs(subject, _largest(subject, choice), choice):
        inputs = case.tensors(seed=1, device="cuda")
        call(*case.arguments(inputs))
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            got = call(*case.arguments(inputs))
        params = {argument.name for argument in subject.layer.signature.params}
        for key, fresh in case.tensors(seed=2, device="cuda").items():
            held = inputs[key]
            if fresh is not None and held is not None and key not in params:
                held.copy_(fresh)
        graph.replay()
        torch.cuda.synchronize()
        _compare(case, got, inputs, f"kernel {name} in a CUDA graph", "let the launch depend on sizes alone")


def _runs(subject: Subject, cases: list[Case], choice: DTypeChoice) -> list[tuple[Case, str, Callable[..., Any]]]:
    """Each case with each kernel that takes it, and the operator with that kernel alone."""
    layer: Any = subject.layer
    if not layer.kernels:
        raise NotApplicableError("it has no kernel")
    environment = layer._torch.cuda._environment

    def refuse(*_: Any) -> Any:
        raise _NoKernelError

    operators = {kernel.name: CudaOperator(layer, refuse, environment, only=kernel.name) for kernel in layer.kernels}
    found: list[tuple[Case, str, Callable[..., Any]]] = []
    for case in cases:
        arguments = case.arguments(case.tensors(device="cuda"))
        for name, operator in operators.items():
            call = torch.inference_mode()(operator)
            try:
                call(*arguments)
            except _NoKernelError:
                continue
            found.append((case, name, call))
    if not found:
        raise NotApplicableError(f"no kernel takes {choice}")
    return found


def _largest(subject: Subject, choice: DTypeChoice) -> list[Case]:
    """The largest case that a CPU takes too; several launches of the largest of all say no more."""
    return [one for one in subject.cases(choice) if elements(one) and not is_empty(one)][-1:]


def _compare(case: Case, got: Any, inputs: Tensors, what: str, repair: str) -> None:
    outputs = got if isinstance(got, (tuple, list)) else (got,)
    try:
        case.check(tuple(outputs), case.expected(inputs))
    except AssertionError as error:
        raise FoundFaultError(f"{error} ({what})", repair) from error
