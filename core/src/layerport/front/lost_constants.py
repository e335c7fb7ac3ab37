"""Constants that an exported graph uses and has no longer.  `exporter` imports it.

Where onnxscript's optimizer makes a Clip of a Min and a Max, it calls the bounds after the tensor that is clipped; of
two Clips of one tensor it forgets the first one's (seen in onnxscript 0.7.2).  No runtime would read the file.
"""

from __future__ import annotations

import onnx_ir as ir


def bring_back(graph: ir.Graph) -> None:
    """Enter each constant that a node of the graph uses, and no graph has, under a name that is free."""
    used = dict.fromkeys(value for node in graph.all_nodes() for value in node.inputs if value is not None)
    lost = [
        value
        for value in used
        if value.producer() is None and value.const_value is not None and not value.is_initializer()
    ]
    if not lost:
        return
    outputs = (value for node in graph.all_nodes() for value in node.outputs)
    taken = {value.name for value in (*graph.inputs, *graph.initializers.values(), *outputs)}
    for value in lost:
        stem = value.name or "constant"
        place = 0
        while value.name is None or value.name in taken:
            value.name = f"{stem}_{place}"
            place += 1
        taken.add(value.name)
        graph.register_initializer(value)
