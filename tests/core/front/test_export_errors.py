"""What is said where an export stops: the place, the cause, and a repair that was tried and works."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner
from torch import Tensor, nn
from torch.export import Dim

import layerport as lp
from layerport.cli import main
from layerport.commands.explaining import explain
from layerport.front.export_errors import LONGEST, cut
from small_models import ROWS, sample

SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "pad_token_id": 0,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
}


@pytest.fixture(autouse=True)
def no_installed_pack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAYERPORT_DISABLE_PACKS", "builtin_layers")


def refused(source: Any, tmp_path: Path, kind: type[lp.LayerportError] = lp.BuildError) -> lp.LayerportError:
    with pytest.raises(kind) as caught:
        lp.build(source, tmp_path / "it.lp", target="portable")
    assert not (tmp_path / "it.lp").exists()
    return caught.value


class Does(nn.Module):
    """Runs a function."""

    def __init__(self, what: Any) -> None:
        super().__init__()
        self.what = what

    def forward(self, x: Tensor) -> Any:
        return self.what(x)


def test_an_operator_of_torch_is_no_matter_of_packs(tmp_path: Path) -> None:
    error = refused((Does(torch.special.bessel_j0), (sample(),)), tmp_path)
    assert error.fault.endswith("in module (root) (Does): operator prims::bessel_j0 has no ONNX form")
    assert "name the pack" not in str(error.repair)
    assert "compute it with other operators in that module" in str(error.repair)


def test_an_operator_of_nobody_known_may_be_a_layer(tmp_path: Path) -> None:
    library = torch.library.Library("lp_nobody", "FRAGMENT")
    library.define("thing(Tensor x) -> Tensor")
    library.impl("thing", lambda x: x + 1, "CompositeExplicitAutograd")
    error = refused((Does(lambda x: torch.ops.lp_nobody.thing(x)), (sample(),)), tmp_path)
    assert "operator lp_nobody::thing has no ONNX form" in error.fault
    assert "if it is the layer of a pack, name the pack" in str(error.repair)


def test_a_check_of_values_is_to_be_left_out(tmp_path: Path) -> None:
    def checked(x: Tensor) -> Tensor:
        torch._check_tensor_all(x < 100)
        return x + 1

    error = refused((Does(checked), (sample(),), ROWS), tmp_path)
    assert "operator aten::_is_all_true has no ONNX form" in error.fault
    assert "TRANSFORMERS_DISABLE_TORCH_CHECK=1" in str(error.repair)


def test_a_branch_on_values_shows_the_line(tmp_path: Path) -> None:
    def branches(x: Tensor) -> Tensor:
        found = x.nonzero()
        return x * 2 if found.shape[0] > 3 else x

    error = refused((Does(branches), (sample(),), ROWS), tmp_path)
    assert "a size or a branch depends on the values of a tensor: u0 > 3, at " in error.fault
    assert "test_export_errors.py:" in error.fault
    assert "return x * 2 if found.shape[0] > 3 else x" in error.fault
    assert "compute it with fixed sizes" in str(error.repair)


def test_a_long_condition_is_cut(tmp_path: Path) -> None:
    def counts(x: Tensor) -> Tensor:
        total = 0
        for place in range(80):
            total = total + 4 * torch.sym_min(300, (x > place).nonzero().shape[0])
        return x * 2 if total > 7 else x

    error = refused((Does(counts), (sample(),)), tmp_path)
    assert "Min(300, u" in error.fault
    assert "more characters ...]" in error.fault
    assert len(str(error)) < 6 * LONGEST
    assert len(str(error.__cause__)) > 1000


def test_cutting_keeps_both_ends() -> None:
    text = "begin" + "x" * 2000 + "end"
    short = cut(text)
    assert short.startswith("begin") and short.endswith("end") and len(short) < LONGEST + 50
    left, _, rest = short.partition(" [... ")
    count, _, right = rest.partition(" more characters ...] ")
    assert len(left) + int(count) + len(right) == len(text)
    assert cut("x" * LONGEST) == "x" * LONGEST


def test_a_violated_constraint_shows_what_torch_says_of_it(tmp_path: Path) -> None:
    error = refused((Does(lambda x: x.reshape(3, 16) + 1), (sample(3),), ROWS), tmp_path)
    assert error.fault.endswith("constraints violated (rows)")
    assert len(error.faults) == 1
    assert "your code specialized it to be a constant (3)" in error.faults[0]
    assert "leave such a dim static" in str(error.repair)


def test_a_size_that_torch_would_keep_apart_from_one(tmp_path: Path) -> None:
    class Shifted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            pad = nn.functional.pad
            return torch.cat([pad(x[:, 1:], (0, 0, 0, 1)), x, pad(x[:, :-1], (0, 0, 1, 0))], dim=2)

    shapes = ({0: Dim("rows", min=1, max=9), 1: Dim("length", min=1, max=30)},)
    report = lp.build((Shifted(), (torch.randn(3, 5, 4),), shapes), tmp_path / "it.lp", target="portable")
    with lp.load(report.path) as session:
        for rows, length in ((1, 1), (1, 4), (4, 1), (2, 2), (7, 9)):
            x = torch.randn(rows, length, 4)
            np.testing.assert_allclose(session(x=x)["output"], Shifted()(x).numpy(), rtol=1e-6, atol=1e-6)


# Caches


def llama() -> nn.Module:
    torch.manual_seed(0)
    made: nn.Module = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).eval()
    return made


def test_a_cache_among_outputs_and_inputs(tmp_path: Path) -> None:
    model, tokens = llama(), torch.randint(1, 50, (2, 5))
    error = refused((model, (tokens,)), tmp_path, lp.UsageError)
    assert error.faults == ("output past_key_values is a DynamicCache, not a tensor",)
    assert "model.config.use_cache = False" in str(error.repair)
    with pytest.raises(lp.UsageError) as caught:
        explain((model, (tokens,)))
    assert caught.value.faults == error.faults
    with torch.no_grad():
        cache = model(tokens).past_key_values
    error = refused((model, {"input_ids": tokens, "past_key_values": cache}), tmp_path, lp.UsageError)
    assert error.faults == ("input past_key_values is a DynamicCache, not a tensor",)
    assert "DynamicCache(pairs)" in str(error.repair)
    error = refused((model, (tokens, None, None, cache)), tmp_path, lp.UsageError)
    assert error.faults == ("input args.3 is a DynamicCache, not a tensor",)


def test_the_repairs_for_a_cache(tmp_path: Path) -> None:
    class WithPairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = llama()

        def forward(self, input_ids: Tensor, past: Any) -> Any:
            given = self.model(input_ids, past_key_values=transformers.DynamicCache(past))
            return {"logits": given.logits, "now": [(one.keys, one.values) for one in given.past_key_values.layers]}

    model, tokens = llama(), torch.randint(1, 50, (2, 5))
    report = lp.build((model, {"input_ids": tokens, "use_cache": False}), tmp_path / "off.lp", target="portable")
    assert report.verification is not None and report.verification.passed

    batch, length = Dim("batch", min=1, max=4), Dim("length", min=1, max=40)
    axes = {0: batch, 2: length}
    example = {"input_ids": tokens[:, :1], "past": [(torch.randn(2, 1, 5, 8), torch.randn(2, 1, 5, 8))]}
    shapes = {"input_ids": {0: batch}, "past": [(axes, axes)]}
    kept = WithPairs()
    report = lp.build((kept, example, shapes), tmp_path / "kept.lp", target="portable")
    pair = torch.randn(3, 1, 11, 8), torch.randn(3, 1, 11, 8)
    one = torch.randint(1, 50, (3, 1))
    with lp.load(report.path) as session, torch.no_grad():
        got = session.run(dict(zip([port.name for port in session.bundle.inputs], [one, *pair], strict=True)))
        expected = kept(one, [pair])
    np.testing.assert_allclose(got["logits"], expected["logits"].numpy(), rtol=1e-3, atol=1e-5)
    assert [value.shape for value in got.values()] == [(3, 1, 50), (3, 1, 12, 8), (3, 1, 12, 8)]


# Mixtures of experts


def test_experts_name_the_switch_that_helps(tmp_path: Path) -> None:
    class Logits(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.inner = model

        def forward(self, tokens: Tensor) -> Tensor:
            return self.inner(tokens, use_cache=False).logits

    torch.manual_seed(0)
    config = transformers.MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2)
    model = Logits(transformers.MixtralForCausalLM(config).eval())
    shapes = ({0: Dim("batch", min=2, max=8), 1: Dim("sequence", min=2, max=32)},)
    example = torch.randint(1, 50, (2, 6))
    switch = 'call model.inner.set_experts_implementation("batched_mm") before the build: that form exports'
    error = refused((model, (example,)), tmp_path)
    assert "mlp.experts (MixtralExperts): operator transformers::grouped_mm_fallback has no ONNX form" in error.fault
    assert error.repair == switch
    model.inner.set_experts_implementation("eager")  # a loop over the experts that have tokens
    error = refused((model, (example,)), tmp_path)
    assert "(MixtralExperts): " in error.fault and "for expert_idx in expert_hit" in error.fault
    assert "modeling_mixtral.py:" in error.fault
    assert error.repair == switch
    model.inner.set_experts_implementation("batched_mm")
    report = lp.build((model, (example,), shapes), tmp_path / "it.lp", target="portable")
    tokens = torch.randint(1, 50, (3, 9))
    with lp.load(report.path) as session, torch.no_grad():
        np.testing.assert_allclose(session(tokens=tokens)["output"], model(tokens).numpy(), rtol=1e-3, atol=1e-4)


def check(x: Tensor) -> Tensor:
    """Not for a single row."""
    torch._check(x.shape[0] != 1)
    return x + 1


def test_sizes_that_the_model_refuses_are_refused_by_a_session(tmp_path: Path) -> None:
    report = lp.build((Does(check), (sample(3),), ROWS), tmp_path / "it.lp", target="portable")
    (warning,) = [one for one in report.warnings if "rows" in one]
    assert warning.startswith(
        "a session will take sizes where rows != 1 only: rows=1 is within its range, and it fails"
    )
    with lp.load(report.path) as session:
        for rows in (2, 5):
            np.testing.assert_allclose(session(x=sample(rows))["output"], sample(rows).numpy() + 1, rtol=1e-6)
        with pytest.raises(lp.UsageError) as caught:
            session(x=sample(1))
    assert caught.value.faults == ("the model is right only where rows != 1, got rows=1",)
    shown = CliRunner().invoke(main, ["inspect", str(report.path)]).stdout
    assert "only where rows != 1, for the model; a session checks it" in shown


def test_a_branch_for_one_leaves_it_out(tmp_path: Path) -> None:
    branch = Does(lambda x: x * 2 if x.shape[0] == 1 else x + 1)
    report = lp.build((branch, (sample(3),), ROWS), tmp_path / "it.lp", target="portable")
    assert any("dim rows starts at 2: at 1 the model takes another way" in one for one in report.warnings)
    with lp.load(report.path) as session, pytest.raises(lp.UsageError) as caught:
        session(x=sample(1))
    assert caught.value.faults == ("x: dim rows must be 2..64, got 1",)


def test_any_other_branch_is_refused(tmp_path: Path) -> None:
    error = refused((Does(lambda x: x * 2 if x.shape[0] % 2 == 0 else x + 1), (sample(3),), ROWS), tmp_path)
    assert (
        "the model is exported for sizes where" in error.faults[0] and "rows=2 is within its range" in error.faults[0]
    )


def test_a_condition_that_is_none_on_the_dims_is_damage(tmp_path: Path) -> None:
    report = lp.build((Does(check), (sample(3),), ROWS), tmp_path / "it.lp", target="portable")
    manifest = report.path / "manifest.json"
    manifest.write_text(manifest.read_text().replace("rows != 1", "other != 1"))
    with pytest.raises(lp.BuildError, match="condition 'other != 1' names a size that is no dim"):
        lp.load(report.path)
