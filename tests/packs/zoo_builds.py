"""Runs the builds of the zoo in a process that has the zoo installed, and prints what came of them as JSON.

In: a JSON list of (name, layer, target, owner) in the first argument.  Run as a file by `test_broken_pack_zoo`.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

from layerport import building
from layerport.errors import LayerportError
from layerport.packs import host as packs

STATE = os.getcwd(), list(sys.path), sys.excepthook
LOADED = packs.load()  # before Torch, as the command does it: some of the zoo is in its way

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402


class Zoo(nn.Module):
    def __init__(self, owner: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.owner = owner

    def forward(self, x: Tensor) -> Tensor:
        return x * 3.0


class Model(nn.Module):
    def __init__(self, owner: str) -> None:
        super().__init__()
        self.zoo = Zoo(owner)
        self.last = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.zoo(x))


def build(folder: str, owner: str, **options: object) -> dict[str, object]:
    model = Model(owner).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        report = building.build((model, (torch.ones(2, 4),)), Path(folder) / "out.lp", force=True, **options)  # type: ignore[arg-type]
        result: dict[str, object] = {"exit_code": 0, "text": "", "warnings": report.warnings}
    except LayerportError as error:
        result = {"exit_code": error.exit_code, "text": str(error), "warnings": []}
    result["left"] = sorted(os.listdir(folder))
    result["unchanged"] = all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    return result


def main() -> None:
    packs.load = lambda *explicit, **more: LOADED
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        results["free"] = build(folder, "all", target="portable")
    for name, layer, target in json.loads(sys.argv[1]):
        with tempfile.TemporaryDirectory() as folder:
            results[name] = build(folder, name, target=target, claim=[layer])
    results["process"] = {
        "same": (os.getcwd(), list(sys.path), sys.excepthook) == STATE,
        "strict": "LAYERPORT_STRICT" in os.environ,
    }
    print(json.dumps(results), flush=True)


if __name__ == "__main__":
    main()
