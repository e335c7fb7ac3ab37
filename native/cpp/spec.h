// A plugin spec, read from the JSON of its field: what `layerport.bundle.plugin_spec.PluginSpec` holds.
#pragma once

#include "expression.h"
#include "tensorrt.h"
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

namespace layerport {

struct Tensor {
    std::string name;
    std::string dtype;
    bool parameter = false;
    int rank = 0;
};

struct Argument {
    enum class Kind { null, pointer, scratch, integer, floating, boolean };
    Kind kind;
    int tensor = 0;     // of a pointer: its place among inputs, outputs and sizes, or among the kernel's scratch tensors
    uint64_t mask = 0;  // of a pointer: bits of an address that must be 0
    int expression = 0; // of an integer
    double number = 0;
    bool flag = false;
};

// One launch of compiled code.
struct Step {
    std::string symbol;
    std::map<int, std::string> images; // architecture -> digest
    Expressions launch;
    int grid[3];
    int block[3];
    int shared;
    std::vector<Argument> args;
    std::vector<int> launch_sizes; // for each symbol of `launch`, its place among the sizes of all inputs
};

// Launches one after another, and the memory that they share.
struct Kernel {
    std::string name;
    std::vector<Step> steps;
    Expressions guard;
    std::optional<int> guard_node;
    std::vector<int> guard_sizes; // as `launch_sizes`
    Expressions scratch;
    std::vector<int> scratch_bytes; // of each scratch tensor, a node of `scratch`
    std::vector<int> scratch_sizes;

    // Those for which every step has an image.
    std::set<int> architectures() const;
};

struct Spec {
    std::string layer;
    std::vector<Tensor> inputs;
    std::vector<Tensor> outputs;
    std::vector<Tensor> sizes; // data-dependent sizes, which the kernel writes
    Expressions shapes;
    std::vector<std::vector<int>> output_dims; // nodes of `shapes`
    std::vector<int> size_bounds;
    std::vector<Kernel> kernels;
    std::vector<std::string> kernel_names; // each once, in order
    std::string plugin_class;
};

// Throws Fault where the text is no spec, limits of CUDA included.
Spec read_spec(std::string const& text);

// The type under which TensorRT holds a tensor: int8 for a parameter of a type that it lacks.
trt::DataType type_of(Tensor const& tensor);

// A size in a launch that is no constant.
constexpr int64_t not_known = INT64_MIN;

// What is beyond CUDA's limits in a launch, empty where nothing is; what is `not_known` passes.
std::string limit_fault(int64_t const (&grid)[3], int64_t const (&block)[3], int64_t shared);

} // namespace layerport
