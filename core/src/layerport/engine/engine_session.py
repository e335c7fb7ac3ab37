"""An engine that runs: the plan of a bundle on a GPU, behind the interface that `Session` runs anything through.

Imported by `session` where an engine fits, and by `bench`.  It loads TensorRT and the CUDA driver's bindings, and
neither torch nor a pack nor a compiler.  Tests run it against doubles of both; no GPU has run it yet.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from layerport.bundle.bundle import Bundle
from layerport.engine import creators, flavours, images
from layerport.engine.device_arrays import DeviceArray, DeviceTensor, placement_faults, read_device_tensor
from layerport.engine.gpu import Gpu
from layerport.engine.lanes import Key, Lane, Parts, Pool, Result
from layerport.engine.plans import Plan, plan_for
from layerport.engine.runtime_cache import RuntimeCache
from layerport.errors import BuildError, UsageError
from layerport.parameters.conversion import to_standard
from layerport.parameters.frameworks.tensorrt_dtypes import to_dtype
from layerport.sizes.tensors import TensorType

_LOG_LIMIT = 200
_loggers: dict[str, Any] = {}


def open_engine(bundle: Bundle, *, gpu: int = 0, cuda_graph: bool = False, contexts: int = 2) -> EngineRunner:
    """The engine of a bundle on the GPU of this number.

    Raises LayerportError that says why none runs here: no engine, no driver, no fitting plan, a missing pack, or what
    TensorRT said.  Damage of the plan's file is a `DamagedFile`.
    """
    bundle.require_engine()
    device = Gpu(number=gpu)
    plan = plan_for(bundle, device.architecture)
    data = bundle.read(plan.file)
    return EngineRunner(bundle, plan, data, device, cuda_graph=cuda_graph, contexts=contexts)


class EngineRunner:
    """A deserialised plan with a pool of execution contexts; several threads may run it at once.

    Inputs are NumPy arrays, or tensors in GPU memory that are bound where they lie.  Outputs are NumPy arrays where
    every input is in host memory; else Torch tensors where an input is one on the GPU, and `DeviceArray` otherwise.
    trt: TensorRT's module; the flavour's own where None.  Raises BuildError with what TensorRT said.
    """

    on_gpu = True

    def __init__(
        self,
        bundle: Bundle,
        plan: Plan,
        data: bytes | bytearray,
        gpu: Gpu,
        *,
        cuda_graph: bool = False,
        contexts: int = 2,
        trt: Any = None,
    ) -> None:
        if contexts < 1:
            raise UsageError(f"a session needs at least 1 context, got {contexts}", "leave contexts out")
        self.precision_note: str | None = None
        self.gpu = gpu
        self._bundle, self.plan = bundle, plan
        self._trt = flavours.load(plan.flavour) if trt is None else trt
        self._log = _logger(self._trt)
        self._runtime: Any = None
        self._engine: Any = None
        self._images: list[images.Image] = []
        self._pool: Pool | None = None
        self._cache: RuntimeCache | None = None
        self._making = threading.Lock()
        self._creators = creators.acquire(self._trt, plan.layers, plan.classes)
        try:
            with gpu.current():
                self._engine = self._deserialise(data)
            if hasattr(self._trt, "IRuntimeCache"):  # only rtx compiles when it runs
                self._cache = RuntimeCache(gpu, data, plan.version)
            self._parts = self._describe(cuda_graph)
            self._pool = Pool(lambda: Lane(self._parts), contexts)
        except BaseException:
            self.close()
            raise
        self.description = (
            f"{flavours.FLAVOURS[plan.flavour].distribution} {plan.version} runs {plan.file} "
            f"on GPU {gpu.number} ({gpu.name}, {gpu.architecture})" + (", with CUDA graphs" if cuda_graph else "")
        )

    def read(self, name: str, value: Any) -> Any:
        """A value as it can be bound: where it lies in GPU memory, or as a NumPy array."""
        tensor = read_device_tensor(value, path=name)
        if tensor is not None:
            return tensor

        return to_standard(value, path=name).array

    def faults(self, tensors: Mapping[str, Any]) -> list[str]:
        """Why these tensors cannot be bound: where they lie, or shapes that no profile of the plan takes."""
        with self.gpu.current():
            faults = [
                fault
                for name, tensor in tensors.items()
                if isinstance(tensor, DeviceTensor)
                for fault in placement_faults(name, tensor, self.gpu)
            ]
        if not faults and self._profile(self._shapes(tensors)) is None:
            faults = [self._no_profile(self._shapes(tensors))]
        return faults

    def run(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs by name, complete when it returns.  tensors: what `read` gave, without `faults`."""
        pool = self._pool
        if pool is None:
            raise UsageError("the session is closed", "open it again with layerport.load")
        shapes = self._shapes(tensors)
        profile = self._profile(shapes)
        if profile is None:
            raise UsageError(self._no_profile(shapes), "build the bundle with wider --range")
        key: Key = (profile, tuple(shapes.values()))
        inputs = {one.name: tensors[one.name] for one in self._parts.inputs}
        like = next((one for one in inputs.values() if isinstance(one, DeviceTensor)), None)
        with pool.lane(key) as lane:
            return lane.run(key, inputs, lambda one, shape: self._place(one, shape, like))

    def to_device(self, array: np.ndarray[Any, Any]) -> DeviceArray:
        """A copy of an array in GPU memory, to give to `Session.run` as often as wanted."""
        source = np.asarray(array, order="C")
        with self.gpu.current():
            target = DeviceArray(self.gpu, source.dtype, source.shape)
            stream = self.gpu.stream()
            try:
                self.gpu.copy_in(target.address, source.ctypes.data, source.nbytes, stream)
                self.gpu.synchronize(stream)
            finally:
                self.gpu.destroy_stream(stream)
        return target

    def close(self) -> None:
        """Wait for runs that are at work, then give everything back; closing twice is fine.

        Outputs that the caller holds stay valid.
        """
        pool, self._pool = self._pool, None
        try:
            if pool is not None:
                pool.close()
            if self._runtime is not None:
                # TensorRT frees memory and code of the GPU whose context is current.
                with self.gpu.current():
                    if self._cache is not None:
                        self._cache.close()
                    # In this order: an engine may outlive neither its runtime nor the creators of its plugins.
                    self._engine = None
                    self._runtime = None
        finally:
            self._engine = self._runtime = self._cache = None
            self._images = []
            taken, self._creators = self._creators, []
            creators.release(self._trt, taken)
            self.gpu.close()

    def _deserialise(self, data: bytes | bytearray) -> Any:
        trt, mark = self._trt, self._log.mark()
        runtime = trt.Runtime(self._log)
        if runtime.engine_host_code_allowed:
            runtime.engine_host_code_allowed = False
        self._runtime = runtime
        with images.reading() as self._images:
            engine = runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise self._failure(f"TensorRT cannot open {self.plan.file}", mark)
        return engine

    def _failure(self, what: str, mark: int) -> BuildError:
        raised = creators.failures(self._trt, self._creators)
        faults = [*(f"{type(one).__name__}: {one}" for one in raised), *self._log.since(mark)]
        error = BuildError(
            what,
            "see `layerport doctor`; a plan is for the version of TensorRT and the GPUs that the manifest names",
            faults=list(dict.fromkeys(faults))[:10],
        )
        error.__cause__ = raised[0] if raised else None
        return error

    def _describe(self, cuda_graph: bool) -> Parts:
        """What the engine takes and gives, checked against the manifest."""
        trt, engine = self._trt, self._engine
        ports = {port.name: ("input", port) for port in self._bundle.inputs}
        ports |= {port.name: ("output", port) for port in self._bundle.outputs}
        found: dict[str, list[TensorType]] = {"INPUT": [], "OUTPUT": []}
        on_host: list[str] = []
        faults = []
        for place in range(engine.num_io_tensors):
            name = engine.get_tensor_name(place)
            mode = engine.get_tensor_mode(name).name
            dtype = to_dtype(engine.get_tensor_dtype(name))
            kind, port = ports.get(name, ("", None))
            if port is None or kind != mode.lower() or port.dtype is not dtype:
                stated = f"{kind} {port}" if port else "nothing"
                faults.append(f"the plan has the {mode.lower()} {name}: {dtype}, the manifest says {stated}")
            elif engine.get_tensor_format(name) != trt.TensorFormat.LINEAR:
                faults.append(f"{name} is in the format {engine.get_tensor_format(name).name}, not LINEAR")
            if engine.get_tensor_location(name) == trt.TensorLocation.HOST:
                on_host.append(name)
            found[mode].append(port or TensorType(name, dtype, ()))
        lacking = {port.name for port in self._bundle.outputs} - {one.name for one in found["OUTPUT"]}
        faults += [f"the plan has no output {name}" for name in sorted(lacking)]
        faults += [f"output {one.name} is in host memory" for one in found["OUTPUT"] if one.name in on_host]
        if faults:
            raise BuildError(
                f"{self.plan.file} does not belong to the manifest of {self._bundle.folder}",
                "build the bundle again",
                faults=faults,
            )
        self._profiles = [
            [tuple(tuple(dims) for dims in engine.get_tensor_profile_shape(one.name, number)) for one in found["INPUT"]]
            for number in range(engine.num_optimization_profiles)
        ]
        # A flavour that captures by itself knows best when; for the other one, lanes do it.
        own = cuda_graph and self._cache is not None
        captures = cuda_graph and not own
        return Parts(
            trt,
            self.gpu,
            tuple(found["INPUT"]),
            tuple(found["OUTPUT"]),
            tuple(on_host),
            lambda: self._context(own, captures),
            self._log.mark,
            self._failure,
            stable=cuda_graph,
            captures=captures,
            scratch=max(1, int(engine.device_memory_size_v2)) if captures else 0,
        )

    def _context(self, own_graphs: bool, captures: bool) -> Any:
        """A new execution context; one that is captured from gets the memory to compute in from its lane."""
        trt, engine = self._trt, self._engine
        with self._making:  # TensorRT wants calls of one engine one after the other
            mark = self._log.mark()
            if self._cache is not None:
                runtime_config = engine.create_runtime_config()
                if own_graphs:
                    runtime_config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
                self._cache.use(runtime_config)
                context = engine.create_execution_context(runtime_config)
            elif captures:
                context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
            else:
                context = engine.create_execution_context()
            if context is None:
                raise self._failure("TensorRT cannot make an execution context", mark)
            if self._cache is not None:
                self._cache.save()  # a process that is killed later has compiled this for the next one
        return context

    def _shapes(self, tensors: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        return {one.name: tuple(tensors[one.name].shape) for one in self._parts.inputs}

    def _profile(self, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
        """The number of the first profile that takes these shapes."""
        for number, limits in enumerate(self._profiles):
            if all(
                all(low <= size <= high for low, size, high in zip(least, shape, greatest, strict=True))
                for shape, (least, _, greatest) in zip(shapes.values(), limits, strict=True)
            ):
                return number
        return None

    def _no_profile(self, shapes: Mapping[str, tuple[int, ...]]) -> str:
        given = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        taken = "; ".join(
            f"profile {number} takes "
            + ", ".join(
                f"{name} {list(least)}..{list(greatest)}"
                for name, (least, _, greatest) in zip(shapes, limits, strict=True)
            )
            for number, limits in enumerate(self._profiles)
        )
        return f"{given}: no profile of the plan takes this ({taken})"

    def _place(self, one: TensorType, shape: tuple[int, ...], like: DeviceTensor | None) -> Result:
        if like is None:
            array = np.empty(shape, one.dtype.to_numpy())
            return Result(array, None, array.ctypes.data)
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(like.keep, torch.Tensor):
            value = like.keep.new_empty(shape, dtype=getattr(torch, one.dtype.value))
            # Torch may hand out memory that its own stream is still reading.
            stream = int(torch.cuda.current_stream(value.device).cuda_stream)
            return Result(value, int(value.data_ptr()), None, stream)
        made = DeviceArray(self.gpu, one.dtype.to_numpy(), shape)
        return Result(made, made.address, None)


def _logger(trt: Any) -> Any:
    """The one logger of a TensorRT in this process, which is all that it takes."""
    if trt.__name__ in _loggers:
        return _loggers[trt.__name__]

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._errors: list[str] = []
            self._dropped = 0

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self._errors.append(message)
                if len(self._errors) > _LOG_LIMIT:
                    del self._errors[0]
                    self._dropped += 1

        def mark(self) -> int:
            return self._dropped + len(self._errors)

        def since(self, mark: int) -> list[str]:
            return self._errors[max(0, mark - self._dropped) :]

    logger = _loggers[trt.__name__] = Logger()
    return logger
