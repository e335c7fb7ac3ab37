"""The private names of Torch that layerport uses, each in one place.

For every file that works with Torch.  What Torch has no more is done through its public interface where that can be
(slower, as right), and is otherwise an error of the one thing that needs it.  `layerport doctor` lists what a Torch
newer than the tested one lacks.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from layerport.foreign.names import Name, Names

if TYPE_CHECKING:
    from torch._subclasses.fake_tensor import FakeTensorMode as FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode as GuardOnDataDependentSymNode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv as ShapeEnv
    from torch.utils import _pytree as pytree
    from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode

    __all__ = ["FakeTensorMode", "GuardOnDataDependentSymNode", "ShapeEnv", "TorchDispatchMode", "pytree"]

_OPERATOR = "the Autograd implementation of a layer's operator"
_REGISTERED = "torch.library.register_autograd makes it: twice the overhead of a call"
_SIZES = "the sizes of a layer's outputs, read off its reference"
_SEARCH = "layers found in a model's graph"
_PACKS = "looking after what a pack's hook does to a model"
_MODELS = "the inputs and outputs of a model, which may be nested"
_SUBCLASS = "parameters that are tensors of a class of their own"
_GPU = "a kernel's launch by a layer's operator"
_OLDER = "use an older Torch"
_PLAIN = "make them plain tensors first, or use an older Torch"
_ENV = "torch.fx.experimental.symbolic_shapes.ShapeEnv"
NO_LIMIT = 2**62  # Torch says that a size has none with numbers around 2**63
_ALWAYS = "the public function of the same use is called: slower"

NAMES = Names(
    "torch",
    (
        Name("torch._C._AutoDispatchBelowAutograd", _OPERATOR, _REGISTERED, True),
        Name("torch._C._after_autograd_keyset", _OPERATOR, _REGISTERED, True),
        Name("torch._ops.OpOverload.redispatch", _OPERATOR, _REGISTERED, True),
        Name("torch._C._any_requires_grad", _OPERATOR, "each argument is asked, in Python", True),
        Name("torch._C._ExcludeDispatchKeyGuard", "a layer's operator under autocast", _REGISTERED, True),
        Name("torch._C.DispatchKeySet", "a layer's operator under autocast", _REGISTERED, True),
        Name("torch._C.DispatchKey.AutocastCPU", "a layer's operator under autocast", _REGISTERED, True),
        Name("torch._C.DispatchKey.AutocastCUDA", "a layer's operator under autocast", _REGISTERED, True),
        Name("torch._ops.OpOverload._op", "a call of a layer's operator", "one more call in Python", True, True),
        Name(
            "torch._C._any_output_is_alias_to_input_or_output",
            "outputs of a reference in memory of their own",
            "their storages are compared, in Python",
            True,
        ),
        Name(
            "torch._ops.OpOverload._schema",
            "what an operator writes, and whether it draws random numbers",
            _OLDER,
            of_instances=True,
        ),
        Name("torch._C._cuda_getCurrentRawStream", _GPU, _ALWAYS, True),
        Name("torch._C._cuda_getDevice", _GPU, _ALWAYS, True),
        Name("torch._C._dynamo.guards._empty_strided_cuda", _GPU, _ALWAYS, True),
        Name(
            "torch.nn.Module._modules",
            "a module put in the place of another, in a copy of a model",
            _OLDER,
            of_instances=True,
        ),
        Name("torch.Tensor._version", "whether a tensor was written to in place", _OLDER),
        Name("torch._C.DisableTorchFunctionSubclass", _SUBCLASS, _PLAIN),
        Name("torch._C._EnableTorchFunction", _SUBCLASS, _PLAIN),
        Name(
            "torch._C._functorch.is_functorch_wrapped_tensor",
            "the words in which a tensor inside vmap is refused",
            "Torch refuses it in its own",
            True,
        ),
        Name("torch._subclasses.fake_tensor.FakeTensorMode", _SIZES, _OLDER),
        Name(_ENV, _SIZES, _OLDER),
        Name("torch.fx.experimental.symbolic_shapes.GuardOnDataDependentSymNode", _SIZES, _OLDER),
        *(
            Name(f"{_ENV}.{attribute}", _SIZES, _OLDER, of_instances=True)
            for attribute in ("guards", "deferred_runtime_asserts", "var_to_range", "replace", "backed_var_to_val")
        ),
        Name("torch.export.ExportedProgram._constants", _SEARCH, _OLDER, of_instances=True),
        Name("torch.fx.experimental.proxy_tensor.make_fx", _SEARCH, _OLDER),
        Name(f"{_ENV}.error_on_new_guards", _SEARCH, _OLDER, of_instances=True),
        Name("torch._ops.OpOverload", _SEARCH, _OLDER),
        Name("torch._subclasses.fake_tensor.FakeTensorMode.cache_enabled", _SEARCH, _OLDER, of_instances=True),
        Name("torch.SymInt.node", _SIZES, _OLDER, of_instances=True),
        Name("torch.fx.experimental._config.patch", _SIZES, _OLDER),
        Name("torch.fx.experimental._config.backed_size_oblivious", _SIZES, _OLDER),
        Name("torch.fx.experimental._config.use_duck_shape", _SIZES, _OLDER),
        Name(
            "torch._dynamo.exc.Unsupported",
            "what an export raises that a second one does not",
            "after any error it is tried a second time",
            True,
        ),
        Name("torch.ops.higher_order.scan", "references that go through a sequence step by step (lp.scan)", _OLDER),
        Name("torch._assert_async", "references that check values (lp.check_values)", "they are not checked", True),
        Name("torch.utils._pytree", _MODELS, _OLDER),
        Name("torch.utils._python_dispatch.TorchDispatchMode", _PACKS, _OLDER),
        Name("torch.utils._python_dispatch._disable_current_modes", _PACKS, _OLDER),
        *(
            Name(f"torch.nn.modules.module._global_{kind}_hooks", _PACKS, "these hooks are not looked after", True)
            for kind in (
                *("forward", "forward_pre", "backward", "backward_pre"),
                *("module_registration", "parameter_registration", "buffer_registration"),
            )
        ),
    ),
)
_CUDA_ONLY = frozenset(name.path for name in NAMES if name.use == _GPU)
# Names that stand for a class or a module, by what they are called here.
_OBJECTS = {
    "FakeTensorMode": "torch._subclasses.fake_tensor.FakeTensorMode",
    "GuardOnDataDependentSymNode": "torch.fx.experimental.symbolic_shapes.GuardOnDataDependentSymNode",
    "ShapeEnv": _ENV,
    "TorchDispatchMode": "torch.utils._python_dispatch.TorchDispatchMode",
    "pytree": "torch.utils._pytree",
}


def __getattr__(name: str) -> Any:
    if name not in _OBJECTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return NAMES.find(_OBJECTS[name])


def missing() -> list[Name]:
    """The names that this Torch lacks; those of its CUDA half only where it has one."""
    return [name for name in NAMES.missing() if name.path not in _CUDA_ONLY or torch.version.cuda is not None]


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
    block: contextlib.AbstractContextManager[Any] = NAMES.of(env, f"{_ENV}.error_on_new_guards")()
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


class SizeFacts:
    """What an exported program says of its symbolic sizes, as sympy expressions."""

    def __init__(self, env: Any) -> None:
        # The conditions that tracing relied on, and those that are checked when data is known.
        self.guards: Sequence[Any] = NAMES.of(env, f"{_ENV}.guards")
        self.asserts: Mapping[Any, Sequence[Any]] = NAMES.of(env, f"{_ENV}.deferred_runtime_asserts")
        self._ranges, self._replace = NAMES.of(env, f"{_ENV}.var_to_range"), NAMES.of(env, f"{_ENV}.replace")

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
    return (NAMES.of(env, f"{_ENV}.backed_var_to_val") if older is None else older).get(symbol)


def expression(size: torch.SymInt) -> Any:
    """The sympy expression of a symbolic size."""
    return NAMES.of(size, "torch.SymInt.node").expr


def greatest(size: torch.SymInt, symbol: Any) -> int | None:
    """The largest value of a symbol in a symbolic size; None where none is known."""
    upper = NAMES.of(NAMES.of(size, "torch.SymInt.node").shape_env, f"{_ENV}.var_to_range")[symbol].upper
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
