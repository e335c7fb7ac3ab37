"""The process in which a pack is checked: `python -m layerport.testing.conformance.child PACK GPU [LAYER ...]`.

GPU is 0 or 1.

Says on its first stdout, a JSON object a line: {"begin": ...} before a check, {"end": ...} after it, {"error": ...}
for wrong use.  What the pack prints goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import layerport.testing.conformance
from layerport.errors import UsageError


def main(pack: str, gpu: str, layers: list[str]) -> None:
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(**answer: Any) -> None:
        print(json.dumps(answer), file=out, flush=True)

    say(begin={"check": "pack", "layer": None, "dtype": None})
    kit = layerport.testing.conformance.kit
    try:
        checks = kit.checks_of(pack, layers=layers, gpu=gpu == "1")
    except UsageError as error:
        say(error={"fault": error.fault, "repair": error.repair, "faults": error.faults})
        return
    for check in checks:
        named = {"check": check.name, "layer": check.layer, "dtype": check.dtype}
        say(begin=named)
        start = time.perf_counter()
        verdict = kit.judge(check)
        seconds = round(time.perf_counter() - start, 3)
        came = {"answer": verdict.answer, "reason": verdict.reason, "notes": verdict.notes}
        say(end={**named, **came, "seconds": seconds})
    say(done=True)
    out.close()
    os._exit(0)  # nothing that the pack has left running keeps it


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
