"""How fast?  GPU time of each layer beside a copy of the same bytes and its rivals; host time of a call.

GPU time is measured on CUDA graphs that hold many calls, so that the host has no part in it; the inputs rotate through
more memory than the L2 cache has.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from layerport.testing import LayerCase

_ROTATED_BYTES = 256 << 20
_MOST_BYTES = 8 << 30
_MOST_COPIES = 64
_ROUNDS = 7

Call = Callable[..., Any]


def bytes_of(values: Any) -> int:
    """Bytes of all tensors in a value."""
    tensors = values if isinstance(values, (tuple, list)) else [values]
    return sum(one.numel() * one.element_size() for one in tensors if isinstance(one, torch.Tensor))


def rivals_of(layer: Any) -> dict[str, Call]:
    """What the layer is compared with: eager, compiled, and what others offer for the same, where it is installed."""
    torch.compiler.reset()  # each size is compiled for itself, however many there were
    rivals: dict[str, Call] = {"eager": layer.reference, "torch.compile": torch.compile(layer.reference, dynamic=False)}
    if layer.name.endswith("::rms_norm"):
        rivals["torch rms_norm"] = lambda x, weight, eps: torch.nn.functional.rms_norm(x, x.shape[-1:], weight, eps)
    try:
        from liger_kernel.ops.rms_norm import LigerRMSNormFunction
        from liger_kernel.ops.swiglu import LigerSiLUMulFunction
    except ImportError:
        return rivals
    if layer.name.endswith("::rms_norm"):
        rivals["liger"] = lambda x, weight, eps: LigerRMSNormFunction.apply(x, weight, eps)
    if layer.name.endswith("::silu_mul"):
        rivals["liger"] = LigerSiLUMulFunction.apply
    return rivals


def graph_time(call: Call, inputs: Sequence[tuple[Any, ...]]) -> float:
    """Microseconds of one call on the GPU: the least of several replays of a graph that holds one call per input."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.inference_mode():
        for arguments in inputs[:2] * 2:
            call(*arguments)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode(), torch.cuda.graph(graph):
        for arguments in inputs:
            call(*arguments)
    graph.replay()
    times = []
    for _ in range(_ROUNDS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1000 / len(inputs))
    return min(times)


