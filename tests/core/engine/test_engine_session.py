"""Engines in sessions, against doubles: a driver whose memory is host memory, and a runtime that computes in Python.

See `gpu_doubles` for what they check.  Real here are the session, TensorRT's Python module but for its runtime (enums,
logger, registry, output allocator), the bundle and its portable model.  That a GPU does the same only a GPU can show.
"""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

import layerport as lp
from gpu_doubles import CudaArray, FakeContext, FakeEngine, HostDriver, tensorrt_double
from layerport.bundle.bundle import Bundle
from layerport.engine import creators, engine_session, flavours
from layerport.engine.device_arrays import DeviceArray
from layerport.engine.engine_session import EngineRunner
from layerport.engine.gpu import Gpu
from layerport.engine.plans import Plan
from layerport.errors import BuildError, UsageError
from layerport.session.portable_runner import PortableRunner
from layerport.sizes.dims import port
from small_models import sample
from small_setup import Built

FLOAT = np.dtype(np.float32)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> HostDriver:
    double = HostDriver()
    monkeypatch.setattr("layerport.engine.gpu.require_driver", lambda: double)
    return double


class Opened:
    """A session on the doubles, with what is behind it."""

    def __init__(self, session: lp.Session, trt: Any, driver: HostDriver) -> None:
        self.session, self.trt, self.driver = session, trt, driver

    @property
    def engine(self) -> FakeEngine:
        engine: FakeEngine = self.trt.engine
        return engine


@pytest.fixture
def opened(
    engine_bundle: Built, driver: HostDriver, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Opened]]:
    """Open the small net's bundle with a double of its engine, which computes by the portable model."""
    portable = PortableRunner(Bundle.open(engine_bundle.path), "as a reference")
    made: list[Opened] = []

    def make(*, own_graphs: bool = True, changes: dict[str, Any] | None = None, **options: Any) -> Opened:
        values: dict[str, Any] = {
            "inputs": {"x": FLOAT},
            "outputs": {"output": FLOAT},
            "profiles": [{"x": [[1, 16], [3, 16], [64, 16]]}],
            "compute": portable.run,
            "shapes": lambda shapes: {"output": shapes["x"]},
            **(changes or {}),
        }
        trt = tensorrt_double(lambda module: FakeEngine(driver, module, **values), own_graphs=own_graphs)
        monkeypatch.setattr(flavours, "load", lambda name: trt)
        one = Opened(lp.load(engine_bundle.path, **{"device": "cuda", **options}), trt, driver)
        made.append(one)
        return one

    yield make
    for one in made:
        one.session.close()
    portable.close()


def expected(bundle: Built, x: Any) -> np.ndarray[Any, Any]:
    with lp.load(bundle.path, device="cpu") as session:
        return session(x=x)["output"]


def test_it_says_what_runs_and_gives_numpy_for_numpy(engine_bundle: Built, opened: Callable[..., Opened]) -> None:
    one = opened()
    version = flavours.version_of("rtx")
    assert one.session.why == f"tensorrt_rtx {version} runs rtx-sm_89.plan on GPU 0 (Double GPU, sm_89)"
    assert one.session.precision_note is None
    for rows in (1, 5, 64, 5):
        x = sample(rows, seed=rows)
        for value in (x, x.numpy(), x.numpy()[:, ::-1][:, ::-1]):
            got = one.session(x=value)["output"]
            assert type(got) is np.ndarray
            np.testing.assert_array_equal(got, expected(engine_bundle, x))
    assert lp.verify(one.session).passed
    assert lp.verify(one.session).device == one.session.why


