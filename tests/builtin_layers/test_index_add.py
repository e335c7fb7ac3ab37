"""Sums over equal indices: against a loop, found as models write them, in a graph network, what is refused."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import layerport as lp
from layerport.errors import LayerportError
from layerport.testing import check_backward, check_spellings, run_kernel
from layerport_builtin_layers.index_add import index_add, reference
from layerport_builtin_layers.index_add.case import CASE
from small_setup import ENGINE

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to run kernels on the CPU with")
FLOAT32 = [one for one in CASE.cases() if one.choice == CASE.dtypes[0]]
BASE, INDEX, SOURCE = torch.zeros(3, 2), torch.tensor([2, 0, 2]), torch.tensor([[1.0, 2], [4, 8], [16, 32]])


@pytest.mark.parametrize("case", FLOAT32, ids=lambda case: case.id)
def test_it_sums_what_a_loop_over_the_rows_of_source_sums(case: Any) -> None:
    base, index, source = case.arguments(case.tensors())
    expected = base.double()
    for place, row in zip(index.tolist(), source, strict=True):
        expected[place] += row
    torch.testing.assert_close(index_add(base, index, source), expected.float())
    check_spellings(index_add, base, index, source)
    if source.numel() < 200:
        check_backward(index_add, base, index, source)


def test_it_is_what_torch_computes() -> None:
    assert torch.equal(index_add(BASE, INDEX, SOURCE), torch.index_add(BASE, 0, INDEX, SOURCE))


@needs_compiler
def test_an_index_below_0_counts_from_the_end() -> None:
    for got in (index_add(BASE, INDEX - 3, SOURCE), torch.from_numpy(run_kernel(index_add, BASE, INDEX - 3, SOURCE))):
        assert got.tolist() == [[4, 8], [0, 0], [17, 34]]


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_of_16_bits_are_rounded_once(dtype: torch.dtype) -> None:
    count = 2048  # of halves: in 16 bits the sum would stop where a half is less than is kept
    given = torch.zeros(1, 1, dtype=dtype), torch.zeros(count, dtype=torch.int64), torch.full((count, 1), 0.5).to(dtype)
    assert index_add(*given).item() == count / 2
    assert float(run_kernel(index_add, *given).item()) == count / 2


@needs_compiler
@pytest.mark.parametrize("offset", [4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_kernel_takes_misaligned_pointers_under_the_address_sanitiser(dtype: torch.dtype, offset: int) -> None:
    base, source = torch.randn(7, 5, 3).to(dtype), torch.randn(23, 5, 3).to(dtype)
    index = torch.arange(23, dtype=torch.int32) * 5 % 7
    got = torch.from_numpy(run_kernel(index_add, base, index, source, offset=offset, sanitize=offset == 4))
    torch.testing.assert_close(got, index_add(base, index, source))


KERNEL = str(Path(str(reference.__file__)).with_name("kernel.cu"))


@lp.layer("index_add_tests::unchecked", version=1, find=False)
def unchecked(base: Tensor, index: Tensor, source: Tensor) -> Tensor:
    """What has the kernel of index_add, and a reference that takes any index."""
    return base.clone()


@unchecked.kernel(
    lp.cuda(KERNEL, "index_add_begin<{base}>"),
    lp.cuda(KERNEL, "index_add_rows<{source}, {index}>"),
    dtypes=({"index": "int64", "*": "float32"},),
)
def launch(base: lp.TensorType, index: lp.TensorType, source: lp.TensorType, y: lp.TensorType) -> tuple[lp.Launch, ...]:
    return reference.launch(base, index, source, y)


@needs_compiler
@pytest.mark.parametrize(("wrong", "place"), [(3, 2), (2**40, 2), (-4, 0), (-(2**40), 0)])
def test_an_index_that_is_no_row_is_an_error_and_a_nan_of_the_kernel(wrong: int, place: int) -> None:
    index = torch.tensor([1, wrong, 1])
    with pytest.raises(IndexError, match="is out of bounds"):
        index_add(BASE, index, SOURCE)
    expected = torch.tensor([[0.0, 0], [17, 34], [0, 0]])
    expected[place] = math.nan
    got = torch.from_numpy(run_kernel(unchecked, BASE, index, SOURCE, sanitize=wrong == 3))
    torch.testing.assert_close(got, expected, equal_nan=True)
    assert run_kernel(unchecked, BASE[:0], index, SOURCE).shape == (0, 2)


def wide(index: Tensor, x: Tensor) -> Tensor:
    """As torch_geometric makes an index as wide as what it scatters."""
    return index.view(-1, *[1] * (x.ndim - 1)).expand_as(x)


FOUND: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "index_add": lambda base, index, x: base.index_add(0, index, x),
    "index_add of zeros": lambda base, index, x: x.new_zeros(base.shape[0], x.shape[1]).index_add_(0, index, x),
    "index_add, -2": lambda base, index, x: torch.index_add(base, -2, index, x),
    "index_add, alpha": lambda base, index, x: base.index_add(0, index, x, alpha=2),
    "index_add, numbers": lambda base, index, x: base[:, 0].index_add(0, index, x[:, 0]),
    "index_add, more axes": lambda base, index, x: base.unflatten(1, (2, 2)).index_add(
        0, index, x.unflatten(1, (2, 2))
    ),
    "index_put": lambda base, index, x: base.index_put((index,), x, accumulate=True),
    "scatter_add": lambda base, index, x: base.scatter_add(0, index[:, None].expand_as(x), x),
    "scatter_add of zeros": lambda base, index, x: x.new_zeros(base.shape[0], 4).scatter_add_(0, wide(index, x), x),
    "scatter_add, -2": lambda base, index, x: base.scatter_add(-2, index.unsqueeze(-1).expand(-1, x.shape[1]), x),
    "scatter_add, numbers": lambda base, index, x: base[:, 0].scatter_add(0, index, x[:, 0]),
    "scatter_add, more axes": lambda base, index, x: base.unflatten(1, (2, 2)).scatter_add(
        0, wide(index, x.unflatten(1, (2, 2))), x.unflatten(1, (2, 2))
    ),
    "scatter_reduce": lambda base, index, x: base.scatter_reduce(0, index[:, None].expand_as(x), x, "sum"),
}
OTHERS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "along the channels": lambda base, index, x: base.mT.index_add(1, index, x.mT),
    "without the base": lambda base, index, x: base.scatter_reduce(
        0, index[:, None].expand_as(x), x, "sum", include_self=False
    ),
    "the largest": lambda base, index, x: base.scatter_reduce(0, index[:, None].expand_as(x), x, "amax"),
    "an index for each number": lambda base, index, x: base.scatter_add(0, (x > 0).long(), x),
    "the last one stays": lambda base, index, x: base.index_put((index,), x),
    "one row for all": lambda base, index, x: base.index_put((index,), x[0], accumulate=True),
}


class Forms(nn.Module):
    """Several of them, each of rows of its own, so that none is the same as another one."""

    def __init__(self, forms: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]]) -> None:
        super().__init__()
        self.forms = tuple(forms.values())

    def forward(self, base: Tensor, index: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(form(base, index, (x + place).sin()) for place, form in enumerate(self.forms))


def grades(forms: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]], dtype: torch.dtype, out: Path) -> list[str]:
    """Those of the places that a build finds, after it has compared what the model gives."""
    torch.manual_seed(3)
    args = (torch.randn(5, 4).to(dtype), torch.tensor([0, 3, 3, 1, 0, 0, 4]), torch.randn(7, 4).to(dtype))
    rows, count = Dim("rows", min=2, max=64), Dim("count", min=2, max=64)
    report = lp.build((Forms(forms), args, ({0: rows}, {0: count}, {0: count})), out, target="portable")
    assert report.verification is not None and report.verification.passed
    assert {one.layer for one in report.found} <= {index_add.name}
    return sorted(one.grade for one in report.found)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_it_is_found_as_models_write_it(dtype: torch.dtype, tmp_path: Path) -> None:
    exact = sum(form.startswith("index") for form in FOUND) if dtype == torch.float32 else 0
    expected = ["exact"] * exact + ["formula"] * (len(FOUND) - exact)
    assert grades(FOUND, dtype, tmp_path / "a.lp") == expected


@pytest.mark.filterwarnings("ignore")
def test_what_only_looks_like_it_stays(tmp_path: Path) -> None:
    assert grades(OTHERS, torch.float32, tmp_path / "a.lp") == []


class GraphConv(nn.Module):
    """Message passing as torch_geometric writes it: rows gathered, messages, their mean at each target."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.message, self.update = nn.Linear(2 * channels, channels), nn.Linear(channels, channels)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        sources, targets = edges[0], edges[1]
        ours, theirs = x.index_select(-2, targets), x.index_select(-2, sources)
        message = self.message(torch.cat((ours, theirs), -1)).relu()
        sums = message.new_zeros(x.size(0), message.size(-1)).scatter_add_(0, wide(targets, message), message)
        ones = message.new_ones(targets.size(0))
        degrees = message.new_zeros(x.size(0)).scatter_add_(0, targets, ones).clamp(min=1)
        result: Tensor = x + self.update(sums / degrees.unsqueeze(-1))
        return result


