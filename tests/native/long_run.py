"""What takes long, or sanitizers: `python long_run.py RUNS SECONDS`, whose exit code is not 0 where something is wrong.

With the address and undefined-behaviour sanitizers: all checks of launches, RUNS random expressions, specs, fields and
cubins compared with Python, and each reader fuzzed for SECONDS.  With the thread sanitizer: contexts in threads.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from cuda.pathfinder import load_nvidia_dynamic_lib

from native.native_parts import COMPILING, compile_all

HERE = Path(__file__).parent
FLAGS = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")


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
    # NVRTC looks for a second library beside itself, which the sanitizer's own `dlopen` does not do.
    beside = Path(str(load_nvidia_dynamic_lib("nvrtc").abs_path)).parent
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(found),
        "LD_LIBRARY_PATH": str(beside),
        # Python itself leaves memory behind.
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONPATH": str(HERE.parent),
    }
    subprocess.run([sys.executable, *arguments], env=environment, check=True)


def seeds(folder: Path) -> dict[str, list[Path]]:
    """Files from which each reader is fuzzed; a cubin's is called as its kernel."""
    import torch

    from layerport.bundle.plugin_spec import dump
    from layerport.engine.plan_fields import write_field
    from layerport.targets import Target
    from layerport.testing.specs import plugin_spec
    from layerport_builtin_layers.rms_norm.reference import rms_norm
    from layerport_builtin_layers.silu_mul.reference import silu_mul
    from native.test_expressions import random_expression
    from plugin_specs import IMAGES, spec, stepped_spec

    target = Target("tensorrt", ("sm_90",))
    gated = plugin_spec(silu_mul, target, torch.empty(4, 96), torch.empty(4, 96))
    norm = plugin_spec(rms_norm, target, torch.empty(4, 256), torch.randn(256), 1e-6)
    assert gated is not None and norm is not None
    dice = random.Random(50)
    contents: dict[str, dict[str, bytes]] = {
        "expression": {str(number): random_expression(dice).text.encode() for number in range(50)},
        "spec": {str(number): dump(one.to_json()) for number, one in enumerate((spec(), stepped_spec(), gated, norm))},
        "field": {
            "whole": write_field(spec(), IMAGES),
            "none": write_field(spec(), ()),
            "steps": write_field(stepped_spec(), IMAGES),
            "real": write_field(gated, gated.digests),
        },
        "cubin": {gated.kernels[0].steps[0].symbol: next(iter(gated.images.values()))},
    }
    made: dict[str, list[Path]] = {}
    for kind, files in contents.items():
        (folder / kind).mkdir(parents=True)
        for name, data in files.items():
            (folder / kind / name).write_bytes(data)
            made.setdefault(kind, []).append(folder / kind / name)
    return made


def program(folder: Path, name: str, sources: list[str], flags: tuple[str, ...], own: tuple[str, ...] = ()) -> Path:
    """A program of the library's sources and some of the tests'.  own: further flags of the library's."""
    work = folder / f"{name}_objects"
    work.mkdir()
    objects = COMPILING["compile_objects"](["g++"], COMPILING["common_sources"](), work, (*flags, *own))
    tests = COMPILING["compile_objects"](["g++"], [HERE / one for one in sources], work, flags)
    COMPILING["run"](["g++", *flags, *map(str, objects + tests), "-ldl", "-pthread", "-o", str(folder / name)])
    return folder / name


def fuzz(folder: Path, seconds: str) -> None:
    """Fuzz each reader; an input at which it ends is kept beside, and named."""
    made = program(folder, "fuzz", ["fuzz.cpp"], FLAGS, ("-fsanitize-coverage=trace-pc",))
    for kind, files in seeds(folder / "seeds").items():
        last = Path(tempfile.gettempdir()) / f"fuzz_{kind}_last"
        if subprocess.run([made, kind, seconds, "1", last, *files]).returncode:
            raise SystemExit(f"{kind}: the reader ended at the input in {last}")


def threads(folder: Path) -> None:
    """Contexts in threads under the thread sanitizer, without Python."""
    flags = ("-O1", "-g", "-fsanitize=thread")
    compile_all(folder / "threads_parts", flags)
    work = COMPILING["compile_objects"](["g++"], [HERE / "threads.cpp"], folder, flags)
    host = folder / "threads_parts" / "plugin_host.so"
    COMPILING["run"](["g++", *flags, *map(str, work), str(host), "-pthread", "-o", str(folder / "threads_run")])
    (field,) = [path for path in seeds(folder / "thread_seeds")["field"] if path.name == "real"]
    command = [folder / "threads_run", folder / "threads_parts" / "liblayerport_plugins.so", field, "200"]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder / "threads_parts" / "cuda")}
    # The sanitizer does not know the places that a newer kernel gives a program.
    subprocess.run(["setarch", "-R", *command], env=environment, check=True)


def main() -> None:
    if sys.argv[1] == "compare":
        compare(Path(sys.argv[2]), int(sys.argv[3]))
        return
    runs, seconds = sys.argv[1:]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        compile_all(folder / "native", FLAGS)
        sanitized(str(HERE / "enqueue_checks.py"), str(folder / "native"))
        sanitized(str(HERE / "enqueue_checks.py"), str(folder / "native"), "all_cases")
        sanitized(__file__, "compare", str(folder / "native"), runs)
        threads(folder)
        fuzz(folder, seconds)


if __name__ == "__main__":
    main()
