"""A pack that does everything right.  Tests install it under a namespace of their own."""

import torch
from torch import Tensor

import layerport as lp


@lp.layer("NAMESPACE::swish", version=3)
def swish(x: Tensor, scale: lp.Param, beta: float = 1.0) -> Tensor:
    return x * torch.sigmoid(beta * x) * scale


@swish.kernel(lp.cuda("// never compiled\n", "swish"), dtypes=("float32", {"scale": "float32", "*": "float16"}))
def launch(x, scale, y, beta):
    return lp.Launch(grid=1, block=1, args=(x, scale, y, beta))


@lp.layer("NAMESPACE::double")
def double(x: Tensor) -> Tensor:
    return x * 2.0


def doubled(module, x):
    return double(x)


@lp.hookimpl
def layerport_layers():
    return (swish, double)


@lp.hookimpl
def layerport_export_parameters(module):
    if hasattr(module, "scale"):
        return swish.bind(scale=module.scale)
    if hasattr(module, "doubling"):
        return (double.bind(), lp.rewrite(doubled, layers=[double]))
    return None


@lp.hookimpl
def layerport_convert_parameters(layer, parameters):
    if layer is swish:
        return parameters.replace(scale=parameters["scale"].astype("float16"))
    return None
