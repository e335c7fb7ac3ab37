"""Fuzzes what layerport reads from strangers: `python tests/fuzz/run.py --runs 100000 --output fuzz.json`.

No input may give anything but a result or a LayerportError: no other exception, no crash of the interpreter, no more
than 5 s, no more than 1 GB beyond what the sound input takes.  Each subject runs in a child process that notes its
input before it reads it, so that a crash and a hang name theirs.  Exit code 1 where something was found.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import mmap
import os
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
# One that never changes, so that a seed and a number are the same input everywhere.
BUNDLE = TESTS / "formats" / "bundle_1"
SECONDS = 5
BYTES = 1 << 30
NAMES = ("manifest", "specs", "samples", "model", "expressions", "safetensors", "plan_fields", "cubins")
_NOTE = 1 << 24
_KEPT = 20


def fuzz(
    name: str, bundle: Path, *, runs: int, seed: int = 0, start: int = 0, keep: Path | None = None
) -> dict[str, Any]:
    """Read `runs` damaged inputs of a subject in child processes; what was refused, read and found.

    keep: a folder that gets the inputs of the findings.
    """
    total: dict[str, Any] = {"runs": 0, "refused": 0, "read": 0, "slowest": 0.0, "findings": []}
    began = time.monotonic()
    while total["runs"] < runs:
        with tempfile.TemporaryDirectory() as folder:
            note, answer = Path(folder) / "note", Path(folder) / "answer.json"
            note.write_bytes(bytes(_NOTE + 16))
            arguments = [name, bundle, folder, seed, start + total["runs"], runs - total["runs"]]
            child = subprocess.run(
                [sys.executable, "-W", "error", __file__, "--child", *map(str, arguments)],
                env={**os.environ, "PYTHONPATH": str(TESTS)},
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
            )
            found: dict[str, Any] = json.loads(answer.read_text()) if answer.exists() else {}
            content = note.read_bytes()
            done, length = int.from_bytes(content[:8], "little"), int.from_bytes(content[8:16], "little")
            if not found:
                if not done or (child.returncode == 1 and "Timeout" not in child.stderr):
                    raise RuntimeError(f"the child for {name} failed by itself:\n{child.stderr[-4000:]}")
                what = "a hang" if "Timeout" in child.stderr else f"exit code {child.returncode}"
                found = {"runs": done, "refused": 0, "read": 0, "slowest": 0.0}
                found["findings"] = [
                    {"number": start + total["runs"] + done - 1, "what": what, "trace": child.stderr[-3000:]}
                ]
                if keep is not None:
                    _keep(keep, name, found["findings"][0]["number"], content[16 : 16 + length])
        for key in ("runs", "refused", "read"):
            total[key] += found[key]
        total["slowest"] = max(total["slowest"], found["slowest"])
        total["findings"] += found["findings"]
        if len(total["findings"]) >= _KEPT:
            break
    total["seconds"] = round(time.monotonic() - began, 1)
    return total


def main(arguments: list[str]) -> int:
    """The command."""
    if arguments[:1] == ["--child"]:
        return _child(*arguments[1:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20_000, help="inputs for each subject")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--subject", action="append", choices=NAMES, help="only this one; may be repeated")
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="the bundle with an engine that is damaged")
    parser.add_argument("--output", type=Path, help="where the figures go, as JSON")
    parser.add_argument("--keep", type=Path, help="a folder for the inputs that gave findings")
    options = parser.parse_args(arguments)
    results: dict[str, Any] = {}
    for name in options.subject or NAMES:
        one = results[name] = fuzz(name, options.bundle, runs=options.runs, seed=options.seed, keep=options.keep)
        print(
            f"{name}: {one['runs']} inputs, {one['refused']} refused, {one['read']} read, "
            f"{len(one['findings'])} findings, slowest {one['slowest']:.2f} s, {one['seconds']} s in all",
            flush=True,
        )
        for what, count in Counter(finding["what"] for finding in one["findings"]).most_common():
            print(f"  {count} x {what}")
        for finding in one["findings"][:3]:
            print(f"  number {finding['number']}:\n{finding['trace']}")
    if options.output:
        options.output.write_text(json.dumps({"seed": options.seed, "subjects": results}, indent=1) + "\n")
    return 1 if any(one["findings"] for one in results.values()) else 0


def _child(name: str, bundle: str, folder: str, seed: str, start: str, count: str) -> int:
    from fuzz.subjects import subjects

    subject = subjects(Path(bundle), Path(folder) / "ground")[name]
    for data in subject.seeds:  # loads all that is loaded late, and shows that a sound input is read
        subject.read(data)
    limit = _size_of_this_process() + BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answer = {"runs": 0, "refused": 0, "read": 0, "slowest": 0.0, "findings": list[dict[str, Any]]()}
    with (Path(folder) / "note").open("r+b") as file, mmap.mmap(file.fileno(), 0) as note:
        _read_all(subject.read, subject.inputs(int(seed), int(start), int(count)), note, answer, int(start))
    (Path(folder) / "answer.part").write_text(json.dumps(answer))
    (Path(folder) / "answer.part").rename(Path(folder) / "answer.json")
    return 0


def _read_all(read: Any, inputs: Iterable[bytes], note: mmap.mmap, answer: dict[str, Any], start: int) -> None:
    from layerport.errors import LayerportError

    for done, data in enumerate(inputs, 1):
        note[8:16] = len(data).to_bytes(8, "little")
        note[16 : 16 + min(len(data), _NOTE)] = data[:_NOTE]
        note[0:8] = done.to_bytes(8, "little")
        answer["runs"] = done
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        began = time.monotonic()
        try:
            read(data)
            answer["read"] += 1
        except BaseException as error:
            if isinstance(error, LayerportError) and not _is_of_memory(error):
                answer["refused"] += 1
                continue
            trace = traceback.format_exc()
            answer["findings"].append(
                {
                    "number": start + done - 1,
                    "what": f"{type(error).__name__} at {_place(error)}",
                    "trace": trace[-3000:],
                }
            )
            if len(answer["findings"]) >= _KEPT:
                break
        finally:
            faulthandler.cancel_dump_traceback_later()
            answer["slowest"] = max(answer["slowest"], round(time.monotonic() - began, 3))


def _is_of_memory(error: BaseException | None) -> bool:
    """Whether an error was made of a MemoryError: a polite refusal that came too late."""
    while error is not None and not isinstance(error, MemoryError):
        error = error.__cause__ or error.__context__
    return error is not None


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "layerport" in frame.filename] or frames
    return f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"


def _size_of_this_process() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE


def _keep(folder: Path, name: str, number: int, data: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}-{number}").write_bytes(data)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
