"""One call of a layer's operator on CUDA tensors, ready to be launched again.  `cuda_operator` makes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from layerport.errors import UsageError
from layerport.kernels.workspace import WORKSPACE
from layerport.layers.call_outputs import CallOutputs
from layerport.parameters.frameworks.torch_dtypes import to_dtype
from layerport.parameters.signature import Attribute
from layerport.sizes.tensors import TensorType, sizes_of

if TYPE_CHECKING:
    from layerport.kernels.steps import Steps


class Call:
    """One call as launch rules see it."""

    def __init__(
        self, tensors: Mapping[str, TensorType | None], attributes: Mapping[str, Attribute], outputs: CallOutputs
    ) -> None:
        self.tensors = tensors
        self.attributes = attributes
        self.outputs = outputs

    @property
    def sizes(self) -> dict[str, int]:
        return sizes_of({name: one.shape for name, one in self.tensors.items() if one is not None})


class LaunchPlan:
    """A launch of which only the tensors and the stream are open.  Called with all arguments of the operator."""

    def __init__(
        self,
        tensors: Sequence[tuple[int, str]],
        steps: Steps,
        call: Call,
        environment: Any,
        index: int,
        *,
        layer: str,
    ) -> None:
        self._layer = layer
        self._told = call.outputs
        self._late = tuple(call.outputs.most)
        self._launch, self._workspace = steps.prepare(call.sizes)
        self._environment, self._index = environment, index
        alignments = steps.alignments
        self._inputs = [
            (place, name, alignments.get(name, 1) - 1) for place, name in tensors if call.tensors[name] is not None
        ]
        self._outputs = [(name, shape, _dense_strides(shape), dtype) for name, shape, dtype in call.outputs.largest()]

    def __call__(self, args: Sequence[Any]) -> Any:
        environment, index = self._environment, self._index
        if environment.current() != index:
            with environment.on(index):
                return self(args)
        environment.enter(index)
        if self._late and environment.capturing():
            raise UsageError(
                f"layer {self._layer} is called while a CUDA graph is captured, and it waits for the size of its "
                "output, which depends on data",
                "capture what comes before it and what comes after it",
            )
        pointers: dict[str, int] = {}
        copies = []  # freed after the launch: Torch's allocator gives their memory to later work of the stream only
        for place, name, mask in self._inputs:
            tensor = args[place]
            if not tensor.is_contiguous():
                copies.append(tensor := tensor.contiguous())
            address = tensor.data_ptr()
            if address & mask:
                copies.append(tensor := tensor.clone())
                address = tensor.data_ptr()
            pointers[name] = address
        outputs, empty = [], environment.empty
        for name, shape, strides, dtype in self._outputs:
            output = empty(shape, strides, dtype)
            pointers[name] = output.data_ptr()
            outputs.append(output)
        if self._workspace:
            copies.append(work := empty((self._workspace,), (1,), torch.uint8))
            pointers[WORKSPACE] = work.data_ptr()
        if self._late:
            sizes = empty((len(self._late),), (1,), torch.int64)
            pointers |= {name: sizes.data_ptr() + 8 * place for place, name in enumerate(self._late)}
        self._launch(pointers, environment.stream(index))
        if self._late:
            # The one wait for the GPU: on Torch's current stream, which is the one of the launch.
            shapes = self._told.shapes(sizes.tolist(), layer=self._layer)
            outputs = [output.resize_(shape) for output, shape in zip(outputs, shapes, strict=True)]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)


def tensor_arg(name: str, tensor: torch.Tensor | None) -> TensorType | None:
    return None if tensor is None else TensorType(name, to_dtype(tensor.dtype), tuple(map(int, tensor.shape)))


def _dense_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))
