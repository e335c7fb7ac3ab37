"""Builds real architectures, by hand and here, and says where we fall short of the exporter by hand.

    python benchmarks/zoo/run.py                        # all models, the portable target
    python benchmarks/zoo/run.py -k llama --jobs 2      # some of them
    python benchmarks/zoo/run.py --target rtx:sm_89     # engines too

Exit code 1: a model that the hand-written pipeline takes, or a size at which it is right, fails here.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import resource
import signal
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(FOLDER))
DISTRIBUTIONS = ("torch", "transformers", "diffusers", "timm", "onnx", "onnxscript", "onnxruntime", "tensorrt_rtx")
PRELOAD = ["zoo.judge", "zoo.preload"]


def main(argv: list[str] | None = None) -> int:
    options = _options(argv)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from measuring import environment, print_table

    from zoo.cases import table

    names = [name for name, entry in table().items() if _wanted(f"{entry.group}/{name}", options.k)]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    begun = time.perf_counter()
    rows: dict[str, dict[str, Any]] = {}
    with ThreadPoolExecutor(options.jobs) as pool:
        made = pool.map(lambda name: (name, {side: _child(context, name, side, options) for side in SIDES}), names)
        for name, sides in made:
            rows[name] = {"group": table()[name].group, **sides}
            if options.output:  # after each model: a run that is stopped has what it had
                document = {"target": options.target, "environment": environment(DISTRIBUTIONS), "models": rows}
                Path(options.output).write_text(json.dumps(document, indent=1) + "\n")
            if not options.quiet:
                print(
                    f"{name}: {_word(sides['layerport'])}; by hand {_word(sides['by hand'])}",
                    file=sys.stderr,
                    flush=True,
                )
    short = {name: fault for name, row in rows.items() if (fault := falls_short(row))}
    print_table([HEAD, *(_row(name, row) for name, row in rows.items())])
    print()
    for side in SIDES:
        held = sum(row[side]["fault"] is None for row in rows.values())
        sizes = sum(len(_agreed(row[side])) for row in rows.values())
        print(f"{side}: {held} of {len(rows)} models agree with Torch, and at {sizes} other choices of sizes")
    for name, row in rows.items():
        for side in SIDES:
            for fault in _faults(row[side]):
                print(f"  {name}, {side}: {fault}")
    for name, fault in short.items():
        print(f"FALLS SHORT {name}: {fault}")
    print(f"{time.perf_counter() - begun:.0f} s")
    return 1 if short or not rows else 0


SIDES = ("by hand", "layerport")
HEAD = ("model", "by hand", "here", "layers", "error", "other sizes by hand", "here", "error", "s by hand", "s here")


def falls_short(row: dict[str, Any]) -> str | None:
    """What the hand-written pipeline can and we cannot."""
    theirs, ours = row["by hand"], row["layerport"]
    if theirs["fault"] is None and ours["fault"] is not None:
        return str(ours["fault"])
    missing = _agreed(theirs) - _agreed(ours)
    if missing:
        one = ours["others"][min(missing)]
        return f"at {one['sizes']}: {one['fault'] or 'a dim is static'}"
    return None


def _agreed(side: dict[str, Any]) -> set[int]:
    return {place for place, one in enumerate(side["others"]) if one["fault"] is None and not one["static"]}


def _faults(side: dict[str, Any]) -> list[str]:
    if side["fault"] is not None:
        return [side["fault"]]
    return [f"at {one['sizes']}: {one['fault']}" for one in side["others"] if one["fault"]]


def _row(name: str, row: dict[str, Any]) -> tuple[str, ...]:
    theirs, ours = row["by hand"], row["layerport"]
    errors = [one["error"] for one in ours["others"] if one["error"] is not None]
    layers = ", ".join(f"{count} {layer}" for layer, count in ours["layers"].items())
    return (
        f"{row['group']}/{name}",
        *(_word(theirs), _word(ours), layers or "-", _figure(ours["error"])),
        *(_sizes(theirs), _sizes(ours), _figure(max(errors, default=None))),
        *(f"{side['seconds']:.1f}" if side["seconds"] is not None else "-" for side in (theirs, ours)),
    )


def _word(side: dict[str, Any]) -> str:
    return "ok" if side["fault"] is None else "FAILS"


def _sizes(side: dict[str, Any]) -> str:
    tried = [one for one in side["others"] if not one["static"]]
    text = f"{len(_agreed(side))} of {len(tried)}" if tried else "-"
    static = len(side["others"]) - len(tried)
    return text + (f", {static} static" if static else "")


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.0e}"


def _wanted(text: str, patterns: list[str]) -> bool:
    return not patterns or any(pattern in text for pattern in patterns)


def _child(context: Any, name: str, side: str, options: argparse.Namespace) -> dict[str, Any]:
    """One model on one side in a process of its own, with a limit on its time and memory."""
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=run_one, args=(theirs, name, side, options.target, options.memory))
    process.start()
    theirs.close()
    try:
        if not ours.poll(options.seconds):
            return _lost(f"took more than {options.seconds} s")
        answer: dict[str, Any] = ours.recv()
        return answer
    except EOFError:
        process.join(10)
        return _lost(f"the process ended with {process.exitcode}")
    finally:
        if process.is_alive():
            process.join(2)
            if process.is_alive():
                os.killpg(process.pid, signal.SIGKILL)
        process.join()


def _lost(fault: str) -> dict[str, Any]:
    return {"fault": fault, "error": None, "others": [], "layers": {}, "seconds": None, "plan_bytes": None}


def run_one(answer: Connection, name: str, side: str, target: str, memory: float) -> None:
    """The child: build, run, answer."""
    os.setpgid(0, 0)
    limit = int(memory * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    sys.path.insert(0, str(FOLDER))
    from dataclasses import asdict

    from zoo import judge
    from zoo.cases import table

    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)
    answer.send(asdict(judge.SIDES[side](table()[name], target)))


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "-k", action="append", default=[], metavar="PART", help="only models whose group/name has this; repeat"
    )
    parser.add_argument("--target", default="portable", help="of layerport.build (default: portable)")
    parser.add_argument("--jobs", type=int, default=1, help="models at a time")
    parser.add_argument("--seconds", type=float, default=300, help="limit of one build with its runs")
    parser.add_argument("--memory", type=float, default=8, help="limit of one process in GiB")
    parser.add_argument("--output", help="where to write the JSON")
    parser.add_argument("--quiet", action="store_true", help="no line for each model as it ends")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
