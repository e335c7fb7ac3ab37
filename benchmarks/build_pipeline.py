"""From a Torch model to a TensorRT-RTX plan: layerport beside the same pipeline written by hand, time and memory.

The model is a transformers Llama in float32 with random weights: of 106 or of 15 million parameters, with dynamic
batch and sequence or of one size.
By hand it is `torch.onnx.export`, a saved file, the parser and the builder in one process, with no custom layers: what
one writes without layerport.  layerport runs twice: with its packs, so that every normalisation and gated activation is
a plugin, and without any pack, which gives the same network on both sides.

Each run is a fresh process.  Its time runs from the finished model to the written plan, imports included; its memory is
the largest sum of the proportional set sizes of its process tree, sampled.  Processor seconds are those of the build
and of the process that it starts; other work on the machine disturbs them less.  Needs Linux, tensorrt_rtx and
transformers.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from measuring import Comparison, arguments, environment, show

SAMPLE_SECONDS = 0.1
TARGET = "rtx:sm_89"
HAND, PACKS, NO_PACKS = "hand", "packs", "no packs"
TIME_LIMIT, MEMORY_LIMIT = 1.10, 1.15
ALLOWANCES = {"106": 0.5, "15": 0.3}
SIZES = {
    "106": {"vocab_size": 20000, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12}
    | {"num_attention_heads": 12, "num_key_value_heads": 4},
    "15": {"vocab_size": 8000, "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6}
    | {"num_attention_heads": 6, "num_key_value_heads": 6},
}


def make_model(size: str, static: bool) -> tuple[Any, Any, Any]:
    """The model, its example inputs and its dynamic shapes; None for those where it is static."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    class LogitsOnly(torch.nn.Module):
        def __init__(self, model: torch.nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return self.model(input_ids=input_ids, use_cache=False).logits

    torch.manual_seed(0)
    config = LlamaConfig(max_position_embeddings=512, **SIZES[size])
    model = LogitsOnly(LlamaForCausalLM(config)).eval()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert parameters >= int(size) * 1_000_000, parameters
    shapes = ({0: torch.export.Dim("batch", min=1, max=4), 1: torch.export.Dim("sequence", min=1, max=128)},)
    return model, (torch.randint(0, config.vocab_size, (2, 64)),), None if static else shapes


def build_by_hand(model: Any, args: Any, shapes: Any, folder: Path) -> dict[str, Any]:
    """The pipeline as one writes it without layerport."""
    import torch

    marks = [time.perf_counter()]
    with torch.no_grad():
        program = torch.onnx.export(model, args, dynamic_shapes=shapes, dynamo=True, verbose=False)
    assert program is not None
    marks.append(time.perf_counter())
    file = folder / "model.onnx"
    program.save(file, external_data=True)
    marks.append(time.perf_counter())

    import tensorrt_rtx as trt

    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file(str(file)), parser.get_error(0).desc()
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    if shapes is not None:
        profile = builder.create_optimization_profile()
        profile.set_shape(network.get_input(0).name, (1, 1), (2, 64), (4, 128))
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    assert plan is not None
    (folder / "model.plan").write_bytes(plan)
    marks.append(time.perf_counter())
    stages = zip(("export", "write", "engine"), marks[1:], marks, strict=False)
    return {"stages": {name: round(end - begin, 3) for name, end, begin in stages}, "plan_bytes": plan.nbytes}


def build_with_layerport(model: Any, args: Any, shapes: Any, folder: Path) -> dict[str, Any]:
    """The same with one call."""
    import layerport as lp

    report = lp.build((model, args, shapes), folder / "model.lp", target=TARGET, verify=False)
    stages = {name: round(seconds, 3) for name, seconds in report.seconds.items()}
    return {"stages": stages, "plan_bytes": report.plan_bytes, "layers": report.counts}


def run_side(side: str, size: str, static: bool) -> None:
    """What a fresh process does: make the model, build it, say what it took."""
    model, args, shapes = make_model(size, static)
    with tempfile.TemporaryDirectory() as name:
        build = build_by_hand if side == HAND else build_with_layerport
        begun, used = time.perf_counter(), _processor_seconds()
        result = build(model, args, shapes, Path(name))
        result |= {"seconds": time.perf_counter() - begun, "processor_seconds": _processor_seconds() - used}
    print(json.dumps(result))


class TreeMemory(threading.Thread):
    """Samples the memory of a process and its descendants: the largest sum of proportional set sizes.

    Shared pages (libraries, mapped weights) count once over the tree, which a sum of resident set sizes would not.
    """

    def __init__(self, root: int) -> None:
        super().__init__(daemon=True)
        self.root, self.peak, self.samples = root, 0, 0
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(SAMPLE_SECONDS):
            total = sum(_proportional_bytes(process) for process in _tree(self.root))
            self.peak, self.samples = max(self.peak, total), self.samples + 1

    def stop(self) -> None:
        self._done.set()
        self.join()


def _tree(root: int) -> list[int]:
    found = [root]
    for process in found:
        try:
            tasks = os.listdir(f"/proc/{process}/task")
            for task in tasks:
                found += map(int, Path(f"/proc/{process}/task/{task}/children").read_text().split())
        except OSError:  # it ended meanwhile
            continue
    return found


def _proportional_bytes(process: int) -> int:
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Pss:")), 0)


def measure(side: str, cache: str, model: list[str], *, memory: bool = False) -> dict[str, Any]:
    """Run one side in a fresh process and return its figures.

    model: the arguments that say which one.
    memory: sample it, which slows the run down, because the system walks every page for each answer.
    """
    environ = {**os.environ, "LAYERPORT_CACHE_DIR": cache, "HF_HUB_OFFLINE": "1"}
    if side == NO_PACKS:
        from layerport.packs.host import discover

        environ["LAYERPORT_DISABLE_PACKS"] = ",".join(info.name for info in discover())
    begun = time.perf_counter()
    command = [sys.executable, __file__, "--side", side, *model]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ) as process:
        sampler = TreeMemory(process.pid)
        if memory:
            sampler.start()
        output, errors = process.communicate()
        if memory:
            sampler.stop()
    if process.returncode:
        raise SystemExit(f"side {side!r} failed with exit code {process.returncode}:\n{errors[-3000:]}")
    figures: dict[str, Any] = json.loads(output.splitlines()[-1])
    return {
        **figures,
        "process_seconds": time.perf_counter() - begun,
        "peak": sampler.peak,
        "samples": sampler.samples,
    }


