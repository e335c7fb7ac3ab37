// The kernels of a spec on one GPU: picks one by shape, prepares it, launches it.
#pragma once

#include "field.h"
#include "launch.h"
#include "spec.h"
#include <memory>
#include <optional>

namespace layerport {

// What a node brings: its name, its spec, its field as it was, and the images that it keeps for others.
struct Layer {
    std::string node;
    Spec spec;
    std::string key;
    Bytes raw;
    Images kept;
};

class Runner {
public:
    // Loads the kernels.  Throws Fault where none is for this GPU, or one cannot be loaded.
    Runner(std::shared_ptr<Layer const> layer, int device);

    // Choose the kernel for these inputs and prepare its launch.
    void set_shapes(trt::TensorDesc const* inputs, int count);

    // Take the kernel of this name wherever its predicate holds; an empty name takes the layer's own order.
    void prefer(std::string const& name);

    void launch(void const* const* inputs, void* const* outputs, void* workspace, void* stream);

private:
    void choose();

    std::shared_ptr<Layer const> layer_;
    std::vector<std::pair<std::string, std::unique_ptr<Launches>>> launches_;
    std::vector<int64_t> sizes_; // of all inputs, one after another
    std::string preferred_;
    Launches* current_ = nullptr;
    bool has_shapes_ = false;
};

// The architecture whose code runs on a device: the same major version and at most its minor one.
std::optional<int> fitting_architecture(Spec const& spec, int device);

// The bytes of workspace that suffice for all shapes up to the greatest of these inputs: scratch memory never falls where
// a size grows, and any of the kernels may run.  Throws Fault where they cannot be told.
int64_t greatest_workspace(Spec const& spec, trt::DynamicTensorDesc const* inputs, int count);

} // namespace layerport
