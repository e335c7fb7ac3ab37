"""Imported once by the process that all models are forked from, so that none of them pays for it."""

import onnxruntime  # noqa: F401
import torch

import layerport.building
import layerport.front.pipeline  # noqa: F401
from zoo.cases import table

table()
torch.onnx.export(torch.nn.Linear(1, 1), (torch.ones(1, 1),), dynamo=True, verbose=False)  # loads its operators
