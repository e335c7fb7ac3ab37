"""What is looked at of a large tensor and of the standard streams, part by part."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from layerport.packs.torch_watch import ModelWatch


@pytest.mark.parametrize("place", [0, 500, -1])
def test_a_large_tensor_is_looked_at_in_its_beginning_middle_and_end(place: int) -> None:
    tensor = torch.zeros(1000)
    with ModelWatch(None, {"weight": tensor}) as watch:
        tensor.numpy()[place] = 1  # Torch sees nothing of it
        assert any("weight" in one for one in watch.changes())


CLOSES = """
import os, sys
from layerport.packs.process_state import ProcessState
for name in ("stdout", "stderr"):
    state = ProcessState()
    getattr(sys, name).close()
    assert state.changes(), name
    state.restore()
    assert getattr(sys, name).fileno() == {"stdout": 1, "stderr": 2}[name]
    print("still here", name, file=getattr(sys, name), flush=True)
state = ProcessState()
sys.stdin.close()
state.restore()
assert sys.stdin.read() == "given"
"""


def test_a_closed_stream_is_opened_again_on_its_own_descriptor() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CLOSES], input="given", capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "still here stdout\n", "still here stderr\n")
