"""The sizes in an exported model: unknown ones stay unknown, and two share a name only where they are equal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor
from torch.export import Dim

import layerport as lp
from layerport.bundle.bundle import Bundle
from layerport.errors import UsageError
from layerport.front.dynamic_dims import as_torch_takes_them, read_dims


@pytest.fixture(autouse=True)
def no_installed_pack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAYERPORT_DISABLE_PACKS", "builtin_layers")


def names(path: Path) -> Iterator[str]:
    """Every name of a size in the model, also in inner graphs."""
    model = onnx.load(str(path / "model.onnx"))
    graphs = [model.graph]
    for graph in graphs:
        for info in (*graph.input, *graph.output, *graph.value_info):
            yield from (dim.dim_param for dim in info.type.tensor_type.shape.dim if dim.dim_param)
        graphs += [one.g for node in graph.node for one in node.attribute if one.HasField("g")]
    for function in model.functions:
        for info in function.value_info:
            yield from (dim.dim_param for dim in info.type.tensor_type.shape.dim if dim.dim_param)


def ports(path: Path) -> tuple[list[str], list[str]]:
    bundle = Bundle.open(path)
    return [str(port) for port in bundle.inputs], [str(port) for port in bundle.outputs]


def run_plain(path: Path, **inputs: Tensor) -> list[np.ndarray[Any, Any]]:
    """What ONNX Runtime alone gives."""
    session = onnxruntime.InferenceSession(str(path / "model.onnx"), providers=["CPUExecutionProvider"])
    wanted = [one.name for one in session.get_inputs()]
    got: list[np.ndarray[Any, Any]] = session.run(None, {name: inputs[name].numpy() for name in wanted})
    return got


@pytest.fixture(scope="module")
def clip() -> Any:
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 20, "num_attention_heads": 2, "num_hidden_layers": 2}
    text = CLIPTextConfig(**small, vocab_size=50, max_position_embeddings=16, eos_token_id=49)
    vision = CLIPVisionConfig(**small, image_size=12, patch_size=4)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)
    return CLIPModel(config).eval()


def test_clip_runs_at_other_numbers_of_texts_and_images(tmp_path: Path, clip: Any) -> None:
    def inputs(texts: int, images: int) -> dict[str, Tensor]:
        ids = torch.randint(0, 49, (texts, 7))
        return {
            "input_ids": ids,
            "pixel_values": torch.randn(images, 3, 12, 12),
            "attention_mask": ids.new_ones(ids.shape),
        }

    shapes = {"input_ids": {0: "texts"}, "pixel_values": {0: "images"}, "attention_mask": {0: "texts"}}
    lp.build(clip, tmp_path / "clip.lp", args=inputs(3, 3), dynamic_shapes=shapes, target="portable")
    assert not any("None" in name for name in names(tmp_path / "clip.lp"))
    assert ports(tmp_path / "clip.lp")[1][0] == "logits_per_image: float32[images, texts]"
    for texts, images in ((2, 5), (5, 2)):
        given = inputs(texts, images)
        with torch.no_grad():
            wanted = clip(**given)
        np.testing.assert_allclose(run_plain(tmp_path / "clip.lp", **given)[0], wanted.logits_per_image, atol=1e-5)


def test_views_that_are_refused_with_gradients_on(tmp_path: Path) -> None:
    from transformers import SwinConfig, SwinModel

    config = SwinConfig(image_size=16, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[1, 1], window_size=4)
    images = torch.randn(2, 3, 16, 16)
    report = lp.build(
        SwinModel(config).eval(),
        tmp_path / "swin.lp",
        args=(images,),
        dynamic_shapes=({0: "batch"},),
        target="portable",
    )
    assert report.verification is not None and report.verification.passed


class Found(torch.nn.Module):
    """Outputs whose sizes depend on data: two unrelated ones, and their sum."""

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        first, second = torch.nonzero(x), torch.nonzero(y)
        return first * 2, second * 2, first + 1, torch.cat([first, second]) * 1, x.repeat(2, 1) + 1


def test_sizes_that_depend_on_data(tmp_path: Path) -> None:
    """The user's dims have the names of Torch's own symbols."""
    x, y = torch.randn(3, 4).relu(), torch.randn(3, 4).relu()
    shapes = {"x": {0: Dim("u0")}, "y": {0: Dim("size0")}}
    lp.build(Found(), tmp_path / "found.lp", args=(x, y), dynamic_shapes=shapes, target="portable")
    assert ports(tmp_path / "found.lp") == (
        ["x: float32[u0, 4]", "y: float32[size0, 4]"],
        [*(f"output_{place}: int64[?, 2]" for place in range(4)), "output_4: float32[2*u0, 4]"],
    )
    assert Bundle.open(tmp_path / "found.lp").outputs[0].shape == (None, 2)
    model = onnx.load(str(tmp_path / "found.lp" / "model.onnx"))
    first, second, again, both, _ = [one.type.tensor_type.shape.dim[0].dim_param for one in model.graph.output]
    assert first == again and len({first, second, both, "u0", "size0", "u1"}) == 6 and both
    for rows, others in ((5, 2), (1, 7)):
        x, y = torch.ones(rows, 4), torch.randn(others, 4).relu()
        for got, wanted in zip(run_plain(tmp_path / "found.lp", x=x, y=y), Found()(x, y), strict=True):
            np.testing.assert_array_equal(got, wanted)


def test_a_branch_of_the_graph_keeps_its_sizes_apart(tmp_path: Path) -> None:
    class Branching(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cond(x.sum() > 0, lambda a: a * 2, lambda a: a - 1, (x,))

    shapes = {"x": {0: Dim("rows")}}
    lp.build(Branching(), tmp_path / "cond.lp", args=(torch.ones(3, 4),), dynamic_shapes=shapes, target="portable")
    assert set(names(tmp_path / "cond.lp")) == {"rows"}


class Shift(torch.nn.Module):
    def forward(self, x: Tensor, by: int, y: Tensor, *more: Tensor, sign: bool, scale: dict[str, Tensor]) -> Tensor:
        total = x.sum() + y.sum() + sum(one.sum() for one in more) + scale["up"].sum()
        return total + by if sign else total


def test_a_name_after_an_input_that_is_no_tensor(tmp_path: Path) -> None:
    """Keywords come in another order than the signature has them."""
    from layerport.front.sources import Source

    args = (torch.randn(3, 4), 3, torch.randn(5, 4), torch.randn(7, 4))
    keywords = {"scale": {"up": torch.randn(6)}, "sign": True}
    shapes = {
        "x": {0: "a"},
        "by": None,
        "y": {0: Dim("b")},
        "more": ({0: "c"},),
        "sign": None,
        "scale": {"up": {0: "d"}},
    }
    source = Source(Shift(), args, keywords, shapes)
    program = torch.export.export(Shift(), args, keywords, dynamic_shapes=as_torch_takes_them(shapes), strict=False)
    assert {one.name: one.opt for one in read_dims(source, program).values()} == {"a": 3, "b": 5, "c": 7, "d": 6}


def test_a_number_between_the_inputs(tmp_path: Path) -> None:
    class Scaled(torch.nn.Module):
        def forward(self, x: Tensor, by: int, y: Tensor) -> Tensor:
            return x.sum() * by + y

    args = (torch.randn(3, 4), 3, torch.randn(5, 4))
    shapes = {"x": {0: Dim("rows")}, "by": None, "y": {0: Dim("others")}}
    lp.build(Scaled(), tmp_path / "scaled.lp", args=args, dynamic_shapes=shapes, target="portable")
    assert ports(tmp_path / "scaled.lp")[0] == ["x: float32[rows, 4]", "y: float32[others, 4]"]


def test_one_string_for_two_dims(tmp_path: Path) -> None:
    class Sums(torch.nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x.sum() + y.sum()

    shapes = {"x": {0: "n"}, "y": {0: "n"}}
    for rows, expected in ((3, ["x: float32[n]", "y: float32[n]"]), (4, ["x: float32[n]", "y: float32[n_]"])):
        out = tmp_path / f"{rows}.lp"
        lp.build(Sums(), out, args=(torch.ones(3), torch.ones(rows)), dynamic_shapes=shapes, target="portable")
        assert ports(out)[0] == expected
    with lp.load(tmp_path / "3.lp") as session, pytest.raises(UsageError, match="1 inputs do not fit") as caught:
        session(x=torch.ones(3), y=torch.ones(2))
    assert caught.value.faults == ("y: dim n is 2 here and 3 in x",)


def test_a_dim_that_is_only_part_of_a_size(tmp_path: Path) -> None:
    class Pairs(torch.nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x.reshape(-1, 2).sum(1) + y[1:]

    n = Dim("n", max=20)
    shapes = {"x": {0: 2 * n}, "y": {0: n + 1}}
    args = (torch.randn(6), torch.randn(4))
    lp.build(Pairs(), tmp_path / "pairs.lp", args=args, dynamic_shapes=shapes, target="portable")
    assert ports(tmp_path / "pairs.lp") == (["x: float32[2*n]", "y: float32[n + 1]"], ["output: float32[n]"])
    bundle = Bundle.open(tmp_path / "pairs.lp")
    assert (bundle.dims["n"].opt, bundle.dims["n"].max) == (3, 20)
    with lp.load(tmp_path / "pairs.lp") as session:
        x, y = torch.randn(8), torch.randn(5)
        np.testing.assert_allclose(session(x=x, y=y)["output"], Pairs()(x, y), rtol=1e-6)
        for x, y, fault in (
            (torch.randn(7), torch.randn(5), "x: dim 2*n cannot be 7"),
            (torch.randn(8), torch.randn(7), "y: dim n + 1 must be 5, got 7"),
            (torch.randn(44), torch.randn(23), "x: dim n must be 1..20, got 22"),
        ):
            with pytest.raises(UsageError) as caught:
                session(x=x, y=y)
            assert fault in caught.value.faults


def test_unknown_sizes_of_a_file(tmp_path: Path) -> None:
    """Two unrelated sizes called None, one without a name, and one whose name is no expression."""
    made = onnx.helper.make_tensor_value_info
    kind = onnx.TensorProto.FLOAT
    nodes = [
        onnx.helper.make_node("Relu", ["x"], ["a"]),
        onnx.helper.make_node("Relu", ["y"], ["b"]),
        onnx.helper.make_node("Relu", ["z"], ["c"]),
    ]
    given = [made("x", kind, ["None"]), made("y", kind, ["None"]), made("z", kind, ["2 * rows", None, "time (s)"])]
    gives = [made("a", kind, ["None"]), made("b", kind, ["None"]), made("c", kind, ["rows + rows", "?", "time (s)"])]
    graph = onnx.helper.make_graph(nodes, "graph", given, gives)
    onnx.save(onnx.helper.make_model(graph, ir_version=10), tmp_path / "file.onnx")
    lp.build(str(tmp_path / "file.onnx"), tmp_path / "file.lp", target="portable", ranges=["x_dim0=1..3..9"])
    assert ports(tmp_path / "file.lp") == (
        ["x: float32[x_dim0]", "y: float32[y_dim0]", "z: float32[2*rows, z_dim1, time_s]"],
        ["a: float32[x_dim0]", "b: float32[y_dim0]", "c: float32[2*rows, z_dim1, time_s]"],
    )
    x, y, z = torch.ones(7), torch.ones(2), torch.ones(4, 3, 5)
    assert [one.shape for one in run_plain(tmp_path / "file.lp", x=x, y=y, z=z)] == [(7,), (2,), (4, 3, 5)]
