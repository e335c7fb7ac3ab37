"""A compiler process: runs NVRTC or Triton on the jobs that it reads, and nothing else.

Run as a file by `process`, never imported by it.  A process of its own, because native code cannot be interrupted: a
template that expands without end can only be ended by ending its process.  It imports its compiler alone
(`cuda.bindings.nvrtc` takes 0.1 s, `cuda.core` would take 0.3 s), no layerport module and no pack: Triton's kernels
come in Triton's IR, not in the author's Python, so what it is given is all that decides what it makes.

In:  the name of the compiler as its argument; a JSON list of jobs; limit in seconds.
     nvrtc:  {"text", "name", "folder", "options", "entry", "limit"}
     triton: {"ttir", "architecture", "options", "path", "limit"}; path: the folder that Triton lies in
Out: for each job a length (4 bytes, little-endian), a JSON object with "ok" and "size", then the cubin.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import tempfile
from typing import Any

_KEPT = ("name", "num_ctas", "num_warps", "shared", "tensordesc_meta", "launch_cooperative_grid", "launch_pdl")


def nvrtc_job(nvrtc: Any, job: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    # Includes are relative to this folder, so that no absolute path can reach the cubin through __FILE__.
    os.chdir(job["folder"])
    entry = job["entry"].encode()
    status, program = nvrtc.nvrtcCreateProgram(job["text"].encode(), job["name"].encode(), 0, [], [])
    if status:
        return {"ok": False, "log": f"nvrtcCreateProgram: {status!r}"}, b""
    options = [option.encode() for option in job["options"]]
    (status,) = nvrtc.nvrtcAddNameExpression(program, entry)
    if not status:
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    log = b" " * nvrtc.nvrtcGetProgramLogSize(program)[1]
    nvrtc.nvrtcGetProgramLog(program, log)
    text = log.rstrip(b"\0 ").decode(errors="replace")
    if status:
        architectures = nvrtc.nvrtcGetSupportedArchs()[1]
        return {"ok": False, "log": text, "status": status.name, "architectures": list(architectures)}, b""
    image = b" " * nvrtc.nvrtcGetCUBINSize(program)[1]
    nvrtc.nvrtcGetCUBIN(program, image)
    symbol = nvrtc.nvrtcGetLoweredName(program, entry)[1].decode()
    return {"ok": True, "log": text, "symbol": symbol, "size": len(image)}, image


def triton_job(triton: Any, job: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    from triton.backends.compiler import GPUTarget

    with tempfile.NamedTemporaryFile("w", suffix=".ttir", delete=False) as file:
        file.write(job["ttir"])
    try:
        made = triton.compile(
            file.name, target=GPUTarget("cuda", int(job["architecture"][3:]), 32), options=job["options"]
        )
    except Exception as error:
        return {"ok": False, "error": type(error).__name__, "log": str(error)}, b""
    metadata = made.metadata._asdict()
    kept = {name: metadata.get(name) for name in _KEPT}
    kept["scratch"] = {name: size for name, size in metadata.items() if name.endswith("_scratch_size")}
    image = made.asm["cubin"]
    return {"ok": True, "metadata": kept, "size": len(image)}, image


_COMPILERS = {"nvrtc": ("cuda.bindings.nvrtc", nvrtc_job), "triton": ("triton", triton_job)}


def main() -> None:
    # The default actions, because Python's own handlers wait until the compiler returns.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a native library prints must not land between the answers
    jobs = json.load(sys.stdin)
    module, compile_job = _COMPILERS[sys.argv[1]]
    sys.path += [job["path"] for job in jobs[:1] if "path" in job]
    compiler = importlib.import_module(module)
    for job in jobs:
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, job["limit"])
        head, image = compile_job(compiler, job)
        data = json.dumps(head).encode()
        output.write(len(data).to_bytes(4, "little") + data + image)
        output.flush()
        if not head["ok"]:
            break  # the other side reports the first fault and wants no more


if __name__ == "__main__":
    main()
