"""Where in a model an export stopped, why, and what helps, read off the exporter's own exceptions.

For `export` and `bodies`.
"""

from __future__ import annotations

import itertools
import re
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch

from layerport.errors import BuildError
from layerport.system.foreign_text import message, type_name

LONGEST = 300
_AS_A_LAYER = "make that module a layer of a pack (then its inside is not exported)"
_NO_FORM = re.compile(r"No ONNX function found for (?:<OpOverload\(op='([\w.]+)', overload='(\w+)'\)>|(\S+?)\.? )")
_EXPRESSION = re.compile(r"data-dependent expression (.*?)(?: \(unhinted: .*)?$", re.MULTILINE)
_CHECK = re.compile(r"^\s*\d+\. (torch\._check\(.*\))\s*$", re.MULTILINE)
_VIOLATION = re.compile(r"^\s*- (.*)$", re.MULTILINE)
# Operators of these are no layers of a pack that the user may have forgotten to name.
_FRAMEWORK = frozenset({"aten", "prims", "prim", "higher_order", "transformers", "torchvision", "torchaudio"})


class UnknownOperatorError(BuildError):
    """torch.onnx has no form for an operator; operator: its name, `namespace::name`."""

    operator: str = ""


def not_traced(error: BaseException, name: str, model: torch.nn.Module) -> BuildError:
    """What to raise where torch.export stopped."""
    module = _module_on_stack(error, model)
    text = message_lines(error)
    start = f"torch.export cannot export {name}{_where(module)}: "
    violated = _VIOLATION.findall(text) if text.startswith("Constraints violated") else []
    if violated:
        fixes = itertools.takewhile(bool, map(str.strip, text.partition("Suggested fixes:")[2].strip().splitlines()))
        suggested = "; ".join(fixes) or "Dim(name, min=2)"
        return BuildError(
            start + text.splitlines()[0].partition("!")[0].lower(),
            f"leave such a dim static, state the limits that it needs ({cut(suggested)}), give its name as a string "
            '({0: "rows"}) so that the build tries the sizes that Torch is unsure of, or change that code',
            faults=[cut(line) for line in violated[:20]],
        )
    if type(error).__name__ != "GuardOnDataDependentSymNode":
        return BuildError(
            start + first_line(error),
            f"{_AS_A_LAYER}, remove the branch on tensor values, or try static shapes for the dims that it names",
        )
    expression = _EXPRESSION.search(text)
    fault = f"{type(error).__name__}: a size or a branch depends on the values of a tensor"
    fault += f": {cut(expression[1])}" if expression else ""
    fault += _line_of_the_model(error)
    checks = [cut(check) for check in _CHECK.findall(text)]
    promise = f", or promise Torch what holds there, before that line: {' or '.join(checks)}" if checks else ""
    return BuildError(
        start + fault,
        _experts_switch(model, module)
        or f"{_AS_A_LAYER}, or compute it with fixed sizes: topk and where in place of masks as indices{promise}",
    )


def not_translated(error: BaseException, name: str, model: object) -> BuildError:
    """What to raise where torch.onnx stopped."""
    inner = innermost(error)
    module = _module_of_node(error)
    start = f"torch.onnx cannot translate {name}{_where(module)}: "
    form = _NO_FORM.search(message_lines(inner))
    if form is None:
        return BuildError(start + first_line(inner), f"{_AS_A_LAYER}, or replace what it computes")
    operator = f"{form[1]}.{form[2]}".replace(".", "::", 1).removesuffix(".default") if form[1] else form[3]
    repair = f"compute it with other operators in that module; or {_AS_A_LAYER}, with a reference that has an ONNX form"
    if operator == "aten::_is_all_true":
        repair = (
            "it checks values while the model runs (torch._check_tensor_all): take the check out; "
            "transformers leaves its own out with TRANSFORMERS_DISABLE_TORCH_CHECK=1 in the environment"
        )
    if operator.partition("::")[0] not in _FRAMEWORK and form[1]:
        repair = f"if it is the layer of a pack, name the pack (--pack, packs=); else {repair}"
    if isinstance(model, torch.nn.Module):
        repair = _experts_switch(model, module, operator) or repair
    unknown = UnknownOperatorError(f"{start}operator {operator} has no ONNX form", repair)
    unknown.operator = operator
    return unknown


def _experts_switch(model: torch.nn.Module, module: tuple[str, str] | None, operator: str = "") -> str | None:
    """The switch of transformers by which experts run as batched products, which export; None where it is not that."""
    if not ("grouped_mm" in operator or (module and module[1].endswith("Experts"))):
        return None
    for path, one in model.named_modules():
        if hasattr(type(one), "set_experts_implementation"):
            call = f'{".".join(filter(None, ("model", path)))}.set_experts_implementation("batched_mm")'
            return f"call {call} before the build: that form exports"
    return None


def first_line(error: BaseException) -> str:
    """An exception's type and the first line of its message, cut where it is long."""
    lines = [line.strip() for line in message_lines(error).splitlines() if line.strip()]
    return f"{type_name(error)}: {cut(lines[0]) if lines else 'no message'}"


def message_lines(error: BaseException) -> str:
    """An exception's text as it is, or in its place why it cannot be told."""
    try:
        return str.__str__(str(error))
    except Exception:
        return message(error)


def cut(text: str) -> str:
    """The text with its middle left out where it is longer than anybody reads."""
    if len(text) <= LONGEST:
        return text
    left, right = text[: LONGEST * 2 // 3].rstrip(), text[-LONGEST // 3 :].lstrip()
    return f"{left} [... {len(text) - len(left) - len(right)} more characters ...] {right}"


def innermost(error: BaseException) -> BaseException:
    """The exception that the others were raised from: torch.onnx wraps what matters in advice."""
    return list(_chain(error))[-1]


def _where(module: tuple[str, str] | None) -> str:
    return f" in module {module[0] or '(root)'} ({module[1]})" if module else ""


def _module_on_stack(error: BaseException, model: torch.nn.Module) -> tuple[str, str] | None:
    """Path and class of the innermost module on the error's stack."""
    paths = {id(module): path for path, module in model.named_modules()}
    found = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        module = frame.f_locals.get("self")
        if isinstance(module, torch.nn.Module) and id(module) in paths:
            found = paths[id(module)], type(module).__name__
    return found


def _line_of_the_model(error: BaseException) -> str:
    """ ", at FILE:LINE: code" of the innermost line on the error's stack that is not Torch's or ours."""
    own = [str(Path(torch.__file__).parent), str(Path(__file__).parent)]
    frames = [one for one in traceback.extract_tb(error.__traceback__) if not one.filename.startswith(tuple(own))]
    frames = [one for one in frames if not one.filename.startswith("<")]
    return f", at {frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}" if frames else ""


def _module_of_node(error: BaseException) -> tuple[str, str] | None:
    """The same, of the graph node that torch.onnx was at."""
    found = None
    for one in _chain(error):
        for frame, _ in traceback.walk_tb(one.__traceback__):
            node = frame.f_locals.get("node")
            stack = node.meta.get("nn_module_stack") if isinstance(node, torch.fx.Node) else None
            if stack:
                path, kind = list(stack.values())[-1]
                name = kind if isinstance(kind, str) else kind.__name__
                found = path, name.rpartition(".")[2]
    return found


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
