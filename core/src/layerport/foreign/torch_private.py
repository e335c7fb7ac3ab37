"""The private names of Torch that layerport uses, each in one place.

For every file that works with Torch.  What Torch has no more is done through its public interface where that can be
(slower, as right), and is otherwise an error of the one thing that needs it.  `layerport doctor` lists what a Torch
newer than the tested one lacks.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from layerport.foreign.names import look_up, replaced
from layerport.foreign.torch_names import ENV, NAMES
from layerport.foreign.torch_names import missing as missing

if TYPE_CHECKING:
    from torch._subclasses.fake_tensor import FakeTensorMode as FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode as GuardOnDataDependentSymNode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv as ShapeEnv
    from torch.utils import _pytree as pytree
    from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode

    __all__ = ["FakeTensorMode", "GuardOnDataDependentSymNode", "ShapeEnv", "TorchDispatchMode", "pytree"]

NO_LIMIT = 2**62  # Torch says that a size has none with numbers around 2**63
# Names that stand for a class or a module, by what they are called here.
_OBJECTS = {
    "FakeTensorMode": "torch._subclasses.fake_tensor.FakeTensorMode",
    "GuardOnDataDependentSymNode": "torch.fx.experimental.symbolic_shapes.GuardOnDataDependentSymNode",
    "ShapeEnv": ENV,
    "TorchDispatchMode": "torch.utils._python_dispatch.TorchDispatchMode",
    "pytree": "torch.utils._pytree",
}


def __getattr__(name: str) -> Any:
    if name not in _OBJECTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return NAMES.find(_OBJECTS[name])


# A layer's operator


class Dispatch(NamedTuple):
    """What an Autograd implementation is made of.

    below: a block in which the keys from Autograd upwards are left out.  after: the keys below them.
    redispatch: calls the operator with a set of keys.  any_requires_grad: whether an argument does.
    without_autocast: a block in which no autocast is on.
    """

    below: Callable[[], contextlib.AbstractContextManager[Any]]
    after: Any
    redispatch: Callable[..., Any]
    any_requires_grad: Callable[..., bool]
    without_autocast: Callable[[], contextlib.AbstractContextManager[Any]]


def dispatch(operator: Any) -> Dispatch | None:
    """What Torch's own registration is built from; None where a part of it is gone."""
    below, after = NAMES.find("torch._C._AutoDispatchBelowAutograd"), NAMES.find("torch._C._after_autograd_keyset")
    excluded, keys = NAMES.find("torch._C._ExcludeDispatchKeyGuard"), NAMES.find("torch._C.DispatchKeySet")
    autocast = [NAMES.find(f"torch._C.DispatchKey.Autocast{device}") for device in ("CPU", "CUDA")]
    redispatch = NAMES.find("torch._ops.OpOverload.redispatch")
    if any(part is None for part in (below, after, excluded, keys, *autocast, redispatch)):
        return None
    return Dispatch(
        below,
        after,
        operator.redispatch,
        NAMES.find("torch._C._any_requires_grad") or _any_requires_grad,
        functools.partial(excluded, keys(autocast[0]) | keys(autocast[1])),
    )


def _any_requires_grad(*args: Any) -> bool:
    return any(isinstance(one, torch.Tensor) and one.requires_grad for one in args)


def called_directly(operator: Any) -> Callable[..., Any]:
    """What calls an operator with positional arguments the fastest."""
    found: Callable[..., Any] = NAMES.of(operator, "torch._ops.OpOverload._op") or operator
    return found


def shares_memory() -> Callable[[Sequence[Any], None, Sequence[torch.Tensor]], bool]:
    """A function of arguments, None and outputs: whether an output shares memory with another or an argument."""
    found: Any = NAMES.find("torch._C._any_output_is_alias_to_input_or_output")
    return found or _shares_memory


def _shares_memory(args: Sequence[Any], kwargs: None, outputs: Sequence[torch.Tensor]) -> bool:
    held = {id(storage): storage for one in args if _has_storage(one) for storage in [one.untyped_storage()]}
    for output in filter(_has_storage, outputs):
        storage = output.untyped_storage()
        if id(storage) in held:
            return True
        held[id(storage)] = storage  # so that its identity stays its own
    return False


def _has_storage(one: Any) -> bool:
    return isinstance(one, torch.Tensor) and one.layout is torch.strided


def schema(operator: Any) -> Any:
    """The schema of an operator."""
    return NAMES.of(operator, "torch._ops.OpOverload._schema")


def is_operator(target: Any) -> bool:
    """Whether a node of a graph calls one of Torch's operators."""
    return isinstance(target, NAMES.find("torch._ops.OpOverload"))


