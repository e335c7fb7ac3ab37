"""The two files of the library: what leaves them, what they need, and how TensorRT for RTX takes them."""

from __future__ import annotations

import re
import shutil
import subprocess
from ctypes.util import find_library
from pathlib import Path

import pytest

from layerport.engine.plan_fields import write_field
from plugin_specs import IMAGES, spec
from small_setup import python

DYNAMIC, STATIC = "liblayerport_plugins.so", "liblayerport_plugins_static.so"
LOAD = """
import ctypes, sys
from layerport.engine import flavours
trt = flavours.load("rtx")
class Logger(trt.ILogger):
    def log(self, severity, message):
        if severity in (trt.ILogger.ERROR, trt.ILogger.WARNING) and "cudaError" not in message:
            print(f"{severity.name}: {message}")
    def __init__(self):
        trt.ILogger.__init__(self)
logger = Logger()
runtime = trt.Runtime(logger)
registry = trt.get_plugin_registry()
for library in sys.argv[1:]:
    if "static" in library:
        ctypes.CDLL(library)
    else:
        registry.load_library(library)
    creator = registry.get_creator("Kernel", "1", "layerport")
    fields = trt.PluginFieldCollection([trt.PluginField("layerport_spec", b"what", trt.PluginFieldType.INT8)])
    assert creator.create_plugin("a_node", fields, trt.TensorRTPhase.RUNTIME) is None
"""
REFUSED = "ERROR: node a_node: the node's field is no plugin spec of layerport; build the bundle again"


@pytest.mark.skipif(shutil.which("nm") is None, reason="there is no nm")
@pytest.mark.parametrize(("name", "wanted"), [(DYNAMIC, {"getCreators", "setLoggerFinder"}), (STATIC, set())])
def test_nothing_else_leaves_it(compiled: Path, name: str, wanted: set[str]) -> None:
    told = subprocess.run(["nm", "-D", "--defined-only", compiled / name], capture_output=True, text=True, check=True)
    assert {line.split()[-1] for line in told.stdout.splitlines()} == wanted


@pytest.mark.skipif(shutil.which("readelf") is None, reason="there is no readelf")
def test_it_links_nothing_of_nvidia(compiled: Path) -> None:
    for name in (DYNAMIC, STATIC):
        told = subprocess.run(["readelf", "-d", compiled / name], capture_output=True, text=True, check=True).stdout
        needed = re.findall(r"NEEDED.*\[(.*?)\]", told)
        assert needed and not [one for one in needed if re.search("nv|cuda|tensorrt|libz", one)]


@pytest.mark.parametrize(
    ("libraries", "said"),
    [
        ((DYNAMIC,), ()),
        ((STATIC,), ()),
        ((STATIC, DYNAMIC), ("Cannot register the library as plugin creator of Kernel exists already",)),
        ((DYNAMIC, STATIC), ("WARNING: the plugin layerport::Kernel is registered already; load one build of",)),
        ((DYNAMIC, DYNAMIC), ("Cannot register the library as plugin creator of Kernel exists already",)),
    ],
)
def test_tensorrt_takes_it_and_its_log_its_errors(
    compiled: Path, libraries: tuple[str, ...], said: tuple[str, ...]
) -> None:
    pytest.importorskip("tensorrt_rtx")
    done = python(LOAD, *(str(compiled / name) for name in libraries))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines.count(REFUSED) == len(libraries), lines
    others = [line for line in lines if line != REFUSED]
    assert len(others) == len(said) and all(one in line for one, line in zip(said, others, strict=True)), others


def test_the_library_that_registers_itself_without_tensorrt_says_so(compiled: Path) -> None:
    done = python("import ctypes, sys; ctypes.CDLL(sys.argv[1])", str(compiled / STATIC))
    assert done.returncode == 0
    wanted = "layerport: no TensorRT is loaded in this process; load this library after TensorRT\n"
    assert done.stderr == wanted


LAYOUTS = """
import sys
from pathlib import Path
from native.native_plugin import NativeLibrary
library = NativeLibrary(Path(sys.argv[1]), int(sys.argv[2]))
assert library.create(b"nothing") is None
print(library.log())
"""


@pytest.mark.parametrize("version", [100000, 101401, 110000, 110100, 10400, 10500, 10701])
def test_both_layouts_of_the_log(compiled: Path, version: int) -> None:
    here = Path(__file__).parent
    environment = {"PYTHONPATH": str(here.parent)}
    done = python(LAYOUTS, str(compiled), str(version), environment=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1 node the_node: the node's field is no plugin spec of layerport")


@pytest.mark.parametrize("version", [8601, 120000, 20000])
def test_a_version_that_it_does_not_know(compiled: Path, version: int) -> None:
    here = Path(__file__).parent
    environment = {"PYTHONPATH": str(here.parent)}
    done = python(LAYOUTS, str(compiled), str(version), environment=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
    assert "this TensorRT is of a version that this library does not know" in done.stderr
    assert "layerport: node the_node: the node's field is no plugin spec" in done.stderr


@pytest.mark.parametrize("version", [8601, 120000])
def test_a_library_that_registers_itself_leaves_an_unknown_tensorrt_alone(compiled: Path, version: int) -> None:
    code = "import ctypes, sys; [ctypes.CDLL(one, mode=ctypes.RTLD_GLOBAL) for one in sys.argv[1:]]"
    libraries = [str(compiled / name) for name in ("stand_in_tensorrt.so", STATIC)]
    done = python(code, *libraries, environment={"STAND_IN_VERSION": str(version)})
    assert done.returncode == 0, done.stderr
    assert done.stderr == (
        "layerport: this TensorRT is of a version that this library does not know; update layerport-native\n"
    )


DRIVERS = """
import sys
from pathlib import Path
from native.native_plugin import NativeLibrary
library = NativeLibrary(Path(sys.argv[1]), driver=sys.argv[2])
plugin = library.plugin(Path(sys.argv[3]).read_bytes())
context = plugin.attach()
assert not library.log()  # a plan may be opened where it cannot run
for _ in range(2):
    assert not context.set_shapes([(2, 2), (2,)]) and not context.enqueue([16, 32], [48])
print(library.log())
"""


@pytest.mark.parametrize(
    ("driver", "environment", "said"),
    [
        ("", {}, "no NVIDIA driver on this machine (libcuda.so.1); run it on a machine with an NVIDIA GPU"),
        (
            "old_cuda",
            {},
            "the NVIDIA driver has no cuLibraryLoadData; update it: kernels are loaded by functions that came with "
            "CUDA 12.0",
        ),
        ("cuda", {"STAND_IN_NO_GPU": "1"}, "the NVIDIA driver cannot be used: cuInit failed: CUDA_ERROR_NO_DEVICE"),
    ],
)
def test_a_driver_that_is_missing_or_too_old(
    compiled: Path, tmp_path: Path, driver: str, environment: dict[str, str], said: str
) -> None:
    if not driver and find_library("cuda") is not None:
        pytest.skip("this machine has a driver")
    (tmp_path / "field").write_bytes(write_field(spec(), IMAGES))
    done = python(DRIVERS, str(compiled), driver, str(tmp_path / "field"), environment=environment)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line for line in lines if line][0::2] == [f"1 node the_node: {said}"] * 2, lines
    assert all("is launched before its shapes are set" in line for line in lines[1::2] if line), lines
