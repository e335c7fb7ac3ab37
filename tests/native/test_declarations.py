"""Our declarations of TensorRT's classes against NVIDIA's headers, which the wheel `kernel-lens` carries.

The places of virtual functions are read from pointers to them, those of fields with `offsetof`.
"""

from __future__ import annotations

import shutil
import subprocess
from importlib import metadata
from pathlib import Path

import pytest

CPP = Path(__file__).parents[2] / "native" / "cpp"
FUNCTIONS = {
    ("PluginV3", "IPluginV3"): {
        "api_language": "getAPILanguage",
        "interface_info": "getInterfaceInfo",
        "capability": "getCapabilityInterface",
        "clone": "clone",
    },
    ("PluginCore", "v_1_0::IPluginV3OneCore"): {
        "interface_info": "getInterfaceInfo",
        "plugin_name": "getPluginName",
        "plugin_version": "getPluginVersion",
        "plugin_namespace": "getPluginNamespace",
    },
    ("PluginBuild", "v_1_0::IPluginV3OneBuild"): {
        "interface_info": "getInterfaceInfo",
        "configure": "configurePlugin",
        "output_data_types": "getOutputDataTypes",
        "output_shapes": "getOutputShapes",
        "supports_format_combination": "supportsFormatCombination",
        "output_count": "getNbOutputs",
        "workspace_size": "getWorkspaceSize",
        "valid_tactics": "getValidTactics",
        "tactic_count": "getNbTactics",
        "timing_cache_id": "getTimingCacheID",
        "format_combination_limit": "getFormatCombinationLimit",
        "metadata_string": "getMetadataString",
    },
    ("PluginRuntime", "v_1_0::IPluginV3OneRuntime"): {
        "interface_info": "getInterfaceInfo",
        "set_tactic": "setTactic",
        "on_shape_change": "onShapeChange",
        "enqueue": "enqueue",
        "attach_to_context": "attachToContext",
        "fields_to_serialize": "getFieldsToSerialize",
    },
    ("PluginCreator", "v_1_0::IPluginCreatorV3One"): {
        "interface_info": "getInterfaceInfo",
        "create_plugin": "createPlugin",
        "field_names": "getFieldNames",
        "plugin_name": "getPluginName",
        "plugin_version": "getPluginVersion",
        "plugin_namespace": "getPluginNamespace",
    },
    ("ExprBuilderImpl", "apiv::VExprBuilder"): {
        "constant": "constant",
        "operation": "operation",
        "declare_size_tensor": "declareSizeTensor",
    },
}
SLOTS = """
#include <NvInfer.h>
#include <NvInferImpl.h>
#include "tensorrt.h"
#include <cstdio>
#include <cstring>
namespace ours = layerport::trt;
// Where a pointer to a virtual function is one to a place in the table, by the C++ ABI of Itanium.
template <typename Function> long slot(Function function)
{
    long place;
    std::memcpy(&place, &function, sizeof place);
    return (place - 1) / 8;
}
int main()
{
"""
FIELDS = {
    ("Dims", "Dims64"): {"count": "nbDims", "sizes": "d"},
    ("InterfaceInfo", "InterfaceInfo"): {"kind": "kind", "major": "major", "minor": "minor"},
    ("PluginField", "PluginField"): {"name": "name", "data": "data", "type": "type", "length": "length"},
    ("PluginFieldCollection", "PluginFieldCollection"): {"count": "nbFields", "fields": "fields"},
    ("TensorDesc", "PluginTensorDesc"): {"dims": "dims", "type": "type", "format": "format", "scale": "scale"},
    ("DynamicTensorDesc", "DynamicPluginTensorDesc"): {"desc": "desc", "min": "min", "max": "max", "opt": "opt"},
    ("DimsExprs", "DimsExprs"): {"count": "nbDims", "sizes": "d"},
}
ENUMERATORS = {
    "DataType": {
        "float32": "kFLOAT",
        "float16": "kHALF",
        "int8": "kINT8",
        "int32": "kINT32",
        "boolean": "kBOOL",
        "uint8": "kUINT8",
        "fp8": "kFP8",
        "bfloat16": "kBF16",
        "int64": "kINT64",
        "int4": "kINT4",
        "fp4": "kFP4",
        "e8m0": "kE8M0",
    },
    "DimensionOperation": {
        "sum": "kSUM",
        "prod": "kPROD",
        "max": "kMAX",
        "min": "kMIN",
        "sub": "kSUB",
        "equal": "kEQUAL",
        "less": "kLESS",
        "floor_div": "kFLOOR_DIV",
        "ceil_div": "kCEIL_DIV",
    },
    "FieldType:PluginFieldType": {"int8": "kINT8", "character": "kCHAR", "unknown": "kUNKNOWN"},
    "Phase:TensorRTPhase": {"build": "kBUILD", "runtime": "kRUNTIME"},
    "CapabilityType:PluginCapabilityType": {"core": "kCORE", "build": "kBUILD", "runtime": "kRUNTIME"},
    "TensorFormat": {"linear": "kLINEAR"},
    "Severity:ILogger::Severity": {"error": "kERROR", "warning": "kWARNING"},
}
CUDA = "#pragma once\ntypedef struct CUstream_st* cudaStream_t;\ntypedef struct CUevent_st* cudaEvent_t;\n"


