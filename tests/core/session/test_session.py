"""Sessions: a bundle that runs in ONNX Runtime, and what wrong inputs are told."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import layerport as lp
import layerport.engine
from layerport.bundle.bundle import Bundle
from layerport.errors import UsageError
from layerport.session.portable_runner import PortableRunner
from small_models import net, sample
from small_setup import SMALL, Built, python


def test_it_agrees_with_torch_at_other_sizes(engine_bundle: Built) -> None:
    model, _, _ = net()
    with lp.load(engine_bundle.path) as session:
        for rows in (1, 2, 17, 64):
            x = sample(rows, seed=rows)
            with torch.no_grad():
                want = model(x).numpy()
            np.testing.assert_allclose(session(x=x)["output"], want, rtol=1e-4, atol=1e-5)
            np.testing.assert_array_equal(session.run({"x": x.numpy()})["output"], session(x=x)["output"])


def test_it_loads_neither_torch_nor_tensorrt_nor_a_pack(engine_bundle: Built) -> None:
    """Only running the plugins' kernels needs Torch and the packs."""
    code = (
        "import sys, numpy as np, layerport as lp\n"
        "out = lp.load(sys.argv[1])(x=np.ones((2, 16), np.float32))['output']\n"
        "assert out.shape == (2, 16) and lp.verify(sys.argv[1], kernels=False).passed\n"
        "loaded = {name.partition('.')[0] for name in sys.modules}\n"
        "assert not loaded & {'torch', 'tensorrt', 'tensorrt_rtx', 'onnx_ir', 'packs', 'layerport_builtin_layers'}\n"
    )
    done = python(code, str(engine_bundle.path))
    assert done.returncode == 0, done.stderr


def test_all_wrong_inputs_at_once(engine_bundle: Built) -> None:
    session = lp.load(engine_bundle.path)
    with pytest.raises(UsageError) as caught:
        session(y=np.zeros(1))
    assert caught.value.fault == f"2 inputs do not fit {engine_bundle.path}"
    assert caught.value.faults == ("x: missing", "y: the model has no such input")
    assert caught.value.repair == "it takes x: float32[rows, 16]"


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        (np.zeros((2, 16)), "x: expected float32[rows, 16], got float64[2, 16]"),
        (np.zeros(16, np.float32), "x: expected float32[rows, 16], got float32[16]"),
        (np.zeros((2, 15), np.float32), "x: axis 1 must be 16, got float32[2, 15]"),
        (np.zeros((65, 16), np.float32), "x: dim rows must be 1..64, got 65"),
        (np.zeros((0, 16), np.float32), "x: dim rows must be 1..64, got 0"),
        (3, "x: expected float32[rows, 16], got "),
    ],
)
def test_one_wrong_input(engine_bundle: Built, value: object, fault: str) -> None:
    with pytest.raises(UsageError) as caught:
        lp.load(engine_bundle.path)(x=value)
    assert len(caught.value.faults) == 1 and caught.value.faults[0].startswith(fault)


def test_an_input_that_is_no_array(engine_bundle: Built) -> None:
    with pytest.raises(UsageError):
        lp.load(engine_bundle.path)(x="text")
    with pytest.raises(UsageError, match="meta"):
        lp.load(engine_bundle.path)(x=torch.empty(2, 16, device="meta"))


def test_devices(engine_bundle: Built) -> None:
    why = lp.load(engine_bundle.path, device="cpu").why
    assert why == "ONNX Runtime on the CPU runs the portable model: device cpu was asked for"
    with pytest.raises(UsageError) as caught:
        lp.load(engine_bundle.path, device="gpu")
    assert str(caught.value) == "device 'gpu' is not known\n  to repair: use one of auto, cpu, cuda, or cuda:1"


@pytest.mark.parametrize(("device", "number"), [("auto", 0), ("cuda", 0), ("cuda:0", 0), ("cuda:12", 12)])
def test_what_the_engine_is_opened_with(
    engine_bundle: Built, monkeypatch: pytest.MonkeyPatch, device: str, number: int
) -> None:
    asked: list[dict[str, Any]] = []

    def opened(bundle: Bundle, **options: Any) -> PortableRunner:
        asked.append(options)
        return PortableRunner(bundle, "it stands in for an engine")

    monkeypatch.setattr(layerport.engine.gpu, "require_driver", lambda: None)
    monkeypatch.setattr(layerport.engine.engine_session, "open_engine", opened)
    with lp.load(engine_bundle.path, device=device, cuda_graph=True, contexts=1) as session:
        assert session(x=sample())["output"].shape == (3, 16)
    assert asked == [{"gpu": number, "cuda_graph": True, "contexts": 1}]
    with pytest.raises(UsageError, match="needs at least 1 context, got 0"):
        lp.load(engine_bundle.path, contexts=0)


