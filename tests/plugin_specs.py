"""A plugin spec with each kind of field, for tests of who writes, reads and runs one."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

from layerport.bundle.kernel_code import KernelCode, KernelStep
from layerport.bundle.plugin_spec import PluginSpec
from layerport.dtypes import DType
from layerport.kernels.launch_rules import LaunchRule, PointerArg, ScalarArg
from layerport.kernels.workspace import Scratch
from layerport.sizes.expressions import Const, Symbol, cdiv
from layerport.sizes.output_rules import SizeSymbol
from layerport.sizes.tensors import TensorType

IMAGES = {hashlib.sha256(data).hexdigest(): data for data in (b"\x7fELF first", b"\x7fELF second")}
FIRST, SECOND = IMAGES
N = Symbol("x.0") * Symbol("x.1")
RULE = LaunchRule(
    (cdiv(N, 256), Const(1), Const(1)),
    (Const(256), Const(1), Const(1)),
    Const(0),
    (PointerArg("x"), PointerArg(None), ScalarArg("int", N), ScalarArg("float", 0.5), ScalarArg("bool", True)),
)


def stepped_spec() -> PluginSpec:
    """One whose second kernel is two launches that share two scratch tensors."""
    fast, slow = spec().kernels
    args = (PointerArg("x"), PointerArg("scratch.1", 4), PointerArg("scratch.0"))
    other = LaunchRule(RULE.grid, RULE.block, RULE.shared, args)
    steps = (*slow.steps, KernelStep("more", other, slow.steps[0].images))
    scratch = (Scratch(DType.FLOAT32, 4 * N), Scratch(DType.INT8, Const(7)))
    return spec(kernels=(fast, replace(slow, steps=steps, scratch=scratch)))


def spec(**changes: Any) -> PluginSpec:
    values: dict[str, Any] = {
        "layer": "pack::layer",
        "version": 2,
        "inputs": (TensorType.symbolic("x", DType.FLOAT16, 2), TensorType.symbolic("w", DType.BFLOAT16, 1)),
        "outputs": (TensorType("y", DType.FLOAT32, (Symbol("x.0"), Symbol("x.1") // 2)),),
        "parameters": frozenset({"w"}),
        "sizes": (SizeSymbol("u0", N),),
        "attributes": {"eps": 1e-6, "mode": "add", "axes": [1, 2], "on": True, "none": None},
        "kernels": (
            KernelCode("fast", (KernelStep("_Z4fastv", RULE, {"sm_89": FIRST, "sm_120": SECOND}),), N >= 1),
            KernelCode("slow", (KernelStep("slow", RULE, {"sm_89": FIRST}),)),
        ),
        "images": IMAGES,
    }
    return PluginSpec(**{**values, **changes})
