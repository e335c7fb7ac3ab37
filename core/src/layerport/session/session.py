"""A loaded bundle that runs: the engine on a GPU where one fits, ONNX Runtime otherwise; never torch or a pack."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import layerport.engine
from layerport.bundle.bundle import Bundle, DamagedFile
from layerport.errors import BuildError, LayerportError, UsageError
from layerport.session.portable_runner import PortableRunner
from layerport.sizes.conditions import first_faults
from layerport.sizes.dims import Sizes

DEVICES = ("auto", "cpu", "cuda")
_NUMBERED = re.compile(r"cuda:(\d{1,3})")


class Runner(Protocol):
    """What runs a bundle.

    on_gpu: whether it is the engine.  description: what runs where, and why.
    precision_note: what its numbers do not show, None where nothing.
    """

    on_gpu: bool
    description: str
    precision_note: str | None

    def read(self, name: str, value: Any) -> Any:
        """An input as this runner takes it, with dtype, shape and ndim.  Raises UsageError."""

    def faults(self, tensors: Mapping[str, Any]) -> list[str]:
        """Why these inputs cannot be used, beyond what the bundle's ports say."""

    def run(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs by name."""

    def close(self) -> None:
        """Give everything back; closing twice is fine."""


def load(path: str | Path, *, device: str = "auto", cuda_graph: bool = False, contexts: int = 2) -> Session:
    """Open a bundle to run it.

    device: "cpu" runs the portable model in ONNX Runtime, "cuda" the engine on GPU 0, "cuda:1" on GPU 1, and "auto" the
    engine where one can run here.
    cuda_graph: replay each shape of the engine as a CUDA graph.  contexts: how many threads may run the engine at once.
    Raises UsageError for a folder that is no bundle, BuildError for a damaged one and where "cuda" cannot be had.
    """
    return Session(Bundle.open(path), device=device, cuda_graph=cuda_graph, contexts=contexts)


class Session:
    """Runs a bundle: its engine on a GPU, or its portable model in ONNX Runtime; `why` says which and why.

    Several threads may use one session.  `close`, or leaving the `with` block, gives everything back.
    exact: ONNX Runtime computes a quantised model as it is written, without fusions that change its numbers; slower.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: str = "auto",
        cuda_graph: bool = False,
        contexts: int = 2,
        exact: bool = False,
    ) -> None:
        if device not in DEVICES and not _NUMBERED.fullmatch(device):
            raise UsageError(f"device {device!r} is not known", f"use one of {', '.join(DEVICES)}, or cuda:1")
        if contexts < 1:
            raise UsageError(f"a session needs at least 1 context, got {contexts}", "leave contexts out")
        self.bundle = bundle
        runner = _runner(bundle, device, cuda_graph, contexts, exact)
        self.on_gpu = runner.on_gpu
        self.why = runner.description
        self.runner: Runner | None = runner
        self._closed = False
        self._calls: Counter[int] = Counter()  # how many calls each thread is in
        self._changed = threading.Condition()

    @property
    def precision_note(self) -> str | None:
        """What the numbers do not show, such as bfloat16's rounding; None where nothing, or where it is closed."""
        runner = self.runner
        return runner.precision_note if runner is not None else None

    def __call__(self, **inputs: Any) -> dict[str, Any]:
        return self.run(inputs)

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs by name for inputs by name, in any array type that the conversions know.

        Outputs are NumPy arrays (ml_dtypes for bfloat16).  On a GPU, inputs in its memory are read where they lie, and
        with one of them the outputs stay there too: as Torch tensors where it is one, otherwise as arrays with DLPack
        and the CUDA array interface.  They are complete when this returns.
        Raises UsageError that lists every missing, unknown, ill-shaped and ill-placed input, before anything runs.
        """
        with self._running() as runner:
            tensors = {name: runner.read(name, value) for name, value in inputs.items()}
            faults = check_inputs(self.bundle, tensors) or runner.faults(tensors)
            if faults:
                raise UsageError(
                    f"{len(faults)} inputs do not fit {self.bundle.folder}",
                    "it takes " + "; ".join(str(port) for port in self.bundle.inputs),
                    faults=faults,
                )
            return runner.run(tensors)

    @contextmanager
    def _running(self) -> Iterator[Runner]:
        """What runs it, for one call, which `close` waits for.  Raises UsageError where the session is closed."""
        thread = threading.get_ident()
        with self._changed:
            self._calls[thread] += 1
        try:
            runner = self.runner
            if self._closed or runner is None:
                raise UsageError(f"the session of {self.bundle.folder} is closed", "open it again with layerport.load")
            yield runner
        finally:
            with self._changed:
                self._calls[thread] -= 1
                if not self._calls[thread]:
                    del self._calls[thread]
                self._changed.notify_all()

    def close(self) -> None:
        """Wait for calls of other threads and give back what the session holds; outputs stay valid.

        Later calls are a UsageError, and so is closing it from within a call, such as in a signal handler that
        interrupts one.  Closing twice is fine.
        """
        with self._changed:
            if threading.get_ident() in self._calls:
                raise UsageError(
                    f"the session of {self.bundle.folder} is closed from within a call of it",
                    "close it when the call has returned",
                )
            self._closed = True
            while self._calls:
                self._changed.wait()
            # Within the lock, so that whoever closes it too returns when it is closed.
            runner, self.runner = self.runner, None
            if runner is not None:
                runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _runner(bundle: Bundle, device: str, cuda_graph: bool, contexts: int, exact: bool) -> Runner:
    """What runs the bundle here."""
    if device == "cpu":
        return PortableRunner(bundle, "device cpu was asked for", exact=exact)
    numbered = _NUMBERED.fullmatch(device)
    try:
        bundle.require_engine()
        layerport.engine.gpu.require_driver()  # where there is none, TensorRT's bindings are not loaded for nothing
        number = int(numbered[1]) if numbered else 0
        return layerport.engine.engine_session.open_engine(bundle, gpu=number, cuda_graph=cuda_graph, contexts=contexts)
    except DamagedFile:
        raise
    except LayerportError as error:
        if device != "auto":
            raise BuildError(
                f"no engine of {bundle.folder} runs here: {error.fault}", error.repair, faults=error.faults
            ) from error
        reason = "; ".join([error.fault, *error.faults])
    return PortableRunner(bundle, f"no engine runs here: {reason}", exact=exact)


def check_inputs(bundle: Bundle, arrays: Mapping[str, Any]) -> list[str]:
    """Every fault of the given arrays against the bundle's inputs and dims."""
    ports = {port.name: port for port in bundle.inputs}
    faults = [f"{name}: missing" for name in ports if name not in arrays]
    faults += [f"{name}: the model has no such input" for name in arrays if name not in ports]
    sizes = Sizes(bundle.dims)
    for name, port in ports.items():
        if name not in arrays:
            continue
        array = arrays[name]
        got = f"{array.dtype.name}{list(array.shape)}"
        if array.dtype.name != port.dtype.value or array.ndim != port.ndim:
            faults.append(f"{name}: expected {port.form}, got {got}")
        else:
            sizes.add(port, array.shape, got)
    known = sizes.values()
    return faults + sizes.faults + first_faults(bundle.conditions, known)
