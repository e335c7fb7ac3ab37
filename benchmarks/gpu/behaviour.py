"""Does it behave on a GPU?  CUDA graphs, streams, threads, gradients, views, a plan, compute-sanitizer.

Numbers are compared on the CPU.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from checks import smallest
from timing import is_capturable

from layerport.testing import Case, LayerCase

_SANITIZER_LIMIT = 240.0
TURNS = 50  # calls of each thread


def fault_of(check: Callable[[], None]) -> str | None:
    """What a check raises, as text; None where it passes."""
    try:
        check()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def torch_checks(case: LayerCase) -> dict[str, str | None]:
    """The fault of each way in which Torch calls the layer, None where there is none."""
    one = smallest(case, "float32", 100)
    layer = case.layer
    capturable = is_capturable(case, one.arguments(one.tensors()))

    def right(got: Any, inputs: Mapping[str, torch.Tensor | None]) -> None:
        compare_on_host(one, got, inputs)

    def graph() -> None:
        inputs = one.tensors(seed=1, device="cuda")
        with torch.inference_mode():
            layer(*one.arguments(inputs))
            torch.cuda.synchronize()
            captured = torch.cuda.CUDAGraph()
            with torch.cuda.graph(captured):
                output = layer(*one.arguments(inputs))
            params = {argument.name for argument in layer.signature.params}  # a kernel may have them converted
            for name, fresh in one.tensors(seed=2, device="cuda").items():
                if fresh is not None and name not in params:
                    inputs[name].copy_(fresh)  # type: ignore[union-attr]
            captured.replay()
            torch.cuda.synchronize()
        right(output, inputs)

    def stream() -> None:
        inputs = one.tensors(seed=3, device="cuda")
        torch.cuda.synchronize()
        with torch.cuda.stream(torch.cuda.Stream()) as _:
            output = layer(*one.arguments(inputs))
            torch.cuda.current_stream().synchronize()
        right(output, inputs)

    def threads() -> None:
        faults: list[str | None] = []

        def work(seed: int) -> None:
            inputs = one.tensors(seed=seed, device="cuda")
            for _ in range(TURNS):
                output = layer(*one.arguments(inputs))
            right(output, inputs)

        workers = [
            threading.Thread(target=lambda seed=seed: faults.append(fault_of(lambda: work(seed)))) for seed in range(4)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if len(faults) < 4 or any(faults):
            raise RuntimeError(f"of 4 threads {len(faults)} ended: {[fault for fault in faults if fault]}")

    def gradients() -> None:
        def run(call: Any) -> list[torch.Tensor]:
            inputs = {
                name: tensor.requires_grad_() if tensor is not None and tensor.is_floating_point() else tensor
                for name, tensor in one.tensors(seed=4, device="cuda").items()
            }
            outputs = [output for output in _as_tuple(call(*one.arguments(inputs))) if output.requires_grad]
            if outputs:
                torch.stack([output.square().sum() for output in outputs]).sum().backward()
            return [tensor.grad for tensor in inputs.values() if tensor is not None and tensor.grad is not None]

        torch.testing.assert_close(run(layer), run(layer.reference), rtol=1e-4, atol=1e-4)

    def compiled() -> None:
        inputs = one.tensors(seed=5, device="cuda")
        with torch.inference_mode():
            right(torch.compile(lambda *args: layer(*args))(*one.arguments(inputs)), inputs)

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

    def transposed() -> None:
        check_transposed(one, layer)

    def transposed_and_compiled() -> None:
        torch.compiler.reset()
        check_transposed(one, torch.compile(lambda *args: layer(*args)))

    def not_seen_in_a_capture() -> None:
        """A shape that nobody warmed up must be an error that says so, and leave Torch as it was."""
        from checks import refuse

        from layerport.layers.cuda_operator import CudaOperator

        inputs = one.tensors(seed=7, device="cuda")
        assert layer._torch.cuda is not None
        fresh = CudaOperator(layer, refuse, layer._torch.cuda._environment)
        try:
            with torch.inference_mode(), torch.cuda.graph(torch.cuda.CUDAGraph()):
                fresh(*one.arguments(inputs))
        except Exception as error:
            if "while a CUDA graph is captured" not in f"{error} {error.__context__}":
                raise
        else:
            raise RuntimeError("a kernel was loaded within a capture")
        with torch.inference_mode():
            right(fresh(*one.arguments(inputs)), inputs)

    checks: list[Callable[[], None]] = [stream, threads, gradients, wrong_device]
    if not capturable:
        said = "skipped: a size depends on data, which Torch waits for"
        return {check.__name__: fault_of(check) for check in checks} | dict.fromkeys(("graph", "transposed"), said)
    checks += [graph, transposed]
    found = {check.__name__: fault_of(check) for check in checks}
    for check in (compiled, transposed_and_compiled):
        # Torch writes a C program for what it compiles.
        found[check.__name__] = fault_of(check) if has_compiler() else "skipped: torch.compile needs a C compiler"
    return found | {not_seen_in_a_capture.__name__: fault_of(not_seen_in_a_capture)}


def compare_on_host(one: Case, got: Any, inputs: Mapping[str, torch.Tensor | None]) -> None:
    """Compare outputs on the CPU with the reference of these inputs there.  Raises AssertionError."""
    outputs = got if isinstance(got, tuple) else (got,)
    on_host = {name: None if tensor is None else tensor.detach().cpu() for name, tensor in inputs.items()}
    one.check(tuple(output.detach().cpu() for output in outputs), one.expected(on_host))


def check_transposed(one: Case, call: Callable[..., Any], device: str = "cuda") -> None:
    """Inputs whose axes lie in memory the other way round: the same numbers, in the strides that were told."""
    inputs = {
        name: None if tensor is None else _the_other_way_round(tensor)
        for name, tensor in one.tensors(seed=8, device=device).items()
    }
    told = one.layer(*one.arguments({name: None if one_ is None else one_.to("meta") for name, one_ in inputs.items()}))
    with torch.inference_mode():
        got = call(*one.arguments(inputs))
    compare_on_host(one, got, inputs)
    strides = [[output.stride() for output in _as_tuple(each)] for each in (got, told)]
    if strides[0] != strides[1]:
        raise RuntimeError(f"the strides of the outputs are {strides[0]}, Torch was told {strides[1]}")


def _the_other_way_round(tensor: torch.Tensor) -> torch.Tensor:
    """The same shape and values in memory of reversed axes."""
    axes = list(range(tensor.ndim))[::-1]
    return tensor.permute(axes).contiguous().permute(axes)


def _as_tuple(value: Any) -> Sequence[torch.Tensor]:
    return value if isinstance(value, tuple) else (value,)


def has_compiler() -> bool:
    """Whether there is a C compiler, which torch.compile and Triton's own launcher need."""
    return any(shutil.which(name) for name in (os.environ.get("CC") or "cc", "gcc", "clang"))


