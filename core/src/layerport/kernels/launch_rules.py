"""How a kernel is launched, as data: geometry and arguments as expressions over sizes.

Traced once from the author's `launch` function (`tracing`), kept as JSON in plugin specs, evaluated by the
launcher whenever sizes change.  `from_json` reads what strangers wrote, so it checks everything.  Imports
nothing foreign; both halves use it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from layerport.errors import BuildError, LayerportError, PackError, UsageError
from layerport.kernels.workspace import SCRATCH, Scratch
from layerport.sizes.expressions import Const, Expr, parse

if TYPE_CHECKING:
    from layerport.kernels.cubin import Cubin

AXES = "xyz"
GRID_LIMITS = (2**31 - 1, 65535, 65535)
BLOCK_LIMITS = (1024, 1024, 64)
THREAD_LIMIT = 1024
ARGUMENT_LIMIT = 1024
_TEXT_LIMIT = 20_000
_NAME = re.compile(rf"[A-Za-z_][A-Za-z0-9_]{{0,127}}|{SCRATCH.pattern}")
_KIB = 1024

# Shared memory that one block may use, static and dynamic together, in KiB: the arch_traits of CUDA's CCCL
# headers.
_SHARED_LIMITS = {
    75: 64,
    80: 163,
    86: 99,
    87: 163,
    88: 99,
    89: 99,
    90: 227,
    100: 227,
    103: 227,
    107: 227,
    110: 227,
}
_SHARED_LIMITS |= {120: 99, 121: 99}
UNASKED_SHARED = 48 * _KIB
"""Shared memory that a block gets without asking; for more, the launcher sets an attribute of the kernel."""


def shared_limit(architecture: str) -> int | None:
    """Bytes of shared memory that one block may use on an architecture, None where it is not known here."""
    found = re.fullmatch(r"sm_(\d+)[af]?", architecture)
    kib = _SHARED_LIMITS.get(int(found[1])) if found else None
    return None if kib is None else kib * _KIB


@dataclass(frozen=True)
class PointerArg:
    """A device address: of the tensor of this name, or null.

    alignment: bytes that it must be a multiple of, because the kernel was compiled for that.
    """

    name: str | None
    alignment: int = 1

    def __str__(self) -> str:
        return f"tensor {self.name}" if self.name else "None (a null pointer)"


@dataclass(frozen=True, eq=False)
class ScalarArg:
    """A number by value.  kind: "int" (an expression), "float" or "bool"; its width is what the kernel
    declares.
    """

    kind: str
    value: Expr | float | bool

    def __str__(self) -> str:
        return f"{self.kind} {self.value}"


Arg: TypeAlias = PointerArg | ScalarArg
_ALIGNMENTS = ("2", "4", "8", "16")
_WIDTHS = {"pointer": (8,), "int": (4, 8), "float": (4, 8), "bool": (1, 4, 8)}


@dataclass(frozen=True)
class Geometry:
    """A launch with its numbers.  values: in the order of the rule's arguments, None for each pointer."""

    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared: int
    values: tuple[int | float | bool | None, ...]


