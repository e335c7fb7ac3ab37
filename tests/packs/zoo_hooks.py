"""Packs of the zoo whose hooks are declared wrongly, raise, or answer with something else than their records."""

from __future__ import annotations

from typing import Any

from packs.zoo import HOOK, PLAIN, BrokenPack

ANSWER = HOOK + "def layerport_layers():\n    return {}\n"
EXPORT = PLAIN + (
    "\n\n@lp.hookimpl\ndef layerport_export_parameters(module, name):\n"
    "    if type(module).__name__ == 'Zoo' and module.owner in ('all', 'NAMESPACE'):\n        {}\n"
)


def declared(name: str, rest: str, said: str, **more: Any) -> BrokenPack:
    """A hook that is declared wrongly."""
    return BrokenPack(name, HOOK + rest, said, **more)


def answers(name: str, answer: str, said: str, *, before: str = "") -> BrokenPack:
    """`layerport_layers` returns something else than its layers."""
    return BrokenPack(name, before + "\n" + ANSWER.format(answer), f"layerport_layers {said}")


def exports(name: str, line: str, said: str, *, loaded: str = "NAMESPACE::plain") -> BrokenPack:
    """`layerport_export_parameters` fails at a module of the class Zoo."""
    fault = f"pack {name} ({name.replace('_', '-')} 1.0): layerport_export_parameters {said}"
    return BrokenPack(name, EXPORT.format(line), loaded, status="loaded", build=fault, needed=fault)


def steps(name: str, hook: str, arguments: str, line: str, said: str) -> BrokenPack:
    """A hook that only an engine asks, for a module that the pack claims."""
    claim = EXPORT.format("return plain.bind()").replace("in ('all', 'NAMESPACE')", "== 'NAMESPACE'")
    kernel = (
        "\n\n@plain.kernel(lp.cuda('extern \"C\" __global__ void k(float*, float*) {}', 'k'), dtypes=('float32',))\n"
    )
    kernel += "def launch(x, y):\n    return lp.Launch(grid=1, block=1, args=(x, y))\n"
    rest = f"\n\n@lp.hookimpl\ndef {hook}({arguments}):\n    {line}\n"
    fault = f"pack {name} ({name.replace('_', '-')} 1.0): {hook} for layer {name}::plain at zoo {said}"
    return BrokenPack(
        name, claim + kernel + rest, "NAMESPACE::plain", status="loaded", build="", needed=fault, target="rtx:sm_89"
    )


