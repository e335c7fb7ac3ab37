"""Does it behave on a GPU?  CUDA graphs, streams, threads, gradients, a plan, compute-sanitizer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from layerport.testing import LayerCase

_SANITIZER_LIMIT = 240


def fault_of(check: Callable[[], None]) -> str | None:
    """What a check raises, as text; None where it passes."""
    try:
        check()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def torch_checks(case: LayerCase) -> dict[str, str | None]:
    """The fault of each way in which Torch calls the layer, None where there is none."""
    one = next(one for one in case.cases() if one.choice == "float32" and _elements(one) > 100)
    layer = case.layer

    def graph() -> None:
        inputs = one.tensors(seed=1, device="cuda")
        with torch.inference_mode():
            layer(*one.arguments(inputs))
            torch.cuda.synchronize()
            captured = torch.cuda.CUDAGraph()
            with torch.cuda.graph(captured):
                output = layer(*one.arguments(inputs))
            for name, fresh in one.tensors(seed=2, device="cuda").items():
                if fresh is not None:
                    inputs[name].copy_(fresh)  # type: ignore[union-attr]
            captured.replay()
            torch.cuda.synchronize()
        one.check(output, one.expected(inputs))

    def stream() -> None:
        inputs = one.tensors(seed=3, device="cuda")
        torch.cuda.synchronize()
        with torch.cuda.stream(torch.cuda.Stream()) as _:
            output = layer(*one.arguments(inputs))
            torch.cuda.current_stream().synchronize()
        one.check(output, one.expected(inputs))

    def threads() -> None:
        faults: list[str | None] = []

        def work(seed: int) -> None:
            inputs = one.tensors(seed=seed, device="cuda")
            for _ in range(50):
                output = layer(*one.arguments(inputs))
            faults.append(fault_of(lambda: one.check(output, one.expected(inputs))))

        workers = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if len(faults) < 4 or any(faults):
            raise RuntimeError(f"of 4 threads {len(faults)} ended: {[fault for fault in faults if fault]}")

    def gradients() -> None:
        def run(call: Any) -> list[torch.Tensor]:
            inputs = {
                name: None if tensor is None else tensor.requires_grad_()
                for name, tensor in one.tensors(seed=4, device="cuda").items()
            }
            call(*one.arguments(inputs)).square().sum().backward()
            return [tensor.grad for tensor in inputs.values() if tensor is not None and tensor.grad is not None]

        torch.testing.assert_close(run(layer), run(layer.reference), rtol=1e-4, atol=1e-4)

    def compiled() -> None:
        inputs = one.tensors(seed=5, device="cuda")
        with torch.inference_mode():
            one.check(torch.compile(lambda *args: layer(*args))(*one.arguments(inputs)), one.expected(inputs))

    def wrong_device() -> None:
        inputs = one.tensors(seed=6, device="cuda")
        present = [name for name, tensor in inputs.items() if tensor is not None]
        if len(present) < 2:
            return
        inputs[present[-1]] = inputs[present[-1]].cpu()  # type: ignore[union-attr]
        try:
            layer(*one.arguments(inputs))
        except Exception as error:
            if "different devices" not in str(error):
                raise
            return
        raise RuntimeError("tensors on two devices were taken")

    checks = (graph, stream, threads, gradients, compiled, wrong_device)
    return {check.__name__: fault_of(check) for check in checks}


def verified(answer: Any) -> str:
    """The figures of a verification.  Raises RuntimeError where it did not pass."""
    text = f"on {answer.device}: " + ", ".join(f"{one.name} max abs {one.max_abs:.3g}" for one in answer.outputs)
    if not answer.passed:
        raise RuntimeError(f"the outputs do not match, {text}")
    return text


def plan_check(bundle: str) -> dict[str, str]:
    """What becomes of a bundle's plan on this GPU, in words."""
    import layerport as lp

    said: dict[str, str] = {}
    for what, call in (
        ("loaded", lambda: lp.load(bundle, device="cuda").close()),
        ("verified", lambda: verified(lp.verify(bundle, device="cuda"))),
    ):
        try:
            said[what] = f"yes {call() or ''}".strip()
        except Exception as error:
            said[what] = f"no: {type(error).__name__}: {error}"
    return said


def sanitize(script: Path, layer: str) -> str:
    """What compute-sanitizer says of the smallest cases of a layer."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return "not run: there is no compute-sanitizer on PATH"
    command = [tool, "--tool", "memcheck", "--error-exitcode", "9", sys.executable, str(script), "--smallest", layer]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_SANITIZER_LIMIT, env={**os.environ}, check=False
        )
    except subprocess.TimeoutExpired:
        return f"not finished within {_SANITIZER_LIMIT} s"
    lines = [line for line in done.stdout.splitlines() if "ERROR SUMMARY" in line]
    return f"exit code {done.returncode}: {lines[-1] if lines else done.stdout[-500:]}"


def _elements(one: Any) -> int:
    sizes = next(iter(one.shape.shapes.values()))
    count = 1
    for size in sizes or ():
        count *= size
    return count
