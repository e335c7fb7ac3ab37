"""The texts of `layerport export`: the commands for each tool, what to know of them, and the page that says both."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from layerport.bundle.entries import TargetEntry
from layerport.commands.export_triton import REPOSITORY, type_faults
from layerport.dtypes import DType
from layerport.sizes.tensors import TensorType

PLAN, MODEL, SAMPLES, DEEPSTREAM = "model.plan", "model.onnx", "samples", "config_infer.txt"
LIBRARIES = {"tensorrt": "nvinfer", "rtx": "tensorrt_rtx"}
"""What a program links, by flavour."""
_PROGRAMS = {"tensorrt": "trtexec", "rtx": "tensorrt_rtx"}
_COLOURS = {1: 2, 3: 0, 4: 0}  # channels -> what DeepStream calls grey and RGB


@dataclass(frozen=True)
class Handover:
    """What a tool gets: the model's inputs and outputs, a plan that it can open or none, and the plugin library's file.

    profile: per input its least, usual and greatest shape.  library: None where no layer is a plugin.
    architectures: those of the layers' kernels.  samples: the shape of each sample input.
    place: the folder of model and plan in the folder that is written.
    """

    tool: str
    inputs: tuple[TensorType, ...]
    outputs: tuple[TensorType, ...]
    profile: Mapping[str, Sequence[Sequence[int]]]
    plan: TargetEntry | None
    library: str | None
    architectures: Sequence[str] = ()
    samples: Mapping[str, Sequence[int]] = field(default_factory=dict)
    place: PurePosixPath = field(default_factory=PurePosixPath)

    @property
    def flavour(self) -> str:
        """The TensorRT that opens the plan."""
        return "tensorrt" if self.plan is None else self.plan["flavour"]


def faults(one: Handover) -> list[str]:
    """Why the tool cannot run such a model at all."""
    if one.tool == "triton":
        return type_faults([*one.inputs, *one.outputs])
    if one.tool == "deepstream" and len(one.inputs) != 1:
        return [f"nvinfer of DeepStream feeds one input, the model has {len(one.inputs)}"]
    return []


def sample_file(kind: str, number: int) -> str:
    """Where the bytes of a sample are."""
    return f"{SAMPLES}/{kind}_{number}.bin"


def commands(one: Handover) -> tuple[str, ...]:
    """The shell commands in order, to be run in the folder."""
    building = [] if one.plan is not None else [_building(one)]
    return tuple(map(shlex.join, [*building, *_RUNNING[one.tool](one)]))


def notes(one: Handover) -> tuple[str, ...]:
    """What to know before the commands are run."""
    if one.plan is None:
        told = [
            "the bundle has no plan for this tool: the first command builds it, on the machine that is to run it; with "
            "TensorRT 10 add --stronglyTyped, which newer ones are in any case"
        ]
        if one.architectures:
            told.append(f"the layers have kernels for {', '.join(one.architectures)}")
    else:
        plan = one.plan
        told = [f"the plan opens in {plan['flavour']} {plan['tensorrt']}, on {', '.join(plan['architectures'])}"]
    if one.library is not None and one.tool in ("triton", "deepstream"):
        told.append(f"{one.library} registers its plugin when it is opened; load no other build of it beside")
    told += _NOTES[one.tool](one)
    return (*told, "none of the commands was run when this was written: no such tool was there")


def readme(one: Handover) -> str:
    """The page that goes with the files."""
    lines = [f"# For {one.tool}", "", "In this folder, in this order:", "", "```shell", *commands(one), "```", ""]
    return "\n".join([*lines, *(f"- {note[0].upper()}{note[1:]}." for note in notes(one)), ""])


def deepstream_config(one: Handover) -> str:
    """The settings of DeepStream's element `nvinfer`: outputs come as tensors in the frames' metadata."""
    (port,) = one.inputs
    usual = one.profile[port.name][1]
    settings = {
        "gpu-id": 0,
        "gie-unique-id": 1,
        "model-engine-file": PLAN,
        **({} if one.library is None else {"custom-lib-path": f"./{one.library}"}),
        "batch-size": usual[0] if usual else 1,
        "network-type": 100,
        "output-tensor-meta": 1,
    }
    if _is_image(port):
        channels = int(port.shape[1])
        settings |= {
            "infer-dims": ";".join(map(str, port.shape[1:])),
            "model-color-format": _COLOURS[channels],
            "net-scale-factor": 1,
        }
    else:
        settings["input-tensor-from-meta"] = 1
    return "".join(f"{line}\n" for line in ("[property]", *(f"{name}={value}" for name, value in settings.items())))


def _is_image(port: TensorType) -> bool:
    """Whether nvinfer makes such an input from a frame: floats, [batch, channels, height, width]."""
    sizes = port.shape[1:]
    return (
        port.dtype in (DType.FLOAT32, DType.FLOAT16)
        and port.ndim == 4
        and all(isinstance(size, int) for size in sizes)
        and sizes[0] in _COLOURS
    )


def _building(one: Handover) -> list[str]:
    words = ["trtexec", f"--onnx={one.place / MODEL}", f"--saveEngine={one.place / PLAN}", *_plugins(one)]
    dynamic = _dynamic(one)
    for number, option in enumerate(("min", "opt", "max")):
        shapes = {name: one.profile[name][number] for name in dynamic}
        words += [f"--{option}Shapes={_shapes(shapes)}"] if shapes else []
    return words


def _dynamic(one: Handover) -> list[str]:
    return [port.name for port in one.inputs if not all(isinstance(size, int) for size in port.shape)]


def _plugins(one: Handover) -> list[str]:
    option = "--dynamicPlugins" if one.tool in ("trtexec", "cpp") else "--staticPlugins"
    return [] if one.library is None else [f"{option}=./{one.library}"]


def _shapes(shapes: Mapping[str, Sequence[int]]) -> str:
    return ",".join(f"{_in_trtexec(name)}:{'x'.join(map(str, shape)) or 'scalar'}" for name, shape in shapes.items())


def _in_trtexec(name: str) -> str:
    return f"'{name}'" if set(name) & set(":,") else name


def _trtexec(one: Handover) -> list[list[str]]:
    shapes = {name: one.samples.get(name) or one.profile[name][1] for name in _dynamic(one)}
    files = ",".join(f"{_in_trtexec(name)}:{sample_file('input', i)}" for i, name in enumerate(one.samples))
    words = [_PROGRAMS[one.flavour], f"--loadEngine={one.place / PLAN}", *_plugins(one)]
    words += [f"--shapes={_shapes(shapes)}"] if shapes else []
    return [words + ([f"--loadInputs={files}"] if files else [])]


def _triton(one: Handover) -> list[list[str]]:
    plugins = [] if one.library is None else [f"--backend-config=tensorrt,plugins=./{one.library}"]
    return [["tritonserver", f"--model-repository={REPOSITORY}", *plugins]]


def _deepstream(one: Handover) -> list[list[str]]:
    (port,) = one.inputs
    height, width = port.shape[2:] if _is_image(port) else (480, 640)
    batch = (one.profile[port.name][1] or [1])[0]
    mux = f"nvstreammux name=mux batch-size={batch} width={width} height={height}"
    source = "videotestsrc num-buffers=100 ! nvvideoconvert ! video/x-raw(memory:NVMM) ! mux.sink_0"
    return [["gst-launch-1.0", *f"{mux} ! nvinfer config-file-path={DEEPSTREAM} ! fakesink {source}".split()]]


def _cpp(one: Handover) -> list[list[str]]:
    return [["cmake", "-S", ".", "-B", "build"], ["cmake", "--build", "build"], ["./build/run_plan", "."]]


_RUNNING = {"trtexec": _trtexec, "triton": _triton, "deepstream": _deepstream, "cpp": _cpp}


def _no_notes(one: Handover) -> list[str]:
    return []


def _deepstream_notes(one: Handover) -> list[str]:
    (port,) = one.inputs
    if _is_image(port):
        return ["frames come as numbers from 0 to 255; set net-scale-factor and offsets as the model was trained"]
    return [
        f"nvinfer makes no {port.form} of a frame, so input-tensor-from-meta is set: put nvdspreprocess before it, "
        "which makes the tensor"
    ]


def _cpp_notes(one: Handover) -> list[str]:
    return [
        "give cmake -DTENSORRT_ROOT= and -DCUDA_ROOT= where they are in folders of their own",
        "run_plan runs the samples and says of each output whether it is Torch's, within the tolerance of its type",
    ]


_NOTES = {"trtexec": _no_notes, "triton": _no_notes, "deepstream": _deepstream_notes, "cpp": _cpp_notes}
