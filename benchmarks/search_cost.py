"""What the search for layers adds to an export: a Llama of 110 M parameters, and 20 installed layers.

Both sides are measured in one process, in turn: the export with torch.onnx, and the search in the graph that it
decomposes.  The first search of a process also traces the references, which is measured by itself.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from measuring import Comparison, arguments, environment, show
from torch import Tensor
from torch.export import Dim

import layerport as lp
from layerport.front import found_layers
from layerport.front.export import export_model
from layerport.front.sources import Source
from layerport.layers.layer import Layer
from layerport.search import searching
from layerport.search.patterns import patterns_of
from layerport_builtin_layers.plugin import layerport_layers

SHARE, SECONDS = 0.05, 1.0


class Logits(torch.nn.Module):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=input_ids, use_cache=False).logits
        return logits


def llama(layers: int = 12) -> Source:
    """A Llama with 110 M parameters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32_000, hidden_size=768, intermediate_size=2048, num_hidden_layers=layers,
        num_attention_heads=12, num_key_value_heads=12, max_position_embeddings=512, tie_word_embeddings=True,
    )  # fmt: skip
    shapes = ({0: Dim("batch", min=1, max=8), 1: Dim("sequence", min=1, max=256)},)
    return Source(Logits(LlamaForCausalLM(config)).eval(), (torch.randint(0, 32_000, (2, 32)),), {}, shapes, "llama")


def further_layers(count: int) -> list[Layer]:
    """Layers that the model does not hold, each of half a dozen operators and two numbers."""

    def made(number: int) -> Layer:
        @lp.layer(f"search_cost::layer_{number}")
        def reference(x: Tensor, y: Tensor, weight: lp.Param, eps: float = 1e-6, slope: float = 2.0) -> Tensor:
            centred = x - x.mean(-1, keepdim=True)
            scaled = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps) * weight
            return torch.tanh(scaled * (number + 2)) * torch.sigmoid(slope * y)

        return reference

    return [made(number) for number in range(count)]


def timed(function: Any) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    builtin = list(layerport_layers())
    twenty = [*builtin, *further_layers(20 - len(builtin))]
    source = llama()
    with torch.no_grad():
        outputs = source.model(*source.args)

    searches: list[float] = []

    def search(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        findings = searching.search(*args, **kwargs)
        searches.append(time.perf_counter() - start)
        return findings

    found_layers.search = search  # the export calls it where it needs it
    spent: dict[str, list[float]] = {"without": [], "three": [], "twenty": []}

    def export(layers: list[Layer]) -> float:
        searches.clear()
        export_model(source, source.model, builtin, outputs, found_layers.FindWishes(tuple(layers)))
        return sum(searches)

    timed(lambda: export([]))  # imports, and all that Torch makes once
    tracing = timed(lambda: [patterns_of(layer) for layer in twenty])
    times: dict[str, list[float]] = {"without": [], "three": [], "twenty": []}
    sides = {"without": [], "three": builtin, "twenty": twenty}
    for turn in range(options.rounds):
        names = list(sides)
        for name in names[turn % 3 :] + names[: turn % 3]:
            times[name].append(timed(lambda layers=sides[name], name=name: spent[name].append(export(layers))))
    least = {name: min(taken) for name, taken in times.items()}
    search_seconds = {name: min(taken) for name, taken in spent.items()}
    comparisons = [
        Comparison("export, 3 layers searched and put in", least["three"], least["without"], "s", 1 + SHARE),
        Comparison("of that the search of 3 layers", search_seconds["three"], least["without"], "s", SHARE),
        Comparison("the search of 20 layers", search_seconds["twenty"], SECONDS, "s"),
        Comparison("tracing 20 references, once in a process", tracing, SECONDS, "s"),
        Comparison("both, for the first model of a process", search_seconds["twenty"] + tracing, SECONDS, "s", 1.0),
    ]
    show(
        "search_cost",
        comparisons,
        as_json=options.json,
        sides=("with the search", "without, or the limit"),
        where=environment(("torch", "transformers")),
    )


if __name__ == "__main__":
    main()
