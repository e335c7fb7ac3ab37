"""Running an author's launch rule once on symbolic sizes, to keep it as data.

Used where plugin specs are made and by the Torch operator.  Errors show the author's line.  Imports nothing
foreign.
"""

from __future__ import annotations

import inspect
import linecache
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from layerport.errors import LayerportError, PackError, UsageError
from layerport.kernels.declaration import Kernel, Launch, LaunchValue, parameter_names
from layerport.kernels.launch_rules import Arg, LaunchRule, LaunchSequence, PointerArg, ScalarArg
from layerport.kernels.triton_source import Specialisation, TritonSource, is_constexpr, option_fault
from layerport.kernels.workspace import MOST_SCRATCH, ScratchTensor, scratch_name, scratch_of
from layerport.parameters.signature import Attribute, Signature
from layerport.sizes.expressions import Const, Expr, as_expr
from layerport.sizes.tensors import TensorType

_WARP = 32
_STATIC_WAYS = (
    "a compiled Triton kernel has one value of it: make that size static in the export; or take a constant that is "
    "large enough and mask the rest, with one kernel and predicate for each range of sizes; "
    "or pass the size as an argument that is no constexpr"
)


@dataclass(frozen=True, eq=False)
class Traced:
    """What a launch rule says.  made: for each source that is in Triton, what it is compiled with.

    scratch: the scratch tensors by the names that the launches have for them.
    """

    launches: LaunchSequence
    made: tuple[Specialisation | None, ...]
    scratch: Mapping[str, TensorType]


def trace(
    kernel: Kernel,
    signature: Signature,
    tensors: Mapping[str, TensorType | None],
    attributes: Mapping[str, Attribute],
    *,
    layer: str = "",
) -> Traced:
    """The launches of a kernel as data.

    tensors: every tensor argument (None for an absent optional), then the outputs and data-dependent sizes in
    order, by the layer's names; their sizes are what the rule's expressions are made of.  attributes: all of
    the layer.  For a Triton kernel, `compilation` makes the final rule of this one: the block is what the author asked
    for, and args are those of the function.  Raises PackError with layer, kernel and the author's file and line.
    """
    tracer = _Tracer(kernel, signature, tensors, attributes, layer)
    made = tracer.specialise_all()
    answer = tracer.call(kernel.launch, kernel.parameters, "launch")
    wanted = len(kernel.sources)
    launches = (answer,) if isinstance(answer, Launch) else answer
    if not isinstance(launches, tuple) or not all(isinstance(one, Launch) for one in launches):
        repair = "return lp.Launch(...)" + (", in a tuple of one for each source" if wanted > 1 else "")
        raise tracer.fault(kernel.launch, "launch", f"it returned {type(answer).__name__}", repair)
    if len(launches) != wanted:
        repair = "return a tuple of one lp.Launch for each source, in their order; a source may stand there twice"
        fault = f"it returned {len(launches)} launches for {wanted} sources"
        raise tracer.fault(kernel.launch, "launch", fault, repair)
    rules = tuple(tracer.rule(one, each) for one, each in zip(launches, made, strict=True))
    sequence = LaunchSequence(rules, tuple(map(scratch_of, tracer.scratch)))
    tracer.check_symbols(kernel.launch, "launch", sequence.symbols())
    return Traced(sequence, made, {scratch_name(place): one for place, one in enumerate(tracer.scratch)})


def specialise(
    kernel: Kernel,
    signature: Signature,
    tensors: Mapping[str, TensorType | None],
    attributes: Mapping[str, Attribute],
    *,
    layer: str = "",
) -> tuple[Specialisation | None, ...]:
    """What each Triton kernel is compiled with for these sizes, None for one in CUDA C++.

    Arguments as in `trace`.  Raises PackError also where a value depends on a size that is not known yet.
    """
    return _Tracer(kernel, signature, tensors, attributes, layer).specialise_all()


