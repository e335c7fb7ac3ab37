"""The process in which packs are tried: it loads Torch once and forks for each pack.  Run by `trials` only.

In:  a JSON list of jobs, {"place", "info", "seconds", "memory"}, in one line; then nothing, until the other side ends.
Out: a JSON object a pack as it is judged: "place", and "failure", or "layers", "hooks", "warnings" and "plugin".
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from layerport.errors import PackError
from layerport.packs.discovery import PackInfo
from layerport.packs.host import Packs
from layerport.packs.loading import load_pack
from layerport.packs.trials import describe_end
from layerport.system.foreign_text import reason

_MOST_BYTES = 1 << 20
_LOOK = 0.02
_EXPORT = "layerport_export_parameters"
_DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG


@dataclass
class _Running:
    job: Mapping[str, Any]
    process: int
    pipe: int
    until: float
    said: bytes = b""


def judge(info: PackInfo) -> dict[str, Any]:
    """Load a pack in this process: what `trials` wants to know of it."""
    pack = load_pack(info)
    if pack.failure is not None:
        return {"failure": pack.failure, "warnings": pack.warnings}
    plugin = pack.plugin
    return {
        "layers": [(layer.name, layer.version) for layer in pack.layers],
        "hooks": list(pack.hooks),
        "warnings": [*pack.warnings, *_trial_claims(pack)],
        "plugin": plugin.__name__ if type(plugin) is ModuleType else info.entry_point_value,
    }


def _trial_claims(pack: Any) -> list[str]:
    """What goes wrong where its export hook is asked about modules that it cannot know."""
    import torch

    packs = Packs([pack])
    model = torch.nn.Sequential(torch.nn.Identity())
    try:
        for path, module in model.named_modules():
            place = f"a {type(module).__name__}"
            # Not watched: looking for what it writes would load most of Torch's compiler.
            packs.call(_EXPORT, pack, path=place, watched=True, module=module, name=path)
    except PackError as error:
        start = f"pack {pack.info.label}: "
        return [f"{error.fault.removeprefix(start)}; a build leaves it out wherever that happens"]
    return []


def main() -> None:
    jobs = json.loads(sys.stdin.readline())
    # Loaded once for all: the processes below are copies of this one.
    import layerport.layers.layer
    import layerport.packs.host
    import layerport.packs.loading

    with contextlib.suppress(ImportError):
        import layerport.layers.operator
        import layerport.packs.torch_patches
        import layerport.packs.torch_state
        import layerport.packs.torch_watch  # noqa: F401
    if hasattr(os, "fork"):
        _judge_all(jobs)
        return
    for job in jobs:
        _say(job["place"], judge(PackInfo(*job["info"])))


def _judge_all(jobs: list[Mapping[str, Any]]) -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    waiting = list(reversed(jobs))
    running: list[_Running] = []
    try:
        while waiting or running:
            while waiting and len(running) < cores:
                running.append(_start(waiting.pop()))
            ready, _, _ = select.select([0, *(one.pipe for one in running)], [], [], _LOOK)
            if 0 in ready:
                return  # the other side has ended
            for one in list(running):
                if _is_over(one, one.pipe in ready):
                    running.remove(one)
    finally:
        for one in running:
            _kill(one)


def _start(job: Mapping[str, Any]) -> _Running:
    reading, writing = os.pipe()
    sys.stdout.flush()
    process = os.fork()
    if process:
        os.close(writing)
        return _Running(job, process, reading, time.monotonic() + job["seconds"])
    status = 1
    try:
        os.close(reading)
        _confine(job)
        answer = judge(PackInfo(*job["info"]))
        os.write(writing, json.dumps(answer).encode())
        status = 0
    except BaseException as error:  # nothing may return into the copy of the loop above
        with contextlib.suppress(BaseException):
            os.write(writing, json.dumps({"failure": f"trying it fails: {reason(error)}"}).encode())
    finally:
        os._exit(status)


def _confine(job: Mapping[str, Any]) -> None:
    """Give a pack's process a group, an end and limits of its own, and nothing to read or to write to."""
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    with contextlib.suppress(Exception):  # should the process that watches it be killed; Linux only
        import ctypes

        ctypes.CDLL(None).prctl(_DIES_WITH_PARENT, signal.SIGKILL)
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        for limit, value in (
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_CPU, int(job["seconds"]) + 5),
            (resource.RLIMIT_DATA, _data() + job["memory"]),
            (resource.RLIMIT_FSIZE, job["memory"]),
        ):
            _, hard = resource.getrlimit(limit)
            most = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(limit, (most, hard))


def _data() -> int:
    """How many bytes of data this process has already."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[5]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def _is_over(one: _Running, is_ready: bool) -> bool:
    """Whether a pack is judged; says so then."""
    if is_ready and (data := os.read(one.pipe, 1 << 16)):
        one.said += data
        if len(one.said) <= _MOST_BYTES:
            return False
    ended, status = os.waitpid(one.process, os.WNOHANG)
    late = time.monotonic() > one.until
    if not ended and not late:
        return False
    if not ended:
        _say(one.job["place"], {"failure": f"does not finish loading within {one.job['seconds']:g} s"})
        _kill(one)
        return True
    while data := os.read(one.pipe, 1 << 16) if _can_read(one.pipe) else b"":
        one.said += data
    os.close(one.pipe)
    _kill_group(one.process)
    try:
        answer = json.loads(one.said)
    except ValueError:
        answer = {"failure": describe_end(status)}
    _say(one.job["place"], answer)
    return True


def _can_read(pipe: int) -> bool:
    return bool(select.select([pipe], [], [], 0)[0])


def _kill(one: _Running) -> None:
    _kill_group(one.process)
    with contextlib.suppress(ProcessLookupError):
        os.kill(one.process, signal.SIGKILL)
    os.waitpid(one.process, 0)
    os.close(one.pipe)


def _kill_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def _say(place: int, answer: Mapping[str, Any]) -> None:
    print(json.dumps({"place": place, **answer}), flush=True)


if __name__ == "__main__":
    main()
