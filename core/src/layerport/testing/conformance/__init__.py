"""The conformance kit: what must hold of every layer of a pack, on a machine without a GPU.

`layerport check` runs it in a process of its own (`child`), the pytest plugin in pytest's.  Nothing else imports it.
"""

from typing import TYPE_CHECKING

from layerport.late import parts

if TYPE_CHECKING:
    from layerport.testing.conformance import kit as kit

__getattr__ = parts(__name__)
