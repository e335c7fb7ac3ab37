"""How long `layerport packs` takes with twenty packs installed, beside one; and a build's loading of them.

The packs are folders as pip leaves them, on PYTHONPATH; each has a layer and hooks.  Everything is byte-compiled first
and the commands run without PYTHONDONTWRITEBYTECODE, as an installed tool does.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from command_start import compile_environment
from measuring import Comparison, arguments, environment, interleaved, show

LIMIT_MS = 10.0
COMMAND = str(Path(sysconfig.get_path("scripts")) / "layerport")
PACK = """
from torch import Tensor

import layerport as lp


@lp.layer("{name}::double")
def double(x: Tensor) -> Tensor:
    return x * 2.0


@lp.hookimpl
def layerport_layers():
    return (double,)


@lp.hookimpl
def layerport_export_parameters(module):
    return None
"""
LOAD = "import time, torch; from layerport.packs import host; t = time.perf_counter(); host.load(); "
LOAD += "print(time.perf_counter() - t)"


def install(folder: Path, count: int) -> None:
    """Put so many packs into a folder."""
    folder.mkdir()
    for number in range(count):
        name = f"many_packs_{number}"
        (folder / f"{name}.py").write_text(PACK.format(name=name))
        info = folder / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.4\nName: {name}\nVersion: 1.0\nRequires-Dist: layerport[build]<0.2,>=0.1\n"
        )
        (info / "entry_points.txt").write_text(f"[layerport]\n{name} = {name}\n")
        (info / "RECORD").write_text(f"{name}.py,,\n")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--repeats", type=int, default=40, help="runs of each command, interleaved (default 40)")
    parser.add_argument("--no-compile", action="store_true", help="the environment is byte-compiled already")
    options = parser.parse_args()
    if not options.no_compile:
        compile_environment()
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryDirectory() as temporary:
        paths = {}
        for count in (1, 20):
            install(Path(temporary, str(count)), count)
            paths[count] = {**environ, "PYTHONPATH": str(Path(temporary, str(count)))}

        def run(count: int) -> None:
            command = [COMMAND, "packs"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=paths[count])

        def load(count: int) -> float:
            done = subprocess.run([sys.executable, "-c", LOAD], check=True, capture_output=True, env=paths[count])
            return float(done.stdout)

        times = interleaved({str(count): lambda count=count: run(count) for count in paths}, rounds=options.repeats)
        loads = {count: min(load(count) for _ in range(3)) for count in paths}
    show(
        "twenty packs beside one",
        [
            Comparison(
                "layerport packs",
                times["20"].least * 1e3,
                times["1"].least * 1e3,
                "ms",
                1.0,
                LIMIT_MS,
                details={"median_ms": [round(times[name].median * 1e3, 2) for name in ("20", "1")]},
            ),
            Comparison("importing and asking them in a build", loads[20] * 1e3, loads[1] * 1e3, "ms"),
        ],
        as_json=options.json,
        sides=("20 packs", "1 pack"),
        notes=[f"the least of {options.repeats} interleaved runs, byte-compiled"],
        where=environment(["click", "pluggy"]),
    )


if __name__ == "__main__":
    main()