def test_a_closed_session(engine_bundle: Built) -> None:
    session = lp.load(engine_bundle.path)
    session.close()
    session.close()
    with pytest.raises(UsageError, match="is closed"):
        session(x=sample())


def test_half_precision(half_bundle: Built) -> None:
    session = lp.load(half_bundle.path)
    out = session(x=sample(4, dtype=torch.float16))["output"]
    assert out.dtype == np.float16
    with torch.no_grad():
        want = net(torch.float16)[0](sample(4, dtype=torch.float16)).numpy()
    np.testing.assert_allclose(out.astype(np.float32), want.astype(np.float32), rtol=1e-2, atol=1e-2)


def test_verifying_a_portable_bundle_loads_only_what_runs_it(tmp_path: Path) -> None:
    """Neither onnx nor the engine's half, which would take as long as ONNX Runtime itself."""
    path = tmp_path / "b.lp"
    lp.build(net(), path, target="portable", packs=[SMALL], verify=False)
    code = (
        "import sys\nfrom layerport.cli import main\n"
        "sys.argv = ['layerport', 'verify', sys.argv[1]]\n"
        "try: main()\nexcept SystemExit as end: assert not end.code, end\n"
        "heavy = ('onnx', 'numpy.ma', 'ml_dtypes', 'torch', 'layerport.parameters.frameworks.onnx_dtypes')\n"
        "print([name for name in sys.modules if name in heavy or name.startswith('layerport.engine.')])\n"
    )
    done = python(code, str(path))
    assert done.returncode == 0, done.stderr
    # NumPy before 2 loads it by itself.
    assert done.stdout.splitlines()[-1] == ("[]" if np.__version__ >= "2" else "['numpy.ma']")


@pytest.mark.parametrize("step", ["read", "run"])
def test_close_waits_for_a_call_and_later_ones_are_told(engine_bundle: Built, step: str) -> None:
    session = lp.load(engine_bundle.path, device="cpu")
    inside, go = threading.Event(), threading.Event()
    real = getattr(session.runner, step)

    def slow(*arguments: Any) -> Any:
        inside.set()
        assert go.wait(30)
        return real(*arguments)

    setattr(session.runner, step, slow)
    results: list[Any] = []
    caller = threading.Thread(target=lambda: results.append(session(x=sample(2))["output"]))
    closers = [threading.Thread(target=session.close) for _ in range(2)]
    caller.start()
    assert inside.wait(30)
    for closer in closers:
        closer.start()
    closers[0].join(0.2)
    assert all(closer.is_alive() for closer in closers)
    with pytest.raises(UsageError) as caught:
        session(x=sample(2))  # it is closing already
    assert str(caught.value) == (
        f"the session of {engine_bundle.path} is closed\n  to repair: open it again with layerport.load"
    )
    go.set()
    for thread in (caller, *closers):
        thread.join(30)
    assert results[0].shape == (2, 16)
    session.close()


def test_threads_that_call_while_it_is_closed(engine_bundle: Built) -> None:
    x, faults, done = sample(2).numpy(), [], []
    for _ in range(15):
        session = lp.load(engine_bundle.path, device="cpu")
        begin = threading.Barrier(4)

        def call(session: Any = session, begin: Any = begin) -> None:
            begin.wait()
            for _ in range(50):
                try:
                    done.append(session(x=x)["output"].shape)
                except UsageError as error:
                    assert error.fault.endswith("is closed")
                    return
                except BaseException as error:
                    faults.append(error)
                    return

        threads = [threading.Thread(target=call) for _ in range(3)]
        for thread in threads:
            thread.start()
        begin.wait()
        session.close()
        for thread in threads:
            thread.join()
    assert faults == []
    assert set(done) <= {(2, 16)}


def test_closing_within_a_call_is_refused(engine_bundle: Built) -> None:
    """As a signal handler would that interrupts one: waiting for the call would be waiting for ever."""

    class Closes:
        def __init__(self) -> None:
            self.said: list[str] = []

        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            with pytest.raises(UsageError) as caught:
                session.close()
            self.said.append(caught.value.fault)
            return sample(2).numpy()

        def __dlpack_device__(self) -> Any:
            return 1, 0

        def __dlpack__(self, **options: Any) -> Any:
            return self.__array__().__dlpack__()

    session, value = lp.load(engine_bundle.path, device="cpu"), Closes()
    assert session(x=value)["output"].shape == (2, 16)
    assert value.said == [f"the session of {engine_bundle.path} is closed from within a call of it"]
    session.close()
