"""How long `layerport --help` and `layerport packs` take, beside `polygraphy --help` of the same environment.

Everything is byte-compiled first and the commands run without PYTHONDONTWRITEBYTECODE, as an installed tool does.
"""

from __future__ import annotations

import compileall
import os
import subprocess
import sys
import sysconfig
from importlib import util
from pathlib import Path

from measuring import Comparison, arguments, environment, interleaved, show

LIMIT = 1.3
SCRIPTS = Path(sysconfig.get_path("scripts"))
COMMANDS = {
    "polygraphy --help": ("polygraphy", "--help"),
    "layerport --help": ("layerport", "--help"),
    "layerport packs": ("layerport", "packs"),
    "python -c pass": (sys.executable, "-c", "pass"),
}


def compile_environment() -> None:
    """Byte-compile what is installed, editable packages too; up-to-date files are left alone."""
    folders = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    for name in ("layerport", "layerport_builtin_layers"):
        found = util.find_spec(name)
        folders.update(found.submodule_search_locations or () if found else ())
    for folder in sorted(folders):
        compileall.compile_dir(folder, quiet=2, workers=os.cpu_count() or 1)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--repeats", type=int, default=60, help="runs of each command, interleaved (default 60)")
    parser.add_argument("--no-compile", action="store_true", help="the environment is byte-compiled already")
    options = parser.parse_args()
    if not options.no_compile:
        compile_environment()
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}

    def runner(command: tuple[str, ...]) -> None:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environ)

    sides = {}
    for name, (program, *rest) in COMMANDS.items():
        command = (str(SCRIPTS / program), *rest)
        sides[name] = lambda command=command: runner(command)
    times = interleaved(sides, rounds=options.repeats)
    theirs = times["polygraphy --help"]
    comparisons = [
        Comparison(
            name,
            times[name].median * 1e3,
            theirs.median * 1e3,
            "ms",
            LIMIT if name.startswith("layerport") else None,
            details={"least_ms": round(times[name].least * 1e3, 2), "least_ratio": times[name].least / theirs.least},
        )
        for name in COMMANDS
        if name != "polygraphy --help"
    ]
    least = ", ".join(f"{name} {timing.least * 1e3:.0f} ms" for name, timing in times.items())
    show(
        "start of the commands",
        comparisons,
        as_json=options.json,
        sides=("the command", "polygraphy --help"),
        notes=[f"the median of {options.repeats} interleaved runs, byte-compiled; the least: {least}"],
        where=environment(["polygraphy", "click"]),
    )


if __name__ == "__main__":
    main()
