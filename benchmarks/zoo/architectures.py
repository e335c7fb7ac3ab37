"""Builds real architectures with each layer as a plugin, in two dtypes, and compares what was found with what is there.

    python benchmarks/zoo/architectures.py                      # all of them
    python benchmarks/zoo/architectures.py -k llama -k mamba    # some
    python benchmarks/zoo/architectures.py --target portable    # without engines

What is there is counted by hand, from each model's code and its number of blocks.  Where a build does not verify in 16
bits, the same model is built once more with no layer in it: that tells whether a layer is at fault.
Exit code 1: a layer is missed, has no plugin, or has a kernel that is not right; or a build does not verify that
verifies without layers.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(FOLDER))
DISTRIBUTIONS = ("torch", "transformers", "diffusers", "torchvision", "onnx", "onnxruntime", "tensorrt_rtx")
DTYPES = ("float32", "float16")


@dataclass(frozen=True)
class Architecture:
    """A model of the zoo, and how many of each layer are there.

    there: by the names of our layers.  asked: those that are found only where `--find` asks.
    only: the one dtype that the model itself runs in, None for both.
    """

    model: str
    there: Mapping[str, int]
    asked: tuple[str, ...] = ()
    only: str | None = None


ARCHITECTURES = {
    # Two norms a block and a last one; a gate a block; queries and keys are rotated.
    "Llama": Architecture("llama", {"rms_norm": 5, "silu_mul": 2, "rope": 4}),
    # And norms of queries and of keys.
    "Qwen3": Architecture("qwen3", {"rms_norm": 9, "silu_mul": 2, "rope": 4}),
    # And norms after attention and MLP.
    "Gemma3": Architecture("gemma3", {"rms_norm": 13, "gelu_mul": 2, "rope": 4}),
    # Two a block; the embeddings' positions are shared by all samples, so theirs is a norm of a sum that broadcasts.
    "BERT": Architecture("bert", {"add_layer_norm": 4, "layer_norm": 1}, asked=("add_layer_norm", "layer_norm")),
    # Two norms a block of the encoder, three of the decoder, two last ones.
    "T5": Architecture("t5", {"rms_norm": 12, "gelu_mul": 4}),
    # Both products of each block's experts, whose first gives both halves of their gate.
    "Mixtral": Architecture(
        "mixtral-as-it-comes", {"rms_norm": 5, "experts_linear": 4, "packed_gate_mul": 2, "rope": 4}
    ),
    "Mamba": Architecture("mamba", {"rms_norm": 3, "selective_scan": 2, "causal_conv1d": 2}),
    # Its blocks normalise the states' step, input and output matrices, too.
    "Falcon-Mamba": Architecture("falcon-mamba", {"rms_norm": 9, "selective_scan": 2, "causal_conv1d": 2}),
    "Mamba2": Architecture("mamba2", {"rms_norm": 3, "gated_rms_norm": 2, "causal_conv1d": 2, "ssd_scan": 2}),
    # A block of Mamba2 and one of attention, each with two norms and an MLP.
    "Bamba": Architecture(
        "bamba",
        {"rms_norm": 5, "gated_rms_norm": 1, "causal_conv1d": 1, "ssd_scan": 1, "silu_mul": 2, "rope": 2},
    ),
    # Two blocks of Mamba2 with a norm each, before the second the shared block of attention and MLP with two.
    "Zamba2": Architecture(
        "zamba2", {"rms_norm": 5, "gated_rms_norm": 2, "causal_conv1d": 2, "ssd_scan": 2, "packed_gate_mul": 1}
    ),
    # One block of the encoder, two of the decoder.
    "Deformable DETR": Architecture("deformable-detr", {"ms_deform_attn": 3}),
    "RT-DETR": Architecture("rt-detr", {"ms_deform_attn": 2}),
    "RT-DETR v2": Architecture("rt-detr-v2", {"ms_deform_attn": 2}),
    # One block of its pixel decoder.
    "Mask2Former": Architecture("mask2former", {"ms_deform_attn": 1}),
    # Eight residual blocks with two norms each, and one before the last convolution; four transformer blocks.
    "UNet": Architecture(
        "unet-2d-condition", {"group_norm_silu": 17, "packed_gate_mul": 4}, asked=("group_norm_silu",)
    ),
    # Ten residual blocks, and one before each last convolution.
    "VAE": Architecture("autoencoder-kl", {"group_norm_silu": 22}, asked=("group_norm_silu",)),
    # Four levels at each of three updates.  Its coordinates are float32, which Torch refuses beside weights of 16 bits.
    "RAFT": Architecture("raft", {"local_correlation": 12}, only="float32"),
}


def main(argv: list[str] | None = None) -> int:
    options = _options(argv)
    if options.one:
        print(json.dumps(run_one(*options.one, target=options.target)))
        return 0
    from measuring import environment, print_table

    rows = []
    for name, one in ARCHITECTURES.items():
        if options.k and not any(part.lower() in name.lower() for part in options.k):
            continue
        for dtype in DTYPES:
            if one.only not in (None, dtype):
                continue
            row = {"architecture": name, "dtype": dtype, **_child(name, dtype, options)}
            rows.append(row)
            print("  ".join(_cells(row)), file=sys.stderr, flush=True)
            if options.output:
                document = {"target": options.target, "environment": environment(DISTRIBUTIONS), "rows": rows}
                Path(options.output).write_text(json.dumps(document, indent=1) + "\n")
    print_table([HEAD, *map(_cells, rows)])
    short = [f"{row['architecture']}, {row['dtype']}: {fault}" for row in rows for fault in row["faults"]]
    print("\n".join(["", *short]) if short else "")
    return 1 if short or not rows else 0


HEAD = ("architecture", "dtype", "there", "plugins", "verified", "error", "kernels", "without layers")


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    layers = ", ".join(f"{count} {layer}" for layer, count in row["there"].items())
    plugins = "as many" if row["plugins"] == row["there"] else json.dumps(row["plugins"])
    bare = row["verified_without_layers"]
    return (
        *(row["architecture"], row["dtype"], layers, plugins, "yes" if row["verified"] else "NO"),
        *("-" if row["error"] is None else f"{row['error']:.1e}", f"{row['right_kernels']} right"),
        "not built" if bare is None else "verified" if bare else "not verified either",
    )


def _child(name: str, dtype: str, options: argparse.Namespace) -> dict[str, Any]:
    """One build in a process of its own, with a limit on its time."""
    command = [sys.executable, __file__, "--target", options.target, "--one", name, dtype]
    empty: dict[str, Any] = {"there": dict(ARCHITECTURES[name].there), "plugins": {}, "verified": False, "error": None}
    empty |= {"right_kernels": 0, "verified_without_layers": None}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=options.seconds, check=False)
    except subprocess.TimeoutExpired:
        return {**empty, "faults": [f"took more than {options.seconds} s"]}
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return {**empty, "faults": [next((line for line in reversed(lines) if "Error" in line), lines[-1])]}
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def run_one(name: str, dtype: str, target: str) -> dict[str, Any]:
    """Build one of them and say what became of it."""
    import tempfile

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.simplefilter("ignore")
    _let_torchvision_in()
    import layerport as lp

    one = ARCHITECTURES[name]
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        source = _source(one.model, dtype)
        asked = [f"layerport_builtin::{layer}" for layer in one.asked]
        report = lp.build(source, Path(folder) / "a.lp", target=target, find=asked)
        seconds = time.perf_counter() - begun
        assert report.verification is not None
        passed, bare = report.verification.passed, None
        if not passed:
            refused = sorted({record.layer for record in report.layers})
            plain = lp.build(
                _source(one.model, dtype), Path(folder) / "b.lp", target="portable", no_find=refused, no_claim=refused
            )
            assert plain.verification is not None
            bare = plain.verification.passed
        plugins = {layer.rpartition("::")[2]: sum(ways.values()) for layer, ways in report.counts.items()}
        wrong = [check for check in report.verification.kernels if check.answer not in ("right", "not checked")]
        faults = [f"{check.layer}: {check.answer}: {check.reason}" for check in wrong]
        if plugins != dict(one.there):
            faults.append(f"there are {dict(one.there)}, found {plugins}")
        if target != "portable":
            faults += [
                f"{layer} is no plugin: {ways}" for layer, ways in report.counts.items() if set(ways) != {"plugin"}
            ]
        if bare:
            faults.append("does not verify, and does without layers")
        if not passed and dtype == "float32":
            faults.append("does not verify")
        errors = [check.max_abs for check in report.verification.outputs if check.max_abs is not None]
        return {
            "there": dict(one.there),
            "plugins": plugins,
            "verified": passed,
            "error": max(errors, default=None),
            "outputs": [f"{check.name}: {check.fault or check.max_abs}" for check in report.verification.outputs],
            "right_kernels": sum(check.answer == "right" for check in report.verification.kernels),
            "verified_without_layers": bare,
            "plan_bytes": report.plan_bytes,
            "seconds": round(seconds, 1),
            "faults": faults,
        }


def _source(model: str, dtype: str) -> Any:
    import torch

    from zoo.cases import SIZES, table

    if model == "raft":
        return _raft()
    case = table(("language", "vision", "diffusion"))[model].case()
    if "sequence" in case.sizes:  # where a scan fixes it without layers, too
        case = replace(case, sizes={**case.sizes, "sequence": SIZES["sequence"]})
    kind = getattr(torch, dtype)
    values = {
        name: value.to(kind) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for name, value in case.feed(case.at(0)).items()
    }
    # An engine needs a greatest size for each dynamic dim; those that the zoo leaves to Torch have none.
    shapes = {
        name: axes and {axis: dim for axis, dim in axes.items() if dim is not torch.export.Dim.AUTO}
        for name, axes in case.dynamic_shapes().items()
    }
    return case.model.to(kind), values, shapes


def _raft() -> Any:
    import torch
    from torch import Tensor, nn
    from torchvision.models.optical_flow import raft_small

    class Flow(nn.Module):
        """The last flow after three updates."""

        def __init__(self) -> None:
            super().__init__()
            self.raft = raft_small()

        def forward(self, image1: Tensor, image2: Tensor) -> Tensor:
            flows: list[Tensor] = self.raft(image1, image2, num_flow_updates=3)
            return flows[-1]

    torch.manual_seed(0)
    image = torch.rand(1, 3, 128, 160) * 2 - 1
    return Flow().eval(), (image, image.roll((3, -1), (2, 3)))


def _let_torchvision_in() -> None:
    """Beside a Torch without CUDA its operators do not load, and then it cannot be imported, not even by transformers.

    No model here calls them.
    """
    import importlib.util

    import torch

    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None:
        return
    try:
        torch.ops.load_library(next(Path(found.origin).parent.glob("_C*")))
    except OSError:
        global _LIBRARY
        _LIBRARY = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            _LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


_LIBRARY: Any = None


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "-k", action="append", default=[], metavar="PART", help="only those whose name has this; repeat"
    )
    parser.add_argument("--target", default="rtx:sm_89", help="of layerport.build (default: rtx:sm_89)")
    parser.add_argument("--seconds", type=float, default=900, help="limit of one row")
    parser.add_argument("--output", help="where to write the JSON")
    parser.add_argument("--one", nargs=2, metavar=("NAME", "DTYPE"), help=argparse.SUPPRESS)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
