"""The portable model of a bundle in ONNX Runtime, behind the interface that `Session` runs anything through."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import layerport.parameters
import layerport.session
from layerport.bundle.bundle import Bundle
from layerport.errors import BuildError, UsageError

if TYPE_CHECKING:
    import numpy as np


class PortableRunner:
    """Runs on the CPU, on NumPy arrays (ml_dtypes for bfloat16).

    why: the reason that it is this one.  exact: as the model says, also where ONNX Runtime could be quicker otherwise.
    """

    on_gpu = False

    def __init__(self, bundle: Bundle, why: str, *, exact: bool = False) -> None:
        self._bundle = bundle
        self._exact = exact
        self._ran = False
        self._session, self.precision_note = layerport.session.onnxruntime.open_session(bundle.model(), exact=exact)
        bundle.require_unchanged()
        faults = layerport.session.onnxruntime.port_faults(self._session, bundle.inputs, bundle.outputs)
        if faults:
            raise BuildError(
                f"the model of {bundle.folder} is not what the manifest says", "build the bundle again", faults=faults
            )
        self.description = f"ONNX Runtime on the CPU runs the portable model: {why}"

    def read(self, name: str, value: Any) -> np.ndarray[Any, Any]:
        """A value of any framework as a NumPy array."""
        return layerport.parameters.conversion.to_standard(value, path=name).array

    def faults(self, tensors: Mapping[str, Any]) -> list[str]:
        """Nothing can be wrong with where an array lies."""
        return []

    def run(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs by name."""
        try:
            outputs = layerport.session.onnxruntime.run_session(self._session, tensors, self._bundle.outputs)
        except UsageError:
            # Some bfloat16 operators are missed only when they run; the twin fails as well where the inputs are wrong.
            twin = (
                layerport.session.onnxruntime.open_twin(self._bundle.model(), exact=self._exact)
                if not self._ran
                else None
            )
            if twin is None or self.precision_note is not None:
                raise
            outputs = layerport.session.onnxruntime.run_session(twin[0], tensors, self._bundle.outputs)
            self._session, self.precision_note = twin
        self._ran = True
        return dict(outputs)

    def close(self) -> None:
        """Give the model back."""
        self._session = None
