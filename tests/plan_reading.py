"""The fields of layerport's plugins in the bytes of a plan, for tests."""

from __future__ import annotations

import struct

from layerport.bundle.plugin_spec import PluginSpec
from layerport.engine.plan_fields import MAGIC, Search, read_field


def fields_in(plan: bytes) -> list[tuple[PluginSpec, bytes]]:
    """Each field with its spec, which has the images that it keeps."""
    search = Search()
    search.feed(plan)
    fields = []
    for place in search.places:
        (length,) = struct.unpack_from("<I", plan, place + len(MAGIC))
        data = plan[place : place + length]
        fields.append((read_field(data), data))
    return fields
