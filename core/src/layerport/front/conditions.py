"""What an exported graph relies on beyond the ranges of its dims.  For `export`.

A model may branch on a size, or check one: the batch is not 1, the length is even.  Torch refuses a dim whose range
breaks that.  torch.onnx defers it to a check at run time, which ONNX has no form for, and drops it.  We defer it too,
and hand it on: the manifest keeps it and a session checks it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from layerport.adapters.sympy_expressions import from_sympy
from layerport.dims import DimRange
from layerport.expressions import Const, Symbol


def can_be_deferred(error: BaseException) -> bool:
    """Whether torch.export stopped at conditions that may hold, not at a dim that became a constant."""
    text = str(error)
    return text.startswith("Constraints violated") and "to be a constant" not in text


def deferred_conditions(program: torch.export.ExportedProgram, dims: Mapping[str, DimRange]) -> tuple[str, ...]:
    """The conditions on the dims that the graph checks when it runs, as texts of size expressions.

    dims: by Torch's symbol.  Raises UsageError for one that has no such form.
    """
    names = {symbol: Symbol(dim.name) for symbol, dim in dims.items()}
    found = set()
    for node in program.graph.nodes:
        if node.target is not torch.ops.aten._assert_scalar.default:
            continue
        expr: Any = getattr(getattr(node.args[0], "meta", {}).get("val"), "node", None)
        if expr is None or not {str(symbol) for symbol in expr.expr.free_symbols} <= names.keys():
            continue  # on a size that depends on data: a check that the model itself asks for
        made = from_sympy(expr.expr, names)
        if not isinstance(made, Const):
            found.add(made.text)
    return tuple(sorted(found))
