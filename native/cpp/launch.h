// The launches of a kernel of a spec: everything that depends on sizes is computed at once, so that a launch only patches
// addresses.
#pragma once

#include "loaded_kernel.h"
#include "spec.h"
#include <memory>

namespace layerport {

class Launch {
public:
    // Throws Fault where the launch rule does not fit the compiled kernel.
    Launch(Step const& step, LoadedKernel loaded, std::string label);
    Launch(Launch const&) = delete;
    Launch& operator=(Launch const&) = delete;

    // Compute geometry and arguments.  sizes: those of all inputs, one after another.  Throws Fault where they break a
    // limit.
    void prepare(int64_t const* sizes, size_t count);

    // Launch with the addresses of inputs, outputs and data-dependent sizes, and of scratch tensors.  Allocates nothing.
    // Throws Fault where an address is not aligned as the kernel wants, or the driver fails.
    void operator()(
        void const* const* inputs, int input_count, void* const* outputs, uint64_t const* scratch, void* stream);

private:
    struct Patch {
        int argument, tensor;
        bool scratch;
        uint64_t mask;
    };

    int64_t value(int node) const { return values_.at(node); }
    void check_fit() const;
    std::string resource_fault(int64_t threads, int64_t shared) const;
    void compute(int64_t const* sizes, size_t count);
    void pack(size_t place);

    Step const& step_;
    LoadedKernel loaded_;
    std::string label_;
    Values values_;
    std::vector<int64_t> launch_sizes_;
    std::vector<uint64_t> slots_; // every argument has 8 bytes of its own
    std::vector<void*> table_;
    std::vector<Patch> patches_;
    bool empty_ = true;
    unsigned grid_[3] = {}, block_[3] = {}, shared_ = 0;
};

// The launches of one kernel, one after another.
class Launches {
public:
    Launches(Kernel const& kernel, std::string label);

    void add(LoadedKernel loaded); // of the next step

    // Whether the kernel takes these sizes: those of all inputs, one after another.
    bool takes(int64_t const* sizes);

    // As `Launch::prepare`, with the places of the scratch tensors in the workspace.
    void prepare(int64_t const* sizes, size_t count);

    // As `Launch`.  Throws Fault where scratch memory is needed and there is no workspace.
    void operator()(
        void const* const* inputs, int input_count, void* const* outputs, void* workspace, void* stream);

private:
    Kernel const& kernel_;
    std::string label_;
    Values guard_;
    std::vector<int64_t> guard_sizes_;
    std::vector<std::unique_ptr<Launch>> steps_;
    std::vector<int64_t> offsets_;
    std::vector<uint64_t> addresses_;
};

// Where the scratch tensors of a kernel begin in its workspace, for these sizes of all inputs; the bytes of it all.
// Throws Fault where they have none.
int64_t lay_out(Kernel const& kernel, int64_t const* sizes, std::vector<int64_t>& offsets);

} // namespace layerport
