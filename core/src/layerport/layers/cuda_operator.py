"""A layer's Torch operator on CUDA tensors: the kernel that fits, on Torch's current stream, else the reference.

All that depends on dtypes and sizes is done once for each combination and kept as a plan; a further call with the same
ones takes the addresses, allocates the outputs and launches.  Tests give it a stand-in for `Cuda` and run the
kernels on the CPU.
"""

from __future__ import annotations

import functools
import operator
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch

from layerport.dtypes import DType
from layerport.errors import BuildError, PackError, UsageError
from layerport.foreign import torch_private
from layerport.kernels.choice import Selection, select
from layerport.kernels.compilation import BuiltKernel, Compilation, build_kernels
from layerport.kernels.declaration import Kernel
from layerport.kernels.launcher import Launcher, require_driver
from layerport.kernels.steps import Steps
from layerport.kernels.tracing import trace
from layerport.layers.binding import Dispatch
from layerport.layers.call_outputs import call_outputs
from layerport.layers.converted import ConvertedParameters
from layerport.layers.launch import Call, LaunchPlan, tensor_arg
from layerport.parameters.conversion import from_standard, to_standard
from layerport.parameters.signature import Attribute, Kind
from layerport.parameters.standard_form import Parameters
from layerport.sizes.expressions import NoNumberYetError
from layerport.sizes.tensors import TensorType
from layerport.targets import TorchTarget

if TYPE_CHECKING:
    from layerport.layers.written import WrittenLayer

_MOST_PLANS = 4096  # of one layer: a model that never repeats a shape must not grow for ever
_NEW: Any = object()
# A pack's hook is watched for what it changes in the whole process, so threads ask one after the other.
_asking = threading.RLock()
# Looked up once: these are in every call.
_Tensor = torch.Tensor
_identity = operator.attrgetter("shape", "dtype", "device")


class Cuda:
    """What the operator asks of Torch's CUDA half and of the driver.  Tests give a stand-in."""

    def __init__(self) -> None:
        self.driver = require_driver()
        # These are in every call.
        self.stream = torch_private.current_stream()
        self.current = torch_private.current_device()
        self.empty = torch_private.empty_strided_cuda()
        self.capturing: Callable[[], bool] = torch.cuda.is_current_stream_capturing
        self._alone = torch.cuda.device_count() == 1
        self._contexts: dict[int, tuple[int, Any]] = {}  # the driver's number of each GPU, and its primary context
        self._entering = threading.Lock()
        self._entered = threading.local()

    def architecture(self, index: int) -> str:
        """The architecture of a GPU as `sm_NN`."""
        return "sm_{}{}".format(*torch.cuda.get_device_capability(index))

    def on(self, index: int) -> AbstractContextManager[Any]:
        """Make a GPU the current one."""
        return torch.cuda.device(index)

    def enter(self, index: int) -> None:
        """Make sure that the CUDA context of this thread is the one of this GPU, which is the current one for Torch.

        A thread that only takes memory from Torch's cache has no context, and one that Torch moved to another GPU may
        still have the one of the GPU before: Torch puts that off until it calls CUDA itself.
        """
        if self._alone and getattr(self._entered, "once", False):
            return
        known = self._contexts.get(index)
        if known is None:
            with self._entering:
                known = self._contexts.get(index)
                if known is None:
                    device = self._call("cuDeviceGet", index)
                    known = self._contexts[index] = (int(device), self._call("cuDevicePrimaryCtxRetain", device))
        # Fails where the thread has no context.
        status, current = self.driver.cuCtxGetDevice()
        if status != self.driver.CUresult.CUDA_SUCCESS or int(current) != known[0]:
            self._call("cuCtxSetCurrent", known[1])
        self._entered.once = True

    def _call(self, name: str, *arguments: Any) -> Any:
        status, *results = getattr(self.driver, name)(*arguments)
        if status != self.driver.CUresult.CUDA_SUCCESS:
            raise BuildError(
                f"{name} failed: {status.name}",
                "see whether earlier work on this GPU failed; a new process starts afresh",
            )
        return results[0] if results else None


cuda: Callable[[], Cuda] = functools.cache(Cuda)