# Graphs


def make_fx() -> Callable[..., Any]:
    """A function that makes one of tensors to a function that traces it."""
    found: Callable[..., Any] = NAMES.find("torch.fx.experimental.proxy_tensor.make_fx")
    return found


def without_new_guards(env: ShapeEnv) -> contextlib.AbstractContextManager[Any]:
    """A block in which a decision on a symbolic size that is not settled yet raises."""
    block: contextlib.AbstractContextManager[Any] = NAMES.of(env, f"{ENV}.error_on_new_guards")()
    return block


# CUDA


def current_stream() -> Callable[[int], int]:
    """A function of a GPU's index: its current stream, as a number.  The private one leaves out torch.cuda's checks."""
    found: Any = NAMES.find("torch._C._cuda_getCurrentRawStream")
    return found or (lambda index: int(torch.cuda.current_stream(index).cuda_stream))


def current_device() -> Callable[[], int]:
    """A function that gives the index of the current GPU."""
    found: Any = NAMES.find("torch._C._cuda_getDevice")
    return found or torch.cuda.current_device


def empty_strided_cuda() -> Callable[..., torch.Tensor]:
    """A function of shape, strides and dtype, on the current GPU.

    The private one is what compiled Torch models allocate with: a third of the time.
    """
    found: Any = NAMES.find("torch._C._dynamo.guards._empty_strided_cuda")
    if found is not None:
        return found  # type: ignore[no-any-return]
    return lambda shape, strides, dtype: torch.empty_strided(shape, strides, dtype=dtype, device="cuda")


# Tensors


def versions() -> Callable[[torch.Tensor], int]:
    """A function of a tensor: how often it was written to in place.  An inference tensor does not count that."""
    found: Callable[[torch.Tensor], int] = NAMES.find("torch.Tensor._version").__get__
    return found


def children(module: torch.nn.Module) -> dict[str, torch.nn.Module | None]:
    """The modules in a module, by name: Torch's own dict."""
    found: dict[str, torch.nn.Module | None] = NAMES.of(module, "torch.nn.Module._modules")
    return found


def without_torch_function() -> contextlib.AbstractContextManager[Any]:
    """A block in which a tensor's class has no say in Torch's functions."""
    block: contextlib.AbstractContextManager[Any] = NAMES.find("torch._C.DisableTorchFunctionSubclass")()
    return block


def with_torch_function() -> contextlib.AbstractContextManager[Any]:
    """A block within that one in which it has."""
    block: contextlib.AbstractContextManager[Any] = NAMES.find("torch._C._EnableTorchFunction")()
    return block


def is_within_transform(tensor: torch.Tensor) -> bool:
    """Whether a tensor is inside vmap or grad, and has no data; False where Torch no longer says."""
    asked = NAMES.find("torch._C._functorch.is_functorch_wrapped_tensor")
    return asked is not None and bool(asked(tensor))


# Export


def size_config(**settings: bool) -> contextlib.AbstractContextManager[None]:
    """A block in which Torch's settings for symbolic sizes are these."""
    for name in settings:
        NAMES.find(f"torch.fx.experimental._config.{name}")
    patch: contextlib.AbstractContextManager[None] = NAMES.find("torch.fx.experimental._config.patch")(**settings)
    return patch


def unsupported() -> type[Exception]:
    """What an export raises that a second one may not."""
    found: type[Exception] | None = NAMES.find("torch._dynamo.exc.Unsupported")
    return found or Exception


@contextlib.contextmanager
def operators_listed_once() -> Iterator[None]:
    """A block in which exports list the operators that Torch decomposes by itself once, not once for each namespace.

    With the namespaces of many packs that is most of an export's time: each listing takes 10 ms.
    """
    listed, registered = (
        NAMES.find(f"torch.{name}")
        for name in ("_export.utils._materialize_cpp_cia_ops", "_C._dispatch_get_registrations_for_dispatch_key")
    )
    if listed is None or registered is None:
        yield
        return
    known: list[str] | None = None

    def list_new() -> None:
        nonlocal known
        now = registered("CompositeImplicitAutograd")
        if now != known:
            listed()
            known = now

    with replaced(look_up("torch._export.utils"), "_materialize_cpp_cia_ops", list_new):
        yield


_signatures: dict[tuple[Any, ...], Any] = {}


