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
import threading
from collections.abc import Callable, Iterator, Mapping
from types import FrameType, TracebackType
from typing import Any, Self

from layerport.errors import BuildError

COMMAND = (sys.executable, "-P", "-m", "layerport.engine.worker")


class BuildProcess:
    """A build worker.  Started early, it loads TensorRT while the front half is still at work."""

    def __init__(self, flavour: str) -> None:
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        # The worker's temporary files go here, because it is killed and cannot tidy up.
        self._folder = tempfile.TemporaryDirectory(prefix="layerport-build-")
        # A session of its own, so that Ctrl-C reaches this process alone, which then ends the worker.
        self._process = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            encoding="utf-8",
            start_new_session=True,
            env={**os.environ, "TMPDIR": self._folder.name},
        )
        self._send({"command": "warm", "flavour": flavour})

    @property
    def pid(self) -> int:
        """The worker's process id."""
        return self._process.pid

    def build(self, request: Mapping[str, Any], on_event: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Build one plan; see `worker.build_plan`.  Raises BuildError for a failure and for a worker that died."""
        self._send({"command": "build", **request})
        with _interrupts_put_off():
            # A model's modules refer to each other; their memory is given back while the worker is at work.
            gc.collect()
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                event = json.loads(line)
            except ValueError:  # the half line of a worker that died while it wrote
                continue
            if event["event"] == "result":
                return dict(event)
            if event["event"] == "failure":
                raise BuildError(event["fault"], event["repair"], faults=event["faults"])
            on_event(event)
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
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
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


@contextlib.contextmanager
def _interrupts_put_off() -> Iterator[None]:
    """Let Ctrl-C wait until the block ends: raised inside a finaliser, it would be lost."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[tuple[int, FrameType | None]] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: caught.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if caught and callable(before):
        before(*caught[0])
