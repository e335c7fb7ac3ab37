"""Host time of a plugin's launch, shape change and reading, in C++ and in Python, side by side in one run.

`python benchmarks/native_plugin.py`: needs g++ and a TensorRT; the driver is a stand-in whose launch does nothing, so
its own time is left out on both sides.  The least of many rounds, since other programs run meanwhile.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "native")]

import torch  # noqa: E402

from launch_doubles import SilentDriver  # noqa: E402
from layerport.engine import flavours, plugin  # noqa: E402
from layerport.engine.plan_fields import read_field, write_field  # noqa: E402
from layerport.kernels import launcher  # noqa: E402
from layerport.targets import Target  # noqa: E402
from layerport.testing.specs import plugin_spec  # noqa: E402
from layerport_builtin_layers.rms_norm.reference import rms_norm  # noqa: E402
from native.native_parts import compile_all  # noqa: E402
from native.native_plugin import NativeLibrary  # noqa: E402

SHAPES = [(4, 256), (256,)]
INPUTS, OUTPUTS = [0x7F0000001000, 0x7F0000002000], [0x7F0000003000]
ROUNDS = 40


def least(work: Callable[[], Any], calls: int) -> float:
    """Seconds for one of some calls."""
    begun = time.perf_counter()
    for _ in range(calls):
        work()
    return (time.perf_counter() - begun) / calls


def main() -> None:
    """Print one line of JSON: nanoseconds, and how many times less C++ takes."""
    spec = plugin_spec(rms_norm, Target("tensorrt", ("sm_90",)), torch.empty(4, 256), torch.randn(256), 1e-6)
    assert spec is not None
    driver = SilentDriver("sm_90")
    launcher.require_driver = lambda: driver
    plugin.native_architecture = lambda: "sm_90"
    made = plugin.plugin_class(flavours.load("rtx"))(spec, spec.digests).attach_to_context(None)
    described = [SimpleNamespace(dims=dims) for dims in SHAPES]
    field = write_field(spec, spec.digests)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "native"
        compile_all(folder, ("-O2",))
        library = NativeLibrary(folder)
        native = library.plugin(write_field(spec, spec.digests)).attach()
        assert native.set_shapes(SHAPES) and native.enqueue(INPUTS, OUTPUTS)
        made.on_shape_change(described, [])
        times: dict[str, list[tuple[float, float]]] = {"enqueue": [], "shape change": [], "reading a field": []}
        for _ in range(ROUNDS):
            times["enqueue"].append(
                (
                    native.time(20_000, SHAPES, INPUTS, OUTPUTS),
                    least(lambda: made.enqueue(None, None, INPUTS, OUTPUTS, 0, 0x55), 2000),
                )
            )
            times["shape change"].append(
                (native.time(5000, SHAPES, [], []), least(lambda: made.on_shape_change(described, []), 100))
            )

            def read() -> None:
                one = library.create(field)
                assert one is not None
                one.close()

            times["reading a field"].append((least(read, 20), least(lambda: read_field(field), 20)))
    print(
        json.dumps(
            {
                what: {
                    "c++ ns": round(min(one for one, _ in pairs) * 1e9),
                    "python ns": round(min(two for _, two in pairs) * 1e9),
                    "times less": round(min(two for _, two in pairs) / min(one for one, _ in pairs), 1),
                }
                for what, pairs in times.items()
            }
        )
    )


if __name__ == "__main__":
    main()
