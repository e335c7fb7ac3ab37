"""Small Torch models for the tests of a whole build, and the samples that they run on.

As a file it is also a source for the command line: `small_models.py:net`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

WIDTH = 16


class SmallScale(nn.Module):
    """Scales by a weight; `packs/small.py` claims it by this name."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class SmallNorm(nn.Module):
    """An RMS normalisation by `weight`, or by `1 + weight` where `shifted`."""

    def __init__(self, width: int = WIDTH, eps: float = 1e-5, shifted: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)
        self.eps = eps
        self.shifted = shifted

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        weight = self.weight + 1 if self.shifted else self.weight
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype) * weight


class SmallGate(nn.Module):
    """A gated activation between three projections."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.left, self.right, self.down = (nn.Linear(width, width, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.down(nn.functional.silu(self.left(x)) * self.right(x))


class Net(nn.Module):
    """Two norms with different epsilon, a gated activation and a scale."""

    def __init__(self) -> None:
        super().__init__()
        self.first = SmallNorm()
        self.gate = SmallGate()
        self.second = SmallNorm(eps=1e-3, shifted=True)
        self.scale = SmallScale()

    def forward(self, x: Tensor) -> Tensor:
        return self.scale(self.second(x + self.gate(self.first(x))))


def sample(rows: int = 3, width: int = WIDTH, *, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    """Seeded input."""
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)).to(dtype)


ROWS = ({0: Dim("rows", min=1, max=64)},)


def net(dtype: torch.dtype = torch.float32) -> tuple[nn.Module, tuple[Any, ...], Any]:
    """The net with a dynamic number of rows."""
    torch.manual_seed(0)
    return Net().eval().to(dtype), (sample(dtype=dtype),), ROWS


def net_fp16() -> tuple[nn.Module, tuple[Any, ...], Any]:
    """The same in float16."""
    return net(torch.float16)


def bare() -> nn.Module:
    """The net without example inputs."""
    return net()[0]


def fails() -> None:
    """A callable that raises."""
    raise ValueError("no weights here")


def a_number() -> int:
    """A callable that returns the wrong thing."""
    return 3


def a_pair_of_wrong_things() -> tuple[Any, ...]:
    """A tuple whose first item is no module."""
    return "model", (sample(),)


def four() -> tuple[Any, ...]:
    """A tuple that is too long."""
    return Net(), (sample(),), None, None


def scripted() -> Any:
    """A TorchScript module in place of an nn.Module."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Torch deprecates TorchScript
        return torch.jit.trace(Net().eval(), (sample(),)), (sample(),)


def wrong_inputs() -> tuple[Any, ...]:
    """Example inputs that the model does not take."""
    return Net().eval(), (sample(width=WIDTH + 1),)


NOT_CALLABLE = 7
MODEL_OBJECT = nn.Identity()


class Hidden(torch.nn.Module):
    """A model of transformers as a function from token ids to hidden states."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.model(input_ids=input_ids, use_cache=False).last_hidden_state
        return hidden
