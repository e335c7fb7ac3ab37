"""Faults to plant into `conforming.py`, one at a time: what is replaced by what, which check finds it, what it says."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

TEXT = (Path(__file__).parent / "conforming.py").read_text()


class Planted(NamedTuple):
    """One fault.  check: the one that finds it.  says: in the reason."""

    name: str
    check: str
    says: str
    changes: tuple[tuple[str, str], ...]

    def text(self, namespace: str) -> str:
        """The pack with this fault."""
        text = TEXT
        for old, new in self.changes:
            assert old in text, old
            text = text.replace(old, new)
        return text.replace("NAMESPACE", namespace)


RETURN = "    return (x + beta * x.sum(-1, keepdim=True)) * scale\n"
CONVERT = 'return parameters.replace(scale=parameters["scale"] * 1)'
BACKWARD_START, BACKWARD_END = TEXT.index("@scaled.backward"), TEXT.index("@scaled.kernel")
BACKWARD = TEXT[BACKWARD_START:BACKWARD_END]
LAST_SHAPE = '        CaseShape("nothing", {"x": (0, 5), "scale": (5,)}),\n'
LARGE = '        CaseShape("large", {{"x": ({}), "scale": ({},)}}, gpu_only=True),\n'
ROW = "y[row * channels + i] = (T)"


def planted(name: str, check: str, says: str, *changes: tuple[str, str]) -> Planted:
    return Planted(name, check, says, changes)


def reference(name: str, check: str, says: str, *lines: str) -> Planted:
    """The reference's last line by other lines."""
    return planted(name, check, says, (RETURN, "".join(f"    {line}\n" for line in lines)))


