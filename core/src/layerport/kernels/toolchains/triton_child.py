"""The Triton compiler process: brings kernels in Triton's IR to cubins, and nothing else.

Run as a file by `triton`, never imported by it; how it is spoken to stands in `process`.  It gets
IR, not the author's Python: so it imports no pack, and what it is given is all that decides what it makes.  It imports
no layerport module.

A job: {"ttir", "architecture", "options", "path", "limit"}; path: the folder that Triton lies in.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from typing import Any

_KEPT = ("name", "num_ctas", "num_warps", "shared", "tensordesc_meta", "launch_cooperative_grid", "launch_pdl")


def compile_job(triton: Any, job: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
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


def main() -> None:
    # The default actions, because Python's own handlers wait until the compiler returns.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever Triton prints must not land between the answers
    jobs = json.load(sys.stdin)
    sys.path.append(jobs[0]["path"])
    import triton

    for job in jobs:
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, job["limit"])
        head, image = compile_job(triton, job)
        data = json.dumps(head).encode()
        output.write(len(data).to_bytes(4, "little") + data + image)
        output.flush()
        if not head["ok"]:
            break  # the other side reports the first fault and wants no more


if __name__ == "__main__":
    main()
