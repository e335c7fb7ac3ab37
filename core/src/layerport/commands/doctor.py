"""`layerport doctor`: what works on this machine, and what to install for the rest.

`cli` uses this file.  Versions come from metadata; native libraries are looked at in a child process
(`doctor_probe`), so neither torch nor a broken driver can slow down or take down the answer.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from layerport.commands.tables import print_table, say
from layerport.foreign.tested import NEWEST, newer_than_tested
from layerport.packs.discovery import disable_faults, discover
from layerport.packs.metadata import canonical
from layerport.system import processes
from layerport.system.records import Record

_BUILD = "pip install 'layerport[build]'"
_RTX = "pip install 'layerport[rtx]'"
_TENSORRT = "pip install 'layerport[tensorrt]'"
_PROBE_SECONDS = 60


@dataclass(frozen=True)
class Finding(Record):
    """One row: what was looked for, whether it can be used, and how to get it.

    version: None where it is absent.  problem: why it cannot be used although it is there.
    """

    what: str
    found: bool
    version: str | None
    enables: str
    install: str
    problem: str | None = None


@dataclass(frozen=True)
class Ability(Record):
    """What layerport can do, whether it works here, and the findings that it lacks."""

    what: str
    works: bool
    lacks: tuple[str, ...]


@dataclass(frozen=True)
class DoctorReport(Record):
    """What is on a machine, what works there, and what is wrong with the settings."""

    python: str
    findings: tuple[Finding, ...]
    abilities: tuple[Ability, ...]
    warnings: tuple[str, ...]


def doctor_report(*, environ: Mapping[str, str] | None = None) -> DoctorReport:
    """What is here and what works."""
    probe = run_probe()
    infos = discover(environ=environ)
    findings = [*_libraries(), *_compilers(probe), *_flavours(probe), _plugin_library(probe), *_devices(probe)]
    for info in infos:
        problem = "disabled by LAYERPORT_DISABLE_PACKS" if info.disabled else info.fault
        findings.append(
            Finding(
                f"pack {info.name}",
                problem is None,
                f"{info.distribution} {info.version}",
                "its layers; `layerport packs --load` tries it",
                f"pip install {info.distribution}",
                problem,
            )
        )
    if not infos:
        findings.append(
            Finding("packs", False, None, "layers that TensorRT lacks", "pip install layerport-builtin-layers")
        )
    return DoctorReport(
        python=sys.version.split()[0],
        findings=tuple(findings),
        abilities=_abilities({finding.what: finding for finding in findings}),
        warnings=(*disable_faults(infos, environ), *_newer(probe)),
    )


def render_doctor(report: DoctorReport) -> None:
    """Print a `doctor_report`: the findings, then what works here and what that takes."""
    rows = [
        [
            finding.what,
            "yes" if finding.found else "no",
            finding.version or "",
            finding.enables,
            "" if finding.found else finding.install,
        ]
        for finding in report.findings
    ]
    print_table(["what", "usable", "version", "enables", "how to get it"], rows)
    for finding in report.findings:
        if finding.problem:
            say(f"{finding.what}: {finding.problem}")
    say(f"what works here, with Python {report.python}:")
    for ability in report.abilities:
        lacking = f" (lacks {', '.join(ability.lacks)})" if ability.lacks else ""
        say(f"  {'yes' if ability.works else 'no '}  {ability.what}{lacking}")
    for warning in report.warnings:
        say(f"warning: {warning}")


def run_probe(command: tuple[str, ...] = ("-m", "layerport.commands.doctor_probe")) -> dict[str, Any]:
    """What `doctor_probe` finds, run in a child process; every entry an error where that process fails."""
    try:
        child = processes.run([sys.executable, *command], timeout=_PROBE_SECONDS)
        if child.returncode == 0:
            found: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
            return found
        fault = f"looking at it ended the process with exit code {child.returncode}"
    except (subprocess.TimeoutExpired, OSError, ValueError, IndexError) as error:
        fault = f"looking at it failed: {type(error).__name__}"
    return {
        name: {"error": fault} for name in ("driver", "nvrtc", "headers", "tensorrt_rtx", "tensorrt", "plugin library")
    }


def _libraries() -> list[Finding]:
    rows = [
        ("Torch", ("torch",), "claim, export and verify a Torch model", _BUILD),
        ("ONNX", ("onnx",), "portable models", "pip install onnx"),
        ("ONNX exporter", ("onnxscript",), "export a Torch model", _BUILD),
        ("onnx-ir", ("onnx-ir",), "export a Torch model", _BUILD),
        (
            "ONNX Runtime",
            ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml"),
            "run and verify where no engine fits",
            "pip install onnxruntime",
        ),
        ("Triton", ("triton", "triton-windows"), "layers with Triton kernels", "pip install triton"),
    ]
    return [_library(*row) for row in rows]


def _newer(probe: Mapping[str, Any]) -> list[str]:
    """What to know of libraries newer than those that the tests have run with."""
    notes = []
    for library, newest in NEWEST.items():
        if (version := newer_than_tested(library)) is None:
            continue
        lacks = probe.get(f"{library} names", {})
        said = lacks.get("error") or "; ".join(lacks.get("missing", ())) or "every private name that is used is there"
        notes.append(f"{library} {version} is newer than the tested {newest}: {said}")
    return notes


def _library(what: str, distributions: tuple[str, ...], enables: str, install: str) -> Finding:
    for name in distributions:
        version = _installed(name)
        if version is not None:
            problem = _too_old(name, version)
            return Finding(what, problem is None, version, enables, install, problem)
    return Finding(what, False, None, enables, install)


def _compilers(probe: Mapping[str, Any]) -> list[Finding]:
    nvrtc, headers = probe["nvrtc"], probe["headers"]
    packaged = _installed("nvidia-cuda-nvrtc") or _installed("nvidia-cuda-nvrtc-cu12")
    return [
        _library("CUDA bindings", ("cuda-bindings",), "compile and launch CUDA kernels", _BUILD),
        Finding(
            "CUDA compiler (NVRTC)",
            "error" not in nvrtc,
            nvrtc.get("version") or packaged,
            "compile CUDA kernels, without a driver",
            _BUILD,
            nvrtc.get("error") if packaged else None,
        ),
        Finding(
            "CUDA headers",
            "error" not in headers,
            _installed("nvidia-cuda-runtime"),
            "kernels that include cuda_fp16.h and the like",
            _BUILD,
            headers.get("error") if _installed("nvidia-cuda-runtime") else None,
        ),
    ]


def _flavours(probe: Mapping[str, Any]) -> list[Finding]:
    rows = [
        ("TensorRT for RTX", "tensorrt_rtx", "engines for RTX GPUs, built without a GPU", _RTX),
        ("TensorRT", "tensorrt", "engines for the GPU of this machine", _TENSORRT),
    ]
    findings = []
    for what, name, enables, install in rows:
        seen, packaged = probe[name], _installed(name)
        problem = None if seen.get("absent") else seen.get("error")
        version = seen.get("version") or packaged
        if problem is None and version is not None:
            problem = _too_old(name, version)
        usable = "error" not in seen and problem is None
        findings.append(Finding(what, usable, version, enables, install, problem))
    return findings


def _plugin_library(probe: Mapping[str, Any]) -> Finding:
    seen, version = probe["plugin library"], _installed("layerport-native")
    problem = seen.get("error") if version is not None else None
    loads = f" (loads into {', '.join(seen['takes'])})" if version is not None and seen.get("takes") else ""
    return Finding(
        "plugin library",
        version is not None and problem is None,
        version and f"{version}{loads}",
        "engines without Python, cheaper launches with it",
        "pip install layerport-native",
        problem,
    )


def _devices(probe: Mapping[str, Any]) -> list[Finding]:
    driver, nvrtc = probe["driver"], probe["nvrtc"]
    how = "install NVIDIA's driver from https://www.nvidia.com/drivers"
    version = driver.get("cuda")
    problem = None
    if version and nvrtc.get("version") and int(version.split(".")[0]) < int(nvrtc["version"].split(".")[0]):
        problem = f"it supports CUDA {version}, but kernels are compiled by NVRTC {nvrtc['version']}; update it"
    gpus = [f"{gpu['name']} ({gpu['arch']})" for gpu in driver.get("gpus", ())]
    return [
        Finding(
            "NVIDIA driver", version is not None and problem is None, version and f"CUDA {version}",
            "load kernels and engines", how, problem,
        ),
        Finding(
            "GPU", bool(gpus), ", ".join(gpus) or None, "run engines",
            "none is needed to build; run engines on a machine that has one", driver.get("no_gpu"),
        ),
    ]  # fmt: skip


def _abilities(found: Mapping[str, Finding]) -> tuple[Ability, ...]:
    export = ("Torch", "ONNX", "ONNX exporter", "onnx-ir", "ONNX Runtime")
    kernels = ("CUDA bindings", "CUDA compiler (NVRTC)", "CUDA headers")
    device = ("CUDA bindings", "NVIDIA driver", "GPU")
    rows = [
        ("build a portable bundle from a Torch model", export),
        ("compile CUDA kernels for any GPU", kernels),
        ("build engines with TensorRT for RTX", (*export, *kernels, "TensorRT for RTX")),
        ("build engines with TensorRT", (*export, *kernels, "TensorRT", "NVIDIA driver", "GPU")),
        ("run and verify a bundle with ONNX Runtime", ("ONNX", "ONNX Runtime")),
        ("run engines of TensorRT for RTX", ("TensorRT for RTX", *device)),
        ("run engines of TensorRT", ("TensorRT", *device)),
    ]
    abilities = []
    for what, needs in rows:
        lacks = [need for need in needs if not found[need].found]
        abilities.append(Ability(what, not lacks, tuple(lacks)))
    return tuple(abilities)


def _installed(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _too_old(distribution: str, version: str) -> str | None:
    """What layerport's own metadata asks for, if this version is not that."""
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.version import InvalidVersion, Version

    try:
        required = metadata.requires("layerport") or []
    except metadata.PackageNotFoundError:
        return None
    for text in required:
        try:
            requirement = Requirement(text)
            fits = requirement.specifier.contains(Version(version), prereleases=True)
        except (InvalidRequirement, InvalidVersion):
            continue
        if canonical(requirement.name) == canonical(distribution) and not fits:
            return f"version {version} is there, {requirement.specifier} is needed"
    return None
