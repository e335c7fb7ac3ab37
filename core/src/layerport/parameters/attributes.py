"""The value of an attribute in the standard form: plain Python, of the type that the signature states.

Imports neither torch nor numpy; values of other frameworks are read by `plain`, once one shows up.
"""

from __future__ import annotations

import types
from typing import Any

import layerport.parameters
from layerport.errors import UsageError
from layerport.parameters.arguments import Attribute, Scalar, show_value


class WrongValueError(Exception):
    """Carries "<wanted>, got <value>"."""


def normalise(value: Any, type_name: str, optional: bool = False) -> Attribute:
    """`value` as an attribute of this type, in the standard form."""
    wanted = type_name + ("?" if optional else "")
    if type(value) not in (int, float, bool, str, list, tuple, types.NoneType):
        try:
            value = layerport.parameters.plain.to_plain(value, type_name)
        except UsageError as error:
            raise WrongValueError(f"{wanted}, got {error.fault}") from None
    if value is None:
        if optional:
            return None
        raise WrongValueError(f"{wanted}, got None")
    if not type_name.endswith("[]"):
        return _normalise_scalar(value, type_name, wanted)
    if not isinstance(value, (list, tuple)):
        raise WrongValueError(f"{wanted}, got {show_value(value)}")
    items = []
    for index, item in enumerate(value):
        if type(item) not in (int, float, bool, str):
            item = _plain_item(item, wanted, index)
        items.append(_normalise_scalar(item, type_name[:-2], wanted, f" at index {index}"))
    return tuple(items)


def _plain_item(item: Any, wanted: str, index: int) -> Any:
    try:
        return layerport.parameters.plain.to_plain(item)
    except UsageError as error:
        raise WrongValueError(f"{wanted}, got {error.fault} at index {index}") from None


def _normalise_scalar(value: Any, type_name: str, wanted: str, where: str = "") -> Scalar:
    fault = WrongValueError(f"{wanted}, got {show_value(value)}{where}")
    if type_name == "float":
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise fault
        try:
            return float(value)
        except OverflowError:
            raise fault from None
    if type_name == "int":
        if isinstance(value, bool) or not isinstance(value, int):
            raise fault
        if not -(2**63) <= value < 2**63:
            raise WrongValueError(f"{wanted} of 64 bits, got {value}{where}")
        return int(value)
    if type_name == "bool":
        if not isinstance(value, bool):
            raise fault
        return value
    if not isinstance(value, str):
        raise fault
    if "\0" in value or any(0xD800 <= ord(character) < 0xE000 for character in value):
        raise WrongValueError(f"{wanted} of UTF-8 text without NUL, got {value!r}{where}")
    return str(value)
