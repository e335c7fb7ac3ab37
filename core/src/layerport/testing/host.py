"""Runs a layer's CUDA kernel on the CPU, through the layer's own launch rule, and checks that it behaves.

For tests: `run_kernel` is reached through `layerport.testing`.  The kernel runs in a process of its own, so that a
stray access stops that process and not the tests.
"""

from __future__ import annotations

import math
import os
import struct
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from layerport.conversion import to_standard
from layerport.dtypes import DType
from layerport.errors import PackError, UsageError
from layerport.kernels import CudaSource, Kernel, TensorArg
from layerport.launch_rules import Geometry, LaunchRule, PointerArg, ScalarArg
from layerport.layers import Layer
from layerport.signature import MISSING, Kind
from layerport.testing.host_compiler import HostProgram, compile_for_host
from layerport.testing.host_outputs import data_dependent, greatest_sizes, output_arrays
from layerport.testing.triton_interpreter import TritonJob
from layerport.tracing import specialise, trace, trace_predicate

if TYPE_CHECKING:
    from layerport.adapters.torch_shapes import Derivation

_ORDERS = {"forward": 0, "backward": 1}
_RANDOM = 2
_POISONS = (0xFF, 0x7B)
_RUN_LIMIT = 300.0

Array = np.ndarray[Any, np.dtype[Any]]


def run_kernel(
    layer: Layer,
    *args: Any,
    order: str | int = "forward",
    sanitize: bool = False,
    kernel: str | None = None,
    offset: int = 0,
    **named: Any,
) -> Any:
    """What the layer's kernel computes, as NumPy arrays: one, or a tuple for several outputs.

    args, named: arrays of any framework and attributes, in the layer's order or by name; None for an absent tensor.
    order: in which the threads of a block (and the blocks) run: "forward", "backward", or a seed for a random one.
    sanitize: build with the address sanitiser; a Triton kernel's accesses are checked anyway.
    kernel: the name of one kernel; without it the first that fits.
    offset: bytes by which every pointer misses the alignment of a device allocation.

    Where sizes depend on data, the outputs have the sizes that the kernel wrote.
    Raises PackError if the kernel reads or writes out of bounds, writes an input, leaves an output unwritten, or
    waits forever; UsageError if no kernel takes these arguments.
    """
    call = _Call.of(layer, args, named)
    chosen = _choose(call, kernel)
    label = f"layer {layer.name}, kernel {chosen.name}"
    tensors = call.tensors if isinstance(chosen.source, CudaSource) else call.known_tensors()
    rule = trace(chosen, layer.signature, tensors, call.attributes, layer=layer.name)
    geometry = rule.resolve(call.sizes, label=label)
    outputs = call.empty_outputs(_POISONS[0])
    if geometry is not None:
        match = next(one for one in chosen.combinations(layer.signature) if _fits(one, call.dtypes))
        job: _Job | TritonJob
        if isinstance(chosen.source, CudaSource):
            entry = chosen.entry(layer.signature, match, call.attributes)
            program = compile_for_host(chosen.source, entry, label=label, sanitize=sanitize)
            job = _Job(program, rule, geometry, order, offset, label)
        else:
            made = specialise(chosen, layer.signature, tensors, call.attributes, layer=layer.name)
            job = TritonJob(chosen.source, made, rule, geometry, order, offset, label)
        outputs = call.cut(job.run(call.arrays, outputs), label)
        if any(_poisoned(array, _POISONS[0]).any() for array in outputs.values()):
            # A result may look like the poison; an element that keeps two different poisons was never written.
            again = call.cut(job.run(call.arrays, call.empty_outputs(_POISONS[1])), label)
            _check_written(outputs, again, label)
    elif any(array.size for array in outputs.values()):
        raise PackError(
            f"{label}: its launch rule gives an empty grid, but the outputs are not empty",
            "correct the launch rule",
        )
    answer = tuple(outputs.values())
    return answer[0] if len(answer) == 1 else answer


