"""The depthwise causal convolution of Mamba: `layerport_builtin::causal_conv1d`."""

from layerport_builtin_layers.causal_conv1d.reference import causal_conv1d

__all__ = ["causal_conv1d"]