def test_it_reads_memory_of_the_gpu_where_it_lies_and_leaves_the_outputs_there(
    engine_bundle: Built, opened: Callable[..., Opened]
) -> None:
    one = opened()
    x = sample(4).numpy()
    value = CudaArray(one.driver, x)
    one.driver.calls.clear()
    got = one.session(x=value)["output"]
    assert one.driver.calls == []  # no copy, and a producer without a stream is not waited for
    assert one.engine.contexts[0].addresses["x"] == value.address
    assert one.engine.contexts[0].addresses["output"] == got.address == got.__cuda_array_interface__["data"][0]
    assert got.__cuda_array_interface__["typestr"] == "<f4" and got.__cuda_array_interface__["shape"] == (4, 16)
    np.testing.assert_array_equal(got.numpy(), expected(engine_bundle, x))
    assert repr(got).startswith("DeviceArray(float32[4, 16] at 0x")
    again = one.session(x=got)["output"]  # what it gives it takes
    np.testing.assert_array_equal(again.numpy(), expected(engine_bundle, got.numpy()))


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn"])
def test_dtypes_that_the_array_interface_cannot_name_go_round(
    driver: HostDriver, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several steps on the GPU, the output of one being the input of the next, as a decoder does."""
    dtype = np.dtype(getattr(ml_dtypes, name))
    trt = tensorrt_double(
        lambda module: FakeEngine(
            driver,
            module,
            inputs={"x": dtype},
            outputs={"output": dtype},
            profiles=[{"x": [[1, 16], [3, 16], [64, 16]]}],
            compute=lambda arrays: {"output": (arrays["x"].astype(np.float32) * 2).astype(dtype)},
            shapes=lambda shapes: {"output": shapes["x"]},
        )
    )
    bundle = SimpleNamespace(
        inputs=(port("x", name, ("rows", 16)),), outputs=(port("output", name, ("rows", 16)),), folder="small.lp"
    )
    plan = Plan("rtx-sm_89.plan", "rtx", ("sm_89",), "1", ())
    runner = EngineRunner(bundle, plan, b"plan", Gpu(driver), trt=trt)  # type: ignore[arg-type]
    try:
        values = (np.arange(48) % 4).reshape(3, 16).astype(dtype)
        output: Any = runner.to_device(values)
        for _ in range(3):
            tensors = {"x": runner.read("x", output)}
            assert runner.faults(tensors) == []
            output = runner.run(tensors)["output"]
            assert isinstance(output, DeviceArray)
        np.testing.assert_array_equal(output.numpy(), (values.astype(np.float32) * 8).astype(dtype))
    finally:
        runner.close()


def test_it_waits_for_the_stream_that_still_writes_an_input(
    engine_bundle: Built, opened: Callable[..., Opened]
) -> None:
    one = opened()
    x = sample(2).numpy()
    value = CudaArray(one.driver, np.zeros_like(x), stream=42)
    one.driver.submit(
        42,
        lambda: np.copyto(
            np.frombuffer(value.memory, np.float32, x.size, value.address - value.memory.ctypes.data).reshape(x.shape),
            x,
        ),
    )
    np.testing.assert_array_equal(one.session(x=value)["output"].numpy(), expected(engine_bundle, x))


class CudaTorch(torch.Tensor):
    """A Torch tensor in the double's GPU memory: on the CPU, but it says otherwise."""

    is_cuda = property(lambda self: True)  # type: ignore[assignment]


def test_a_torch_tensor_whose_memory_holds_other_numbers_is_refused(opened: Callable[..., Opened]) -> None:
    mirrored = torch.zeros(3, 16, dtype=torch.complex64).conj().imag
    assert mirrored.is_neg() and mirrored.dtype is torch.float32
    with pytest.raises(UsageError, match="x: a tensor on cpu that is not plain and dense"):
        opened().session(x=mirrored.as_subclass(CudaTorch))


def test_torch_tensors_on_the_gpu_give_torch_tensors(
    engine_bundle: Built, opened: Callable[..., Opened], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = opened()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: type("Stream", (), {"cuda_stream": 9}))
    x = torch.empty(3 * 16 + 64)
    start = -x.data_ptr() % 16 // 4
    x = x[start : start + 48].reshape(3, 16).copy_(sample(3)).as_subclass(CudaTorch)
    one.driver.adopt((x.data_ptr(), x.numel() * 4))
    got = one.session(x=x)["output"]
    assert type(got) is CudaTorch and got.dtype is torch.float32
    assert one.engine.contexts[0].addresses == {"x": x.data_ptr(), "output": got.data_ptr()}
    np.testing.assert_array_equal(got.as_subclass(torch.Tensor).numpy(), expected(engine_bundle, sample(3)))
    assert one.driver.calls == ["event on 9", "event on 9"]  # the input's stream, and the one that frees memory for it
    with pytest.raises(UsageError) as caught:
        one.session(x=x.t())
    assert caught.value.faults == ("x: axis 1 must be 16, got float32[16, 3]",)


class DlpackOnly:
    """DLPack and nothing else, on the double's GPU: NumPy's own capsule under another device."""

    def __init__(self, driver: HostDriver, array: np.ndarray[Any, Any]) -> None:
        self.kept = CudaArray(driver, array)
        offset = self.kept.address - self.kept.memory.ctypes.data
        self.array = np.frombuffer(self.kept.memory, array.dtype, array.size, offset).reshape(array.shape)
        self.streams: list[int] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, *, stream: int) -> Any:
        self.streams.append(stream)
        return self.array.__dlpack__()