AT = "at zoo (Zoo)"
PACKS = (
    declared(
        "zoo_misspelt_hook",
        "def layerport_export_paramters(module, name):\n    return None\n",
        "it declares an unknown hook layerport_export_paramters; did you mean layerport_export_parameters?",
    ),
    declared("zoo_generator", "def layerport_layers():\n    yield 1\n", "its layerport_layers is a generator function"),
    declared(
        "zoo_async", "async def layerport_layers():\n    return ()\n", "its layerport_layers is an async function"
    ),
    declared("zoo_argument", "def layerport_layers(config):\n    return ()\n", "takes 'config', but is called with ()"),
    declared(
        "zoo_star", "def layerport_layers(*args):\n    return ()\n", "its layerport_layers takes *args, which stays"
    ),
    declared(
        "zoo_twice",
        "def layerport_layers():\n    return ()\n\n\n"
        "@lp.hookimpl(specname='layerport_layers')\ndef more():\n    return ()\n",
        "it implements layerport_layers 2 times; keep one",
    ),
    BrokenPack(
        "zoo_wrapper",
        "import layerport as lp\n\n\n@lp.hookimpl(wrapper=True)\ndef layerport_layers():\n    return (yield)\n",
        "its layerport_layers is a hook wrapper",
    ),
    BrokenPack(
        "zoo_unmarked", "def layerport_layers():\n    return ()\n", "its function layerport_layers is not marked"
    ),
    BrokenPack("zoo_empty", "x = 1\n", "it implements no hook; mark its functions with @lp.hookimpl"),
    BrokenPack(
        "zoo_no_function", HOOK.replace("@lp.hookimpl", "") + "layerport_layers = lp.hookimpl(5)\n", "AttributeError"
    ),
    answers("zoo_list", "[]", "returned list [], expected a tuple of layers"),
    answers("zoo_nothing", "None", "returned NoneType None, expected a tuple of layers"),
    answers("zoo_foreign", "(print,)", "returned builtin_function_or_method <built-in function print> at index 0"),
    answers("zoo_iterator", "iter(())", "returned tuple_iterator <tuple_iterator object at"),
    answers(
        "zoo_coroutine", "later()", "returned coroutine <coroutine object later at", before="async def later(): pass\n"
    ),
    answers(
        "zoo_unspeakable",
        "(Odd(),)",
        "returned Odd (its __repr__ raises RecursionError) at index 0, expected a layer",
        before="class Odd:\n    def __repr__(self):\n        return repr(self)\n",
    ),
    answers(
        "zoo_liar",
        "(Liar(),)",
        "returned Liar <zoo_liar.Liar object at",
        before="from layerport.layers.layer import Layer\n\n\n"
        "class Liar:\n    __class__ = Layer\n    name = 'zoo_liar::plain'\n",
    ),
    answers(
        "zoo_faceless",
        "Faceless()",
        "returned Faceless <zoo_faceless.Faceless object at",
        before="class Faceless:\n    __class__ = property(lambda self: 1 / 0)\n",
    ),
    BrokenPack(
        "zoo_layers_raise",
        HOOK + "def layerport_layers():\n    raise KeyError('key')\n",
        "layerport_layers raised KeyError: 'key'",
    ),
    BrokenPack(
        "zoo_layers_exit", HOOK + "def layerport_layers():\n    exit(0)\n", "layerport_layers raised SystemExit: 0"
    ),
    BrokenPack("zoo_one_layer", PLAIN.replace("(plain,)", "plain"), "returned one layer, expected a tuple of layers"),
    BrokenPack(
        "zoo_same_layer", PLAIN.replace("(plain,)", "(plain, plain)"), "returned NAMESPACE::plain more than once"
    ),
    BrokenPack(
        "zoo_reserved_layer", PLAIN.replace("NAMESPACE", "trt"), "raised UsageError: layer name 'trt::plain' is not"
    ),
    BrokenPack(
        "zoo_odd_layer", PLAIN.replace("NAMESPACE::plain", "zoo odd"), "raised UsageError: layer name 'zoo odd' is not"
    ),
    BrokenPack("zoo_untyped", PLAIN.replace("x: Tensor", "x"), "raised UsageError: "),
    BrokenPack(
        "zoo_renames",
        PLAIN.replace("    return (plain,)", "    plain.name = 'zoo_elsewhere::plain'\n    return (plain,)"),
        "layer zoo_renames::plain: its name is fixed",
    ),
    BrokenPack(
        "zoo_hook_changes",
        PLAIN.replace("    return (plain,)", "    torch.set_grad_enabled(False)\n    return (plain,)"),
        "layerport_layers changed Torch's gradient mode",
    ),
    BrokenPack(
        "zoo_always_raises",
        PLAIN + "\n\n@lp.hookimpl\ndef layerport_export_parameters(module, name):\n    return module.weight.missing\n",
        "layerport_export_parameters at a Sequential raised AttributeError: 'Sequential' object has no",
        status="loaded",
        build="pack zoo_always_raises (zoo-always-raises 1.0): layerport_export_parameters at the root module (",
        needed="pack zoo_always_raises (zoo-always-raises 1.0): layerport_export_parameters at the root module (",
    ),
    exports("zoo_export_raises", "raise ValueError('no such weight')", f"{AT} raised ValueError: no such weight"),
    exports("zoo_export_exits", "raise SystemExit(0)", f"{AT} raised SystemExit: 0"),
    exports("zoo_export_list", "return [plain.bind()]", f"{AT} returned list [BoundLayer("),
    exports("zoo_export_text", "return 'plain'", f"{AT} returned str 'plain', expected a bound layer or a rewrite"),
    exports("zoo_export_layer", "return plain", f"{AT} returned the layer zoo_export_layer::plain without parameters"),
    exports("zoo_export_yields", "return (one for one in [plain.bind()])", f"{AT} returned generator <generator"),
    exports("zoo_export_binds", "return plain.bind(weight=1)", f"{AT}: "),
    exports("zoo_export_rewrites", "return lp.rewrite(lambda: 1, layers=(plain,))", f"{AT}: rewrite "),
    exports("zoo_export_captures", "return lp.rewrite(module.forward, layers=(plain,))", f"{AT}: rewrite "),
    exports("zoo_export_bare", "return lp.rewrite(lambda module, x: x, layers=[])", f"{AT}: rewrite "),
    exports("zoo_export_hides", "return hidden.bind()", f"{AT} raised NameError: name 'hidden' is not defined"),
    exports("zoo_export_writes", "module.weight.data.zero_()", "changed the values of zoo.weight"),
    exports("zoo_export_trains", "module.train()", "changed training of zoo"),
    exports("zoo_export_seeds", "torch.manual_seed(1)", "changed Torch's random state"),
    exports("zoo_export_moves", "import os; os.chdir('/')", "changed the working directory"),
    exports("zoo_export_warns", "import warnings; warnings.simplefilter('ignore')", "changed the filters of warnings"),
    exports("zoo_export_patches", "torch.relu = torch.abs", "changed torch.relu"),
    BrokenPack(
        "zoo_convert_idle",
        HOOK + "def layerport_convert_parameters(layer):\n    return None\n",
        "it provides no layer, so its layerport_convert_parameters will never be asked",
        status="loaded",
        needed="",
    ),
    BrokenPack(
        "zoo_rivals",
        PLAIN.replace("NAMESPACE", "zoo_contested"),
        "zoo_contested::plain",
        status="loaded",
        build="",
        layer="zoo_contested::plain",
        needed="layer zoo_contested::plain is provided by 2 packs",
    ),
    BrokenPack(
        "zoo_rival",
        PLAIN.replace("NAMESPACE", "zoo_contested"),
        "zoo_contested::plain",
        status="loaded",
        build="",
        layer="zoo_contested::plain",
        needed="layer zoo_contested::plain is provided by 2 packs",
    ),
    *(
        BrokenPack(
            f"zoo_space_{name}",
            PLAIN.replace("NAMESPACE::plain", f"zoo_space::{name}"),
            f"zoo_space::{name}",
            status="loaded",
            build="",
            layer=f"zoo_space::{name}",
            needed=f"layer zoo_space::{name} is of the namespace zoo_space, which 2 packs use and one may",
        )
        for name in ("one", "two")
    ),
    BrokenPack(
        "zoo_shadow",
        None,
        "its entry point names the same object as pack zoo_rivals (zoo-rivals 1.0); uninstall one of the two",
        points="[layerport]\nzoo_shadow = zoo_rivals\n",
    ),
    BrokenPack(
        "zoo_no_kernel_file",
        EXPORT.format("return plain.bind()").replace("in ('all', 'NAMESPACE')", "== 'NAMESPACE'")
        + "\n\n@plain.kernel(lp.cuda('kernels/left_out.cu', 'k'), dtypes=('float32',))\n"
        "def launch(x, y):\n    return lp.Launch(grid=1, block=1, args=(x, y))\n",
        "NAMESPACE::plain",
        status="loaded",
        build="",
        needed="kernels/left_out.cu cannot be read: No such file or directory",
        target="rtx:sm_89",
    ),
    steps("zoo_convert_raises", "layerport_convert_parameters", "layer", "raise KeyError('w')", "raised KeyError: 'w'"),
    steps("zoo_convert_exits", "layerport_convert_parameters", "layer", "raise SystemExit(0)", "raised SystemExit: 0"),
    steps(
        "zoo_convert_dict",
        "layerport_convert_parameters",
        "layer",
        "return {}",
        "returned dict {}, expected Parameters",
    ),
    steps("zoo_create_raises", "layerport_create_plugin", "layer", "raise OSError", "raised OSError"),
    steps(
        "zoo_create_text", "layerport_create_plugin", "layer", "return 'x'", "returned str 'x', expected a PluginSpec"
    ),
)
