"""Do both plugins launch what the reference says?  Without TensorRT: this does what it does with a plugin.

Sizes, then addresses on a stream, on the real driver; every kernel of every spec.  Numbers are compared on the CPU.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from checks import CONTROL, control, elements

from layerport.engine.plan_fields import write_field
from layerport.engine.runner import KernelRunner
from layerport.kernels.workspace import WORKSPACE
from layerport.parameters.frameworks.torch_dtypes import from_dtype
from layerport.sizes.tensors import sizes_of
from layerport.targets import Target
from layerport.testing import Case, LayerCase
from layerport.testing.specs import converted, plugin_spec

LEAST_SIZE = 256
_GUARD = 64  # bytes behind each output, which nothing may write


def chosen(case: LayerCase) -> list[Case]:
    """Of each choice of dtypes the smallest case with so many elements, and the largest that a CPU takes too."""
    found = []
    for choice in case.dtypes:
        alike = sorted((one for one in case.cases() if one.choice == choice), key=elements)
        least = next((one for one in alike if elements(one) >= LEAST_SIZE), alike[-1])
        found += [least] if least is alike[-1] else [least, alike[-1]]
    return found


def specs(case: LayerCase, architecture: str) -> Iterator[tuple[Case, Any]]:
    """Each chosen case with its spec for this architecture, None where no kernel fits."""
    for one in chosen(case):
        yield one, plugin_spec(case.layer, Target("tensorrt", (architecture,)), *one.arguments(one.tensors()))


class PythonPlugin:
    """The launches of the plugin that Python makes."""

    def __init__(self, spec: Any, architecture: str) -> None:
        self._spec, self._runner = spec, KernelRunner(spec, architecture)
        self._names = [one.name for one in (*spec.inputs, *spec.outputs, *spec.sizes)]

    def take(self, kernel: str | None) -> None:
        self._runner.prefer(kernel)

    def run(self, shapes: Sequence[tuple[int, ...]], addresses: Sequence[int], stream: int) -> None:
        names = [one.name for one in self._spec.inputs]
        self._runner.set_shapes(dict(zip(names, shapes, strict=True)))
        work = torch.full((max(1, self._runner.workspace),), 0xFF, dtype=torch.uint8, device="cuda")
        torch.cuda.synchronize()
        self._runner.launch({**dict(zip(self._names, addresses, strict=True)), WORKSPACE: work.data_ptr()}, stream)
        torch.cuda.synchronize()


class NativePlugin:
    """The C++ plugin, driven through its interface by `tests/native/plugin_host.cpp`, over the machine's own driver."""

    def __init__(self, spec: Any, library: Any) -> None:
        self._spec, self._library = spec, library
        self._engine = library.plugin(write_field(spec, spec.digests))

    def take(self, kernel: str | None) -> None:
        names = list(dict.fromkeys(one.name for one in self._spec.kernels))
        assert self._engine.set_tactic(0 if kernel is None else names.index(kernel) + 1), self._library.log()

    def run(self, shapes: Sequence[tuple[int, ...]], addresses: Sequence[int], stream: int) -> None:
        plugin = self._engine.attach()
        work = torch.full((max(1, plugin.workspace(shapes)),), 0xFF, dtype=torch.uint8, device="cuda")
        torch.cuda.synchronize()
        count = len(shapes)
        done = plugin.set_shapes(shapes) and plugin.enqueue(
            addresses[:count], addresses[count:], stream=stream, workspace=work.data_ptr()
        )
        torch.cuda.synchronize()
        plugin.close()
        if not done:
            raise RuntimeError(self._library.log())


def native_library(folder: str) -> Any:
    """The C++ plugin that `python tests/native/native_parts.py FOLDER` compiled."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "native"))
    from native_plugin import NativeLibrary

    return NativeLibrary(Path(folder), driver="")


def check_plugins(case: LayerCase, architecture: str, seed: int, library: Any = None) -> Iterator[dict[str, Any]]:
    """Records as of `checks.check_layer`: each chosen case, by each plugin, with each kernel that takes it."""
    target = Target("tensorrt", (architecture,))
    for one, spec in specs(case, architecture):
        plugins: dict[str, Callable[[], Any]] = {"Python": lambda spec=spec: PythonPlugin(spec, architecture)}
        if library is not None:
            plugins["C++"] = lambda spec=spec: NativePlugin(spec, library)
        tensors = one.tensors(seed=seed)
        expected = one.expected(tensors)
        names = [argument.name for argument in case.layer.signature.arguments]
        given = dict(zip(names, converted(case.layer, target, *one.arguments(tensors)), strict=True))
        for language, make in plugins.items():
            for kernel in (None, *dict.fromkeys(kernel.name for kernel in spec.kernels)):
                record: dict[str, Any] = {
                    "kernel": f"{language} {kernel or 'by rule'}", "case": one.id, "variant": "plugin", "fault": None,
                }  # fmt: skip
                got: tuple[torch.Tensor, ...] = ()
                try:
                    plugin = make()
                    plugin.take(kernel)
                    got = outputs_of(plugin, spec, given)
                    one.check(got, expected)
                except Exception as error:
                    record["fault"] = f"{type(error).__name__}: {error}"
                yield record
                if record["fault"] is None and any(output.numel() for output in got):
                    fault = control(one, got, tensors, expected, seed)
                    yield {**record, "variant": CONTROL, "fault": fault}


def greatest(spec: Any, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """All sizes of a spec for inputs of these shapes, those that depend on data as the greatest that they can be."""
    sizes = dict(sizes_of(shapes))
    return sizes | {one.name: one.greatest.evaluate(sizes) for one in spec.sizes}


def outputs_of(plugin: Any, spec: Any, given: Mapping[str, Any]) -> tuple[torch.Tensor, ...]:
    """What a plugin computes, on the CPU.  Memory is poisoned before, and what lies behind an output may not change."""
    inputs = [given[one.name].to("cuda").contiguous() for one in spec.inputs]
    sizes = greatest(spec, {one.name: tuple(value.shape) for one, value in zip(spec.inputs, inputs, strict=True)})
    rooms = [
        torch.full((prod(shape) * dtype.itemsize + _GUARD,), 0xFF, dtype=torch.uint8, device="cuda")
        for shape, dtype in [(one.resolve(sizes), from_dtype(one.dtype)) for one in spec.outputs]
    ]
    counts = [torch.full((), -1, dtype=torch.int64, device="cuda") for _ in spec.sizes]
    stream = torch.cuda.Stream()
    plugin.run(
        [tuple(one.shape) for one in inputs],
        [one.data_ptr() for one in (*inputs, *rooms, *counts)],
        stream.cuda_stream,
    )
    known = {**sizes, **{one.name: int(count) for one, count in zip(spec.sizes, counts, strict=True)}}
    outputs = []
    for one, room in zip(spec.outputs, rooms, strict=True):
        if not bool((room[-_GUARD:] == 0xFF).all()):
            raise AssertionError(f"output {one.name}: it wrote behind its end")
        shape = one.resolve(known)
        dtype = from_dtype(one.dtype)
        outputs.append(room[: prod(shape) * dtype.itemsize].clone().view(dtype).reshape(shape).cpu())
    return tuple(outputs)
