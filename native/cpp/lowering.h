// Size expressions as TensorRT's dimension expressions: the calls that `layerport.engine.dim_expressions` makes, in the
// same order, so that plans come out the same.
#pragma once

#include "expression.h"
#include "tensorrt.h"
#include <map>

namespace layerport {

// The dimension expression of one node.  sizes: that of each symbol, null for one that the plugin does not have.
// Throws Fault for such a one, and where TensorRT makes none.
trt::DimensionExpr const* lower(Expressions const& expressions, int node, trt::ExprBuilderImpl& builder,
    std::vector<trt::DimensionExpr const*> const& sizes);

} // namespace layerport
