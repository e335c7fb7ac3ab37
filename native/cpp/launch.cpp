#include "launch.h"

#include "fault.h"
#include <cmath>
#include <cstring>

namespace layerport {
namespace {

constexpr int64_t unasked_shared = 48 * 1024; // a block gets it without asking

// Signed even if the kernel may declare it unsigned: the usual fault is a count past 2**31 in an `int`.
bool fits(int64_t value, int size)
{
    return size >= 8 || (value >= -(int64_t{1} << (8 * size - 1)) && value < int64_t{1} << (8 * size - 1));
}

bool takes_width(Argument::Kind kind, int size)
{
    switch (kind) {
    case Argument::Kind::null:
    case Argument::Kind::pointer:
    case Argument::Kind::scratch:
        return size == 8;
    case Argument::Kind::boolean:
        return size == 1 || size == 4 || size == 8;
    default:
        return size == 4 || size == 8;
    }
}

void gather(std::vector<int> const& places, int64_t const* sizes, std::vector<int64_t>& into)
{
    for (size_t i = 0; i < places.size(); ++i) {
        into[i] = sizes[places[i]];
    }
}

// The sizes that expressions use, in words.
std::string text_of(Expressions const& expressions, std::vector<int64_t> const& sizes)
{
    std::string text;
    for (size_t i = 0; i < sizes.size(); ++i) {
        text += (i == 0 ? "" : ", ") + expressions.symbols()[i] + "=" + std::to_string(sizes[i]);
    }
    return text.empty() ? "these sizes" : text;
}

} // namespace

Launch::Launch(Step const& step, LoadedKernel loaded, std::string label)
    : step_(step), loaded_(std::move(loaded)), label_(std::move(label)), values_(step.launch),
      launch_sizes_(step.launch_sizes.size()), slots_(step.args.size()), table_(step.args.size())
{
    check_fit();
    for (size_t i = 0; i < slots_.size(); ++i) {
        table_[i] = &slots_[i];
        Argument const& arg = step.args[i];
        if (arg.kind == Argument::Kind::pointer || arg.kind == Argument::Kind::scratch) {
            patches_.push_back({static_cast<int>(i), arg.tensor, arg.kind == Argument::Kind::scratch, arg.mask});
        }
    }
}

void Launch::check_fit() const
{
    std::vector<int> const& sizes = loaded_.cubin.parameter_sizes;
    if (sizes.size() != step_.args.size()) {
        throw Fault(label_ + ": the launch rule passes " + std::to_string(step_.args.size())
                + " arguments, but the kernel takes " + std::to_string(sizes.size()),
            damaged);
    }
    for (size_t i = 0; i < sizes.size(); ++i) {
        Argument const& arg = step_.args[i];
        bool fitting = takes_width(arg.kind, sizes[i]);
        if (fitting && arg.kind == Argument::Kind::integer && step_.launch.is_constant(arg.expression)) {
            fitting = fits(step_.launch.node(arg.expression).value, sizes[i]);
        }
        if (!fitting) {
            throw Fault(label_ + ": argument " + std::to_string(i) + " does not fit the kernel's parameter of "
                    + std::to_string(sizes[i]) + " bytes",
                damaged);
        }
    }
    Expressions const& launch = step_.launch;
    int const* block = step_.block;
    if (launch.is_constant(block[0]) && launch.is_constant(block[1]) && launch.is_constant(block[2])
        && launch.is_constant(step_.shared)) {
        int64_t threads = launch.node(block[0]).value * launch.node(block[1]).value * launch.node(block[2]).value;
        std::string fault = resource_fault(threads, launch.node(step_.shared).value);
        if (!fault.empty()) {
            throw Fault(label_ + ": the launch rule asks for " + fault, damaged);
        }
    }
}

std::string Launch::resource_fault(int64_t threads, int64_t shared) const
{
    Cubin const& cubin = loaded_.cubin;
    if (cubin.max_threads != 0 && threads > cubin.max_threads) {
        return "a block of " + std::to_string(threads) + " threads, but __launch_bounds__ of the kernel allows "
            + std::to_string(cubin.max_threads);
    }
    int64_t limit = shared_limit(cubin.architecture);
    if (limit != 0 && cubin.static_shared + shared > limit) {
        return std::to_string(cubin.static_shared + shared) + " bytes of shared memory, but sm_"
            + std::to_string(cubin.architecture) + " has " + std::to_string(limit) + " for one block";
    }
    return "";
}

void Launch::prepare(int64_t const* sizes, size_t count)
{
    try {
        compute(sizes, count);
    } catch (Fault const& fault) {
        gather(step_.launch_sizes, sizes, launch_sizes_);
        throw Fault(
            label_ + " cannot be launched with " + text_of(step_.launch, launch_sizes_) + ": " + fault.what());
    }
}

void Launch::compute(int64_t const* sizes, size_t count)
{
    gather(step_.launch_sizes, sizes, launch_sizes_);
    values_.compute(launch_sizes_.data());
    int64_t grid[3], block[3];
    bool has_zero = false, stated = false;
    for (int axis = 0; axis < 3; ++axis) {
        grid[axis] = value(step_.grid[axis]);
        block[axis] = value(step_.block[axis]);
        has_zero = has_zero || grid[axis] == 0 || block[axis] == 0;
        stated = stated || step_.launch.is_zero(step_.grid[axis]);
    }
    for (size_t i = 0; i < count; ++i) {
        stated = stated || sizes[i] == 0;
    }
    empty_ = has_zero && stated; // nothing to launch, because something is empty
    if (empty_) {
        return;
    }
    int64_t shared = value(step_.shared);
    std::string fault = limit_fault(grid, block, shared);
    if (fault.empty()) {
        fault = resource_fault(block[0] * block[1] * block[2], shared);
    }
    if (!fault.empty()) {
        throw Fault(fault, "use smaller sizes, or correct the launch rule");
    }
    for (size_t i = 0; i < slots_.size(); ++i) {
        pack(i);
    }
    if (loaded_.cubin.static_shared + shared > unasked_shared) {
        loaded_.widen_shared(shared);
    }
    for (int axis = 0; axis < 3; ++axis) {
        grid_[axis] = static_cast<unsigned>(grid[axis]);
        block_[axis] = static_cast<unsigned>(block[axis]);
    }
    shared_ = static_cast<unsigned>(shared);
}

void Launch::pack(size_t place)
{
    Argument const& arg = step_.args[place];
    int size = loaded_.cubin.parameter_sizes[place];
    uint64_t& slot = slots_[place];
    if (arg.kind == Argument::Kind::floating) {
        slot = 0;
        auto narrow = static_cast<float>(arg.number);
        if (size == 4 && std::isinf(narrow) && !std::isinf(arg.number)) {
            throw Fault("argument " + std::to_string(place) + " does not fit a float");
        }
        size == 4 ? std::memcpy(&slot, &narrow, 4) : std::memcpy(&slot, &arg.number, 8);
    } else if (arg.kind == Argument::Kind::integer) {
        int64_t number = value(arg.expression);
        if (!fits(number, size)) {
            throw Fault("argument " + std::to_string(place) + " is " + std::to_string(number)
                    + " for these sizes, which does not fit " + std::to_string(size) + " bytes",
                size == 4 ? "declare the kernel's parameter as long long" : "use smaller sizes");
        }
        slot = static_cast<uint64_t>(number);
    } else {
        slot = arg.kind == Argument::Kind::boolean && arg.flag ? 1 : 0;
    }
}

void Launch::operator()(
    void const* const* inputs, int input_count, void* const* outputs, uint64_t const* scratch, void* stream)
{
    if (empty_) {
        return;
    }
    for (Patch const& patch : patches_) {
        uint64_t number = 0;
        if (patch.scratch) {
            number = scratch[patch.tensor];
        } else {
            number = reinterpret_cast<uintptr_t>(
                patch.tensor < input_count ? inputs[patch.tensor] : outputs[patch.tensor - input_count]);
        }
        if ((number & patch.mask) != 0) {
            throw Fault(label_ + ": " + (patch.scratch ? "scratch " : "") + "tensor " + std::to_string(patch.tensor)
                    + " lies at " + std::to_string(number) + ", which is no multiple of "
                    + std::to_string(patch.mask + 1) + " bytes",
                "a Triton kernel for any address is made with lp.triton(..., alignment=1)");
        }
        slots_[static_cast<size_t>(patch.argument)] = number;
    }
    int status = driver().launch(loaded_.handle, grid_[0], grid_[1], grid_[2], block_[0], block_[1], block_[2], shared_,
        stream, table_.data(), nullptr);
    if (status != 0) {
        driver().check(status, label_, "cuLaunchKernel");
    }
}

Launches::Launches(Kernel const& kernel, std::string label)
    : kernel_(kernel), label_(std::move(label)), guard_(kernel.guard), guard_sizes_(kernel.guard_sizes.size()),
      offsets_(kernel.scratch_bytes.size()), addresses_(kernel.scratch_bytes.size())
{
}

void Launches::add(LoadedKernel loaded)
{
    Step const& step = kernel_.steps.at(steps_.size());
    steps_.push_back(std::make_unique<Launch>(step, std::move(loaded), label_));
}

bool Launches::takes(int64_t const* sizes)
{
    if (!kernel_.guard_node) {
        return true;
    }
    gather(kernel_.guard_sizes, sizes, guard_sizes_);
    guard_.compute(guard_sizes_.data());
    try {
        return guard_.wide(*kernel_.guard_node) != 0;
    } catch (Fault const& fault) {
        throw Fault(label_ + ": its predicate cannot be answered for " + text_of(kernel_.guard, guard_sizes_) + ": "
            + fault.what());
    }
}

void Launches::prepare(int64_t const* sizes, size_t count)
{
    for (auto const& step : steps_) {
        step->prepare(sizes, count);
    }
    try {
        lay_out(kernel_, sizes, offsets_);
    } catch (Fault const& fault) {
        throw Fault(label_ + ": its scratch memory cannot be laid out: " + fault.what());
    }
}

void Launches::operator()(
    void const* const* inputs, int input_count, void* const* outputs, void* workspace, void* stream)
{
    if (!offsets_.empty() && workspace == nullptr) {
        throw Fault(label_ + " needs a workspace, and there is none", "build the bundle again");
    }
    for (size_t i = 0; i < offsets_.size(); ++i) {
        addresses_[i] = reinterpret_cast<uintptr_t>(workspace) + static_cast<uint64_t>(offsets_[i]);
    }
    for (auto const& step : steps_) {
        (*step)(inputs, input_count, outputs, addresses_.data(), stream);
    }
}

int64_t lay_out(Kernel const& kernel, int64_t const* sizes, std::vector<int64_t>& offsets)
{
    constexpr Wide alignment = 256;
    if (kernel.scratch_bytes.empty()) {
        return 0;
    }
    std::vector<int64_t> own(kernel.scratch_sizes.size());
    gather(kernel.scratch_sizes, sizes, own);
    Values values(kernel.scratch);
    values.compute(own.data());
    offsets.resize(kernel.scratch_bytes.size());
    Wide end = 0;
    for (size_t i = 0; i < offsets.size(); ++i) {
        offsets[i] = static_cast<int64_t>(end);
        int64_t bytes = values.at(kernel.scratch_bytes[i]);
        if (bytes < 0) {
            throw Fault("scratch tensor " + std::to_string(i) + " has " + std::to_string(bytes) + " bytes for "
                + text_of(kernel.scratch, own));
        }
        end += (Wide{bytes} + alignment - 1) / alignment * alignment;
        if (end > INT64_MAX) {
            throw Fault("the workspace has more than 2**63 bytes for " + text_of(kernel.scratch, own));
        }
    }
    return static_cast<int64_t>(end);
}

} // namespace layerport
