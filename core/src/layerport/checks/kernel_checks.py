"""Runs the kernels of a bundle's plugins, on the GPU where there is one, and compares them with their references.

What a build and `layerport verify` say of a plugin: its converted parameters, its launch rule and its code, as the
plugin spec holds them, on the inputs that its node really has.  Torch and the packs are imported when it runs.
"""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import layerport.checks
import layerport.engine
from layerport.bundle.bundle import PLUGINS, Bundle
from layerport.bundle.plugin_spec import from_bytes
from layerport.errors import LayerportError
from layerport.packs import host as pack_host
from layerport.system import processes

if TYPE_CHECKING:
    from layerport.bundle.kernel_code import KernelCode
    from layerport.bundle.plugin_spec import PluginSet, PluginSpec
    from layerport.packs.host import Packs

RIGHT, WRONG, NOT_RUN = "right", "wrong", "not run"
MOST_SECONDS = 60.0
"""What all kernels of one bundle may take together, before the rest is not run."""
RUN_SECONDS = 15.0
_ENDING_SECONDS = 0.02


@dataclass(frozen=True)
class KernelCheck:
    """What running one kernel of one plugin showed.

    nodes: the nodes that it stands for, which have the same spec and the same converted parameters.
    answer: "right", "wrong" or "not run".  where: "the CPU" or "the GPU".  trials: on which inputs it ran.
    max_error: the largest |got - want| / (|want| + the mean magnitude of the output), where it ran.
    """

    plugin: str
    layer: str
    kernel: str
    nodes: tuple[str, ...]
    answer: str
    reason: str = ""
    where: str = "the CPU"
    max_error: float | None = None
    trials: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.answer == RIGHT:
            return f"right on {self.where} (max error {self.max_error:.1e})"
        if self.answer == WRONG:
            return f"WRONG on {self.where}: {self.reason}"
        return f"not run: {self.reason}"

    def to_json(self) -> dict[str, Any]:
        """The check as a program reads it; an infinite error is null."""
        error = self.max_error
        finite = error if error is not None and math.isfinite(error) else None
        return {**self.__dict__, "nodes": list(self.nodes), "trials": list(self.trials), "max_error": finite}


@dataclass(frozen=True)
class _Plugin:
    """A plugin that differs from the others: its spec, and a node whose parameters stand for those of all its nodes."""

    spec: PluginSpec
    nodes: tuple[str, ...]
    converted: Mapping[str, Any]