class GraphNetwork(nn.Module):
    """Two of them, and a sum over the nodes of each graph of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions, self.last = nn.ModuleList([GraphConv(8), GraphConv(8)]), nn.Linear(8, 3)

    def forward(self, x: Tensor, edges: Tensor, batch: Tensor, graphs: Tensor) -> Tensor:
        for one in self.convolutions:
            x = one(x, edges)
        result: Tensor = self.last(graphs.index_add(0, batch, x))
        return result


def network(dtype: torch.dtype) -> tuple[nn.Module, tuple[Tensor, ...], Any]:
    torch.manual_seed(0)
    edges = torch.tensor([[0, 1, 2, 3, 4, 0, 5, 2], [1, 0, 1, 2, 2, 5, 4, 5]])
    args = (torch.randn(6, 8).to(dtype), edges, torch.tensor([0, 0, 0, 1, 1, 1]), torch.zeros(2, 8, dtype=dtype))
    nodes, count, graphs = Dim("nodes", min=2, max=64), Dim("edges", min=2, max=256), Dim("graphs", min=2, max=8)
    return GraphNetwork().to(dtype).eval(), args, ({0: nodes}, {1: count}, {0: nodes}, {0: graphs})


@needs_compiler
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_graph_network_builds_with_its_sums_as_plugins(dtype: torch.dtype, tmp_path: Path) -> None:
    report = lp.build(network(dtype), tmp_path / "a.lp", target=ENGINE)
    assert report.counts == {index_add.name: {"plugin": 4}}  # both convolutions have the same degrees
    assert report.verification is not None and report.verification.passed
    assert {one.answer for one in report.verification.kernels} == {"right"}
    assert list((tmp_path / "a.lp").glob("*.plan"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("options", "said"), [({"no_find": [index_add.name]}, "Scatter"), ({"decompose": [index_add.name]}, "Scatter")]
)
def test_without_it_tensorrt_refuses_a_graph_network(options: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(LayerportError, match=said):
        lp.build(network(torch.float32), tmp_path / "a.lp", target=ENGINE, **options)


def test_gradients_go_to_the_base_and_to_each_row() -> None:
    base, source = BASE.double().requires_grad_(), SOURCE.double().requires_grad_()
    weights = torch.tensor([[1.0, 2], [3, 4], [5, 6]], dtype=torch.float64)
    (index_add(base, INDEX, source) * weights).sum().backward()
    assert base.grad is not None and torch.equal(base.grad, weights)
    assert source.grad is not None and source.grad.tolist() == [[5, 6], [1, 2], [5, 6]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((BASE, INDEX, SOURCE[:2]), r"index_add: shapes do not fit: base \[3, 2\], index \[3\], source \[2, 2\]; give"),
        ((BASE, INDEX[:, None], SOURCE), "index_add: shapes do not fit: "),
        ((BASE, INDEX, SOURCE[:, :1]), "index_add: shapes do not fit: "),
        ((BASE, INDEX, SOURCE[:, 0]), "index_add: shapes do not fit: "),
        ((BASE[0, 0], INDEX, SOURCE), "index_add: shapes do not fit: "),
        (
            (BASE.half(), INDEX, SOURCE),
            "dtypes do not fit: base torch.float16, index torch.int64, source torch.float32",
        ),
        ((BASE, INDEX.bool(), SOURCE), "index_add: dtypes do not fit: .* give base and source in one floating-point"),
        ((BASE.int(), INDEX, SOURCE.int()), "index_add: dtypes do not fit: base torch.int32"),
        ((BASE, INDEX.float(), SOURCE[0]), "index_add: shapes do not fit: .*; dtypes do not fit: "),
    ],
)
def test_what_does_not_fit_is_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        index_add(*arguments)
