"""How fast?  GPU time of each layer beside a copy of the same bytes and its rivals; host time of a call.

GPU time is measured on CUDA graphs that hold many calls, so that the host has no part in it; the inputs rotate through
more memory than the L2 cache has.  All sides are warm before the first figure, because an idle GPU has a fraction of
its clock, and they take turns; a figure is a median.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from checks import NoKernelError, is_in, single, smallest
from plugins import greatest
from rivals import limited, rivals_of

from layerport.testing import LayerCase

_ROTATED_BYTES = 256 << 20
_MOST_BYTES = 8 << 30
_MOST_COPIES = 64
LEAST_CALLS = 8
WARM_MS = 100.0
ROUNDS = 15
_MOST_REPLAYS = 20_000
_RIVAL_LIMIT = 20.0  # seconds until a rival is captured

Call = Callable[..., Any]


def bytes_of(values: Any) -> int:
    """Bytes of all tensors in a value."""
    tensors = values if isinstance(values, (tuple, list)) else [values]
    return sum(one.numel() * one.element_size() for one in tensors if isinstance(one, torch.Tensor))


class Graph:
    """Calls captured in a CUDA graph; called, it replays them and says how many milliseconds they took on the GPU."""

    def __init__(self, call: Call, inputs: list[tuple[Any, ...]], pool: Any) -> None:
        self.calls = max(LEAST_CALLS, len(inputs))
        self._kept = call  # its kernels are unloaded with it
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), torch.inference_mode():
            for arguments in inputs[:2] + inputs:  # all of them, because each one's parameters may be converted
                call(*arguments)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        # Nobody reads an output, so the graphs may use the same memory for theirs.
        with torch.inference_mode(), torch.cuda.graph(self._graph, pool=pool):
            for turn in range(self.calls):
                call(*inputs[turn % len(inputs)])
        self._marks = [torch.cuda.Event(enable_timing=True) for _ in range(2)]

    def __call__(self) -> float:
        self._marks[0].record()
        self._graph.replay()
        self._marks[1].record()
        self._marks[1].synchronize()
        return float(self._marks[0].elapsed_time(self._marks[1]))


def interleaved(sides: Mapping[str, Callable[[], float]]) -> dict[str, float]:
    """The median of what each side says that it took, in milliseconds.

    First all work until `WARM_MS` of work are done, then they take turns, beginning with another one in each round.
    """
    names, spent = list(sides), 0.0
    for _ in range(_MOST_REPLAYS):
        spent += sum(sides[name]() for name in names)
        if spent >= WARM_MS:
            break
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(ROUNDS):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(sides[name]())
    return {name: statistics.median(found) for name, found in times.items()}


def time_layer(case: LayerCase, *, quick: bool = False) -> list[dict[str, Any]]:
    """One record for each GPU case: microseconds of us, of a copy of the same bytes, and of each rival."""
    records = []
    for one in case.cases(gpu_only=True):
        if _bytes_in(one) > _MOST_BYTES or (quick and not is_in(one, "float16")):
            continue
        try:
            records.append(_timed(case, one))
        except torch.OutOfMemoryError:
            records.append({"case": one.id, "skipped": "not enough memory", "misses": []})
        torch.cuda.empty_cache()
    return records


def _timed(case: LayerCase, one: Any) -> dict[str, Any]:
    arguments = one.arguments(one.tensors(device="cuda"))
    with torch.inference_mode():
        moved = bytes_of(list(arguments)) + bytes_of(case.layer(*arguments))
    ours = case.layer if is_capturable(case, arguments) else as_plugin(case, arguments)
    copies = max(1, min(_MOST_COPIES, _ROTATED_BYTES // max(1, moved)))
    inputs = [
        tuple(value.clone() if isinstance(value, torch.Tensor) else value for value in arguments) for _ in range(copies)
    ]
    sources = [(torch.empty(moved // 2, dtype=torch.uint8, device="cuda").random_(),) for _ in range(copies)]
    target = torch.empty(moved // 2, dtype=torch.uint8, device="cuda")
    pool = torch.cuda.graph_pool_handle()
    graphs = {"ours": Graph(ours, inputs, pool), "copy": Graph(target.copy_, sources, pool)}
    rivals: dict[str, float | str] = {}
    for name, rival in rivals_of(case.layer).items():
        try:
            with limited(_RIVAL_LIMIT):
                graphs[name] = Graph(rival, inputs, pool)
        except Exception as error:  # a rival that does not take a case is a blank in the table
            rivals[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]
    kernels = {f"kernel {name}": Graph(call, inputs, pool) for name, call in _kernels(case, arguments).items()}
    found = {name: time * 1000 / (graphs | kernels)[name].calls for name, time in interleaved(graphs | kernels).items()}
    by_kernel = {name.removeprefix("kernel "): found.pop(name) for name in kernels}
    ours, copy = found.pop("ours"), found.pop("copy")
    record = {"case": one.id, "bytes": moved, "ours": ours, "copy": copy, "rivals": {**rivals, **found}}
    return judged(record | ({"kernels": by_kernel} if by_kernel else {}))


def _kernels(case: LayerCase, arguments: Sequence[Any]) -> dict[str, Call]:
    """The kernels that take these arguments, where there are several: does the layer's rule take the fastest?"""
    operator = case.layer._torch.cuda
    assert operator is not None
    found: dict[str, Call] = {}
    for kernel in case.layer.kernels:
        call = single(case.layer, kernel.name, operator._environment)
        try:
            with torch.inference_mode():
                call(*arguments)
        except NoKernelError:
            continue
        found[kernel.name] = call
    return found if len(found) > 1 else {}