def test_dlpack_on_the_gpu(engine_bundle: Built, opened: Callable[..., Opened]) -> None:
    one = opened()
    value = DlpackOnly(one.driver, sample(6).numpy())
    got = one.session(x=value)["output"]
    np.testing.assert_array_equal(got.numpy(), expected(engine_bundle, sample(6)))
    assert value.streams == [1] and one.driver.calls[:1] == ["event on 1"]
    assert one.engine.contexts[0].addresses["x"] == value.kept.address


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (lambda d: CudaArray(d, np.zeros((2, 16))), "x: expected float32[rows, 16], got float64[2, 16]"),
        (lambda d: CudaArray(d, np.zeros(16, np.float32)), "x: expected float32[rows, 16], got float32[16]"),
        (lambda d: CudaArray(d, np.zeros((65, 16), np.float32)), "x: dim rows must be 1..64, got 65"),
        (
            lambda d: CudaArray(d, np.zeros((2, 16), np.float32), strides=(4, 8)),
            "x: is not contiguous, shape [2, 16] has strides [1, 2]; pass a contiguous copy",
        ),
        (
            lambda d: CudaArray(d, np.zeros((2, 16), np.float32), offset=4),
            "which is no multiple of 16 bytes (a view into a larger tensor?); pass a copy",
        ),
        (lambda d: CudaArray(d, np.zeros((2, 16), np.float32), owner=1), "x: lies in GPU 1 (at 0x"),
        (
            lambda d: CudaArray(d, np.zeros((2, 16), np.float32), data=(4096, False)),
            "x: lies in memory that CUDA does not know (at 0x1000), the engine runs on GPU 0",
        ),
    ],
)
def test_wrong_tensors_run_nothing(opened: Callable[..., Opened], make: Callable[[Any], Any], fault: str) -> None:
    one = opened()
    with pytest.raises(UsageError) as caught:
        one.session(x=make(one.driver))
    assert len(caught.value.faults) == 1 and fault in caught.value.faults[0]
    assert one.engine.contexts == []


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"mask": object()}, "x: a masked array"),
        ({"strides": (64, 3)}, "x: strides (64, 3) cut through elements of float32"),
    ],
)
def test_arrays_that_are_not_plain(opened: Callable[..., Opened], changes: dict[str, Any], fault: str) -> None:
    one = opened()
    with pytest.raises(UsageError) as caught:
        one.session(x=CudaArray(one.driver, np.zeros((2, 16), np.float32), **changes))
    assert caught.value.fault == fault


def test_a_shape_between_the_profiles(opened: Callable[..., Opened]) -> None:
    small, large = [[1, 16], [2, 16], [4, 16]], [[32, 16], [32, 16], [64, 16]]
    one = opened(changes={"profiles": [{"x": small}, {"x": large}]}, contexts=1)
    for rows, profile in ((2, 0), (40, 1), (3, 0)):
        one.session(x=sample(rows))
        assert one.engine.contexts[0].active_optimization_profile == profile
    with pytest.raises(UsageError) as caught:
        one.session(x=sample(8))
    assert caught.value.faults == (
        "x [8, 16]: no profile of the plan takes this "
        "(profile 0 takes x [1, 16]..[4, 16]; profile 1 takes x [32, 16]..[64, 16])",
    )


def test_captured_graphs_are_replayed_and_kept_by_shape(engine_bundle: Built, opened: Callable[..., Opened]) -> None:
    one = opened(own_graphs=False, cuda_graph=True, contexts=2)
    assert one.session.why.endswith(", with CUDA graphs")
    for turn in range(3):
        for seed in range(2):
            x = sample(3, seed=10 * turn + seed)
            value = CudaArray(one.driver, x.numpy())
            np.testing.assert_array_equal(one.session(x=value)["output"].numpy(), expected(engine_bundle, x))
            np.testing.assert_array_equal(one.session(x=x)["output"], expected(engine_bundle, x))
    (context,) = one.engine.contexts
    assert context.runs == 2  # one that ran and one that was captured
    assert one.driver.calls.count("graph") == 11


