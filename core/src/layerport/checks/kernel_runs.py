"""One kernel of a plugin spec, run on the CPU with the spec's own expressions and compared with the reference.

Part of `kernel_checks`, which alone imports it: it needs Torch and the pack that the layer came from.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from layerport.bundle.kernel_code import KernelCode, launches_of
from layerport.bundle.plugin_spec import PluginSpec
from layerport.checks.kernel_trials import MOST_ELEMENTS, MOST_INTERPRETED, Recorded, make_trials, random_trial
from layerport.engine.gpu_kernels import GpuJob, GpuKernels
from layerport.errors import LayerportError, PackError, UsageError
from layerport.harness import TimeUp
from layerport.harness.execution import Outputs, execute, make_job
from layerport.kernels.declaration import Kernel
from layerport.kernels.launch_rules import LaunchRule, LaunchSequence, PointerArg
from layerport.kernels.sources import source_digest
from layerport.kernels.tracing import trace
from layerport.layers.layer import Layer
from layerport.packs.host import Packs
from layerport.parameters.comparison import KERNEL_TOLERANCES, errors_within
from layerport.parameters.conversion import from_standard, to_standard
from layerport.sizes.tensors import TensorType, sizes_of

if TYPE_CHECKING:
    from layerport.checks.onnx_values import NodeInput

Array = np.ndarray[Any, Any]
Answer = dict[str, Any]
_ORDERS = ("forward", "backward")


class _NotRun(LayerportError):
    """Why a kernel cannot be run, which says nothing about it."""


class Runs:
    """Runs kernels until a point in time (of the monotonic clock), each run within a number of seconds.

    gpu: where kernels run whose spec has code for it; None where they run on the CPU.
    """

    def __init__(
        self, packs: Packs, recorded: Recorded, until: float, run_seconds: float, gpu: GpuKernels | None
    ) -> None:
        self._packs = packs
        self._gpu = gpu
        self._recorded = recorded
        self._until = until
        self._run_seconds = run_seconds

    def stop(self) -> None:
        """Begin no further run; for another thread."""
        self._until = 0.0

    def check(
        self,
        spec: PluginSpec,
        code: KernelCode,
        node: str,
        converted: Mapping[str, Any],
        source: str | None,
    ) -> Answer:
        """What became of one kernel, as the fields of a `KernelCheck`.

        node: one that has it.  converted: the parameters that the plugin gets in another form.
        source: the digest of the source that the kernel was compiled from.  Raises LayerportError where it cannot run.
        """
        gpu = self._gpu if self._gpu is not None and self._gpu.takes(spec) else None
        layer, kernel = self._kernel(spec, code, source, gpu is not None)
        where = "the GPU" if gpu is not None else "the CPU"
        recorded = self._recorded

        def at(env: Mapping[str, int]) -> dict[str, NodeInput] | None:
            values = recorded.at(node, env)
            return None if values is None else {slot.name: v for slot, v in zip(spec.inputs, values, strict=True)}

        def moving(env: Mapping[str, int]) -> dict[str, NodeInput] | None:
            named = at(env)
            return None if named is None else {name: one for name, one in named.items() if not one.constant}

        constants = {name: one.array for name, one in (at(recorded.env) or {}).items() if one.constant}
        limit = MOST_ELEMENTS if kernel.in_cuda else MOST_INTERPRETED
        trials, reason = make_trials(
            moving(recorded.env) or {},
            moving,
            recorded.env,
            recorded.dims,
            lambda shapes: code.guard is None or bool(code.guard.evaluate(_sizes(spec, shapes, constants, converted))),
            lambda shapes: _elements(spec, _sizes(spec, shapes, constants, converted)) <= limit,
        )
        if not trials:
            return {"answer": "not run", "reason": reason}
        worst, compared = 0.0, False
        done: list[str] = []
        waiting = list(trials)
        while waiting:
            trial = waiting.pop(0)
            wanted = _reference(layer, spec, {**constants, **trial.inputs})
            if wanted is None:
                continue
            if trial is trials[0] and _constant(wanted):
                waiting.append(random_trial(trial))
            try:
                # What depends on the order of threads is right in one of them at most.
                order = _ORDERS[len(done) % len(_ORDERS)]
                got = self._run(layer, kernel, spec, code, {**constants, **trial.inputs, **converted}, gpu, order)
            except TimeUp as error:
                return {"answer": "not run", "reason": f"{error.fault}, which is its budget on the CPU"}
            except PackError as error:
                said = error.fault.removeprefix(f"layer {layer.name}, kernel {kernel.name}").lstrip(": ")
                reason = "; ".join([said, *error.faults[:3]])
                return {"answer": "wrong", "reason": f"{reason} (on {trial.what})", "where": where}
            off, fault, finite = _compare(spec, got, wanted)
            if fault:
                return {"answer": "wrong", "reason": f"{fault} (on {trial.what})", "max_error": off, "where": where}
            worst = max(worst, off)
            compared = compared or finite
            done.append(trial.what)
        if not done:
            return {"answer": "not run", "reason": "the reference fails on the inputs of its node"}
        if not compared:
            return {"answer": "not run", "reason": "the reference gives nothing finite on the inputs of its node"}
        return {"answer": "right", "max_error": worst, "trials": tuple(done), "where": where}

    def _kernel(self, spec: PluginSpec, code: KernelCode, source: str | None, on_gpu: bool) -> tuple[Layer, Kernel]:
        """The layer and the kernel in the pack that is loaded, if they are what the bundle was built from."""
        try:
            newest = self._packs.layer(spec.layer)
        except UsageError as error:
            raise _NotRun(f"{error.fault}; name its pack with --pack or packs=") from error
        wanted = spec.layer, spec.version
        layer = next((one for one in self._packs.every_version if (one.name, one.version) == wanted), newest)
        if layer.version != spec.version:
            raise _NotRun(f"the installed pack has version {layer.version} of the layer, the bundle {spec.version}")
        kernel = next((one for one in layer.kernels if one.name == code.name), None)
        if kernel is None:
            raise _NotRun(f"the installed pack has no kernel {code.name}")
        if on_gpu:  # the bundle's own code runs there
            return layer, kernel
        if source is None or source_digest(kernel) != source:
            raise _NotRun("the installed pack's kernel is not the source that the bundle was built from")
        return layer, kernel

    def _run(
        self,
        layer: Layer,
        kernel: Kernel,
        spec: PluginSpec,
        code: KernelCode,
        arrays: dict[str, Array],
        gpu: GpuKernels | None,
        order: str,
    ) -> tuple[Array, ...]:
        left = self._until - time.monotonic()
        if left <= 0:
            raise _NotRun("the budget of all kernels of this bundle on the CPU is used up")
        arrays = {slot.name: np.asarray(arrays[slot.name], order="C") for slot in spec.inputs}
        sizes = sizes_of({name: array.shape for name, array in arrays.items()})
        outputs = Outputs(
            spec.outputs,
            {size.name: size.greatest.evaluate(sizes) for size in spec.sizes},
            sizes,
        )
        tensors = _tensors(layer, spec, arrays, outputs)
        launches = launches_of(code)
        if gpu is None and not kernel.in_cuda:
            written_rules = trace(kernel, layer.signature, tensors, spec.attributes, layer=layer.name).launches.rules
            rules = tuple(map(_interpreted, written_rules, launches.rules))
            launches = LaunchSequence(rules, launches.scratch)
        try:
            geometries = launches.resolve(sizes, label=f"layer {layer.name}, kernel {kernel.name}")
        except LayerportError as error:
            raise PackError(error.fault, error.repair, faults=error.faults) from error
        if not any(geometries):
            written = outputs.empty(0)
            if any(array.size for array in written.values()):
                raise PackError(
                    "its launch rule gives an empty grid, but the outputs are not empty",
                    "round the grid up, with lp.cdiv, so that a block covers the last elements too",
                )
            return tuple(written.values())
        if gpu is not None:
            return tuple(execute(GpuJob(gpu, spec, code.name), arrays, outputs).values())
        try:
            job = make_job(
                layer,
                kernel,
                launches,
                sizes,
                tensors,
                spec.attributes,
                order=order,
                strict=False,
                time_limit=min(left, self._run_seconds),
            )
        except LayerportError as error:
            raise _NotRun("; ".join([error.fault, *error.faults[:2]])) from error
        assert job is not None
        return tuple(execute(job, arrays, outputs).values())


def _sizes(
    spec: PluginSpec,
    shapes: Mapping[str, tuple[int, ...]],
    constants: Mapping[str, Array],
    converted: Mapping[str, Any],
) -> dict[str, int]:
    known = {name: array.shape for name, array in {**constants, **converted}.items()} | dict(shapes)
    return sizes_of({tensor.name: known[tensor.name] for tensor in spec.inputs})


def _elements(spec: PluginSpec, sizes: Mapping[str, int]) -> int:
    """Elements of all inputs and outputs of a plugin, data-dependent sizes at their greatest."""
    env = {**sizes, **{size.name: size.greatest.evaluate(sizes) for size in spec.sizes}}
    shapes = (tensor.resolve(env) for tensor in (*spec.inputs, *spec.outputs))
    return sum(int(np.prod(shape, dtype=np.float64)) for shape in shapes)


def _tensors(
    layer: Layer, spec: PluginSpec, arrays: Mapping[str, Array], outputs: Outputs
) -> dict[str, TensorType | None]:
    tensors: dict[str, TensorType | None] = {argument.name: None for argument in layer.signature.tensors}
    for one in spec.inputs:
        tensors[one.name] = TensorType(one.name, one.dtype, tuple(int(size) for size in arrays[one.name].shape))
    return tensors | outputs.largest()


def _interpreted(written: LaunchRule, compiled: LaunchRule) -> LaunchRule:
    """The rule of the spec with the null pointers that the compiler took out, which the interpreter wants back."""
    left = list(compiled.args)
    args = [arg if isinstance(arg, PointerArg) and arg.name is None else left.pop(0) for arg in written.args]
    return LaunchRule(compiled.grid, compiled.block, compiled.shared, tuple(args))


def _reference(layer: Layer, spec: PluginSpec, arrays: Mapping[str, Array]) -> list[tuple[Array, Array | None]] | None:
    """Each output of the reference in its own dtype, and in float64 where the reference computes in that as well."""
    tensors = {name: from_standard(np.array(array, order="C"), "torch") for name, array in arrays.items()}
    values = {argument.name: None for argument in layer.signature.tensors} | dict(spec.attributes)
    try:
        with torch.inference_mode():
            own = _outputs(_call(layer, values, tensors))
    except Exception:  # cut or scaled inputs may be none that the reference takes
        return None
    wide = None
    try:
        with torch.inference_mode():
            wide = _outputs(
                _call(
                    layer,
                    values,
                    {name: one.double() if one.is_floating_point() else one for name, one in tensors.items()},
                )
            )
    except Exception:
        wide = None
    if wide is not None and [one.shape for one in wide] != [one.shape for one in own]:
        wide = None
    return [(array, wide[place] if wide is not None else None) for place, array in enumerate(own)]


def _call(layer: Layer, values: Mapping[str, Any], tensors: Mapping[str, Any]) -> Any:
    return layer.reference(**{**values, **{name: tensor.clone() for name, tensor in tensors.items()}})


def _outputs(answer: Any) -> list[Array]:
    made = (answer,) if isinstance(answer, torch.Tensor) else tuple(answer)
    return [to_standard(one.detach().contiguous()).array for one in made]


def _constant(wanted: list[tuple[Array, Array | None]]) -> bool:
    return all(own.size == 0 or bool((own == own.reshape(-1)[0]).all()) for own, _ in wanted)


def _compare(
    spec: PluginSpec, got: tuple[Array, ...], wanted: list[tuple[Array, Array | None]]
) -> tuple[float, str, bool]:
    """The largest error, what is wrong, and whether any finite value was compared.

    An element is right where it agrees with the reference in float64 or in the reference's own dtype.
    """
    worst, compared = 0.0, False
    for slot, have, (own, wide) in zip(spec.outputs, got, wanted, strict=True):
        if have.shape != own.shape or have.dtype != own.dtype:
            return (
                float("inf"),
                f"{slot.name} is {have.dtype.name}{list(have.shape)}, the reference gives "
                f"{own.dtype.name}{list(own.shape)}",
                True,
            )
        if not have.size:
            compared = True
            continue
        values = have.astype(np.float64)
        near, far = errors_within(values, own.astype(np.float64), own.dtype.name, KERNEL_TOLERANCES)
        if wide is not None:
            also, closer = errors_within(values, wide.astype(np.float64), own.dtype.name, KERNEL_TOLERANCES)
            near, far = near | also, np.minimum(far, closer)
        compared = compared or bool(np.isfinite(own.astype(np.float64)).any())
        error = float(far.max())
        if not near.all():
            place = np.unravel_index(int(np.where(near, -1.0, far).argmax()), have.shape)
            return (
                error,
                f"{slot.name}{[int(index) for index in place]} is {values[place]:.6g}, the reference gives "
                f"{float(own[place]):.6g}; {int((~near).sum())} of {have.size} elements are wrong",
                True,
            )
        worst = max(worst, error)
    return worst, "", compared