def kernel_for(layer: Layer, *args: Any, **named: Any) -> str:
    """The name of the kernel that these arguments get.  Raises UsageError if none takes them."""
    return _choose(_Call.of(layer, args, named), None).name


@dataclass(frozen=True)
class _Call:
    """The arguments of one call, sorted: arrays of the tensors that are there, attributes, shapes of all."""

    layer: Layer
    arrays: dict[str, Array]
    attributes: dict[str, Any]
    tensors: dict[str, TensorArg | None]
    output_arrays: dict[str, tuple[tuple[int, ...], DType]]
    derivation: Derivation | None

    @classmethod
    def of(cls, layer: Layer, args: tuple[Any, ...], named: Mapping[str, Any]) -> _Call:
        values = _values(layer, args, named)
        arrays: dict[str, Array] = {}
        tensors: dict[str, TensorArg | None] = {}
        for argument in layer.signature.tensors:
            value = values.pop(argument.name)
            if value is None:
                tensors[argument.name] = None
                continue
            array = to_standard(value, path=argument.name).array
            arrays[argument.name] = array
            # As in a plugin: sizes of parameters are numbers, those of inputs symbols.
            symbolic = TensorArg.symbolic(argument.name, DType.from_numpy(array.dtype), array.ndim)
            known = TensorArg(argument.name, symbolic.dtype, tuple(int(size) for size in array.shape))
            tensors[argument.name] = known if argument.kind is Kind.PARAM else symbolic
        attributes = layer.signature.bind_attributes(values, path=layer.name)
        derivation = data_dependent(layer, arrays, attributes)
        if derivation is None:
            outputs = output_arrays(layer, arrays, attributes)
            for name, (shape, dtype) in outputs.items():
                tensors[name] = TensorArg.symbolic(name, dtype, len(shape))
            return cls(layer, arrays, dict(attributes), tensors, outputs, None)
        # As in a plugin: memory for the greatest size, and the kernel writes how much of it is used.
        outputs = {}
        most = greatest_sizes(layer, derivation)
        for name, rule in zip(layer.signature.output_names, derivation.outputs, strict=True):
            outputs[name] = (tuple(dim.evaluate(most) for dim in rule.dims), rule.dtype)
            tensors[name] = TensorArg(name, rule.dtype, rule.dims)
        for size in derivation.size_symbols:
            outputs[size.name] = ((), DType.INT64)
            tensors[size.name] = TensorArg(size.name, DType.INT64, ())
        return cls(layer, arrays, dict(attributes), tensors, outputs, derivation)

    def cut(self, written: dict[str, Array], label: str) -> dict[str, Array]:
        """The outputs with the sizes that the kernel wrote, without those sizes themselves."""
        if self.derivation is None:
            return written
        most = greatest_sizes(self.layer, self.derivation)
        sizes = {name: int(written[name]) for name in most}
        if wrong := [
            f"{name} is {size}, allowed are 0 to {most[name]}"
            for name, size in sizes.items()
            if not 0 <= size <= most[name]
        ]:
            raise PackError(
                f"{label} writes no possible size",
                "write each size once, from one thread; unwritten, it is arbitrary",
                faults=wrong,
            )
        answer = {}
        for name, rule in zip(self.layer.signature.output_names, self.derivation.outputs, strict=True):
            shape = tuple(dim.evaluate(sizes) for dim in rule.dims)
            answer[name] = written[name].reshape(-1)[: math.prod(shape)].reshape(shape)
        return answer

    @property
    def dtypes(self) -> dict[str, DType]:
        """The dtypes of the layer's tensors and outputs that are there."""
        sizes = {one.name for one in self.derivation.size_symbols} if self.derivation else set()
        return {name: one.dtype for name, one in self.tensors.items() if one is not None and name not in sizes}

    @property
    def sizes(self) -> dict[str, int]:
        shapes = {name: array.shape for name, array in self.arrays.items()}
        shapes |= {name: shape for name, (shape, _) in self.output_arrays.items()}
        return {f"{name}.{axis}": int(size) for name, shape in shapes.items() for axis, size in enumerate(shape)}

    def known_tensors(self) -> dict[str, TensorArg | None]:
        """The tensors with numbers for all sizes, which the constexprs of a Triton kernel may depend on."""
        sizes = self.sizes
        return {
            name: tensor
            and TensorArg(name, tensor.dtype, tuple(sizes[f"{name}.{axis}"] for axis in range(tensor.ndim)))
            for name, tensor in self.tensors.items()
        }

    def empty_outputs(self, poison: int) -> dict[str, Array]:
        made = {}
        for name, (shape, dtype) in self.output_arrays.items():
            array = np.empty(shape, dtype.to_numpy())
            array.reshape(-1).view(np.uint8)[...] = poison
            made[name] = array
        return made