@dataclass(frozen=True, eq=False)
class LaunchRule:
    """The launch of one kernel.  grid and block: three expressions each; shared: bytes of dynamic shared
    memory.
    """

    grid: tuple[Expr, Expr, Expr]
    block: tuple[Expr, Expr, Expr]
    shared: Expr
    args: tuple[Arg, ...]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LaunchRule) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash((*map(str, self.grid), *map(str, self.block), str(self.shared), len(self.args)))

    @property
    def pointers(self) -> tuple[str, ...]:
        """The names of the tensors whose addresses a launch needs, each once, in order."""
        return tuple(dict.fromkeys(arg.name for arg in self.args if isinstance(arg, PointerArg) and arg.name))

    @property
    def alignments(self) -> dict[str, int]:
        """For each tensor whose address must be a multiple of more than one byte, of how many."""
        pointers = (arg for arg in self.args if isinstance(arg, PointerArg))
        return {arg.name: arg.alignment for arg in pointers if arg.name and arg.alignment > 1}

    def symbols(self) -> frozenset[str]:
        """The names of the sizes that `resolve` needs."""
        values = [arg.value for arg in self.args if isinstance(arg, ScalarArg)]
        expressions = [
            *self.grid,
            *self.block,
            self.shared,
            *(value for value in values if isinstance(value, Expr)),
        ]
        return frozenset().union(*(expression.symbols() for expression in expressions))

    def resolve(self, sizes: Mapping[str, int], *, label: str = "the kernel") -> Geometry | None:
        """The launch for these sizes; None where there is nothing to launch, because something is empty.

        Raises UsageError with expression, value and sizes where a limit of CUDA is broken.
        """
        grid, block = _evaluate(self.grid, sizes), _evaluate(self.block, sizes)
        if 0 in (*grid, *block) and (0 in sizes.values() or any(_is_zero(size) for size in self.grid)):
            return None
        shared = self.shared.evaluate(sizes)
        if faults := limit_faults(grid, block, shared):
            used = sorted(self.symbols() & set(sizes))
            given = ", ".join(f"{name}={sizes[name]}" for name in used) or "these sizes"
            rule = f"the rule is grid=({_join(self.grid)}), block=({_join(self.block)}), shared={self.shared}"
            raise UsageError(
                f"{label} cannot be launched with {given}",
                "use smaller sizes, or correct the launch rule",
                faults=[*faults, rule],
            )
        values = (arg.value if isinstance(arg, ScalarArg) else None for arg in self.args)
        return Geometry(
            grid,
            block,
            shared,
            tuple(value.evaluate(sizes) if isinstance(value, Expr) else value for value in values),
        )

    def to_json(self) -> dict[str, Any]:
        """The rule as JSON-able data, expressions as text.  Equal rules give equal data."""
        return {
            "grid": [str(size) for size in self.grid],
            "block": [str(size) for size in self.block],
            "shared": str(self.shared),
            "args": [_arg_to_json(arg) for arg in self.args],
        }

    @classmethod
    def from_json(cls, data: object) -> LaunchRule:
        """The rule that `to_json` gave.  Raises BuildError for anything else, limits of CUDA included."""
        try:
            fields = _fields(data, {"grid", "block", "shared", "args"})
            grid, block = (_three(fields[name], name) for name in ("grid", "block"))
            shared = _expression(fields["shared"], "shared")
            args = fields["args"]
            if not isinstance(args, list) or len(args) > ARGUMENT_LIMIT:
                raise ValueError(f"args is no list of at most {ARGUMENT_LIMIT}")
            # A constant grid of 0 is the rule for a tensor that is always empty.
            if faults := constant_faults([one for one in grid if not _is_zero(one)], block, shared):
                raise ValueError(faults[0])
            return cls(grid, block, shared, tuple(_arg_from_json(arg, index) for index, arg in enumerate(args)))
        except (ValueError, LayerportError) as error:
            reason = error.fault if isinstance(error, LayerportError) else str(error)
            raise BuildError(
                f"a launch rule cannot be read: {reason}",
                "build again: the file is damaged or from another version",
            ) from error


@dataclass(frozen=True)
class LaunchSequence:
    """The launches of one kernel, one after the other, and the memory that they share."""

    rules: tuple[LaunchRule, ...]
    scratch: tuple[Scratch, ...] = ()

    def symbols(self) -> frozenset[str]:
        """The names of the sizes that `resolve` and the scratch memory need."""
        sizes = (one.nbytes.symbols() for one in self.scratch)
        return frozenset().union(*(rule.symbols() for rule in self.rules), *sizes)

    def resolve(self, sizes: Mapping[str, int], *, label: str = "the kernel") -> tuple[Geometry | None, ...]:
        """Each launch for these sizes, as `LaunchRule.resolve`."""
        return tuple(rule.resolve(sizes, label=label) for rule in self.rules)


def limit_faults(grid: Sequence[int], block: Sequence[int], shared: int) -> list[str]:
    """What is beyond CUDA's limits in a launch of these numbers."""
    return constant_faults([Const(size) for size in grid], [Const(size) for size in block], Const(shared))


def constant_faults(grid: Sequence[Expr], block: Sequence[Expr], shared: Expr) -> list[str]:
    """What is beyond CUDA's limits whatever the sizes will be; symbolic values pass."""
    faults = []
    for name, sizes, limits in (("grid", grid, GRID_LIMITS), ("block", block, BLOCK_LIMITS)):
        for axis, size, limit in zip(AXES, sizes, limits, strict=False):
            if isinstance(size, Const) and not 1 <= size.value <= limit:
                faults.append(f"{name} {axis} is {size.value}, allowed are 1 to {limit}")
    known = [size.value for size in block if isinstance(size, Const)]
    threads = 1
    for value in known:
        threads *= max(value, 1)
    if threads > THREAD_LIMIT:
        faults.append(f"a block has {threads} threads ({' x '.join(map(str, known))}), allowed are {THREAD_LIMIT}")
    most = max(_SHARED_LIMITS.values()) * _KIB
    if isinstance(shared, Const) and not 0 <= shared.value <= most:
        faults.append(f"dynamic shared memory is {shared.value} bytes, no architecture has more than {most}")
    return faults


