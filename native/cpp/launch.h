// One kernel of a spec with its launch: everything that depends on sizes is computed at once, so that a launch only
// patches addresses.
#pragma once

#include "loaded_kernel.h"
#include "spec.h"

namespace layerport {

class Launch {
public:
    // Throws Fault where the launch rule does not fit the compiled kernel.
    Launch(Kernel const& kernel, LoadedKernel loaded, std::string label);
    Launch(Launch const&) = delete;
    Launch& operator=(Launch const&) = delete;

    // Whether the kernel takes these sizes: those of all inputs, one after another.
    bool takes(int64_t const* sizes);

    // Compute geometry and arguments.  Throws Fault where they break a limit.
    void prepare(int64_t const* sizes, size_t count);

    // Launch with the addresses of inputs, outputs and data-dependent sizes.  Allocates nothing.
    // Throws Fault where an address is not aligned as the kernel wants, or the driver fails.
    void operator()(void const* const* inputs, int input_count, void* const* outputs, void* stream);

private:
    struct Patch {
        int argument, tensor;
        uint64_t mask;
    };

    int64_t value(int node) const { return values_.at(node); }
    void check_fit() const;
    std::string resource_fault(int64_t threads, int64_t shared) const;
    void compute(int64_t const* sizes, size_t count);
    void pack(size_t place);

    Kernel const& kernel_;
    LoadedKernel loaded_;
    std::string label_;
    Values guard_;
    Values values_;
    std::vector<int64_t> guard_sizes_, launch_sizes_;
    std::vector<uint64_t> slots_; // every argument has 8 bytes of its own
    std::vector<void*> table_;
    std::vector<Patch> patches_;
    bool empty_ = true;
    unsigned grid_[3] = {}, block_[3] = {}, shared_ = 0;
};

} // namespace layerport
