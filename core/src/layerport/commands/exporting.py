"""`layerport export`: what a tool that runs engines without Python needs, as a folder of files with the commands.

A new folder is there whole or not at all; a Triton repository of an earlier export gets a further version of the model.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any

import layerport
import layerport.bundle
import layerport.engine
import layerport.parameters
from layerport.bundle.bundle import Bundle
from layerport.bundle.entries import TargetEntry
from layerport.bundle.names import PLUGINS
from layerport.bundle.plugin_spec import PluginSet, from_bytes
from layerport.commands import export_texts as texts
from layerport.commands.export_triton import CONFIG, REPOSITORY, config_text, next_version
from layerport.commands.tables import say
from layerport.errors import BuildError, UsageError
from layerport.system.records import Record
from layerport.system.renames import rename_new

README = "README.md"
_PROGRAM = ("main.cpp", "samples.h", "CMakeLists.txt")
_SERVERS = ("triton", "deepstream")  # they only open plugin libraries, and have no TensorRT for RTX
TOOLS = ("trtexec", *_SERVERS, "cpp")


@dataclass(frozen=True)
class Exported(Record):
    """What was written: for which tool, the folder, its new files, the commands in order, and what to know of them."""

    tool: str
    folder: str
    files: tuple[str, ...]
    commands: tuple[str, ...]
    notes: tuple[str, ...]


def export_bundle(bundle: str, tool: str, out: str) -> Exported:
    """Write what `tool` needs to run a bundle into the folder `out`: a new one, or an earlier export for Triton.

    Raises UsageError where the tool cannot run this model or something is in the way, BuildError where the plugin
    library is not installed, the bundle is damaged or the disk does not take it.  Then nothing was written.
    """
    opened, folder = Bundle.open(bundle), Path(out)
    library, plan = _library(opened, tool), _plan_for(opened, tool)
    inputs, outputs = _samples(opened, tool)
    made = texts.Handover(
        tool=tool,
        inputs=opened.inputs,
        outputs=opened.outputs,
        profile=_profile(opened, plan),
        plan=plan,
        library=None if library is None else library.name,
        architectures=_architectures(opened) if library is not None else (),
        samples={name: array.shape for name, array in inputs.items()},
    )
    if faults := texts.faults(made):
        raise UsageError(f"{tool} cannot run this model", "export it for another tool", faults=faults)
    if tool == "triton":
        made = _in_repository(made, folder, Path(bundle).resolve().name)
    elif os.path.lexists(folder):
        raise UsageError(f"{folder} is there already, kept", "choose another folder with -o")
    with _putting_in_place(folder, made.place) as part:
        place = part / made.place
        place.mkdir(parents=True, exist_ok=True)
        if plan is not None:
            shutil.copyfile(opened.file(plan["file"]), place / texts.PLAN)
        _write_model(opened, place)
        if library is not None:
            shutil.copyfile(library, part / library.name)
        for name, text in _texts(made).items():
            (part / name).write_text(text, encoding="utf-8")
        if inputs:
            _write_samples(part, inputs, outputs, opened)
        opened.require_unchanged()
        files = sorted(str(path.relative_to(part)) for path in part.rglob("*") if path.is_file())
    return Exported(tool, str(folder), tuple(files), texts.commands(made), texts.notes(made))


def print_exported(made: Exported) -> None:
    """Print what was written, what to know of it, and the commands."""
    say(f"{made.folder}: for {made.tool}")
    for name in made.files:
        say(f"  {name}")
    for note in made.notes:
        say(f"note: {note}")
    say(f"next: cd {shlex.quote(made.folder)}")
    for command in made.commands:
        say(f"  {command}")


def _library(bundle: Bundle, tool: str) -> Path | None:
    """The build of the plugin library that a tool loads; None where no layer of the bundle is a plugin."""
    nodes = [one for one in bundle.manifest["layers"] if one["realised"] == "plugin"]
    own = sorted({f"{one['layer']} ({one['plugin_class']})" for one in nodes if one.get("plugin_class")})
    if own:
        raise UsageError(
            "layers with a plugin class of their own need Python, which the tools have not",
            "build the bundle with --decompose for each of these layers",
            faults=own,
        )
    if not nodes:
        return None
    path = layerport.engine.native.library(registers_itself=tool in _SERVERS)
    if path is None:
        raise BuildError(
            "the plugin library is not installed here, and goes with the files", "pip install layerport-native"
        )
    return path


def _plan_for(bundle: Bundle, tool: str) -> TargetEntry | None:
    """The first plan that a tool can open."""
    known = ("tensorrt",) if tool in _SERVERS else tuple(texts.LIBRARIES)
    return next((one for one in bundle.manifest["targets"] if one["flavour"] in known), None)


def _architectures(bundle: Bundle) -> list[str]:
    found = {name for one in bundle.manifest["targets"] for name in one["architectures"]}
    return sorted(found, key=lambda name: int(name[3:]))


def _profile(bundle: Bundle, plan: TargetEntry | None) -> Mapping[str, Sequence[Sequence[int]]]:
    """Per input its least, usual and greatest shape: those of the plan, else those that the dims allow."""
    if plan is not None and plan.get("profile"):
        return plan["profile"]
    if endless := sorted(name for name, one in bundle.dims.items() if one.max is None):
        raise UsageError(
            f"an engine needs a greatest size of each dim, there is none of {', '.join(endless)}",
            f"build the bundle again with --range {endless[0]}=MIN..USUAL..MAX",
        )
    sizes = [{name: getattr(one, what) for name, one in bundle.dims.items()} for what in ("min", "opt", "max")]
    return {port.name: [port.resolve(one) for one in sizes] for port in bundle.inputs}


def _samples(bundle: Bundle, tool: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Example inputs and Torch's outputs, for the tools that run them."""
    if tool in _SERVERS:
        return {}, {}
    if bundle.manifest.get("samples") is None:
        if tool == "cpp":
            raise UsageError(
                "the bundle has no samples, which the program runs and compares",
                "build it again with example inputs, or export it for trtexec",
            )
        return {}, {}
    return bundle.samples()