def trace_predicate(
    kernel: Kernel,
    signature: Signature,
    tensors: Mapping[str, TensorType | None],
    attributes: Mapping[str, Attribute],
    *,
    layer: str = "",
) -> Expr | None:
    """The predicate of a kernel as an expression that is 1 where the kernel may run, None where it has none.

    Arguments and errors as in `trace`.
    """
    if kernel.when is None:
        return None
    tracer = _Tracer(kernel, signature, tensors, attributes, layer)
    names = parameter_names(kernel.when, f"kernel {kernel.name}: when")
    answer = tracer.call(kernel.when, names, "when")
    if not isinstance(answer, (bool, Expr)):
        repair = "return a condition on sizes, such as x.shape[-1] % 8 == 0, or a bool"
        raise tracer.fault(kernel.when, "when", f"it returned {type(answer).__name__} {answer!r}", repair)
    condition = as_expr(int(answer)) if isinstance(answer, bool) else answer
    tracer.check_symbols(kernel.when, "when", condition.symbols())
    return condition


class _Tracer:
    def __init__(
        self,
        kernel: Kernel,
        signature: Signature,
        tensors: Mapping[str, TensorType | None],
        attributes: Mapping[str, Attribute],
        layer: str,
    ) -> None:
        self.kernel = kernel
        self.label = f"layer {layer}, kernel {kernel.name}" if layer else f"kernel {kernel.name}"
        arguments = [argument.name for argument in signature.arguments]
        outputs = [name for name in tensors if name not in arguments]
        aliases = kernel.output_aliases(outputs, arguments)
        self.objects: dict[str, Any] = {**tensors, **signature.bind_attributes(attributes, path=layer)}
        self.objects |= {alias: tensors[name] for alias, name in aliases.items()}
        if missing := [name for name in arguments if name not in self.objects]:
            raise PackError(
                f"{self.label} is traced without {', '.join(missing)}",
                "give every tensor, None for an absent one",
            )
        self.tensors = [tensor for tensor in tensors.values() if tensor is not None]
        self.scratch: list[ScratchTensor] = []

    def specialise_all(self) -> tuple[Specialisation | None, ...]:
        """The constants of each Triton kernel; from here on, rules may take by name those of which there is one."""
        made = tuple(self._specialise(one) if isinstance(one, TritonSource) else None for one in self.kernel.sources)
        constants = [item for one in made if one is not None for item in one.constexprs.items()]
        for name, value in constants:
            if all(other == value for key, other in constants if key == name):
                self.objects.setdefault(name, value)
        return made

    def _specialise(self, source: TritonSource) -> Specialisation:
        values: dict[str, Any] = {}
        objects, self.objects = self.objects, dict(self.objects)
        for name, given in source.constexprs.items():
            values[name] = self._constant(f"constexpr {name}", given)
            self.objects.setdefault(name, values[name])
        options = {name: self._constant(name, getattr(source, name)) for name in ("num_warps", "num_stages")}
        self.objects = objects
        for name, value in options.items():
            if fault := option_fault(name, value):
                raise PackError(f"{self.label}: {fault}", "correct the function that gives it to lp.triton")
        return Specialisation(options["num_warps"], options["num_stages"], values)

    def rule(self, launch: Launch, made: Specialisation | None) -> LaunchRule:
        """One launch as data."""
        block = self._block(launch, made)
        empty = any(_is_zero(size) for tensor in self.tensors for size in tensor.shape)
        if not empty and any(_is_zero(size) for size in launch.grid):
            sizes = ", ".join(map(str, launch.grid))
            raise self.fault(self.kernel.launch, "launch", f"the grid is ({sizes})", "a grid has sizes from 1")
        args = tuple(self._argument(value, index) for index, value in enumerate(launch.args))
        return LaunchRule(launch.grid, block, launch.shared, args)

    def _constant(self, what: str, given: Any) -> Any:
        """A value that lp.triton was given, or what the function for it says."""
        if not callable(given):
            return given
        names = parameter_names(given, f"{self.label}: {what}")
        try:
            value = self.call(given, names, what)
        except PackError as error:
            if isinstance(error.__cause__, UsageError) and "is symbolic here" in error.__cause__.fault:
                raise PackError(error.fault, _STATIC_WAYS, faults=error.faults) from error.__cause__
            raise
        if isinstance(value, Const):
            return value.value
        if isinstance(value, Expr):
            sizes = ", ".join(sorted(value.symbols()))
            raise self.fault(given, what, f"it is {value}, and {sizes} is dynamic here", _STATIC_WAYS)
        if not is_constexpr(value):
            repair = "return an int, float, bool, text, dtype or None"
            raise self.fault(given, what, f"it is {type(value).__name__} {value!r:.60}", repair)
        return value

    def _block(self, launch: Launch, made: Specialisation | None) -> tuple[Expr, Expr, Expr]:
        """The block of a launch, which a Triton kernel brings along and any other kernel's rule must give."""
        if made is None:
            if launch.block is None:
                repair = "return lp.Launch(grid=..., block=..., args=(...))"
                raise self.fault(self.kernel.launch, "launch", "it gives no block", repair)
            return launch.block
        if launch.block is not None or not _is_zero(launch.shared):
            repair = "leave out block and shared: they come from num_warps and the compiled kernel"
            raise self.fault(self.kernel.launch, "launch", "it gives a block or shared memory to Triton", repair)
        return Const(made.num_warps * _WARP), Const(1), Const(1)

    def call(self, function: Callable[..., Any], names: tuple[str, ...], what: str) -> Any:
        if unknown := [name for name in names if name not in self.objects]:
            raise self.fault(function, what, f"it takes {', '.join(unknown)}", f"there are {', '.join(self.objects)}")
        try:
            return function(**{name: self.objects[name] for name in names})
        except LayerportError as error:
            raise self.fault(function, what, error.fault, error.repair, error, error.faults) from error
        except Exception as error:
            repair = "a rule may use .shape, .ndim, .numel(), .dtype and .itemsize of tensors, and the attributes"
            raise self.fault(function, what, f"{type(error).__name__}: {error}", repair, error) from error

    def _argument(self, value: LaunchValue, index: int) -> Arg:
        if isinstance(value, ScratchTensor):
            return PointerArg(scratch_name(self._place(value)))
        if isinstance(value, TensorType):
            if not any(value is tensor for tensor in self.tensors):
                raise PackError(
                    f"{self.label}: args[{index}] is a tensor {value.name} that is not one of the layer's",
                    "pass the tensors that launch was called with",
                )
            return PointerArg(value.name)
        if value is None:
            return PointerArg(None)
        if isinstance(value, bool):
            return ScalarArg("bool", value)
        if isinstance(value, float):
            return ScalarArg("float", float(value))
        return ScalarArg("int", as_expr(value))

    def _place(self, tensor: ScratchTensor) -> int:
        """The number of a scratch tensor, in the order in which the launches first take them."""
        for place, one in enumerate(self.scratch):
            if one is tensor:
                return place
        if len(self.scratch) == MOST_SCRATCH:
            repair = "put several into one, at offsets of your own"
            raise self.fault(self.kernel.launch, "launch", f"it has more than {MOST_SCRATCH} scratch tensors", repair)
        self.scratch.append(tensor)
        return len(self.scratch) - 1

    def check_symbols(self, function: Callable[..., Any], what: str, used: frozenset[str]) -> None:
        known: frozenset[str] = frozenset().union(*(tensor.symbols() for tensor in self.tensors))
        # A size of an argument is "x.0"; one that depends on data has a name of its own.
        if late := sorted(name for name in used & known if "." not in name):
            raise self.fault(
                function,
                what,
                f"it uses the size {', '.join(late)}, which depends on data: it is known after the launch only",
                "launch for the greatest value of the size, from the inputs, and let the kernel stop early",
            )
        if unknown := sorted(used - known):
            raise self.fault(
                function,
                what,
                f"it uses the sizes {', '.join(unknown)}",
                f"known are {', '.join(sorted(known))}",
            )

    def fault(
        self,
        function: Callable[..., Any],
        what: str,
        fault: str,
        repair: str | None,
        error: BaseException | None = None,
        faults: tuple[str, ...] = (),
    ) -> PackError:
        """An error at the author's line: the innermost one in the file of the function, or its first."""
        code = inspect.unwrap(function).__code__
        line = code.co_firstlineno
        if error is not None:
            for frame, number in traceback.walk_tb(error.__traceback__):
                if frame.f_code.co_filename == code.co_filename:
                    line = number
        text = linecache.getline(code.co_filename, line).strip()
        shown = [f"at: {text}"] if text else []
        return PackError(
            f"{self.label}: {what} at {code.co_filename}:{line}: {fault}", repair, faults=[*shown, *faults]
        )


def _is_zero(size: object) -> bool:
    return (isinstance(size, Const) and size.value == 0) or (isinstance(size, int) and size == 0)
