// The one plugin, every answer of which comes from the spec in its field, and its creator.
//
// Its kernels are its tactics, numbered from 1 in the layer's order.  A tactic is a preference: that kernel runs wherever
// its predicate holds, the first other one that fits elsewhere, so that each is right for every shape.
#pragma once

#include "tensorrt.h"

namespace layerport {

// The creator of `layerport::Kernel` version 1; one object for the whole process.
trt::PluginCreator& kernel_creator();

} // namespace layerport
