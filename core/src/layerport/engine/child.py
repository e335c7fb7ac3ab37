"""Runs the build worker in its own process: a crash becomes an error, memory is returned, Ctrl-C ends it at once."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from layerport.engine.alone import Alone
from layerport.engine.progress import ProgressEvent, Tell
from layerport.errors import BuildError
from layerport.system.interrupts import put_off
from layerport.system.processes import Program

COMMAND = (sys.executable, "-P", "-m", "layerport.engine.worker")


class BuildProcess:
    """A build worker.  Started early, it loads TensorRT while the front half is still at work."""

    def __init__(self, flavour: str) -> None:
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        # The worker's temporary files go here, because it is killed and cannot tidy up.
        self._folder = tempfile.TemporaryDirectory(prefix="layerport-build-")
        self._program = Program(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            encoding="utf-8",
            env={**os.environ, "TMPDIR": self._folder.name},
        )
        self._process = self._program.process
        self._send({"command": "warm", "flavour": flavour})

    @property
    def pid(self) -> int:
        """The worker's process id."""
        return self._process.pid

    def build(self, request: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
        """Build one plan; see `worker.build_plan`.  Raises BuildError for a failure and for a worker that died."""
        return self._ask({"command": "build", **request}, tell)

    def build_alone(self, request: Mapping[str, Any]) -> tuple[Alone, ...]:
        """What TensorRT makes of each plugin's body alone; see `alone_build.build_alone`.  Raises as `build` does."""
        answers = self._ask({"command": "alone", **request}, lambda event: None)["alone"]
        return tuple(map(Alone.from_json, answers))

    def _ask(self, message: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
        self._send(message)
        with put_off():  # raised inside a finaliser, an interrupt would be lost
            # A model's modules refer to each other; their memory is given back while the worker is at work.
            gc.collect()
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                event = json.loads(line)
            except ValueError:  # the half line of a worker that died while it wrote
                continue
            kind = event.pop("event")
            if kind == "result":
                return dict(event)
            if kind == "failure":
                raise BuildError(event["fault"], event["repair"], faults=event["faults"])
            if kind == "progress":
                tell(ProgressEvent(**event))
        raise self._died()

    def _send(self, message: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._died() from None

    def _died(self) -> BuildError:
        code = self._process.wait()
        how = f"exit code {code}"
        if code < 0:
            how = f"signal {-code} ({signal.Signals(-code).name})"
        self._stderr.seek(0)
        said = self._stderr.read().decode(errors="replace").splitlines()[-5:]
        repair = "decompose layers one by one (--decompose LAYER) to find the one that it does not take"
        if code == -signal.SIGKILL:
            repair = "something ended it from outside, usually the system for want of memory; free some and build again"
        return BuildError(f"the build process died with {how}; nothing was written", repair, faults=said)

    def close(self) -> None:
        """End the worker, whatever it is doing."""
        with put_off():
            self._program.end()
            for stream in (self._process.stdin, self._process.stdout, self._stderr):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):
                        stream.close()
            self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
