"""Torch's exporter reads the signatures of its operators once, and is left as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from onnxscript import values as onnxscript_values
from torch import Tensor

from layerport.front.exporter import to_onnx


class Doubled(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


def test_a_second_export_reads_no_signature_again(monkeypatch: pytest.MonkeyPatch) -> None:
    functions = onnxscript_values.TracedOnnxFunction
    parsed = vars(functions)["function_ir"].fget
    read: list[str] = []

    def counted(function: Any) -> Any:
        read.append(function.name)
        return parsed(function)

    given = property(counted)
    monkeypatch.setattr(functions, "function_ir", given)
    program = torch.export.export(Doubled(), (torch.ones(2),))
    first = to_onnx(program).model.graph
    read.clear()  # none, where an earlier test has exported
    second = to_onnx(program).model.graph
    assert read == []
    assert vars(functions)["function_ir"] is given
    assert [node.op_type for node in first] == [node.op_type for node in second] == ["Mul"]


def test_a_failed_export_leaves_it_as_it_was() -> None:
    functions = onnxscript_values.TracedOnnxFunction
    before = vars(functions)["function_ir"]
    with pytest.raises(Exception, match="no such program"):
        to_onnx(_Broken().eval())  # type: ignore[arg-type]
    assert vars(functions)["function_ir"] is before


class _Broken(torch.nn.Module):
    def forward(self) -> Tensor:
        raise RuntimeError("no such program")
