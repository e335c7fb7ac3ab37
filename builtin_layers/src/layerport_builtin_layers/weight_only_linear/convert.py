"""The codes, one in a byte in the standard form, as the kernel reads them: packed, each row in whole loads."""

from __future__ import annotations

import layerport as lp
from layerport.transforms import pack_int4, pad, widths_to_multiple

_PIECE = 8  # codes of one group, as in kernel.cu
_LOAD_BITS = 128


def packed(parameters: lp.Parameters) -> lp.Parameters:
    """Codes of 4 bits two in a byte, the first in its low half; groups padded to whole pieces, rows to whole loads.

    Raises UsageError for codes that do not fit their bits.
    """
    bits = int(str(parameters.attributes["bits"]))
    codes = parameters["codes"]
    width, groups = parameters["scales"].shape
    codes = codes.reshape(width, groups, codes.shape[1] // groups)
    codes = pad(codes, widths_to_multiple(codes.shape, (1, 1, _PIECE))).reshape(width, -1)
    codes = pad(codes, widths_to_multiple(codes.shape, (1, _LOAD_BITS // bits)))
    return parameters.replace(codes=pack_int4(codes) if bits == 4 else codes)
