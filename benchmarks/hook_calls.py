"""What looking for a pack's changes costs when it is asked about each module of a model.

Both sides ask every installed pack the same: ours looks around the calls of each pack for changes of the model, the
settings and the random states, the other side only calls.
"""

from __future__ import annotations

import torch
from measuring import Comparison, arguments, environment, interleaved, show

from layerport.packs.host import Packs, load

MS_PER_MODULE = 0.06  # what the look may take on top of the calls


def model_of(blocks: int) -> torch.nn.Module:
    """Four modules a block, one of which the built-in layers claim."""
    return torch.nn.Sequential(
        *(
            torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.RMSNorm(64, eps=1e-6), torch.nn.SiLU())
            for _ in range(blocks)
        )
    )


def unwatched(packs: Packs, model: torch.nn.Module) -> None:
    for pack in packs:
        for path, module in model.named_modules():
            place = f"{path} ({type(module).__name__})"
            packs.call("layerport_export_parameters", pack, path=place, watched=True, module=module, name=path)


def main() -> None:
    options = arguments(__doc__).parse_args()
    packs = load()
    comparisons = []
    for blocks in (25, 500):
        model = model_of(blocks)
        times = interleaved(
            {
                "ours": lambda model=model: packs.export_model(model),
                "theirs": lambda model=model: unwatched(packs, model),
            },
            rounds=30,
            seconds=20,
        )
        ours, theirs = times["ours"].least * 1e3, times["theirs"].least * 1e3
        count = 4 * blocks + 1
        what = f"a model of {count} modules"
        comparisons.append(Comparison(what, ours, theirs, "ms", 1.0, MS_PER_MODULE * count))
    show(
        "asking the packs about a model",
        comparisons,
        as_json=options.json,
        sides=("with the look for changes", "the calls alone"),
        notes=["the least of up to 30 interleaved rounds"],
        where=environment(["torch"]),
    )


if __name__ == "__main__":
    main()
