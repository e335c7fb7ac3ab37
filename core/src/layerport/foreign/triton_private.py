"""The private names of Triton that layerport uses: of its compiler's front, and of its interpreter.

For the Triton toolchain and the harness.  Triton is imported when a name is asked for.  Nothing can be done in the
place of any of them: an error names the one that is gone, where a Triton kernel is compiled or run on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from layerport.foreign.names import Name, Names

_LOWER = "a Triton kernel brought to Triton's own language"
_CPU = "a Triton kernel run on the CPU"
_GONE = "use an older Triton"

NAMES = Names(
    "triton",
    (
        Name("triton.runtime.interpreter", _CPU, _GONE),
        Name("triton._C.libtriton.ir", _LOWER, _GONE),
        Name("triton.compiler.compiler.ASTSource", _LOWER, _GONE),
        Name("triton.compiler.compiler.make_backend", _LOWER, _GONE),
        Name("triton.runtime.jit.get_jit_fn_file_line", "the line of a Triton kernel that does not compile", _GONE),
        Name("triton.runtime.jit._normalize_ty", _CPU, _GONE),
        Name("triton.runtime.interpreter._get_np_dtype", _CPU, _GONE),
        Name("triton.runtime.interpreter._convert_float", _CPU, _GONE),
        Name("triton.runtime.interpreter._ir.ROUNDING_MODE.RTZ", _CPU, _GONE),
        Name("triton.runtime.interpreter._interpreter", _CPU, _GONE),
        Name("triton.runtime.interpreter.interpreter_builder", _CPU, _GONE),
        Name("triton.runtime.interpreter.TensorHandle", _CPU, _GONE),
    ),
)


def missing() -> list[Name]:
    """The names that this Triton lacks."""
    return NAMES.missing()


def lower(fn: Any, call: Any, target: Any, options: Any) -> str:
    """A kernel in Triton's language, as text.

    call: `signature`, `constants` and `hints`.  target: Triton's `GPUTarget`.  options: the compiler's.
    """
    ir = NAMES.find("triton._C.libtriton.ir")
    source = NAMES.find("triton.compiler.compiler.ASTSource")(fn, call.signature, call.constants, call.hints)
    backend = NAMES.find("triton.compiler.compiler.make_backend")(target)
    parsed = backend.parse_options(dict(options))
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    generators, modules = backend.get_codegen_implementation(parsed), backend.get_module_map()
    module = source.make_ir(target, parsed, generators, modules, context)
    stages: dict[str, Any] = {}
    backend.add_stages(stages, parsed, source.language)
    return str(stages["ttir"](module, {}))


def place(fn: Any) -> tuple[str, int]:
    """File and first line of a kernel."""
    file, line = NAMES.find("triton.runtime.jit.get_jit_fn_file_line")(fn)
    return str(file), int(line)


def stated_type(annotation: Any) -> str:
    """The type that a parameter's annotation states, as "i32"."""
    return str(NAMES.find("triton.runtime.jit._normalize_ty")(annotation))


def numpy_dtype(kind: Any) -> Any:
    """What the interpreter holds values of a Triton type in."""
    return NAMES.find("triton.runtime.interpreter._get_np_dtype")(kind)


def handle(data: Any, kind: Any) -> Any:
    """The interpreter's value of a Triton type."""
    return NAMES.find("triton.runtime.interpreter.TensorHandle")(data, kind)


def interpreter() -> Any:
    """The module of the interpreter."""
    return NAMES.find("triton.runtime.interpreter")


def builder() -> Any:
    """The object through which the interpreter runs every operation."""
    return NAMES.find("triton.runtime.interpreter.interpreter_builder")


def towards_zero() -> Any:
    """The rounding mode towards zero."""
    return NAMES.find("triton.runtime.interpreter._ir.ROUNDING_MODE.RTZ")


def guard_memory(make: Callable[[Any], Any]) -> Any:
    """Put what `make` makes of the interpreter's access to memory in its place."""
    module = interpreter()
    guard = module._interpreter = make(NAMES.find("triton.runtime.interpreter._interpreter"))
    return guard


def compute_with(holding: Callable[[Any], Callable[[Any], Any]], convert_float: Callable[..., Any]) -> None:
    """Let the interpreter hold and convert numbers otherwise.

    holding: makes the function that says what holds values of a Triton type, given the one that said so before.
    """
    module = interpreter()
    before = NAMES.find("triton.runtime.interpreter._get_np_dtype")
    NAMES.find("triton.runtime.interpreter._convert_float")
    module._get_np_dtype, module._convert_float = holding(before), convert_float
