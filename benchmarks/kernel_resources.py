"""Registers, spills and shared memory of every kernel of every installed pack, read from its cubins.  Needs no GPU.

Attributes have their defaults; a kernel that cannot be compiled so is listed with the reason.  Where `cuobjdump` is
there (on PATH, or in Triton's wheel), the loads and stores of global memory in the machine code are counted, and among
them those of 16 bytes.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from importlib import util
from pathlib import Path
from typing import Any

from measuring import arguments, environment, print_table

from layerport.dtypes import DType
from layerport.errors import LayerportError
from layerport.kernels.compilation import Compilation, compile_all
from layerport.packs import host as pack_host
from layerport.parameters.signature import MISSING

ARCHITECTURES = ("sm_80", "sm_89", "sm_90", "sm_120")
KEYS = ("registers", "local_bytes", "static_shared", "max_threads")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--architecture", action="append", metavar="SM", help="only these, such as sm_90")
    parser.add_argument("--pack", action="append", default=[], help="also use this pack: a Python file")
    options = parser.parse_args()
    architectures = tuple(options.architecture or ARCHITECTURES)
    loaded = pack_host.load(*options.pack)
    entries = [entry for pack in loaded for layer in pack.layers for entry in entries_of(layer, architectures)]
    read_all(entries)
    failed = [f"pack {pack.info.label} failed to load: {pack.failure}" for pack in loaded.failed]
    if options.json:
        rows = [{key: value for key, value in entry.items() if key != "compilations"} for entry in entries]
        where = environment(["nvidia-cuda-nvrtc", "layerport-builtin-layers"])
        print(json.dumps({"benchmark": "kernel resources", "environment": where, "kernels": rows}, indent=2))
        return
    show_table(entries, architectures)
    for text in failed:
        print(text)


def entries_of(layer: Any, architectures: tuple[str, ...]) -> list[dict[str, Any]]:
    """One entry for each kernel and combination of dtypes."""
    attributes = {one.name: one.default for one in layer.signature.attributes if one.default is not MISSING}
    return [
        {
            "layer": layer.name,
            "kernel": kernel.name,
            "dtypes": dtypes_text(dtypes),
            "compilations": {
                name: Compilation(kernel, layer.signature, dtypes, attributes, name, layer.name)
                for name in architectures
            },
        }
        for kernel in layer.kernels
        for dtypes in kernel.combinations(layer.signature)
    ]


def dtypes_text(dtypes: Mapping[str, DType]) -> str:
    if len(set(dtypes.values())) == 1:
        return str(next(iter(dtypes.values())))
    return ", ".join(f"{name} {dtype}" for name, dtype in dtypes.items())


def read_all(entries: list[dict[str, Any]]) -> None:
    """Compile everything in one call, which is quickest; where that fails, one by one to say which and why."""
    wanted = [(entry, name, one) for entry in entries for name, one in entry["compilations"].items()]
    try:
        cubins: Any = compile_all([one for _, _, one in wanted])
    except LayerportError:
        cubins = [None] * len(wanted)
    for (entry, name, one), made in zip(wanted, cubins, strict=True):
        figures = entry.setdefault("architectures", {})
        try:
            made = made or compile_all([one])[0]
            every = [{key: getattr(cubin.resources, key) for key in KEYS} | accesses(cubin.image) for cubin in made]
            # Of several launches the most that one of them takes, and what all of them load and store.
            figures[name] = {
                key: _most(every, key) if key in KEYS else sum(each[key] for each in every) for key in every[0]
            }
        except LayerportError as error:
            figures[name] = {"failure": str(error)}


def _most(figures: list[dict[str, Any]], key: str) -> Any:
    known = [each[key] for each in figures if each[key] is not None]
    return max(known) if known else None


def cuobjdump() -> str | None:
    """The disassembler: of the CUDA toolkit, or of Triton's wheel."""
    found = util.find_spec("triton")
    shipped = Path(found.origin).parent / "backends/nvidia/bin/cuobjdump" if found and found.origin else None
    return shutil.which("cuobjdump") or (str(shipped) if shipped and shipped.is_file() else None)


def accesses(image: bytes) -> dict[str, int]:
    """How many instructions load from and store to global memory, all and those of 16 bytes; nothing if unknown."""
    tool = cuobjdump()
    if tool is None:
        return {}
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(image)
        file.flush()
        text = subprocess.run([tool, "-sass", file.name], capture_output=True, text=True, check=True).stdout
    counts = {}
    for what, code in (("loads", "LDG"), ("stores", "STG")):
        found = re.findall(rf"\b{code}(?:\.[A-Z0-9_]+)*", text)
        counts[what] = len(found)
        counts[f"{what}_of_16_bytes"] = sum(".128" in one for one in found)
    return counts


def show_table(entries: list[dict[str, Any]], architectures: tuple[str, ...]) -> None:
    print(
        "kernel resources: registers per thread / bytes of stack and spills per thread / bytes of static shared memory"
        " / loads of 16 bytes, of all / stores of 16 bytes, of all"
    )
    print_table(
        [
            ("layer, kernel, dtypes", *architectures),
            *(
                (
                    f"{entry['layer']} {entry['kernel']} {entry['dtypes']}",
                    *(cell(entry["architectures"][name]) for name in architectures),
                )
                for entry in entries
            ),
        ]
    )
    for entry in entries:
        for name, figures in entry["architectures"].items():
            if "failure" in figures:
                print(f"  {entry['kernel']} for {name}: {figures['failure'].splitlines()[0]}")
    spilling = sorted(
        {entry["kernel"] for entry in entries for one in entry["architectures"].values() if one.get("local_bytes")}
    )
    print(f"  kernels with spills or stack: {', '.join(spilling) or 'none'}")


def cell(figures: Mapping[str, Any]) -> str:
    if "failure" in figures:
        return "failed"
    parts = [str(figures[key]) for key in KEYS[:3]]
    if "loads" in figures:
        parts += [f"{figures[f'{what}_of_16_bytes']} of {figures[what]}" for what in ("loads", "stores")]
    return " / ".join(parts)


if __name__ == "__main__":
    main()
