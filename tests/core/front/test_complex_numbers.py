"""Complex tensors within a model become pairs of real ones, or stay where nothing is known of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import layerport as lp
from layerport.front.complex_numbers import with_real_pairs
from layerport.front.exporter import quiet

X, Y = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0)), torch.linspace(0.1, 3, 10).reshape(5, 2)
ANGLES = torch.cat((Y, -Y), -1)  # four for each of the five positions


def rotated(x: Tensor, angles: Tensor) -> Tensor:
    """As DeepSeek-V2 and Llama 4 do."""
    turns = torch.polar(torch.ones_like(angles), angles) * 1.5
    return torch.view_as_real(torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2)) * turns[None]).flatten(2)


def exponentials(x: Tensor, angles: Tensor) -> Tensor:
    made = torch.exp(1j * angles) * x[..., :4] + torch.exp(torch.complex(-angles, angles.square()))
    return made.real - made.imag


def arithmetic(x: Tensor, angles: Tensor) -> Tensor:
    one = torch.complex(x[..., :4], x[..., 4:])
    other = (2 - one) * (0.5 + 1j) - (one + 3j) / angles
    return torch.view_as_real(-other * one.conj() + angles)


def moved(x: Tensor, angles: Tensor) -> Tensor:
    one = torch.complex(x, x.cos())
    first, second = one.transpose(0, 1).unsqueeze(0).chunk(2, dim=-1)
    made = torch.stack((second, torch.cat((first[..., 2:], first[..., :2]), -1)), 1).squeeze(0)
    return torch.view_as_real(made.unbind(0)[1] * made[0]).sum(0)


def joined(x: Tensor, angles: Tensor) -> Tensor:
    one = torch.complex(x, -x)
    return torch.view_as_real(torch.cat((one, x, 1j * x), -1) * torch.stack((x + 1, one), 0).sum(0).repeat(1, 1, 3))


def measured(x: Tensor, angles: Tensor) -> Tensor:
    one = torch.polar(x[..., :4].abs() + 1, angles.expand(x.shape[0], -1, -1))
    return one.abs() + one.angle() + (one.to(torch.complex128) * 2).imag.float()


def sizes(x: Tensor, angles: Tensor) -> Tensor:
    one = torch.complex(x[..., :4], angles.expand_as(x[..., :4]))
    return torch.view_as_real(one.reshape(one.shape[0] * one.shape[1], 4)) * one.shape[0]


class Buffer(nn.Module):
    """With complex numbers that it keeps."""

    turns: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("turns", torch.polar(torch.ones(4), torch.arange(4.0)).conj())
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        pairs = torch.view_as_complex(self.linear(x).unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * self.turns * torch.polar(angles.abs(), angles)).flatten(-2)


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self._function = function

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        result: Tensor = self._function(x, angles)
        return result


def exported(model: nn.Module) -> torch.export.ExportedProgram:
    positions = Dim("positions", min=2, max=9)
    shapes = ({0: Dim("batch", min=2, max=9), 1: positions}, {0: positions})
    with torch.no_grad(), quiet():
        return torch.export.export(model.eval(), (X, ANGLES), dynamic_shapes=shapes).run_decompositions({})


def dtypes(program: torch.export.ExportedProgram) -> set[torch.dtype]:
    values = [node.meta.get("val") for node in program.graph.nodes]
    return {one.dtype for value in values for one in (value if isinstance(value, (list, tuple)) else [value])
            if isinstance(one, torch.Tensor)}  # fmt: skip


FUNCTIONS = (rotated, exponentials, arithmetic, moved, joined, measured, sizes)


@pytest.mark.parametrize("function", [*FUNCTIONS, None])
def test_pairs_give_what_complex_numbers_give(function: Any) -> None:
    model = Buffer() if function is None else Function(function)
    program = exported(model)
    assert any(one.is_complex for one in dtypes(program))
    names = [spec.arg.name for spec in program.graph_signature.output_specs]
    assert with_real_pairs(program)
    assert not any(one.is_complex for one in dtypes(program))
    assert [spec.arg.name for spec in program.graph_signature.output_specs] == names
    for x, angles in ((X, ANGLES), (torch.cat((X, X[:1] - 1))[:, :3], ANGLES[1:4])):
        with quiet():
            got = program.module()(x, angles)
        torch.testing.assert_close(got, model(x, angles))


def test_a_model_without_complex_numbers_stays_as_it_is() -> None:
    program = exported(Function(lambda x, angles: x[..., :4] * angles.cos()))
    before = program.graph
    assert not with_real_pairs(program) and program.graph is before


@pytest.mark.parametrize(
    "function",
    [
        lambda x, angles: torch.fft.fft(x).real,
        lambda x, angles: torch.view_as_real(torch.complex(x, x).cumsum(-1)),
        lambda x, angles: torch.complex(x[..., :4], angles.expand_as(x[..., :4])),
        lambda x, angles: torch.complex(x, -x).view(torch.float32) * 2,
        lambda x, angles: torch.view_as_real(x.view(torch.complex64)) + 1,
    ],
    ids=["a transform", "a function that is not known", "an output", "bytes of one", "one of bytes"],
)
def test_what_is_not_known_stays_as_it_is(function: Any) -> None:
    program = exported(Function(function))
    before, specs = program.graph, list(program.graph_signature.input_specs)
    assert not with_real_pairs(program)
    assert program.graph is before and program.graph_signature.input_specs == specs


def test_a_model_that_rotates_by_complex_numbers_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAYERPORT_FIND", "0")
    report = lp.build((Buffer(), (X, ANGLES)), tmp_path / "a.lp", target="portable")
    assert report.verification is not None and report.verification.passed
