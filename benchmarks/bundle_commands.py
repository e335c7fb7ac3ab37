"""What `layerport verify` and `inspect` of a small portable bundle cost, beside ONNX Runtime by hand.

By hand it is a script that loads ONNX Runtime and NumPy, runs the model on the samples and compares.  Each run is a
fresh process; processor seconds stand beside the wall clock, because other work on the machine disturbs them less.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measuring import Comparison, arguments, environment, show

LIMIT = 1.3
HAND = """
import sys
import numpy as np, onnxruntime
from safetensors.numpy import load_file
samples = load_file(sys.argv[1] + "/samples.safetensors")
options = onnxruntime.SessionOptions()
session = onnxruntime.InferenceSession(sys.argv[1] + "/model.onnx", options, providers=["CPUExecutionProvider"])
inputs = {name[6:]: array for name, array in samples.items() if name.startswith("input.")}
outputs = [name[7:] for name in samples if name.startswith("output.")]
for name, got in zip(outputs, session.run(outputs, inputs)):
    print(name, np.abs(got - samples["output." + name]).max(), np.allclose(got, samples["output." + name], 1e-4, 1e-4))
"""


def make_bundle(path: Path) -> None:
    """A small model with a norm of the built-in pack."""
    import torch

    import layerport as lp

    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.RMSNorm(64), torch.nn.Linear(64, 8)).eval()
    lp.build(model, path, args=(torch.randn(3, 64),), target="portable", verify=False)


def run(command: list[str]) -> tuple[float, float]:
    """Wall-clock and processor seconds of a command."""
    begun, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - begun, now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--repeats", type=int, default=15, help="runs of each command, interleaved (default 15)")
    options = parser.parse_args()
    layerport = str(Path(sys.executable).with_name("layerport"))
    with tempfile.TemporaryDirectory() as folder:
        bundle = str(Path(folder, "b.lp"))
        make_bundle(Path(bundle))
        commands = {
            "by hand": [sys.executable, "-c", HAND, bundle],
            "layerport verify": [layerport, "verify", bundle],
            "layerport inspect": [layerport, "inspect", bundle],
        }
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for _ in range(options.repeats):
            for name, command in commands.items():
                taken[name].append(run(command))
    comparisons = [
        Comparison(
            f"{name}: {what}, {figure}",
            choose([one[place] for one in taken[name]]) * 1e3,
            choose([one[place] for one in taken["by hand"]]) * 1e3,
            "ms",
            LIMIT,
        )
        for name in list(commands)[1:]
        for place, what in ((1, "processor time"), (0, "time"))
        for figure, choose in (("least", min), ("median", statistics.median))
    ]
    show(
        "verify and inspect of a small portable bundle",
        comparisons,
        as_json=options.json,
        sides=("the command", "ONNX Runtime and NumPy by hand"),
        notes=[f"{options.repeats} interleaved runs, each a fresh process"],
        where=environment(["onnxruntime", "numpy"]),
    )


if __name__ == "__main__":
    main()