def _values(layer: Layer, args: tuple[Any, ...], named: Mapping[str, Any]) -> dict[str, Any]:
    names = [argument.name for argument in layer.signature.arguments]
    if len(args) > len(names):
        raise UsageError(
            f"layer {layer.name} takes {len(names)} arguments, got {len(args)}", f"they are {', '.join(names)}"
        )
    values = dict(zip(names, args, strict=False))
    if wrong := sorted(set(named) & set(values) | set(named) - set(names)):
        raise UsageError(
            f"layer {layer.name}: {', '.join(wrong)} given twice or not an argument", f"they are {', '.join(names)}"
        )
    values |= named
    for argument in layer.signature.arguments:
        if argument.name not in values:
            if argument.default is MISSING and not argument.optional:
                raise UsageError(f"layer {layer.name}: argument {argument.name} is missing", "give it a value")
            values[argument.name] = None if argument.default is MISSING else argument.default
    return values


def _fits(combination: Mapping[str, DType], dtypes: Mapping[str, DType]) -> bool:
    return all(combination.get(name) == dtype for name, dtype in dtypes.items())


def _choose(call: _Call, wanted: str | None) -> Kernel:
    layer = call.layer
    dtypes = call.dtypes
    given = ", ".join(f"{name}: {dtype.value}" for name, dtype in dtypes.items())
    reasons = []
    for kernel in layer.kernels:
        if wanted is not None and kernel.name != wanted:
            continue
        if not any(_fits(one, dtypes) for one in kernel.combinations(layer.signature)):
            reasons.append(f"{kernel.name} does not take {given}")
            continue
        guard = trace_predicate(kernel, layer.signature, call.tensors, call.attributes, layer=layer.name)
        if guard is None or guard.evaluate(call.sizes):
            return kernel
        reasons.append(f"{kernel.name}: its predicate {guard} is false for these sizes")
    names = ", ".join(kernel.name for kernel in layer.kernels) or "none"
    raise UsageError(
        f"layer {layer.name} has no kernel {wanted or 'for these arguments'}", f"its kernels: {names}", faults=reasons
    )