def is_capturable(case: LayerCase, arguments: Sequence[Any]) -> bool:
    """Whether Torch can capture this call: where a size depends on data it waits for it."""
    operator = case.layer._torch.cuda
    assert operator is not None
    call, _ = operator._call(arguments, arguments)
    return call is not None and not call.outputs.most


def as_plugin(case: LayerCase, arguments: Sequence[Any]) -> Call:
    """A call as TensorRT makes it, into outputs of the greatest size, which nobody reads."""
    from layerport.engine.runner import KernelRunner
    from layerport.kernels.workspace import WORKSPACE
    from layerport.layers.cuda_operator import cuda
    from layerport.parameters.frameworks.torch_dtypes import from_dtype
    from layerport.targets import Target
    from layerport.testing.specs import plugin_spec

    architecture = cuda().architecture(torch.cuda.current_device())
    on_host = [one.cpu() if isinstance(one, torch.Tensor) else one for one in arguments]
    spec = plugin_spec(case.layer, Target("tensorrt", (architecture,)), *on_host)
    assert spec is not None
    runner = KernelRunner(spec, architecture)
    names = [argument.name for argument in case.layer.signature.arguments]
    values = dict(zip(names, arguments, strict=True))
    shapes = {one.name: tuple(values[one.name].shape) for one in spec.inputs}
    runner.set_shapes(shapes)
    sizes = greatest(spec, shapes)
    outputs = [torch.empty(one.resolve(sizes), dtype=from_dtype(one.dtype), device="cuda") for one in spec.outputs]
    counts = [torch.empty((), dtype=torch.int64, device="cuda") for _ in spec.sizes]
    work = torch.empty(max(1, runner.workspace), dtype=torch.uint8, device="cuda")
    made = zip((*spec.outputs, *spec.sizes), (*outputs, *counts), strict=True)
    fixed = {one.name: tensor.data_ptr() for one, tensor in made} | {WORKSPACE: work.data_ptr()}

    def call(*args: Any) -> list[torch.Tensor]:
        given = dict(zip(names, args, strict=True))
        pointers = {one.name: given[one.name].data_ptr() for one in spec.inputs}
        runner.launch({**pointers, **fixed}, torch.cuda.current_stream().cuda_stream)
        return [*outputs, *counts, work]

    return call


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