FAULTS = (
    # the pack
    planted("import error", "pack", "no_such_module", ("import torch\n", "import torch\nimport no_such_module\n")),
    planted("left by SystemExit", "pack", "exited with SystemExit", ("import torch\n", "import torch\nexit(3)\n")),
    planted("misspelt hook", "pack", "layerport_layers", ("def layerport_layers", "def layerport_layer")),
    planted("prints at import", "pack", "printed to stdout", ("SOURCE = ", "print('hello')\nSOURCE = ")),
    planted("no layer", "pack", "provides no layer", ("return (scaled,)", "return ()")),
    planted("wrong record", "pack", "layerport_layers", ("return (scaled,)", "return ('scaled',)")),
    # the record
    planted("no case", "record", "it has no LayerCase", ("CASE = LayerCase(", "LayerCase(")),
    planted("no docstring", "record", "has no docstring", ('    """(x + beta', '    "" and """(x + beta')),
    planted("lax tolerance", "record", "lets anything pass", ("Tolerance(1e-5, 1e-5)", "Tolerance(1e-5, 2.0)")),
    planted(
        "dtype without a case",
        "record",
        "x float16, scale float32",
        (
            'dtypes=("float32",))\ndef',
            'dtypes=("float32", {"scale": "float32", "*": "float16"}))\ndef',
        ),
    ),
    planted(
        "dtypes of no tensor",
        "record",
        "do not fit the layer",
        (
            'dtypes=("float32",))\ndef',
            'dtypes=({"weight": "float32", "*": "float32"},))\ndef',
        ),
    ),
    planted(
        "only huge shapes",
        "record",
        "too large for a CPU",
        ('"x": (3, 5)', '"x": (99999, 5)'),
        ('"x": (2, 1, 70)', '"x": (99999, 1, 70)'),
        ('"x": (0, 5)', '"x": (99998, 5)'),
    ),
    # the reference
    reference("changes its input", "reference", "changes its input x", "x.add_(1)", RETURN.strip()),
    reference("draws random numbers", "reference", "draws random numbers", "return x * scale + torch.rand(()) * beta"),
    reference(
        "counts its calls",
        "reference",
        "something else when it is called again",
        "scaled.calls = getattr(scaled, 'calls', 0) + 1",
        "return x * scale * scaled.calls",
    ),
    reference("gives no number", "reference", "gives nothing finite", "return x * scale * float('nan')"),
    reference("fails", "reference", "IndexError", "return x * scale + [][3]"),
    # the operator
    reference(
        "reads strides",
        "operator",
        "transposed inputs",
        "return x.as_strided(x.shape, torch.empty(x.shape).stride()) * scale",
    ),
    reference(
        "reads values", "operator", "opcheck fails on contiguous inputs", "return x * scale * float(x.sum() > 0)"
    ),
    reference(
        "refuses the empty shape of its case",
        "reference",
        "ValueError",
        "if x.numel() == 0: raise ValueError('no')",
        RETURN.strip(),
    ),
    # the gradients
    planted("wrong backward", "gradients", "derivative 1 by x", ("return inner + beta", "return inner - beta")),
    planted(
        "backward of one input",
        "gradients",
        "derivative 1 by scale",
        ("by_scale.reshape(-1, x.shape[-1]).sum(0)", "by_scale.reshape(-1, x.shape[-1]).mean(0)"),
    ),
    planted(
        "detached", "gradients", "its gradients are wrong", (BACKWARD, ""), ("return (x +", "return (x.detach() +")
    ),
    planted(
        "computes in float32",
        "gradients",
        "its gradients are wrong",
        (BACKWARD, ""),
        ("return (x + beta * x.sum(-1, keepdim=True)) * scale", "return (x.float() * scale).to(x.dtype)"),
    ),
    reference("narrows float64", "gradients", "gives float32 for inputs of float64", "return (x * scale).float()"),
    # the spellings
    planted(
        "wrong spelling",
        "spellings",
        "spelling spread is off by",
        ("torch.sum(x, -1, keepdim=True) * scale * beta", "x * beta"),
    ),
    planted(
        "spelling of another dtype",
        "spellings",
        "spelling spread gives other types or shapes",
        ("return x * scale + torch.sum", "return x.float() * scale.float() + 0 * torch.sum"),
        ("torch.sum(x, -1, keepdim=True) * scale * beta", "torch.sum(x, -1, keepdim=True).float()"),
    ),
    # the output rule
    reference(
        "fixes a size",
        "shapes",
        "fixes a size that could be another: x.0",
        "return (x + torch.zeros(int(x.shape[0]), *[1] * (x.ndim - 1))) * scale",
    ),
    planted(
        "wrong shape rule",
        "shapes",
        "the rule says",
        (
            "CASE = ",
            """@scaled.shape_rule
def rule(x):
    return (x.dtype, (*x.shape[:-1], 5))


CASE = """,
        ),
    ),
    planted(
        "wrong dtype in the shape rule",
        "shapes",
        "float16",
        (
            "CASE = ",
            """@scaled.shape_rule
def rule(x):
    return (lp.TensorType('y', type(x.dtype).of('float16'), ()).dtype, x.shape)


CASE = """,
        ),
    ),
    planted(
        "shape rule of another rank",
        "shapes",
        "the rule says",
        (
            "CASE = ",
            """@scaled.shape_rule
def rule(x):
    return (x.dtype, x.shape[:-1])


CASE = """,
        ),
    ),
    # the ONNX form
    reference("no ONNX form", "onnx", "has no ONNX form", "return torch.special.bessel_j0(x) * scale"),
    # the conversion
    planted(
        "random conversion",
        "conversion",
        "something else when it is asked again",
        (CONVERT, 'return parameters.replace(scale=parameters["scale"] + __import__("os").urandom(1)[0])'),
    ),
    planted("conversion fails", "conversion", "KeyError", (CONVERT, CONVERT.replace('["scale"]', '["weight"]'))),
    planted(
        "conversion writes",
        "conversion",
        "layerport_convert_parameters",
        (CONVERT, 'array = parameters["scale"]\n    array.flags.writeable = True\n    array += 1\n    return None'),
    ),
    planted("wrong conversion", "kernel", "elements are wrong", (CONVERT, CONVERT.replace("* 1", "* 2"))),
    # the kernels
    planted("does not compile", "compilation", "undefined", ("part = 0;", "part = nothing;")),
    planted("no such kernel", "compilation", "scaled_up", ('"scaled<{x}>"', '"scaled_up<{x}>"')),
    planted(
        "rule branches on a size",
        "compilation",
        "lp.where",
        ("channels = x.shape[-1]\n    return", "channels = x.shape[-1] if x.shape[0] > 4 else 5\n    return"),
    ),
    planted("block too large", "compilation", "2048", ("block=64", "block=2048")),
    planted("another formula", "kernel", "elements are wrong", ("* sum[0]", "+ sum[0]")),
    planted("double for float", "kernel", "", ("float beta)", "double beta, int more)")),
    planted("writes out of bounds", "kernel", "", (ROW, "y[row * channels + i + 1] = (T)")),
    planted("leaves a place unwritten", "kernel", "", (ROW, "if (i) " + ROW)),
    planted("writes its input", "kernel", "", (ROW, "((T*)x)[row * channels + i] = 0, " + ROW)),
    planted(
        "a barrier is missing",
        "kernel",
        "",
        ("    sum[threadIdx.x] = part;\n    __syncthreads();", "    sum[threadIdx.x] = part;"),
    ),
    planted(
        "a barrier not for all",
        "kernel",
        "",
        (
            "        if (threadIdx.x < step) sum[threadIdx.x] += sum[threadIdx.x + step];\n        __syncthreads();",
            "        if (threadIdx.x < step) {\n sum[threadIdx.x] += sum[threadIdx.x + step]; __syncthreads(); }",
        ),
    ),
    planted("reads what nobody wrote", "kernel", "", ("float part = 0;", "float part = sum[threadIdx.x];")),
    planted(
        "rows left out", "kernel", "", ("grid=x.numel() // channels,", "grid=lp.maximum(x.numel() // channels - 1, 1),")
    ),
    # the plugin
    planted(
        "no such plugin class",
        "plugin",
        "cannot be imported",
        (
            "bound):\n    return None",
            "bound):\n    return lp.PluginSpec.of(bound, plugin_class='no_such_module:Plugin')",
        ),
    ),
    planted(
        "another plugin each time",
        "plugin",
        "another one when it is asked for again",
        (
            "bound):\n    return None",
            "bound, count=[0]):\n    count[0] += 1\n    return lp.PluginSpec.of(bound, plugin_class=f'a:b{count[0]}')",
        ),
    ),
    planted(
        "plugin class that is none",
        "network",
        "does not build for rtx:sm_89",
        (
            "bound):\n    return None",
            "bound):\n    return lp.PluginSpec.of(bound, plugin_class='json:loads')",
        ),
    ),
    # the launch rules at all shapes
    planted(
        "grid beyond the limit at a large shape",
        "launch",
        "grid y is 70000, allowed are 1 to 65535",
        ("grid=x.numel() // channels,", "grid=(1, x.numel() // channels),"),
        (LAST_SHAPE, LAST_SHAPE + LARGE.format("70000, 5", "5")),
    ),
    planted(
        "empty grid at a small shape",
        "launch",
        "grid x is 0, allowed are 1 to",
        ("grid=x.numel() // channels,", "grid=x.numel() // channels // 3,"),
    ),
    planted(
        "count that an int does not hold",
        "launch",
        "= 2500000000, which its parameter of 4 bytes cannot hold",
        ("long long rows", "int rows"),
        (", x.numel() // channels, channels, beta", ", x.numel(), channels, beta"),
        (LAST_SHAPE, LAST_SHAPE + LARGE.format("500000000, 5", "5")),
    ),
    planted(
        "more shared memory than there is",
        "launch",
        "bytes of shared memory (256 static, 160000 dynamic), but sm_89 has 101376",
        ("block=64,", "block=64, shared=4 * channels,"),
        (LAST_SHAPE, LAST_SHAPE + LARGE.format("2, 40000", "40000")),
    ),
    # each element once
    planted(
        "two threads for an element",
        "kernel",
        "writes too; let one thread write it",
        (
            f"threadIdx.x; i < channels; i += 64)\n        {ROW}",
            f"threadIdx.x / 2; i < channels; i += 32)\n        {ROW}",
        ),
    ),
    planted(
        "two blocks for a row",
        "kernel",
        "writes too; let one thread write it",
        ("row = blockIdx.x;", "row = blockIdx.x % rows;"),
        ("grid=x.numel() // channels,", "grid=2 * (x.numel() // channels),"),
    ),
    # the address sanitiser
    planted(
        "beyond an array of its own",
        "sanitizer",
        "scaled_0",
        ("    float part = 0;", "    float part = 0;\n    volatile float own[4];\n    own[threadIdx.x % 5] = 1;"),
    ),
)
