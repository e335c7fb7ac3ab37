"""What is private of other libraries: a file for each, with what each name is for and what is done where it is gone.

Only here stand such names; a test holds that.  They are looked up when they are needed, so one that is gone is an error
of the one thing that needs it.
"""

from typing import TYPE_CHECKING

from layerport.late import parts

if TYPE_CHECKING:
    from layerport.foreign import torch_private as torch_private

__getattr__ = parts(__name__)
