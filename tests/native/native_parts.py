"""Compiles the native library with what its tests need around it; also for runs under sanitizers and for benchmarks.

As a program: `python native_parts.py FOLDER FLAG...`.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

HERE = Path(__file__).parent
COMPILING = runpy.run_path(str(HERE.parents[1] / "native" / "compiling.py"))


def compile_all(folder: Path, flags: tuple[str, ...] = ()) -> None:
    """Both libraries, the probe, the host of plugins and the stand-ins for the driver and for TensorRT, in a folder."""
    flags = ("-O0", "-Werror", *flags)
    (folder / "objects").mkdir(parents=True)
    libraries = COMPILING["compile_libraries"](["g++"], folder, folder / "objects", flags=flags)
    assert len(libraries) == 2
    own = [HERE / "probe.cpp", HERE / "plugin_host.cpp", HERE / "stand_in_cuda.cpp"]
    made = COMPILING["compile_objects"](["g++"], own, folder / "objects", (*flags, "-fvisibility=default"))
    common = [str(folder / "objects" / f"{source.stem}.o") for source in COMPILING["common_sources"]()]
    link = COMPILING["run"]
    shared = ["g++", "-shared", *flags, "-ldl", "-pthread"]
    link([*shared, str(made[0]), *common, "-Wl,--no-undefined", "-o", str(folder / "probe.so")])
    link([*shared, str(made[1]), "-o", str(folder / "plugin_host.so")])
    for name, source in (("cuda", made[2]), ("old_cuda", own[2])):
        (folder / name).mkdir()
        driver = [str(source), "-o", str(folder / name / "libcuda.so.1")]
        link([*shared, "-fPIC", "-DOLD_DRIVER", "-Wl,-soname,libcuda.so.1", *driver])
    link([*shared, "-fPIC", str(HERE / "stand_in_tensorrt.cpp"), "-o", str(folder / "stand_in_tensorrt.so")])


if __name__ == "__main__":
    compile_all(Path(sys.argv[1]), tuple(sys.argv[2:]))
