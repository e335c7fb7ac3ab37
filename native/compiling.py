"""Compiles the plugin library from its sources, with whatever C++17 compiler it is given.

The build of the wheel and the tests call it.  It needs no header and no library of NVIDIA, and imports nothing that is
not in Python itself.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = Path(__file__).parent / "cpp"
LIBRARIES = {"exports": "liblayerport_plugins.so", "exports_static": "liblayerport_plugins_static.so"}
"""What is made of which source; beside each source lies the list of the symbols that leave the library."""
_FLAGS = ("-std=c++17", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-isystem", str(SOURCES / "third_party"))


def compile_objects(compiler: Sequence[str], sources: Sequence[Path], folder: Path, flags: Sequence[str]) -> list[Path]:
    """The object file of each source, made in a folder.  Raises RuntimeError with what the compiler said."""

    def compile_one(source: Path) -> Path:
        made = folder / f"{source.stem}.o"
        run([*compiler, *_FLAGS, *flags, "-I", str(SOURCES), "-c", str(source), "-o", str(made)])
        return made

    with ThreadPoolExecutor(max_workers=4) as pool:
        return list(pool.map(compile_one, sources))


def common_sources() -> list[Path]:
    """The sources that both libraries are made of."""
    return sorted(path for path in SOURCES.glob("*.cpp") if path.stem not in LIBRARIES)


def compile_libraries(
    compiler: Sequence[str], folder: Path, work: Path, *, flags: Sequence[str] = ("-O2",), link: Sequence[str] = ()
) -> list[Path]:
    """Both plugin libraries, made in `folder`; what is made on the way goes to `work`.

    Raises RuntimeError with what the compiler said.
    """
    exports = [SOURCES / f"{stem}.cpp" for stem in LIBRARIES]
    objects = compile_objects(compiler, [*common_sources(), *exports], work, flags)
    common = objects[: -len(exports)]
    made = []
    for export, name in zip(objects[-len(exports) :], LIBRARIES.values(), strict=True):
        made.append(folder / name)
        # Nothing of the C++ library may leak: the program has one of its own.
        export_map = SOURCES / f"{export.stem}.map"
        script = f"-Wl,--version-script={export_map}"
        inputs = [*map(str, common), str(export)]
        run([*compiler, "-shared", *flags, script, *inputs, *link, "-ldl", "-pthread", "-o", str(made[-1])])
    return made


def run(command: Sequence[str]) -> None:
    """Run a compiler.  Raises RuntimeError with what it said."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
