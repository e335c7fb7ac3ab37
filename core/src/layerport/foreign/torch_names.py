"""Which private names of Torch `torch_private` uses, what each is for, and what is done where it is gone."""

from __future__ import annotations

import torch

from layerport.foreign.names import Name, Names

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
ENV = "torch.fx.experimental.symbolic_shapes.ShapeEnv"
_EXPORTER = "an export that lists Torch's operators once"
_REPEATED = "they are listed once for each namespace of operators: slower"
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
        Name(ENV, _SIZES, _OLDER),
        Name("torch.fx.experimental.symbolic_shapes.GuardOnDataDependentSymNode", _SIZES, _OLDER),
        *(
            Name(f"{ENV}.{attribute}", _SIZES, _OLDER, of_instances=True)
            for attribute in ("guards", "deferred_runtime_asserts", "var_to_range", "replace", "backed_var_to_val")
        ),
        Name("torch.export.ExportedProgram._constants", _SEARCH, _OLDER, of_instances=True),
        Name("torch.fx.experimental.proxy_tensor.make_fx", _SEARCH, _OLDER),
        Name(f"{ENV}.error_on_new_guards", _SEARCH, _OLDER, of_instances=True),
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
        Name("torch._export.utils._materialize_cpp_cia_ops", _EXPORTER, _REPEATED, True),
        Name("torch._C._dispatch_get_registrations_for_dispatch_key", _EXPORTER, _REPEATED, True),
        Name(
            "torch.onnx._internal.exporter._schemas.op_signature_from_function",
            "an export that keeps the signatures of its operators",
            "each export makes them anew: slower",
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


def missing() -> list[Name]:
    """The names that this Torch lacks; those of its CUDA half only where it has one."""
    return [name for name in NAMES.missing() if name.path not in _CUDA_ONLY or torch.version.cuda is not None]