def test_a_lane_keeps_the_graphs_of_several_shapes(engine_bundle: Built, opened: Callable[..., Opened]) -> None:
    """Each in a context of its own, because a graph is bad as soon as its context is changed; the oldest makes room."""
    one = opened(own_graphs=False, cuda_graph=True, contexts=2)

    def run(rows: int) -> None:
        x = sample(rows, seed=one.driver.calls.count("graph"))
        np.testing.assert_array_equal(one.session(x=x)["output"], expected(engine_bundle, x))

    sizes = (9, 3, 7, 1)  # the largest first: larger buffers end the graphs that know the smaller ones
    for rows in sizes * 3:
        run(rows)
    assert [context.runs for context in one.engine.contexts] == [2, 2, 2, 2]
    assert one.driver.calls.count("graph") == 8
    assert len({context.memory for context in one.engine.contexts}) == 1  # they compute in the same memory
    run(9)
    run(5)
    assert [context.runs for context in one.engine.contexts] == [2, 4, 2, 2]  # 3 was used longest ago
    for rows in (9, 7, 1, 5):
        run(rows)
    assert [context.runs for context in one.engine.contexts] == [2, 4, 2, 2]
    run(64)
    assert one.driver.live()["graphs"] == 1
    for rows in (3, 7, 64):
        run(rows)


def test_a_graph_is_for_the_values_of_inputs_that_hold_shapes(opened: Callable[..., Opened]) -> None:
    """Those are read when work is enqueued, so that a replay would compute with the old ones."""
    changes = {"host": ["x"], "compute": lambda arrays: {"output": arrays["x"] * 2}}
    one = opened(changes=changes, own_graphs=False, cuda_graph=True)
    for turn in range(3):
        for seed in range(3):
            x = sample(3, seed=seed).numpy()
            np.testing.assert_array_equal(one.session(x=x)["output"], x * 2)
            value = CudaArray(one.driver, x)
            np.testing.assert_array_equal(one.session(x=value)["output"].numpy(), x * 2)
        assert sum(context.runs for context in one.engine.contexts) == 6, turn  # each value was captured once


def test_an_idle_lane_is_preferred_to_a_new_context(engine_bundle: Built, opened: Callable[..., Opened]) -> None:
    one = opened(contexts=3)
    for rows in (1, 5, 64, 5, 1):
        np.testing.assert_array_equal(one.session(x=sample(rows))["output"], expected(engine_bundle, sample(rows)))
    assert len(one.engine.contexts) == 1


def test_a_context_is_made_beside_the_runs_of_others(opened: Callable[..., Opened]) -> None:
    """Making one takes seconds where TensorRT compiles; who has a lane runs on, and gives it back, meanwhile."""
    one = opened(contexts=2)
    running, making, go, leave = (threading.Event() for _ in range(4))

    def slow(arrays: dict[str, Any]) -> dict[str, Any]:
        if not running.is_set():
            running.set()
            assert leave.wait(30)
        return {"output": arrays["x"]}

    one.engine.compute = slow
    create = one.engine.create_execution_context

    def waits(config: Any = None) -> Any:
        if one.engine.contexts:
            making.set()
            assert go.wait(30)
        return create(config)

    one.engine.create_execution_context = waits  # type: ignore[method-assign]
    threads = [threading.Thread(target=lambda: one.session(x=sample(2))) for _ in range(2)]
    threads[0].start()
    assert running.wait(30)
    threads[1].start()
    assert making.wait(30)
    leave.set()
    threads[0].join(30)
    assert not threads[0].is_alive()
    one.session(x=sample(3))  # on the lane that came back, while the other one is still being made
    go.set()
    threads[1].join(30)
    assert len(one.engine.contexts) == 2


def test_a_context_that_cannot_be_made_takes_no_place(opened: Callable[..., Opened]) -> None:
    one = opened(contexts=1)
    one.engine.fails["context"] = True
    for _ in range(3):
        with pytest.raises(BuildError, match="cannot make an execution context"):
            one.session(x=sample(2))
    one.engine.fails.clear()
    assert one.session(x=sample(2))["output"].shape == (2, 16)
    one.session.close()