def time_layer(case: LayerCase, *, quick: bool = False) -> list[dict[str, Any]]:
    """One record for each GPU case: microseconds of us, of a copy of the same bytes, and of each rival."""
    records = []
    for one in case.cases(gpu_only=True):
        tensors = one.tensors(device="cuda") if _bytes_in(one) <= _MOST_BYTES else None
        if tensors is None or (quick and one.choice != "float16"):
            continue
        arguments = one.arguments(tensors)
        with torch.inference_mode():
            output = case.layer(*arguments)
        moved = bytes_of(list(arguments)) + bytes_of(output)
        copies = max(1, min(_MOST_COPIES, _ROTATED_BYTES // max(1, moved)))
        inputs = [
            tuple(value.clone() if isinstance(value, torch.Tensor) else value for value in arguments)
            for _ in range(copies)
        ]
        source = [(torch.empty(moved // 2, dtype=torch.uint8, device="cuda"),) for _ in range(copies)]
        target = torch.empty(moved // 2, dtype=torch.uint8, device="cuda")
        ours = graph_time(case.layer, inputs)
        copy = graph_time(target.copy_, source)
        rivals: dict[str, float | str] = {}
        for name, rival in rivals_of(case.layer).items():
            try:
                rivals[name] = graph_time(rival, inputs)
            except Exception as error:  # a rival that does not take a case is a blank in the table
                rivals[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]
        records.append(judged({"case": one.id, "bytes": moved, "ours": ours, "copy": copy, "rivals": rivals}))
        del inputs, source, target, tensors, arguments, output
        torch.cuda.empty_cache()
    return records


def _bytes_in(one: Any) -> int:
    total = 0
    for name, sizes in one.shape.shapes.items():
        if sizes is not None:
            count = 1
            for size in sizes:
                count *= size
            total += count * one.dtype_of(name).itemsize
    return total


def judged(record: dict[str, Any]) -> dict[str, Any]:
    """The record with `of_copy` (copy time over ours), `of_best` (best rival's time over ours) and what it misses."""
    numbers = [time for time in record["rivals"].values() if isinstance(time, float)]
    of_copy = record["copy"] / record["ours"]
    of_best = min(numbers) / record["ours"] if numbers else None
    misses = []
    if record["bytes"] >= 128 << 20 and of_copy < 0.80:
        misses.append(f"{of_copy:.2f} of the copy, wanted 0.80")
    if of_best is not None and of_best < 0.95:
        misses.append(f"{of_best:.2f}x the best rival, wanted 0.95")
    return {**record, "of_copy": of_copy, "of_best": of_best, "misses": misses}


def host_time(call: Call, calls: int = 400, rounds: int = 25, wait: Call | None = None) -> float:
    """Microseconds that the host spends in one call: the median of rounds short enough not to fill the queue."""
    wait = wait or torch.cuda.synchronize
    times = []
    for _ in range(rounds):
        wait()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        times.append((time.perf_counter() - start) / calls * 1e6)
        wait()
    return statistics.median(times)


def call_costs(case: LayerCase, architecture: str) -> dict[str, float]:
    """Host microseconds of a call in inference mode: bare launch, operators around it, our operator, `enqueue`."""
    from layerport.engine.runner import KernelRunner
    from layerport.targets import Target
    from layerport.testing.specs import plugin_spec

    layer = case.layer
    one = min((one for one in case.cases() if one.choice == "float16"), key=_bytes_in_or_large)
    arguments = one.arguments(one.tensors(device="cuda"))
    index = torch.cuda.current_device()
    costs: dict[str, float] = {}
    library = torch.library.Library("layerport_bench", "FRAGMENT")
    with torch.inference_mode():
        output = layer(*arguments)
        assert layer._cuda is not None
        (plan,) = [plan for plan in layer._cuda._plans.values() if plan is not None][-1:]
        launch, stream = plan._launch, torch.cuda.current_stream().cuda_stream
        tensors = [
            (argument.name, value)
            for argument, value in zip(layer.signature.arguments, arguments, strict=True)
            if isinstance(value, torch.Tensor)
        ]

        def bare(*_: Any) -> torch.Tensor:
            made = torch.empty(output.shape, dtype=output.dtype, device=index)
            pointers = {name: tensor.data_ptr() for name, tensor in tensors}
            pointers[layer.signature.output_names[0]] = made.data_ptr()
            launch(pointers, stream)
            return made

        name = layer.short_name
        try:
            library.define(layer.signature.schema(name))
            library.impl(name, bare, "CUDA")
            by_hand = getattr(torch.ops.layerport_bench, name).default
            costs["bare launch and output"] = host_time(bare)
            costs["Library.impl around it"] = host_time(lambda: by_hand(*arguments))
            costs["our operator"] = host_time(lambda: layer.operator(*arguments))
        finally:
            library._destroy()
        spec = plugin_spec(layer, Target("tensorrt", (architecture,)), *arguments)
        assert spec is not None
        runner = KernelRunner(spec, architecture)
        runner.set_shapes({key: tuple(tensor.shape) for key, tensor in tensors})
        pointers = {key: tensor.data_ptr() for key, tensor in tensors}
        pointers[spec.outputs[0].name] = output.data_ptr()
        costs["enqueue without TensorRT"] = host_time(lambda: runner.launch(pointers, stream))
        torch.cuda.synchronize()
    return costs


def _bytes_in_or_large(one: Any) -> int:
    return _bytes_in(one) or 1 << 60


def cost_misses(costs: Mapping[str, float]) -> list[str]:
    """What the figures of `call_costs` miss of what is promised."""
    misses = []
    over = costs["our operator"] - costs["Library.impl around it"]
    if over > 1.0:
        misses.append(f"our operator: {over:.2f} us over Library.impl around a bare launch, wanted 1")
    if costs["enqueue without TensorRT"] > 10.0:
        misses.append(f"enqueue: {costs['enqueue without TensorRT']:.2f} us, wanted 10")
    return misses
