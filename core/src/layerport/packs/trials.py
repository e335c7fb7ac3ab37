"""Tries packs in processes of their own, so that none can hang, end, print into or fill up the one that asks.

For `commands.packs`.  What is said there and what happens there stands in `trial_child`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

from layerport.packs.discovery import PackInfo, twin_fault
from layerport.packs.torch_autoload import spare_torch
from layerport.system.foreign_text import shown

SECONDS = 30.0
"""How long a pack may take to import and to answer, once Torch is loaded."""
MEMORY = 4 << 30
"""How many bytes a pack may take meanwhile, where the system keeps count."""


class Trial(NamedTuple):
    """What came of one pack.

    failure: why it cannot be used.  layers: identity and version.  plugin: what names the object behind the entry
    point, which two packs must not share; None where it did not come so far.
    """

    info: PackInfo
    failure: str | None
    layers: tuple[tuple[str, int], ...] = ()
    hooks: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    plugin: str | None = None

    @property
    def status(self) -> str:
        """ "loaded", "failed" or "disabled"."""
        if self.info.disabled:
            return "disabled"
        return "loaded" if self.failure is None else "failed"


def try_packs(infos: Sequence[PackInfo], *, seconds: float = SECONDS, memory: int = MEMORY) -> tuple[Trial, ...]:
    """Import each pack and ask for its layers, each in a process of its own; in the order given, each named once.

    seconds, memory: what a pack may take.  No process is left behind.
    """
    jobs = [
        {"place": place, "info": list(info), "seconds": seconds, "memory": memory}
        for place, info in enumerate(infos)
        if not info.disabled and info.fault is None
    ]
    answers: dict[int, dict[str, Any]] = {}
    # Where processes cannot fork, each pack has to load Torch anew.
    for share in [jobs] if hasattr(os, "fork") else [[job] for job in jobs]:
        if share:
            answers |= _ask(share, seconds, infos)
    trials = [_trial(info, answers.get(place)) for place, info in enumerate(infos)]
    return tuple(_without_twins(trials))


def _ask(jobs: Sequence[dict[str, Any]], seconds: float, infos: Sequence[PackInfo]) -> dict[int, dict[str, Any]]:
    """What `trial_child` says of each job, by place."""
    answers: dict[int, dict[str, Any]] = {}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(one or os.getcwd() for one in sys.path)}
    spare_torch(infos, environment)
    with tempfile.TemporaryFile() as errors:
        # A session of its own: Ctrl-C reaches this process alone, which then ends the other with all it has started.
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "layerport.packs.trial_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
            env=environment,
        )
        assert process.stdin is not None and process.stdout is not None
        clock = threading.Timer(seconds + 60, process.kill)
        if not hasattr(os, "fork"):
            clock.start()
        try:
            # The pipe stays open: when this process ends, however it ends, the other one sees that and ends too.
            process.stdin.write(json.dumps(list(jobs)) + "\n")
            process.stdin.flush()
            for line in process.stdout:
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    answer = json.loads(line)
                    answers[int(answer["place"])] = answer
        finally:
            clock.cancel()
            _end(process)
        errors.seek(0)
        said = shown(errors.read().decode(errors="replace"))
    for job in jobs:
        nothing = f"the process that tries packs ended with exit code {process.returncode}: {said or 'it said nothing'}"
        answers.setdefault(job["place"], {"failure": nothing})
    return answers


def _end(process: subprocess.Popen[str]) -> None:
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()
    try:
        process.wait(5)  # it ends the packs' processes, which are in groups of their own
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _trial(info: PackInfo, answer: dict[str, Any] | None) -> Trial:
    if answer is None:
        return Trial(info, info.fault)
    return Trial(
        info,
        answer.get("failure"),
        tuple((str(name), int(version)) for name, version in answer.get("layers", ())),
        tuple(map(str, answer.get("hooks", ()))),
        tuple(map(str, answer.get("warnings", ()))),
        answer.get("plugin"),
    )


def _without_twins(trials: Sequence[Trial]) -> list[Trial]:
    """Two entry points of one object would provide every layer twice."""
    first: dict[str, PackInfo] = {}
    kept = []
    for trial in trials:
        other = first.setdefault(trial.plugin, trial.info) if trial.plugin is not None else trial.info
        if other is not trial.info:
            trial = Trial(trial.info, twin_fault(other), warnings=trial.warnings)
        kept.append(trial)
    return kept


def describe_end(status: int) -> str:
    """How a process ended that did not answer, from its exit status as `os.waitpid` gives it."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        with contextlib.suppress(ValueError):
            return f"crashes its process: signal {number} ({signal.Signals(number).name})"
        return f"crashes its process: signal {number}"
    return f"ends its process with exit code {os.WEXITSTATUS(status)}, as os._exit does"