def _in_repository(made: texts.Handover, folder: Path, bundle: str) -> texts.Handover:
    """The same, with its place in a Triton repository: the next version of the model that is named as the bundle."""
    name = re.sub(r"[^A-Za-z0-9_-]", "_", bundle.removesuffix(".lp")) or "model"
    version = next_version(folder, name, config_text(name, made.inputs, made.outputs))
    return replace(made, place=PurePosixPath(REPOSITORY, name, str(version)))


def _texts(made: texts.Handover) -> dict[str, str]:
    """The files that are texts, by their place."""
    found = {README: texts.readme(made)}
    if made.tool == "triton":
        model = made.place.parent
        found[str(model / CONFIG)] = config_text(model.name, made.inputs, made.outputs)
    elif made.tool == "deepstream":
        found[texts.DEEPSTREAM] = texts.deepstream_config(made)
    elif made.tool == "cpp":
        template = resources.files(layerport) / "templates" / "export"
        found |= {name: (template / name).read_text(encoding="utf-8") for name in _PROGRAM}
        found["CMakeLists.txt"] = found["CMakeLists.txt"].replace("@LIBRARY@", texts.LIBRARIES[made.flavour])
    return found


def _write_model(bundle: Bundle, place: Path) -> None:
    """The bound model and the files with its weights.

    Each node keeps its kernels: a tool that builds it does not look whether TensorRT left a node away.
    """
    import onnx

    path = bundle.model()
    plugins = PluginSet({}, {})
    if PLUGINS in bundle.manifest["files"]:
        plugins = from_bytes(bundle.read(PLUGINS))
    model = onnx.load(str(path), load_external_data=False)
    bound = layerport.engine.bound_model.bind_model(model, plugins, all_keep=True)
    (place / texts.MODEL).write_bytes(bound.SerializeToString())
    sizes = {name: entry["bytes"] for name, entry in bundle.manifest["files"].items()}
    for name in layerport.bundle.external_data.require_listed(path, sizes.get):
        shutil.copyfile(path.with_name(name), place / name)


def _write_samples(part: Path, inputs: Mapping[str, Any], outputs: Mapping[str, Any], opened: Bundle) -> None:
    """Each tensor's bytes, and `samples.txt`, which says of each what it is; the format is in `samples.h`."""
    (part / texts.SAMPLES).mkdir()
    lines = []
    for kind, arrays in (("input", inputs), ("output", outputs)):
        for number, (name, array) in enumerate(arrays.items()):
            file = texts.sample_file(kind, number)
            (part / file).write_bytes(array.tobytes())
            known = opened.losses.get(name), opened.precisions.get(name)
            absolute, relative = layerport.parameters.comparison.tolerance(array, *known)
            sizes = [array.ndim, *array.shape]
            lines.append(" ".join(map(str, (kind, file, array.dtype.name, absolute, relative, *sizes, name))))
    (part / f"{texts.SAMPLES}.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


@contextmanager
def _putting_in_place(folder: Path, place: PurePosixPath) -> Iterator[Path]:
    """A folder to fill, which becomes `folder` in the end, or adds the version at `place` to the one that is there."""
    is_new = not os.path.lexists(folder)
    if is_new and not folder.parent.is_dir():
        raise UsageError(f"there is no folder {folder.parent}", "make it first, or choose another place with -o")
    try:
        with tempfile.TemporaryDirectory(
            prefix=f".{folder.name}.", dir=folder.parent if is_new else folder, ignore_cleanup_errors=True
        ) as outer:
            part = Path(outer) / "export"
            part.mkdir()
            yield part
            if is_new:
                rename_new(part, folder)
            else:
                _add_version(part, folder, place)
    except FileExistsError as error:  # somebody was faster
        raise UsageError(f"{error.filename2 or folder} is there already, kept", "run it again") from error
    except OSError as error:
        raise BuildError(
            f"writing {folder} failed: {error.strerror or error}",
            "free some space, or choose another place with -o",
        ) from error


def _add_version(part: Path, folder: Path, place: PurePosixPath) -> None:
    for path in part.iterdir():
        if path.is_file():
            path.replace(folder / path.name)
    # Last, so that a server that watches the repository finds it whole.
    version = place if (folder / place.parent).is_dir() else place.parent
    rename_new(part / version, folder / version)
