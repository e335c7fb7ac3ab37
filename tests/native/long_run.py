"""The comparisons of C++ with Python, and the checks of what it computes, for long and under sanitizers.

`python long_run.py RUNS`: compiles the library with the address and undefined-behaviour sanitizers, compares RUNS
random expressions, specs, fields and cubins, and runs all checks of launches.  The exit code is not 0 where something
is wrong.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from native.native_parts import compile_all

HERE = Path(__file__).parent
FLAGS = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")


def compare(folder: Path, runs: int) -> None:
    """Run the comparisons; the modules' own tests, with more rounds."""
    from native import test_cubins, test_expressions, test_fields
    from native.probe import Probe

    for module in (test_cubins, test_expressions, test_fields):
        module.RUNS = runs
    probe = Probe(folder / "probe.so")
    images = test_cubins.images.__wrapped__()
    for name, work in (
        ("expressions", lambda: test_expressions.test_values_are_those_of_python(probe)),
        ("dimensions", lambda: test_expressions.test_tensorrt_is_asked_for_the_same_dimensions(probe)),
        ("floats", lambda: test_expressions.test_random_floats_and_what_is_none(probe)),
        ("specs", lambda: test_fields.test_changed_specs_are_read_by_both_or_by_none(probe)),
        ("fields", lambda: test_fields.test_damaged_fields_are_refused_by_both(probe)),
        ("cubins", lambda: test_cubins.test_what_c_takes_python_takes_too(probe, images)),
    ):
        work()
        print(f"{runs} {name}: C++ and Python agree", flush=True)


def sanitized(*arguments: str) -> None:
    """Run Python with the sanitizer's library in front, which programs that are not compiled with it need."""
    # The C++ library too: the sanitizer looks for its functions when it starts, and Python has none.
    names = ("libasan.so", "libstdc++.so.6")
    found = [subprocess.check_output(["g++", f"-print-file-name={name}"], text=True).strip() for name in names]
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(found),
        # Python itself leaves memory behind.
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONPATH": str(HERE.parent),
    }
    subprocess.run([sys.executable, *arguments], env=environment, check=True)


def main() -> None:
    if sys.argv[1] == "compare":
        compare(Path(sys.argv[2]), int(sys.argv[3]))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "native"
        compile_all(folder, FLAGS)
        sanitized(str(HERE / "enqueue_checks.py"), str(folder))
        sanitized(__file__, "compare", str(folder), sys.argv[1])


if __name__ == "__main__":
    main()