@contextlib.contextmanager
def signatures_kept(kind: type) -> Iterator[None]:
    """A block in which torch.onnx makes the signature of each function of a class once in a process."""
    path = "torch.onnx._internal.exporter._schemas.op_signature_from_function"
    made = NAMES.find(path)
    if made is None:
        yield
        return

    def kept(function: Any, *args: Any, **options: Any) -> Any:
        if not isinstance(function, kind):
            return made(function, *args, **options)
        key = (function, *args, *options.items())
        if key not in _signatures:
            _signatures[key] = made(function, *args, **options)
        return _signatures[key]

    with replaced(look_up(path.rpartition(".")[0]), path.rpartition(".")[2], kept):
        yield


class SizeFacts:
    """What an exported program says of its symbolic sizes, as sympy expressions."""

    def __init__(self, env: Any) -> None:
        # The conditions that tracing relied on, and those that are checked when data is known.
        self.guards: Sequence[Any] = NAMES.of(env, f"{ENV}.guards")
        self.asserts: Mapping[Any, Sequence[Any]] = NAMES.of(env, f"{ENV}.deferred_runtime_asserts")
        self._ranges, self._replace = NAMES.of(env, f"{ENV}.var_to_range"), NAMES.of(env, f"{ENV}.replace")

    @property
    def conditions(self) -> list[Any]:
        """All conditions."""
        found = [*self.guards, *(one for many in self.asserts.values() for one in many)]
        return [self.replace(one.expr) for one in found]

    def replace(self, expression: Any) -> Any:
        """The expression in the symbols that stand for those found equal."""
        return self._replace(expression)

    def upper(self, symbol: Any) -> Any:
        """The largest value of a symbol."""
        return self._ranges[symbol].upper


def size_facts(program: torch.export.ExportedProgram) -> SizeFacts | None:
    """What a program says of its sizes; None where all are numbers."""
    for node in program.graph.nodes:
        mode = getattr(node.meta.get("val"), "fake_mode", None)
        if mode is not None and mode.shape_env is not None:
            return SizeFacts(mode.shape_env)
    return None


def example_size(size: Any, symbol: Any) -> Any:
    """The example value of a symbol in a symbolic size; None where it has none."""
    env = NAMES.of(size, "torch.SymInt.node").shape_env
    older = None if hasattr(env, "backed_var_to_val") else getattr(env, "var_to_val", None)  # its name in Torch 2.10
    return (NAMES.of(env, f"{ENV}.backed_var_to_val") if older is None else older).get(symbol)


def expression(size: torch.SymInt) -> Any:
    """The sympy expression of a symbolic size."""
    return NAMES.of(size, "torch.SymInt.node").expr


def greatest(size: torch.SymInt, symbol: Any) -> int | None:
    """The largest value of a symbol in a symbolic size; None where none is known."""
    upper = NAMES.of(NAMES.of(size, "torch.SymInt.node").shape_env, f"{ENV}.var_to_range")[symbol].upper
    return int(upper) if upper.is_Integer and int(upper) < NO_LIMIT else None


def with_own_constants(program: torch.export.ExportedProgram) -> None:
    """Give a program a dict of constants of its own; a decomposed one shares that of the program it is from."""
    program._constants = dict(NAMES.of(program, "torch.export.ExportedProgram._constants"))


def size_of_example(size: torch.SymInt) -> int:
    """What a symbolic size is in the example."""
    return int(NAMES.of(size, "torch.SymInt.node").hint)


def without_cache(mode: FakeTensorMode) -> FakeTensorMode:
    """The mode, from now on without its cache of results, which asks whether sizes are 1."""
    NAMES.of(mode, "torch._subclasses.fake_tensor.FakeTensorMode.cache_enabled")
    mode.cache_enabled = False
    return mode


def scan(step: Callable[..., list[torch.Tensor]], carry: Any, xs: Any, others: Any) -> Any:
    """Torch's own scan, without the wrapper around it, which traces the step with dynamo at each call."""
    return NAMES.find("torch.ops.higher_order.scan")(step, carry, xs, others)


def check_values(condition: torch.Tensor, message: str) -> None:
    """Raise RuntimeError with the message where the condition has a value and is False; nothing without the name."""
    if (check := NAMES.find("torch._assert_async")) is not None:
        check(condition, message)


# What a pack's hook may change


def disabled_modes() -> contextlib.AbstractContextManager[Any]:
    """A block in which no dispatch mode sees anything."""
    block: contextlib.AbstractContextManager[Any] = NAMES.find("torch.utils._python_dispatch._disable_current_modes")()
    return block


def global_module_hooks() -> tuple[dict[Any, Any], ...]:
    """The hooks that run for every module, by kind; Torch's own dicts."""
    paths = (name.path for name in NAMES if name.path.startswith("torch.nn.modules.module._global_"))
    return tuple(found for path in paths if (found := NAMES.find(path)) is not None)
