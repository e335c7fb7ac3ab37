"""The logic of the commands: functions that return data, and renderers of that data.  `cli` wires them up."""

from typing import TYPE_CHECKING

from layerport.late import parts

if TYPE_CHECKING:
    from layerport.commands import benching as benching
    from layerport.commands import checking as checking
    from layerport.commands import doctor as doctor
    from layerport.commands import explaining as explaining
    from layerport.commands import exporting as exporting
    from layerport.commands import new_pack as new_pack
    from layerport.commands import packs as packs
    from layerport.commands import reports as reports
    from layerport.commands import running as running
    from layerport.commands import tables as tables

__getattr__ = parts(__name__)