def verified(answer: Any) -> str:
    """The figures of a verification.  Raises RuntimeError where it did not pass."""
    text = f"on {answer.device}: " + ", ".join(f"{one.name} max abs {one.max_abs:.3g}" for one in answer.outputs)
    if not answer.passed:
        raise RuntimeError(f"the outputs do not match, {text}")
    return text


def plan_check(bundle: str) -> dict[str, str]:
    """What becomes of a bundle's plan on this GPU, in words: in a session, with which plugin, and without Python."""
    import layerport as lp
    from layerport.engine import native

    plugin = "the C++ plugin" if native.library() else "the Python plugin"
    said: dict[str, str] = {}
    for what, call in (
        ("loaded", lambda: lp.load(bundle, device="cuda").close() or f"with {plugin}"),
        ("verified", lambda: verified(lp.verify(bundle, device="cuda"))),
        ("without Python", lambda: program_check(bundle)),
    ):
        try:
            said[what] = f"yes {call() or ''}".strip()
        except Exception as error:
            said[what] = f"no: {type(error).__name__}: {error}"
    return said


def program_check(bundle: str, environ: Mapping[str, str] = os.environ, limit: float = 300) -> str:
    """What the C++ program of `layerport export` says of the samples; raises where it cannot be made, or they differ.

    environ: TENSORRT_ROOT and CUDA_ROOT are the folders with headers and libraries that its CMake file looks into.
    """
    from layerport.commands.exporting import export_bundle

    roots = [f"-D{name}={environ[name]}" for name in ("TENSORRT_ROOT", "CUDA_ROOT") if name in environ]
    if shutil.which("cmake", path=environ.get("PATH")) is None or not roots:
        return "not run: it needs cmake, and TENSORRT_ROOT, a folder with TensorRT's headers and libraries"
    with tempfile.TemporaryDirectory() as folder:
        made = export_bundle(bundle, "cpp", str(Path(folder, "program")))
        for command in map(shlex.split, made.commands):
            words = command + (roots if "-S" in command else [])
            done = subprocess.run(
                words, cwd=made.folder, env=dict(environ), capture_output=True, text=True, timeout=limit
            )
            if done.returncode:
                said = (done.stdout + done.stderr).strip()[-500:]
                raise RuntimeError(f"{shlex.join(words)} ended with exit code {done.returncode}: {said}")
    return ", ".join(done.stdout.split("\n")).strip(", ")


def sanitize(script: Path, layer: str, limit: float = _SANITIZER_LIMIT, tool: str | None = None) -> str:
    """What compute-sanitizer says of the smallest cases of a layer; "fine: ..." where it has nothing to say."""
    tool = tool or shutil.which("compute-sanitizer")
    if tool is None:
        return "not run: there is no compute-sanitizer on PATH"
    # Some calls of cuda.bindings fail by design, such as asking for a function that a driver may lack.
    options = ["--tool", "memcheck", "--report-api-errors", "no", "--error-exitcode", "9"]
    # Without it an overrun stays in the block that Torch's allocator cut the tensor from.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    with tempfile.TemporaryFile("w+") as output:  # no pipe, which whatever it starts could hold open
        child = subprocess.Popen(
            [tool, *options, sys.executable, str(script), "--smallest", layer],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # a group of its own, because the tool starts the program as a child of its own
        )
        try:
            child.wait(limit)
        except subprocess.TimeoutExpired:
            return f"not finished within {limit:g} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        output.seek(0)
        said = output.read()
    lines = [line for line in said.splitlines() if "ERROR SUMMARY" in line]
    verdict = lines[-1].strip(" =") if lines else said[-500:]
    return f"fine: {verdict}" if child.returncode == 0 else f"exit code {child.returncode}: {verdict}"