def check_fit(rule: LaunchRule, cubin: Cubin, *, label: str) -> None:
    """Check that a rule passes what the compiled kernel takes.  Raises PackError with all faults at once."""
    sizes, passed = cubin.parameter_sizes, len(rule.args)
    if len(sizes) != passed:
        raise PackError(
            f"{label}: the launch rule passes {passed} arguments, but {cubin.symbol} takes {len(sizes)}",
            "pass in args=(...) one value for each parameter of the kernel, in its order",
            faults=[f"passed: {', '.join(map(str, rule.args)) or 'nothing'}", f"taken: {sizes} bytes"],
        )
    faults = []
    for index, (arg, size) in enumerate(zip(rule.args, sizes, strict=True)):
        kind = "pointer" if isinstance(arg, PointerArg) else arg.kind
        if size not in _WIDTHS[kind]:
            allowed = " or ".join(map(str, _WIDTHS[kind]))
            faults.append(f"argument {index} is {arg}, which takes {allowed} bytes; the kernel's parameter has {size}")
        elif isinstance(arg, ScalarArg) and isinstance(arg.value, Const) and not fits(arg.value.value, size):
            faults.append(f"argument {index} is {arg}, which does not fit the parameter of {size} bytes")
    block = [size.value for size in rule.block if isinstance(size, Const)]
    if len(block) == len(rule.block) and isinstance(rule.shared, Const):
        faults += resource_faults(cubin, block[0] * block[1] * block[2], rule.shared.value)
    if faults:
        raise PackError(
            f"{label}: the launch rule does not fit {cubin.symbol} for {cubin.architecture}",
            "correct the args=(...), block and shared of the launch rule, or the kernel's parameters",
            faults=faults,
        )


def resource_faults(cubin: Cubin, threads: int, shared: int) -> list[str]:
    """What a launch asks of a compiled kernel beyond its launch bounds and its architecture."""
    faults = []
    used, bound = cubin.resources.static_shared, cubin.resources.max_threads
    if bound is not None and threads > bound:
        faults.append(f"a block of {threads} threads, but __launch_bounds__ of the kernel allows {bound}")
    limit = shared_limit(cubin.architecture)
    if limit is not None and used + shared > limit:
        faults.append(
            f"{used + shared} bytes of shared memory ({used} static, {shared} dynamic), "
            f"but {cubin.architecture} has {limit} for one block"
        )
    return faults


def fits(value: int, size: int) -> bool:
    """Whether a whole number fits a signed C integer of this many bytes.

    Signed even if the kernel may declare it unsigned: the usual fault is a count past 2**31 in an `int`.
    """
    return -(1 << 8 * size - 1) <= value < 1 << 8 * size - 1


def _evaluate(sizes: tuple[Expr, Expr, Expr], env: Mapping[str, int]) -> tuple[int, int, int]:
    return sizes[0].evaluate(env), sizes[1].evaluate(env), sizes[2].evaluate(env)


def _is_zero(size: Expr) -> bool:
    return isinstance(size, Const) and size.value == 0


def _join(sizes: Sequence[Expr]) -> str:
    return ", ".join(map(str, sizes))


def _arg_to_json(arg: Arg) -> list[str]:
    if isinstance(arg, PointerArg):
        if arg.name is None:
            return ["null"]
        return ["pointer", arg.name] if arg.alignment == 1 else ["pointer", arg.name, str(arg.alignment)]
    return [arg.kind, repr(arg.value) if arg.kind == "float" else str(arg.value)]


def _arg_from_json(data: object, index: int) -> Arg:
    if data == ["null"]:
        return PointerArg(None)
    if not isinstance(data, list) or len(data) not in (2, 3) or not all(isinstance(part, str) for part in data):
        raise ValueError(f"args[{index}] is no pair of texts")
    kind, text, *alignment = data
    if alignment:
        if kind != "pointer" or alignment[0] not in _ALIGNMENTS or not _NAME.fullmatch(text):
            raise ValueError(f"args[{index}] is {kind[:20]!r} {text[:40]!r} {alignment[0][:20]!r}")
        return PointerArg(text, int(alignment[0]))
    if kind == "pointer" and _NAME.fullmatch(text):
        return PointerArg(text)
    if kind == "int":
        return ScalarArg("int", _expression(text, f"args[{index}]"))
    if kind == "bool" and text in ("True", "False"):
        return ScalarArg("bool", text == "True")
    if kind == "float" and len(text) <= 32 and repr(float(text)) == text:
        return ScalarArg("float", float(text))
    raise ValueError(f"args[{index}] is {kind[:20]!r} {text[:40]!r}")


def _fields(data: object, names: set[str]) -> dict[str, Any]:
    if not isinstance(data, dict) or set(data) != names:
        raise ValueError(f"it is no object with exactly {', '.join(sorted(names))}")
    return data


def _three(data: object, name: str) -> tuple[Expr, Expr, Expr]:
    if not isinstance(data, list) or len(data) != 3:
        raise ValueError(f"{name} is no list of three")
    x, y, z = (_expression(text, name) for text in data)
    return x, y, z


def _expression(text: object, name: str) -> Expr:
    if not isinstance(text, str) or len(text) > _TEXT_LIMIT:
        raise ValueError(f"{name} is no text of at most {_TEXT_LIMIT} characters")
    return parse(text)
