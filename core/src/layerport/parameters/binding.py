"""The values that a layer is bound with, checked and brought to the standard form.  Needs NumPy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from layerport.errors import UsageError
from layerport.parameters.arguments import MISSING, Argument, count
from layerport.parameters.arrays import Array
from layerport.parameters.conversion import to_standard
from layerport.parameters.signature import Signature
from layerport.parameters.standard_form import Parameters
from layerport.parameters.steps import Converted, Step


def convert_arguments(
    signature: Signature,
    values: Mapping[str, Any],
    *,
    path: str,
) -> tuple[Parameters, tuple[Step, ...]]:
    """Check and convert every parameter and attribute of one layer.

    values: by argument name; None or nothing for an absent optional parameter.  path: the place in the model.
    Raises UsageError with all faults at once.
    """
    arrays: dict[str, Array] = {}
    steps: list[Step] = []
    faults: list[str] = []
    for argument in signature.params:
        try:
            converted = _parameter(argument, values.get(argument.name, MISSING), path)
        except UsageError as error:
            faults.append(error.fault + (f" ({error.repair})" if error.repair else ""))
            continue
        if converted is not None:
            arrays[argument.name] = converted.array
            steps += converted.steps
    tensors = {argument.name for argument in signature.tensors}
    attributes, wrong = signature.check_attributes(
        {name: value for name, value in values.items() if name not in tensors}, path=path
    )
    faults += wrong
    faults += [
        f"{path}.{argument.name}: a run-time input, not a parameter (give it when the layer is called)"
        for argument in signature.inputs
        if argument.name in values
    ]
    if faults:
        takes = ", ".join(str(a) for a in signature.arguments if a not in signature.inputs) or "no parameters"
        raise UsageError(f"{path}: {count(len(faults), 'argument')} at fault", f"it takes {takes}", faults=faults)
    return Parameters(arrays, attributes), tuple(steps)


def _parameter(argument: Argument, value: Any, path: str) -> Converted | None:
    where = f"{path}.{argument.name}"
    if value is MISSING or value is None:
        if argument.optional and (value is None or not argument.required):
            return None
        raise UsageError(f"{where}: expected a tensor, got {'None' if value is None else 'nothing'}")
    return to_standard(value, path=where)
