"""Shows how a build goes on, on stderr: a live line on a terminal and in a notebook, one line a stage elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from layerport.engine.progress import ProgressEvent, Tell
from layerport.errors import escaped

STAGES = {
    "load": "loading packs and model",
    "claim": "claiming modules and proving each claim",
    "export": "exporting to ONNX",
    "compile": "compiling kernels",
    "write": "writing the portable model",
    "engine": "building the TensorRT engine",
    "verify": "comparing with Torch, running the kernels",
}


@contextmanager
def shown(*, enabled: bool = True) -> Iterator[Tell]:
    """A function to tell of stages and of TensorRT's progress events; it prints nothing where not enabled."""
    if not enabled:
        yield lambda event: None
    elif sys.stderr.isatty() or _is_notebook():
        with _live() as tell:
            yield tell
    else:
        with _plain() as tell:
            yield tell


def _is_notebook() -> bool:
    """Whether a notebook shows what this process draws; rich draws there with the package ipywidgets."""
    return "ipykernel" in sys.modules and find_spec("ipywidgets") is not None


def _say(text: str) -> None:
    print(escaped(text).replace("\n", "\n  "), file=sys.stderr, flush=True)


@contextmanager
def _plain() -> Iterator[Tell]:
    since = time.monotonic()

    def tell(event: ProgressEvent) -> None:
        if event.kind == "stage":
            _say(f"[{time.monotonic() - since:5.1f} s] {STAGES[event.stage]}")
        elif event.kind == "note":
            _say(f"note: {event.text}")

    yield tell


@contextmanager
def _live() -> Iterator[Tell]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    task = None
    outermost: set[str | None] = set()

    def tell(event: ProgressEvent) -> None:
        nonlocal task
        if event.kind == "stage":
            if task is not None:
                bar.remove_task(task)
            task = bar.add_task(STAGES[event.stage], total=None)
        elif event.kind == "note":
            bar.console.print(escaped(f"note: {event.text}"), markup=False, highlight=False)
        elif task is not None and event.kind == "phase" and event.parent is None:
            outermost.add(event.phase)
            bar.update(task, total=event.steps, completed=0)
        elif task is not None and event.kind == "step" and event.phase in outermost and event.step is not None:
            bar.update(task, completed=event.step + 1)

    with bar:
        yield tell
