"""A layer, and what follows from its reference: the Torch operator, its module, its shape rule."""

from typing import TYPE_CHECKING

from layerport.late import parts

if TYPE_CHECKING:
    from layerport.layers import autograd as autograd
    from layerport.layers import derivation as derivation
    from layerport.layers import module as module
    from layerport.layers import operator as operator

__getattr__ = parts(__name__)