def host_times(sides: Mapping[str, Call], *, calls: int = 400, wait: Call | None = None) -> dict[str, float]:
    """Microseconds that the host spends in one call of each side, in turns short enough not to fill the queue."""
    finish = wait or torch.cuda.synchronize

    def side(call: Call) -> Callable[[], float]:
        def turn() -> float:
            finish()
            start = time.perf_counter()
            for _ in range(calls):
                call()
            return (time.perf_counter() - start) * 1000

        return turn

    found = interleaved({name: side(call) for name, call in sides.items()})
    finish()
    return {name: spent * 1000 / calls for name, spent in found.items()}


def call_costs(case: LayerCase, architecture: str) -> dict[str, float]:
    """Host microseconds of a call in inference mode: bare launch, operators around it, our operator, `enqueue`."""
    from layerport.engine.runner import KernelRunner
    from layerport.kernels.workspace import WORKSPACE
    from layerport.targets import Target
    from layerport.testing.specs import plugin_spec

    layer = case.layer
    one = smallest(case)
    arguments = one.arguments(one.tensors(device="cuda"))
    if not is_capturable(case, arguments):
        call = as_plugin(case, arguments)
        return host_times({"enqueue without TensorRT": lambda: call(*arguments)})
    operator = layer._torch.cuda
    assert operator is not None
    taken = arguments if operator._converts is False else operator._convert(arguments)
    index = torch.cuda.current_device()
    library = torch.library.Library("layerport_bench", "FRAGMENT")
    spec = plugin_spec(layer, Target("tensorrt", (architecture,)), *arguments)
    assert spec is not None
    operator._plans.clear()
    with torch.inference_mode():
        output = layer(*arguments)
        outputs = output if isinstance(output, tuple) else (output,)
        (plan,) = operator._plans.values()
        if plan is None:
            raise RuntimeError(f"no kernel takes {one.id}, the smallest case")
        launch, stream = plan._launch, torch.cuda.current_stream().cuda_stream
        tensors = [
            (argument.name, value)
            for argument, value in zip(layer.signature.arguments, taken, strict=True)
            if isinstance(value, torch.Tensor)
        ]

        work = torch.empty(max(1, plan._workspace), dtype=torch.uint8, device=index)

        def bare(*_: Any) -> Any:
            made = [torch.empty(one.shape, dtype=one.dtype, device=index) for one in outputs]
            pointers = {name: tensor.data_ptr() for name, tensor in tensors}
            for name, one in zip(layer.signature.output_names, made, strict=True):
                pointers[name] = one.data_ptr()
            pointers[WORKSPACE] = work.data_ptr()
            launch(pointers, stream)
            return tuple(made) if len(made) > 1 else made[0]

        runner = KernelRunner(spec, architecture)
        runner.set_shapes({key: tuple(tensor.shape) for key, tensor in tensors})
        pointers = {key: tensor.data_ptr() for key, tensor in tensors}
        pointers |= {one.name: made.data_ptr() for one, made in zip(spec.outputs, outputs, strict=True)}
        pointers[WORKSPACE] = work.data_ptr()
        name = layer.short_name
        try:
            library.define(layer.signature.schema(name))
            library.impl(name, bare, "CUDA")
            by_hand = getattr(torch.ops.layerport_bench, name).default
            return host_times(
                {
                    "bare launch and output": bare,
                    "Library.impl around it": lambda: by_hand(*arguments),
                    "our operator": lambda: layer.operator(*arguments),
                    "enqueue without TensorRT": lambda: runner.launch(pointers, stream),
                }
            )
        finally:
            library._destroy()


def cost_misses(costs: Mapping[str, float]) -> list[str]:
    """What the figures of `call_costs` miss of what is promised."""
    misses = []
    over = costs.get("our operator", 0.0) - costs.get("Library.impl around it", 0.0)
    if over > 1.0:
        misses.append(f"our operator: {over:.2f} us over Library.impl around a bare launch, wanted 1")
    if costs["enqueue without TensorRT"] > 10.0:
        misses.append(f"enqueue: {costs['enqueue without TensorRT']:.2f} us, wanted 10")
    return misses