@dataclass(frozen=True)
class _Job:
    program: HostProgram
    rule: LaunchRule
    geometry: Geometry
    order: str | int
    offset: int
    label: str

    def run(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> dict[str, Array]:
        buffers = {**inputs, **outputs}
        with tempfile.TemporaryDirectory(prefix="layerport-host-") as folder:
            program, request, answer = (Path(folder, name) for name in ("program", "request", "answer"))
            program.write_bytes(self.program.image)
            program.chmod(0o700)
            request.write_bytes(self._request(buffers))
            environment = os.environ | {"ASAN_OPTIONS": "detect_leaks=0:exitcode=3:color=never"}
            try:
                done = subprocess.run(
                    [program, request, answer], capture_output=True, text=True, timeout=_RUN_LIMIT, env=environment
                )
            except subprocess.TimeoutExpired as error:
                raise PackError(
                    f"{self.label} did not end within {_RUN_LIMIT:.0f} s", "look for a loop that never ends"
                ) from error
            if done.returncode != 0:
                raise _run_error(self.label, done.returncode, done.stderr)
            data = answer.read_bytes()
        results = _split(data, buffers)
        for name, array in inputs.items():
            if results[name].tobytes() != np.ascontiguousarray(array).tobytes():
                raise PackError(f"{self.label} writes its input {name}", "a kernel writes its outputs only")
        return {name: results[name] for name in outputs}

    def _request(self, buffers: Mapping[str, Array]) -> bytes:
        order = _ORDERS.get(str(self.order), _RANDOM)
        if order == _RANDOM and not isinstance(self.order, int):
            raise UsageError(f"order {self.order!r} is unknown", 'use "forward", "backward" or a whole number as seed')
        seed = self.order if isinstance(self.order, int) else 0
        parts = [_text("layerport host request 1")]
        geometry = self.geometry
        parts.append(_numbers(order, seed, *geometry.grid, *geometry.block, geometry.shared))
        parts.append(_numbers(len(self.program.statics)))
        parts += [struct.pack("<qQ", position, size) for position, size in self.program.statics]
        parts.append(_numbers(len(buffers)))
        for name, array in buffers.items():
            parts += [_text(name), _numbers(self.offset, array.nbytes), np.ascontiguousarray(array).tobytes()]
        parts.append(_numbers(len(self.rule.args)))
        places = {name: place for place, name in enumerate(buffers)}
        for arg, value in zip(self.rule.args, geometry.values, strict=True):
            parts.append(_argument(arg, value, places))
        return b"".join(parts)


def _argument(arg: PointerArg | ScalarArg, value: int | float | bool | None, places: Mapping[str, int]) -> bytes:
    if isinstance(arg, PointerArg):
        return struct.pack("<QQ", 3, 0) if arg.name is None else struct.pack("<QQ", 0, places[arg.name])
    if isinstance(value, float):
        return struct.pack("<Qd", 2, value)
    return struct.pack("<Qq", 1, int(value or 0))


def _numbers(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}Q", *values)


def _text(value: str) -> bytes:
    data = value.encode()
    return _numbers(len(data)) + data


def _split(data: bytes, buffers: Mapping[str, Array]) -> dict[str, Array]:
    results = {}
    start = 0
    for name, array in buffers.items():
        results[name] = np.frombuffer(data[start : start + array.nbytes], array.dtype).reshape(array.shape).copy()
        start += array.nbytes
    return results


def _poisoned(array: Array, poison: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """For each element whether all of its bytes are the poison."""
    raw = array.reshape(-1).view(np.uint8).reshape(array.size, array.itemsize)
    return np.asarray((raw == poison).all(axis=1)).reshape(array.shape)


def _check_written(first: Mapping[str, Array], second: Mapping[str, Array], label: str) -> None:
    faults = []
    for name, array in first.items():
        unwritten = _poisoned(array, _POISONS[0]) & _poisoned(second[name], _POISONS[1])
        if unwritten.any():
            place = tuple(int(index) for index in np.argwhere(unwritten)[0])
            faults.append(f"{name}: {int(unwritten.sum())} of {array.size} elements, the first at {list(place)}")
    if faults:
        raise PackError(
            f"{label} leaves elements of its outputs unwritten", "check the grid and the kernel's tail", faults=faults
        )


def _run_error(label: str, code: int, log: str) -> PackError:
    lines = log.splitlines()
    said = [line.removeprefix("layerport: ") for line in lines if line.startswith("layerport: ")]
    details = [line.strip() for line in lines if line.startswith("  ")] if said else lines[-8:]
    where = [line.strip() for line in lines if "AddressSanitizer:" in line and "ERROR" in line]
    return PackError(
        f"{label}: {said[0] if said else f'the program ended with {code}'}",
        "correct the kernel or its launch rule",
        faults=[*where, *details[:8]],
    )