@pytest.fixture(scope="module")
def headers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """NVIDIA's headers, and a folder with what they include of CUDA's."""
    if shutil.which("g++") is None:
        pytest.skip("there is no g++")
    try:
        files = metadata.files("kernel-lens")
    except metadata.PackageNotFoundError:
        pytest.skip("kernel-lens, whose wheel carries TensorRT's headers, is not installed")
    (found,) = (one for one in files or () if one.name == "NvInfer.h")
    folder = tmp_path_factory.mktemp("cuda")
    (folder / "cuda_runtime_api.h").write_text(CUDA)
    return Path(str(found.locate())).parent, folder


def compile_alone(source: Path, headers: tuple[Path, Path], *flags: str) -> None:
    include = [flag for folder in (CPP, *headers) for flag in ("-I", str(folder))]
    command = ["g++", "-std=c++17", "-w", *include, *flags, "-fsyntax-only", source.name]
    done = subprocess.run(command, cwd=source.parent, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]


def test_fields_and_numbers(headers: tuple[Path, Path], tmp_path: Path) -> None:
    lines = ["#include <NvInfer.h>", '#include "tensorrt.h"', "#include <cstddef>", "namespace ours = layerport::trt;"]
    for (ours, theirs), fields in FIELDS.items():
        lines.append(f"static_assert(sizeof(ours::{ours}) == sizeof(nvinfer1::{theirs}));")
        lines += [
            f"static_assert(offsetof(ours::{ours}, {own}) == offsetof(nvinfer1::{theirs}, {other}));"
            for own, other in fields.items()
        ]
    for names, enumerators in ENUMERATORS.items():
        own_type, _, other_type = names.partition(":")
        lines += [
            f"static_assert(int(ours::{own_type}::{own}) == int(nvinfer1::{other_type or own_type}::{other}));"
            for own, other in enumerators.items()
        ]
    source = tmp_path / "fields.cpp"
    source.write_text("\n".join(lines) + "\n")
    compile_alone(source, headers)
    # The test itself: a wrong number would be seen.
    source.write_text(source.read_text().replace("kFLOAT)", "kHALF)", 1))
    with pytest.raises(AssertionError, match="static assertion failed"):
        compile_alone(source, headers)


def test_virtual_functions_are_at_the_same_places(headers: tuple[Path, Path], tmp_path: Path) -> None:
    pairs = [
        (f"ours::{own}::{one}", f"nvinfer1::{other}::{two}")
        for (own, other), functions in FUNCTIONS.items()
        for one, two in functions.items()
    ]
    lines = [f'std::printf("%ld %ld\\n", slot(&{one}), slot(&{two}));' for one, two in pairs]
    source = tmp_path / "slots.cpp"
    source.write_text(SLOTS + "\n".join(lines) + "\n}\n")
    include = [flag for folder in (CPP, *headers) for flag in ("-I", str(folder))]
    command = ["g++", "-std=c++17", "-w", *include, str(source), "-o", str(tmp_path / "slots")]
    subprocess.run(command, check=True, timeout=120)
    told = subprocess.run([tmp_path / "slots"], check=True, capture_output=True, text=True).stdout.splitlines()
    assert len(told) == len(pairs)
    for (one, two), line in zip(pairs, told, strict=True):
        ours, theirs = line.split()
        assert ours == theirs, f"{one} is at {ours}, {two} at {theirs}"
    assert len(set(told)) > 10


def test_what_the_interfaces_call_themselves(headers: tuple[Path, Path]) -> None:
    text = (CPP / "tensorrt.h").read_text()
    theirs = "".join(path.read_text() for path in headers[0].glob("*.h"))
    for kind in ("PLUGIN", "PLUGIN_V3ONE_CORE", "PLUGIN_V3ONE_BUILD", "PLUGIN_V3ONE_RUNTIME", "PLUGIN CREATOR_V3ONE"):
        assert f'{{"{kind}", 1, 0}}' in text
        assert f'InterfaceInfo{{"{kind}", 1, 0}}' in theirs, kind
