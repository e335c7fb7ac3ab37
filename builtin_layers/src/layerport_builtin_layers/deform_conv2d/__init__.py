"""Deformable convolution, with and without a mask: `layerport_builtin::deform_conv2d`."""

from layerport_builtin_layers.deform_conv2d.reference import deform_conv2d

__all__ = ["deform_conv2d"]