def check_kernels(
    bundle: Bundle, packs: Packs | None = None, *, extra: Iterable[object] = (), prefer: Iterable[object] = ()
) -> tuple[KernelCheck, ...]:
    """Run every kernel of every distinct plugin and compare it with its layer's reference in float64.

    On a GPU that the spec has code for, that code runs; else the pack's source runs on the CPU.

    packs: loaded already, else the installed ones, `extra` and `prefer` are loaded.  Kernels run side by side, within
    MOST_SECONDS.  What cannot run is an answer with its reason; a bundle without plugins has no checks.
    Raises BuildError for a damaged bundle, PackError for a pack in `extra` that does not load.
    """
    if PLUGINS not in bundle.manifest["files"]:
        return ()

    plugins = from_bytes(bundle.read(PLUGINS))
    layers = bundle.manifest["layers"]
    sources = {one["node"]: one.get("kernel_sources") or {} for one in layers}
    distinct = _distinct(plugins, {one["node"]: one.get("parameters") for one in layers})
    if not distinct:
        return ()

    try:
        with pack_host.importing_torch():
            kernel_runs, kernel_trials = layerport.checks.kernel_runs, layerport.checks.kernel_trials
            gpu_kernels = layerport.engine.gpu_kernels
    except ImportError as error:
        return tuple(one for each in distinct for one in _not_run(each, f"{error.name} is not installed"))
    if packs is None:
        packs = pack_host.load(*extra, prefer=prefer)
    try:
        recorded = kernel_trials.Recorded(bundle, [each.nodes[0] for each in distinct])
    except LayerportError as error:
        return tuple(one for each in distinct for one in _not_run(each, error.fault))
    gpu = gpu_kernels.open_gpu_kernels()
    runs = kernel_runs.Runs(packs, recorded, time.monotonic() + MOST_SECONDS, RUN_SECONDS, gpu)

    threads: set[int] = set()

    def check(each: _Plugin) -> list[KernelCheck]:
        threads.add(threading.get_ident())
        node = each.nodes[0]
        if recorded.at(node, recorded.env) is None:
            return _not_run(each, "its node stands inside a loop or a branch")
        if each.spec.plugin_class is not None:
            return _not_run(each, f"its pack brings its own plugin class {each.spec.plugin_class}")
        return [
            _check_one(runs, each, kernel, sources.get(node, {}).get(kernel.name)) for kernel in _launches(each.spec)
        ]

    try:
        from concurrent.futures import ThreadPoolExecutor, wait

        with ThreadPoolExecutor(2) as pool:  # a run on the CPU is a process of its own
            futures = [pool.submit(check, each) for each in distinct]
            try:
                return tuple(one for future in futures for one in future.result())
            except BaseException:  # an interrupt must not wait until the runs are over
                runs.stop()
                for future in futures:
                    future.cancel()
                while wait(futures, _ENDING_SECONDS).not_done:
                    processes.kill_those_of(threads)
                raise
    finally:
        if gpu is not None:
            gpu.close()


def worst(checks: Iterable[KernelCheck]) -> KernelCheck | None:
    """The one that says most against its plugin: a wrong one, else one that did not run, else the least exact."""
    order = {WRONG: 2, NOT_RUN: 1, RIGHT: 0}
    return max(checks, key=lambda one: (order[one.answer], one.max_error or 0.0), default=None)


def _check_one(runs: Any, each: _Plugin, kernel: KernelCode, source: str | None) -> KernelCheck:
    check = KernelCheck(each.spec.key, each.spec.layer, kernel.name, each.nodes, NOT_RUN)
    try:
        answer = runs.check(each.spec, kernel, each.nodes[0], each.converted, source)
    except LayerportError as error:
        return replace(check, reason="; ".join([error.fault, *error.faults[:3]]))
    return replace(check, **answer)


def _distinct(plugins: PluginSet, standard: Mapping[str, str | None]) -> list[_Plugin]:
    """The plugins that differ: by spec, and by what was converted to what, for a conversion may be wrong at one node.

    standard: the digest of each node's parameters in the standard form.
    """
    groups: dict[Any, list[str]] = {}
    for node, key in plugins.nodes.items():
        converted = plugins.parameters.get(node, {})
        digests = tuple(
            (name, hashlib.sha256(array.tobytes()).hexdigest()) for name, array in sorted(converted.items())
        )
        groups.setdefault((key, digests, standard.get(node) if converted else None), []).append(node)
    return [
        _Plugin(plugins.specs[plugins.nodes[nodes[0]]], tuple(nodes), plugins.parameters.get(nodes[0], {}))
        for nodes in groups.values()
    ]


def _launches(spec: PluginSpec) -> list[KernelCode]:
    """The kernels of a spec; two that differ in nothing but what a compiler wants of a block count once."""
    found: dict[Any, KernelCode] = {}
    for kernel in spec.kernels:
        rules = [step.launch.to_json() for step in kernel.steps]
        found.setdefault((kernel.name, str([(rule["grid"], rule["args"]) for rule in rules])), kernel)
    return list(found.values())


def _not_run(each: _Plugin, reason: str) -> list[KernelCheck]:
    names = dict.fromkeys(kernel.name for kernel in each.spec.kernels) or {"": None}
    return [KernelCheck(each.spec.key, each.spec.layer, name, each.nodes, NOT_RUN, reason) for name in names]
