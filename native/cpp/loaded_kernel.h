// Kernels that the driver has loaded: each image once in a process, however many layers and contexts use it.
#pragma once

#include "cubin.h"
#include "driver.h"
#include "field.h"
#include <map>
#include <memory>
#include <mutex>
#include <string>

namespace layerport {

class LoadedImage;

struct LoadedKernel {
    std::shared_ptr<LoadedImage> image; // unloaded with its last user
    Cubin cubin;
    void* handle;
    std::string label;

    // Allow this much dynamic shared memory on the current device, which CUDA wants to be asked for.
    void widen_shared(int64_t dynamic) const;
};

// The kernel of a symbol in an image, of which `cubin` was read.  Throws Fault where the driver does not take it.
LoadedKernel load_kernel(Image const& image, std::string const& symbol, Cubin const& cubin);

} // namespace layerport