def test_what_rtx_compiled_is_there_at_the_next_start(
    driver: HostDriver, opened: Callable[..., Opened], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LAYERPORT_CACHE_DIR", str(tmp_path))

    def compiled(**fails: Any) -> int:
        one = opened()
        one.engine.fails.update(fails)
        one.session(x=sample(2))
        one.session.close()
        return one.engine.compiled

    assert compiled() == 1
    entries = list((tmp_path / "runtime").rglob("*"))
    assert compiled() == 0 and list((tmp_path / "runtime").rglob("*")) == entries
    assert compiled(cache=True) == 1  # TensorRT refuses it, so it compiles again
    assert compiled() == 0
    (entry,) = (path for path in entries if path.is_file())
    entry.write_bytes(entry.read_bytes()[:-1])
    assert compiled() == 1
    driver.version = 13010
    assert compiled() == 1


def test_what_was_compiled_is_kept_also_where_nobody_closes_the_session(
    opened: Callable[..., Opened], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LAYERPORT_CACHE_DIR", str(tmp_path))
    opened().session(x=sample(2))
    assert [path for path in (tmp_path / "runtime").rglob("*") if path.is_file()]


def test_a_flavour_that_compiles_nothing_keeps_nothing(
    opened: Callable[..., Opened], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LAYERPORT_CACHE_DIR", str(tmp_path))
    one = opened(own_graphs=False)
    one.session(x=sample(2))
    one.session.close()
    assert not (tmp_path / "runtime").exists()


def test_everything_is_given_back_with_its_own_gpu_current(opened: Callable[..., Opened], driver: HostDriver) -> None:
    driver.gpus = 2
    one = opened(device="cuda:1", own_graphs=False, cuda_graph=True)
    one.session(x=sample(2))
    one.engine.contexts.clear()
    one.trt.engine = None
    one.session.close()
    gc.collect()
    assert driver.faults == []
    assert driver.live() == dict.fromkeys(driver.live(), 0)


def test_a_flavour_with_graphs_of_its_own_is_asked_for_them(opened: Callable[..., Opened]) -> None:
    one = opened(cuda_graph=True)
    value = CudaArray(one.driver, sample(3).numpy())
    one.session(x=value)
    one.session(x=value)
    (context,) = one.engine.contexts
    assert context.config.cuda_graph_strategy == one.trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    assert context.addresses["x"] != value.address  # addresses stay the same from call to call
    assert "graph" not in one.driver.calls and context.runs == 2


def test_several_threads_share_an_engine(engine_bundle: Built, opened: Callable[..., Opened]) -> None:
    one = opened(contexts=2)
    wanted = {rows: expected(engine_bundle, sample(rows)) for rows in range(1, 9)}
    faults: list[BaseException] = []
    both = threading.Barrier(8)

    def work(rows: int) -> None:
        try:
            both.wait()
            for _ in range(10):
                np.testing.assert_array_equal(one.session(x=sample(rows))["output"], wanted[rows])
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=work, args=(rows,)) for rows in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert 1 <= len(one.engine.contexts) <= 2


def test_close_gives_everything_back(engine_bundle: Built, opened: Callable[..., Opened]) -> None:
    one = opened(own_graphs=False, cuda_graph=True, contexts=3)
    registry = one.trt.get_plugin_registry()
    assert registry.get_creator("norm", "1", "lp_small") is not None
    kept = one.session(x=CudaArray(one.driver, sample(3).numpy()))["output"]
    one.session(x=sample(9))
    context = weakref.ref(one.engine.contexts[0])
    one.engine.contexts.clear()
    one.trt.engine = None
    one.session.close()
    one.session.close()
    gc.collect()
    assert context() is None
    assert registry.get_creator("norm", "1", "lp_small") is None and creators._held == {}
    assert one.driver.live() == {"memory": 1, "streams": 0, "events": 0, "graphs": 0, "contexts": 1, "pushed": 0}
    np.testing.assert_array_equal(kept.numpy(), expected(engine_bundle, sample(3)))
    with pytest.raises(UsageError, match="is closed"):
        one.session(x=sample(3))
    del kept
    gc.collect()
    assert one.driver.live()["memory"] == 0 and one.driver.live()["contexts"] == 0


def closed_while_inside(session: Any, inside: threading.Event, go: threading.Event) -> Any:
    """The output of a call of another thread, during which the session is closed: that has to wait for it."""
    results: list[Any] = []
    caller = threading.Thread(target=lambda: results.append(session(x=sample(2))["output"]))
    caller.start()
    assert inside.wait(30)
    closer = threading.Thread(target=session.close)
    closer.start()
    closer.join(0.2)
    assert closer.is_alive()
    go.set()
    closer.join(30)
    caller.join(30)
    return results[0]


def test_close_waits_for_a_run_of_another_thread(opened: Callable[..., Opened]) -> None:
    inside, go = threading.Event(), threading.Event()

    def slow(arrays: dict[str, Any]) -> dict[str, Any]:
        inside.set()
        go.wait(30)
        return {"output": arrays["x"]}

    one = opened(changes={"compute": slow})
    np.testing.assert_array_equal(closed_while_inside(one.session, inside, go), sample(2).numpy())


@pytest.mark.parametrize("step", ["read", "faults", "run"])
def test_close_waits_wherever_a_call_is(opened: Callable[..., Opened], step: str) -> None:
    one = opened()
    inside, go = threading.Event(), threading.Event()
    real = getattr(one.session.runner, step)

    def slow(*arguments: Any) -> Any:
        inside.set()
        assert go.wait(30)
        return real(*arguments)

    setattr(one.session.runner, step, slow)
    assert closed_while_inside(one.session, inside, go).shape == (2, 16)
    assert one.driver.live()["contexts"] == 0


def test_sessions_share_creators(opened: Callable[..., Opened]) -> None:
    first, second = opened(), opened()
    registry = second.trt.get_plugin_registry()
    second.session.close()
    first.session(x=sample())
    first.session.close()
    assert registry.get_creator("norm", "1", "lp_small") is None


def test_a_creator_of_a_stranger(driver: HostDriver, opened: Callable[..., Opened]) -> None:
    from layerport.engine.plugin import register_creators

    trt = flavours.load("rtx")
    strangers = register_creators(trt, ["lp_small::norm"], {})
    try:
        with pytest.raises(BuildError) as caught:
            opened()
    finally:
        for one in strangers:
            trt.get_plugin_registry().deregister_creator(one)
    assert "TensorRT has a plugin creator lp_small::norm version 1 already, which is not of a session" in str(
        caught.value
    )
    assert creators._held == {} and driver.live()["contexts"] == 0


def test_a_size_that_depends_on_the_data(opened: Callable[..., Opened]) -> None:
    changes = {
        "compute": lambda arrays: {"output": arrays["x"][arrays["x"][:, 0] > 0]},
        "shapes": lambda shapes: {"output": (-1, 16)},
        "greatest": 64 * 16 * 4,
    }
    one = opened(changes=changes)
    for seed in range(4):
        x = sample(9, seed=seed).numpy()
        np.testing.assert_array_equal(one.session(x=x)["output"], x[x[:, 0] > 0])
        got = one.session(x=CudaArray(one.driver, x))["output"]
        np.testing.assert_array_equal(got.numpy(), x[x[:, 0] > 0])
    none = -np.ones((2, 16), np.float32)
    assert one.session(x=none)["output"].shape == (0, 16)
    graphs = opened(changes=changes, own_graphs=False, cuda_graph=True)
    with pytest.raises(BuildError) as caught:
        graphs.session(x=none)
    assert caught.value.fault == "the size of output output depends on the data, which no CUDA graph can hold"


def test_an_input_that_tensorrt_reads_on_the_host(engine_bundle: Built, opened: Callable[..., Opened]) -> None:
    one = opened(changes={"host": ["x"]})
    x = sample(3)
    np.testing.assert_array_equal(one.session(x=x)["output"], expected(engine_bundle, x))
    got = one.session(x=CudaArray(one.driver, x.numpy()))["output"]
    np.testing.assert_array_equal(got.numpy(), expected(engine_bundle, x))


@pytest.mark.parametrize(
    ("where", "fault"),
    [
        ("execute", "TensorRT cannot run the engine"),
        ("shape", "TensorRT does not take shape [2, 16] for x"),
        ("context", "TensorRT cannot make an execution context"),
    ],
)
def test_what_tensorrt_refuses_later(opened: Callable[..., Opened], where: str, fault: str) -> None:
    one = opened()
    one.engine.fails[where] = True
    with pytest.raises(BuildError) as caught:
        one.session(x=sample(2))
    assert caught.value.fault == fault
    one.engine.fails.clear()
    assert one.session(x=sample(2))["output"].shape == (2, 16)


def test_too_little_memory(opened: Callable[..., Opened]) -> None:
    one = opened()
    one.driver.free_memory = 100
    with pytest.raises(BuildError) as caught:
        one.session(x=sample(2))
    assert caught.value.fault == "cuMemAlloc failed on GPU 0: CUDA_ERROR_OUT_OF_MEMORY"
    assert caught.value.repair == "free GPU memory, or use fewer contexts"


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        (
            {"inputs": {"x": np.dtype(np.float16)}},
            "the plan has the input x: float16, the manifest says input x: float32[rows, 16]",
        ),
        (
            {"inputs": {"y": FLOAT}, "profiles": [{"y": [[1], [1], [1]]}]},
            "the plan has the input y: float32, the manifest says nothing",
        ),
        ({"outputs": {"x2": FLOAT}}, "the plan has no output output"),
        (
            {"inputs": {}, "profiles": [{}], "outputs": {"x": FLOAT}},
            "the plan has the output x: float32, the manifest says input x: ",
        ),
    ],
)
def test_a_plan_of_another_model(opened: Callable[..., Opened], changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(BuildError) as caught:
        opened(changes=changes)
    assert "rtx-sm_89.plan does not belong to the manifest of" in caught.value.fault
    assert any(one.startswith(fault) for one in caught.value.faults)
    assert creators._held == {}


def test_no_context_is_too_few(engine_bundle: Built) -> None:
    with pytest.raises(UsageError) as caught:
        lp.load(engine_bundle.path, contexts=0)
    assert caught.value.fault == "a session needs at least 1 context, got 0"


def test_every_name_that_a_session_asks_of_the_driver_exists() -> None:
    """The doubles must not invent functions; arguments are counted against the real signatures."""
    import inspect

    from cuda.bindings import driver

    for name, function in vars(HostDriver).items():
        if name.startswith("cu") and name[2].isupper():
            taken = len(inspect.signature(function).parameters) - 1
            stated = getattr(driver, name).__doc__.splitlines()[0]
            inside = stated[stated.index("(") + 1 : stated.rindex(")")]
            assert taken == (len(inside.split(",")) if inside else 0), stated
    assert hasattr(driver.CUstreamCaptureMode, "CU_STREAM_CAPTURE_MODE_THREAD_LOCAL")
    assert hasattr(driver.CUpointer_attribute, "CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL")


@pytest.mark.parametrize(("double", "real"), [(FakeEngine, "ICudaEngine"), (FakeContext, "IExecutionContext")])
def test_every_name_that_a_session_asks_of_tensorrt_exists(double: type, real: str) -> None:
    trt = flavours.load("rtx")
    for name in vars(double):
        assert name.startswith("_") or hasattr(getattr(trt, real), name), name
    assert trt.Runtime(trt.Logger()).engine_host_code_allowed is False
    assert hasattr(trt.IRuntimeConfig, "cuda_graph_strategy")


def test_the_gpu_of_a_number(engine_bundle: Built, opened: Callable[..., Opened], driver: HostDriver) -> None:
    driver.gpus = 2
    one = opened(device="cuda:1")
    assert "on GPU 1 (Double GPU, sm_89)" in one.session.why
    x = sample(3, seed=3)
    np.testing.assert_array_equal(one.session(x=x)["output"], expected(engine_bundle, x))


def test_a_gpu_that_is_not_there(opened: Callable[..., Opened]) -> None:
    with pytest.raises(BuildError) as caught:
        opened(device="cuda:3")
    assert "there is no GPU 3" in caught.value.fault
    assert caught.value.repair == "this machine has 1, numbered from 0"
    with pytest.raises(UsageError, match="device 'cuda:x' is not known"):
        opened(device="cuda:x")


def test_the_log_keeps_its_last_errors_and_what_came_since_a_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    class Logger:
        INTERNAL_ERROR, ERROR, WARNING = "internal", "error", "warning"

    trt: Any = SimpleNamespace(__name__="stand_in_for_tensorrt", ILogger=Logger)
    monkeypatch.setattr(engine_session, "_loggers", {})
    log = engine_session._logger(trt)
    assert engine_session._logger(trt) is log and log.since(log.mark()) == []
    log.log("warning", "not kept")
    log.log("internal", "first")
    log.log("error", "second")
    start = log.mark()
    assert start == 2 and log.since(0) == ["first", "second"] and log.since(start) == []
    for number in range(198):
        log.log("error", f"{number}")
    assert log.since(0)[:3] == ["first", "second", "0"] and log.since(start)[0] == "0"
    log.log("error", "one too many")
    assert log.since(0)[0] == "second" and len(log.since(0)) == 200
    assert log.since(start)[0] == "0" and log.since(log.mark() - 1) == ["one too many"]
