"""The compiler process: runs NVRTC on the jobs it reads, and nothing else.

Run as a file by `nvrtc.py`, never imported by it.  A process of its own, because NVRTC cannot be interrupted:
a template that expands without end can only be ended by ending its process.  It imports `cuda.bindings.nvrtc`
alone (0.1 s to start; `cuda.core` would take 0.3 s) and no layerport module.

In:  a JSON list of jobs {"text", "name", "folder", "options", "entry", "limit"}; limit in seconds.
Out: for each job a length (4 bytes, little-endian), a JSON object {"ok", "log", "symbol", "size"}, then
the cubin.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any


def compile_job(nvrtc: Any, job: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
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


def main() -> None:
    # The default actions, because Python's own handlers wait until NVRTC returns.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a native library prints must not land between the answers
    jobs = json.load(sys.stdin)
    from cuda.bindings import nvrtc

    for job in jobs:
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, job["limit"])
        head, image = compile_job(nvrtc, job)
        data = json.dumps(head).encode()
        output.write(len(data).to_bytes(4, "little") + data + image)
        output.flush()
        if not head["ok"]:
            break  # the other side reports the first fault and wants no more


if __name__ == "__main__":
    main()
