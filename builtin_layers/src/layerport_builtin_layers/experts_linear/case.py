"""What `layerport_builtin::experts_linear` is tested and measured with."""

from __future__ import annotations

from layerport.testing import CaseShape, LayerCase, Tolerance
from layerport_builtin_layers.experts_linear.reference import experts_linear


def _shape(
    reason: str,
    tokens: int,
    index: list[list[int]] | int,
    *of_weight: int,
    shared: bool = False,
    bias: bool = False,
    gpu_only: bool = False,
) -> CaseShape:
    """index: of each token, or how many each has, counted through the experts."""
    if isinstance(index, int):
        index = [[(token * 5 + place * 3) % of_weight[0] for place in range(index)] for token in range(tokens)]
    chosen = len(index[0]) if index else 2
    shapes = {
        "x": (tokens, of_weight[2]) if shared else (tokens, chosen, of_weight[2]),
        "index": (tokens, chosen),
        "weight": of_weight,
        "bias": of_weight[:2] if bias else None,
    }
    return CaseShape(reason, shapes, gpu_only=gpu_only, values={"index": index})


CASE = LayerCase(
    layer=experts_linear,
    shapes=(
        _shape("one of everything", 1, [[0]], 1, 1, 1, shared=True),
        _shape("one token of two experts", 1, [[3, 1]], 4, 24, 16, shared=True),
        _shape("a prime of tokens", 7, 2, 5, 10, 32),
        _shape("odd channels, a bias", 3, 2, 4, 5, 13, bias=True),
        _shape("one input, a bias", 3, 2, 4, 18, 8, shared=True, bias=True),
        _shape("more than a round of a warp", 2, 2, 3, 17, 328),
        _shape("experts that there are not", 2, [[0, 4], [-1, 3]], 4, 6, 8),
        _shape("no tokens", 0, [], 4, 6, 8),
        _shape("tiles, one not full, one of two", 80, 2, 2, 70, 40, shared=True, bias=True),
        _shape("tiles of odd channels, an expert without tokens", 13, [[0, 2]] * 12 + [[7, -1]], 3, 5, 13),
        _shape("a tile of thousands of products in a sum", 32, [[0]] * 32, 1, 32, 8192, shared=True),
        _shape("a token of Mixtral", 1, 2, 8, 28672, 4096, shared=True, gpu_only=True),
        _shape("a prompt of Qwen3-MoE", 2048, 8, 128, 1536, 2048, shared=True, gpu_only=True),
        _shape("16 tokens of Qwen3-MoE", 16, 8, 128, 1536, 2048, shared=True, gpu_only=True),
    ),
    dtypes=(
        {"index": "int64", "*": "float32"},
        {"index": "int64", "*": "float16"},
        {"index": "int64", "*": "bfloat16"},
    ),
    # A sum of normal products may cancel; in 16 bits half a unit in the last place comes at the end.
    tolerances={
        "float64": Tolerance(1e-11, 1e-12),
        "float32": Tolerance(1e-4, 1e-5),
        "float16": Tolerance(1e-4, 1e-3),
        "bfloat16": Tolerance(1e-4, 8e-3),
    },
)