def _processor_seconds() -> float:
    """Processor time of this process, and of all children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side, interleaved (default 3)")
    parser.add_argument("--side", choices=(HAND, PACKS, NO_PACKS), help="run one side in this process")
    parser.add_argument("--size", choices=tuple(SIZES), default="106", help="million parameters (default 106)")
    parser.add_argument("--static", action="store_true", help="one size of batch and sequence")
    options = parser.parse_args()
    if options.side:
        run_side(options.side, options.size, options.static)
        return
    model = ["--size", options.size, *(["--static"] if options.static else [])]
    runs: dict[str, list[dict[str, Any]]] = {HAND: [], PACKS: [], NO_PACKS: []}
    with tempfile.TemporaryDirectory() as cache:
        # These runs fill the kernel cache too, and the system's file cache.
        sampled = {side: measure(side, cache, model, memory=True) for side in (PACKS, HAND, NO_PACKS)}
        for turn in range(options.repeats):
            order = list(runs)[turn % 3 :] + list(runs)[: turn % 3]
            for side in order:
                runs[side].append(measure(side, cache, model))
    comparisons = []
    for side, name in ((PACKS, "with packs"), (NO_PACKS, "without packs")):
        for what, key, limit in (
            ("processor time", "processor_seconds", TIME_LIMIT),
            ("time", "seconds", TIME_LIMIT),
            ("whole process", "process_seconds", None),
        ):
            for figure, choose in (("least", min), ("median", statistics.median)):
                ours, theirs = (float(choose(run[key] for run in runs[which])) for which in (side, HAND))
                allowance = ALLOWANCES[options.size] if limit else 0.0
                comparisons.append(Comparison(f"{name}: {what}, {figure}", ours, theirs, "s", limit, allowance))
        ours, theirs = (sampled[which]["peak"] / 2**20 for which in (side, HAND))
        comparisons.append(Comparison(f"{name}: peak memory", ours, theirs, "MiB", MEMORY_LIMIT))
    fastest = {side: min(taken, key=lambda run: run["seconds"]) for side, taken in runs.items()}
    show(
        f"a Llama of {options.size} M parameters, float32, {'static' if options.static else 'dynamic'}, "
        "from Torch to a plan for sm_89",
        comparisons,
        as_json=options.json,
        sides=("layerport.build(verify=False)", "torch.onnx.export + tensorrt_rtx by hand, no custom layers"),
        notes=[
            f"{options.repeats} interleaved runs, each a fresh process; the caches of kernels and bodies are warm",
            *(f"{side}: {_stages(run)}" for side, run in fastest.items()),
            f"with empty caches, while its memory is sampled: {_stages(sampled[PACKS])}",
        ],
        where=environment(["torch", "transformers", "onnx-ir", "onnxscript", "tensorrt_rtx"]),
        extra={"runs": runs, "sampled": sampled},
    )


def _stages(run: dict[str, Any]) -> str:
    return ", ".join(f"{name} {seconds:.2f} s" for name, seconds in run["stages"].items())


if __name__ == "__main__":
    main()