class CudaOperator:
    """The implementation of a layer's operator for CUDA tensors.

    fallback: what runs where no kernel fits.  environment: gives the `Cuda`, when the first kernel is needed.
    only: the name of the one kernel that may run, for checks of each.
    """

    def __init__(
        self,
        layer: WrittenLayer,
        fallback: Callable[..., Any],
        environment: Callable[[], Any] = cuda,
        *,
        only: str | None = None,
    ) -> None:
        self.layer = layer
        self._only = only
        self._fallback = fallback
        self._environment = environment
        arguments = layer.signature.arguments
        self._defaults = layer.signature.defaults
        self._tensors = [(place, one.name) for place, one in enumerate(arguments) if one.kind is not Kind.ATTRIBUTE]
        self._attributes = [(place, one) for place, one in enumerate(arguments) if one.kind is Kind.ATTRIBUTE]
        self._params = [(place, one.name) for place, one in enumerate(arguments) if one.kind is Kind.PARAM]
        self._plans: dict[Any, LaunchPlan | None] = {}  # None: the reference
        self._steps: dict[Any, Steps] = {}
        self._need_numbers: set[Kernel] = set()
        self._converts: bool | None = None if self._params else False
        self._converted: ConvertedParameters | None = None  # where a pack converts

    def __call__(self, *args: Any) -> Any:
        given = args
        if len(args) < len(self._defaults):  # the dispatcher leaves away trailing arguments that have their default
            args = args + self._defaults[len(args) :]
        if self._converts is not False:
            args = self._convert(args)
        key = tuple(
            [
                _identity(one) if isinstance(one, _Tensor) else tuple(one) if isinstance(one, list) else one
                for one in args
            ]
        )
        plan = self._plans.get(key, _NEW)
        if plan is _NEW:
            plan = self._plan(given, args)
            if len(self._plans) >= _MOST_PLANS:
                self._plans.clear()
            self._plans[key] = plan
        return self._fallback(*given) if plan is None else plan(args)

    def explain(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Dispatch:
        """As `dispatch.explain_dispatch`."""
        given = tuple(self.layer.signature.bind(args, kwargs, layer=self.layer.name).values())
        device = self._device(given)
        args = given
        if device.type == "cuda" and self._converts is not False:
            args = self._convert(given)
        call, fault = self._call(given, args)
        chosen = self._select(call) if call is not None else Selection(None, {}, (fault,))
        name = chosen.kernel.name if chosen.kernel is not None else None
        if device.type == "cuda":
            return Dispatch(self.layer.name, str(device), name, chosen.reasons)
        there = f"on a GPU it would be kernel {name}" if name else "on a GPU it would be the reference as well"
        reasons = (f"kernels run on CUDA tensors only; {there}", *chosen.reasons)
        return Dispatch(self.layer.name, str(device), None, reasons)

    def compile(self, architecture: str, *args: Any) -> BuiltKernel | None:
        """Compile the kernel that a call with such tensors (of device "meta", say) runs on a GPU; None for none.

        It is in the disk cache then, where a machine with that GPU finds it.  Parameters are taken as they are.
        """
        padded = args + self._defaults[len(args) :]
        call, _ = self._call(padded, padded)
        chosen = self._select(call) if call is not None else None
        if call is None or chosen is None or chosen.kernel is None:
            return None
        kernel = chosen.kernel
        return self._build(kernel, chosen.dtypes, call.attributes, architecture, self._traced(kernel, call))

    def _device(self, args: Sequence[Any]) -> torch.device:
        """The one device of the call.  Raises UsageError where there are several."""
        devices = {name: args[place].device for place, name in self._tensors if isinstance(args[place], torch.Tensor)}
        if len(set(devices.values())) > 1:
            raise UsageError(
                f"layer {self.layer.name}: its tensors are on different devices",
                "move them to one, with .to(device)",
                faults=[f"{name} is on {device}" for name, device in devices.items()],
            )
        return next(iter(devices.values()), torch.device("cpu"))

    def _plan(self, given: Sequence[Any], args: Sequence[Any]) -> LaunchPlan | None:
        padded = tuple(given) + self._defaults[len(given) :]
        index = self._device(padded).index or 0
        call, _ = self._call(padded, args)
        chosen = self._select(call) if call is not None else None
        if call is None or chosen is None or chosen.kernel is None:
            return None
        environment = self._environment()
        steps = self._loaded(chosen.kernel, chosen.dtypes, call, environment, index)
        return LaunchPlan(self._tensors, steps, call, environment, index, layer=self.layer.name)

    def _call(self, given: Sequence[Any], args: Sequence[Any]) -> tuple[Call | None, str]:
        """What rules and predicates see of a call; or None and why the reference does not tell the outputs' sizes.

        given: the arguments of the call, which the reference takes; args: the same with converted parameters.
        """
        signature = self.layer.signature
        values = {one.name: value for one, value in zip(signature.arguments, given, strict=True)}
        try:
            outputs = call_outputs(self.layer, values)
            tensors = {name: tensor_arg(name, args[place]) for place, name in self._tensors} | outputs.written()
        except Exception as error:
            return None, f"its reference does not say what it returns here: {type(error).__name__}: {error}"
        attributes = signature.bind_attributes(
            {one.name: given[place] for place, one in self._attributes}, path=self.layer.name
        )
        return Call(tensors, attributes, outputs), ""

    def _select(self, call: Call) -> Selection:
        return select(self.layer, call.tensors, call.attributes, only=self._only)

    def _loaded(self, kernel: Kernel, dtypes: Mapping[str, DType], call: Call, environment: Any, index: int) -> Steps:
        """The kernel, loaded."""
        architecture = environment.architecture(index)
        tensors = self._traced(kernel, call)
        sizes = tuple(one and (one.dtype, *map(str, one.shape)) for one in tensors.values())
        key = (id(kernel), sizes, tuple(map(_hashable, call.attributes.values())), architecture)
        found = self._steps.get(key)
        if found is None:
            self._refuse_capture(environment, index, f"kernel {kernel.name} is not compiled and loaded yet")
            built = self._build(kernel, dtypes, call.attributes, architecture, tensors)
            label = f"layer {self.layer.name}, kernel {kernel.name}"
            driver = environment.driver
            launchers = [
                Launcher(one.cubin.image, one.cubin.symbol, one.rule, label=label, driver=driver) for one in built.steps
            ]
            found = self._steps[key] = Steps(launchers, built.scratch)
        return found

    def _refuse_capture(self, environment: Any, index: int, why: str) -> None:
        """Raise UsageError while a CUDA graph is captured, which nothing may be loaded, copied or waited for in."""
        with environment.on(index):
            if environment.capturing():
                raise UsageError(
                    f"layer {self.layer.name} is called while a CUDA graph is captured, and {why}",
                    "call it once before with tensors of the same dtypes and shapes, then capture",
                )

    def _traced(self, kernel: Kernel, call: Call) -> Mapping[str, TensorType | None]:
        """What a launch rule is made of: it serves all sizes, unless it needs numbers.

        It does for Triton, where sizes decide the constants, and where it takes a root or a quotient of a size.
        """
        if not kernel.in_cuda or kernel in self._need_numbers:
            return call.tensors
        fixed = {name for _, name in self._params}
        every = {
            name: one if one is None or name in fixed else TensorType.symbolic(name, one.dtype, one.ndim)
            for name, one in call.tensors.items()
        }
        symbolic = kernel.pinned(self.layer.signature, every, call.tensors)
        try:
            trace(kernel, self.layer.signature, symbolic, call.attributes, layer=self.layer.name)
        except PackError as error:
            if not isinstance(error.__cause__, NoNumberYetError):
                raise
            self._need_numbers.add(kernel)
            return call.tensors
        return symbolic

    def _build(
        self,
        kernel: Kernel,
        dtypes: Mapping[str, DType],
        attributes: Mapping[str, Attribute],
        architecture: str,
        tensors: Mapping[str, TensorType | None],
    ) -> BuiltKernel:
        (built,) = build_kernels(
            [Compilation(kernel, self.layer.signature, dtypes, attributes, architecture, self.layer.name, tensors)]
        )
        return built

    def _convert(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments with the parameters as the kernel wants them, converted once for each state of a parameter."""
        if self._converts is None:
            converts = self._has_conversion()
            if converts:
                params, attributes = ([place for place, _ in those] for those in (self._params, self._attributes))
                self._converted = ConvertedParameters(params, attributes)
            self._converts = converts  # last: another thread that sees it must see the other too
        if self._converted is None:
            return args
        given = self._converted.get(args, lambda: self._ask_pack(args))
        if not given:
            return args
        replaced = list(args)
        for place, tensor in given.items():
            replaced[place] = tensor
        return tuple(replaced)

    def _has_conversion(self) -> bool:
        return self.layer.converter is not None and self.layer.converter.has_conversion(self.layer)

    def _ask_pack(self, args: Sequence[Any]) -> dict[int, torch.Tensor]:
        """The parameters that the layer's pack changes, by place."""
        present = [(place, name) for place, name in self._params if args[place] is not None]
        device = args[present[0][0]].device
        self._refuse_capture(self._environment(), device.index or 0, "its parameters are not converted yet")
        standard = {name: to_standard(args[place].detach(), path=name).array for place, name in present}
        attributes = self.layer.signature.bind_attributes(
            {one.name: args[place] for place, one in self._attributes}, path=self.layer.name
        )
        parameters = Parameters(standard, attributes)
        target = TorchTarget(self._environment().architecture(device.index or 0))
        assert self.layer.converter is not None
        with _asking:
            answer = self.layer.converter.convert(self.layer, parameters, target)
        return {
            place: from_standard(answer[name], "torch").to(device)
            for place, name in present
            if answer[name] is not parameters[name]
        }


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
