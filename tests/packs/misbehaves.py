"""A pack that loads, and then does what `module.deed` or the target says: raises, exits, answers nonsense."""

import sys

from torch import Tensor

import layerport as lp
from layerport.errors import UsageError


@lp.layer("NAMESPACE::moody")
def moody(x: Tensor) -> Tensor:
    return x * 1.0


@lp.layer("NAMESPACE::hidden")
def hidden(x: Tensor) -> Tensor:
    return x * 1.0


def do(deed):
    if deed == "raise":
        raise ValueError("no such\nweight")
    if deed == "refuse":
        raise UsageError("two faults", "mend them", faults=["first", "second"])
    if deed == "exit":
        sys.exit(7)
    if deed == "interrupt":
        raise KeyboardInterrupt
    return {"layer": moody, "text": "nonsense", "mixed": (moody.bind(), 5), "hidden": hidden.bind()}.get(deed)


@lp.hookimpl
def layerport_layers():
    return (moody,)


@lp.hookimpl
def layerport_export_parameters(module, name):
    return do(getattr(module, "deed", None))


@lp.hookimpl
def layerport_convert_parameters(layer, parameters, target):
    return do(target)


@lp.hookimpl
def layerport_create_plugin(layer, bound, target):
    return do(target)
