#include "spec.h"

#include "fault.h"
#include "launch_text.h"
#include "spec_json.h"
#include "spec_values.h"
#include <algorithm>
#include <set>

namespace layerport {
namespace {

constexpr size_t longest_launch_text = 20'000;
constexpr int most_arguments = 1024, most_dims = 65;
constexpr size_t most_steps = 32, most_scratch = 32;

class SpecReader {
public:
    explicit SpecReader(Json const& value) : value_(value) {}

    Spec read()
    {
        spec_.layer = text_of(member(value_, "layer"));
        if (!is_layer(spec_.layer)) {
            throw Fault(quote(spec_.layer) + " is no name of a layer");
        }
        whole_of(member(value_, "version"));
        if (!member(value_, "attributes").is_object()) {
            throw Fault("attributes is no object");
        }
        read_tensors();
        for (Json const& kernel : list_of(member(value_, "kernels"))) {
            spec_.kernels.push_back(read_kernel(kernel));
            std::string const& name = spec_.kernels.back().name;
            auto& names = spec_.kernel_names;
            if (std::find(names.begin(), names.end(), name) == names.end()) {
                names.push_back(name);
            }
        }
        if (Json const& own = member(value_, "plugin_class"); !own.is_null()) {
            spec_.plugin_class = text_of(own);
            if (!is_class(spec_.plugin_class)) {
                throw Fault(quote(spec_.plugin_class) + " is no name of a class");
            }
        }
        return std::move(spec_);
    }

private:
    void read_tensors()
    {
        for (Json const& row : list_of(member(value_, "inputs"))) {
            list_of(row, 4);
            add(spec_.inputs, {name_of(row[0]), dtype_of(row[1]), flag_of(row[3]), whole_of(row[2], most_dims)});
            for (int axis = 0; axis < spec_.inputs.back().rank; ++axis) {
                std::string size = spec_.inputs.back().name + "." + std::to_string(axis);
                sizes_.emplace(size, static_cast<int>(sizes_.size()));
            }
        }
        for (Json const& row : list_of(member(value_, "outputs"))) {
            list_of(row, 3);
            add(spec_.outputs, {name_of(row[0]), dtype_of(row[1]), false, 0});
            spec_.output_dims.emplace_back();
            for (Json const& dim : list_of(row[2])) {
                spec_.output_dims.back().push_back(spec_.shapes.read(text_of(dim, SIZE_MAX)));
            }
        }
        for (Json const& row : list_of(member(value_, "sizes"))) {
            list_of(row, 2);
            add(spec_.sizes, {name_of(row[0]), "int64", false, 0});
            spec_.size_bounds.push_back(spec_.shapes.read(text_of(row[1], SIZE_MAX)));
        }
        for (std::string const& symbol : spec_.shapes.symbols()) {
            bool is_size = std::any_of(
                spec_.sizes.begin(), spec_.sizes.end(), [&](Tensor const& size) { return size.name == symbol; });
            if (!is_size && sizes_.count(symbol) == 0) {
                throw Fault("an output's size uses " + symbol + ", a size of no input");
            }
        }
    }

    void add(std::vector<Tensor>& to, Tensor tensor)
    {
        if (!places_.emplace(tensor.name, static_cast<int>(places_.size())).second) {
            throw Fault("two tensors are named " + tensor.name);
        }
        to.push_back(std::move(tensor));
    }

    Kernel read_kernel(Json const& value)
    {
        Kernel kernel;
        kernel.name = name_of(member(value, "name"));
        if (Json const& guard = member(value, "guard"); !guard.is_null()) {
            kernel.guard_node = kernel.guard.read(text_of(guard, SIZE_MAX));
        }
        kernel.guard_sizes = resolved(kernel.guard, kernel.name);
        if (!value.contains("steps")) {
            kernel.steps.push_back(read_step(value, kernel));
            return kernel;
        }
        Json const& scratch = list_of(member(value, "scratch"));
        Json const& steps = list_of(member(value, "steps"));
        if (scratch.size() > most_scratch || steps.empty() || steps.size() > most_steps) {
            throw Fault("kernel " + kernel.name + " has " + std::to_string(steps.size()) + " launches and "
                + std::to_string(scratch.size()) + " scratch tensors");
        }
        for (Json const& row : scratch) {
            list_of(row, 2);
            dtype_of(row[0]);
            kernel.scratch_bytes.push_back(kernel.scratch.read(text_of(row[1], SIZE_MAX)));
        }
        kernel.scratch_sizes = resolved(kernel.scratch, kernel.name);
        for (Json const& step : steps) {
            kernel.steps.push_back(read_step(step, kernel));
        }
        return kernel;
    }

    Step read_step(Json const& value, Kernel const& kernel)
    {
        Step step;
        step.symbol = text_of(member(value, "symbol"));
        if (!is_identifier(step.symbol, longest_text, true)) {
            throw Fault(quote(step.symbol) + " is no symbol of a kernel");
        }
        Json const& images = member(value, "images");
        if (!images.is_object()) {
            throw Fault("images is no object");
        }
        for (auto const& [architecture, digest] : images.items()) {
            step.images[architecture_of(architecture)] = digest_of(digest);
        }
        read_launch(member(value, "launch"), kernel, step);
        step.launch_sizes = resolved(step.launch, kernel.name);
        return step;
    }

    static int architecture_of(std::string const& text)
    {
        bool right = (text.size() == 5 || text.size() == 6) && text.compare(0, 3, "sm_") == 0
            && std::all_of(text.begin() + 3, text.end(), is_digit);
        if (!right) {
            throw Fault(quote(text) + " is no architecture");
        }
        return std::stoi(text.substr(3));
    }

    static std::string digest_of(Json const& value)
    {
        std::string text = text_of(value);
        bool right = text.size() == 64 && std::all_of(text.begin(), text.end(), [](char c) {
            return is_digit(c) || (c >= 'a' && c <= 'f');
        });
        if (!right) {
            throw Fault(quote(text) + " is no digest of an image");
        }
        return text;
    }

    void read_launch(Json const& launch, Kernel const& kernel, Step& step)
    {
        if (!launch.is_object() || launch.size() != 4) {
            throw Fault("a launch rule is no object with exactly args, block, grid, shared");
        }
        Json const& grid = list_of(member(launch, "grid"), 3);
        Json const& block = list_of(member(launch, "block"), 3);
        int64_t known_grid[3], known_block[3];
        for (size_t axis = 0; axis < 3; ++axis) {
            step.grid[axis] = step.launch.read(text_of(grid[axis], longest_launch_text));
            step.block[axis] = step.launch.read(text_of(block[axis], longest_launch_text));
            // A constant grid of 0 is the rule for a tensor that is always empty.
            known_grid[axis] = step.launch.is_zero(step.grid[axis]) ? not_known : known(step, step.grid[axis]);
            known_block[axis] = known(step, step.block[axis]);
        }
        step.shared = step.launch.read(text_of(member(launch, "shared"), longest_launch_text));
        Json const& args = list_of(member(launch, "args"));
        if (args.size() > most_arguments) {
            throw Fault("a launch rule has " + std::to_string(args.size()) + " arguments");
        }
        std::string fault = limit_fault(known_grid, known_block, known(step, step.shared));
        if (!fault.empty()) {
            throw Fault("a launch rule cannot be read: " + fault);
        }
        for (Json const& arg : args) {
            step.args.push_back(read_argument(arg, kernel, step));
        }
    }

    static int64_t known(Step const& step, int node)
    {
        return step.launch.is_constant(node) ? step.launch.node(node).value : not_known;
    }

    Argument read_argument(Json const& value, Kernel const& kernel, Step& step) const
    {
        list_of(value);
        std::vector<std::string> parts;
        for (Json const& part : value) {
            parts.push_back(text_of(part, longest_launch_text));
        }
        if (parts.size() == 1 && parts[0] == "null") {
            return {Argument::Kind::null};
        }
        if (parts.size() == 2 || (parts.size() == 3 && parts[0] == "pointer")) {
            Argument made{Argument::Kind::null};
            std::string const& text = parts[1];
            if (parts[0] == "pointer") {
                std::optional<int> scratch = scratch_of(text, kernel);
                made.kind = scratch ? Argument::Kind::scratch : Argument::Kind::pointer;
                made.tensor = scratch ? *scratch : place_of(text, kernel);
                made.mask = parts.size() == 3 ? mask_of(parts[2]) : 0;
                return made;
            }
            if (parts[0] == "int") {
                made.kind = Argument::Kind::integer;
                made.expression = step.launch.read(text);
                return made;
            }
            if (parts[0] == "bool" && (text == "True" || text == "False")) {
                made.kind = Argument::Kind::boolean;
                made.flag = text == "True";
                return made;
            }
            if (parts[0] == "float" && read_number(text, made.number)) {
                made.kind = Argument::Kind::floating;
                return made;
            }
        }
        throw Fault("an argument of a launch rule cannot be read");
    }

    // "scratch.N", which is no name of a tensor.
    static std::optional<int> scratch_of(std::string const& name, Kernel const& kernel)
    {
        for (size_t place = 0; place < kernel.scratch_bytes.size(); ++place) {
            if (name == "scratch." + std::to_string(place)) {
                return static_cast<int>(place);
            }
        }
        return {};
    }

    int place_of(std::string const& name, Kernel const& kernel) const
    {
        auto found = places_.find(name);
        if (found == places_.end()) {
            throw Fault("kernel " + kernel.name + " takes the address of " + quote(name) + ", which is no tensor");
        }
        return found->second;
    }

    static uint64_t mask_of(std::string const& alignment)
    {
        for (char const* known : {"2", "4", "8", "16"}) {
            if (alignment == known) {
                return static_cast<uint64_t>(std::stoi(alignment)) - 1;
            }
        }
        throw Fault(quote(alignment) + " is no alignment");
    }

    // A launch is computed from the inputs' sizes; others, such as those that depend on data, are not known then.
    std::vector<int> resolved(Expressions const& expressions, std::string const& kernel) const
    {
        std::vector<int> places;
        for (std::string const& symbol : expressions.symbols()) {
            auto found = sizes_.find(symbol);
            if (found == sizes_.end()) {
                throw Fault("kernel " + kernel + ": its launch uses " + symbol + ", a size of no input",
                    "launch for sizes of the inputs: one that depends on data is known after the launch only");
            }
            places.push_back(found->second);
        }
        return places;
    }

    Json const& value_;
    Spec spec_;
    std::map<std::string, int> places_;
    std::map<std::string, int> sizes_;
};

} // namespace

std::set<int> Kernel::architectures() const
{
    std::set<int> common;
    for (auto const& [architecture, digest] : steps.front().images) {
        bool everywhere = std::all_of(
            steps.begin(), steps.end(), [&](Step const& step) { return step.images.count(architecture) != 0; });
        if (everywhere) {
            common.insert(architecture);
        }
    }
    return common;
}

Spec read_spec(std::string const& text)
{
    try {
        Json value = read_json(text);
        return SpecReader(value).read();
    } catch (Json::exception const& error) {
        throw Fault(std::string("a plugin's spec cannot be read: ") + error.what(), damaged);
    } catch (Fault const& fault) {
        throw Fault(std::string("a plugin's spec cannot be read: ") + fault.what(), damaged);
    }
}

trt::DataType type_of(Tensor const& tensor)
{
    static std::map<std::string, trt::DataType> const types = {{"float32", trt::DataType::float32},
        {"float16", trt::DataType::float16}, {"bfloat16", trt::DataType::bfloat16},
        {"float8_e4m3fn", trt::DataType::fp8}, {"int64", trt::DataType::int64}, {"int32", trt::DataType::int32},
        {"int8", trt::DataType::int8}, {"int4", trt::DataType::int4}, {"uint8", trt::DataType::uint8},
        {"bool", trt::DataType::boolean}};
    // One byte an element, so that shapes stay; kernels get addresses, whatever TensorRT calls the bytes.
    if (tensor.parameter && (tensor.dtype == "uint8" || tensor.dtype == "float8_e5m2")) {
        return trt::DataType::int8;
    }
    auto found = types.find(tensor.dtype);
    if (found == types.end()) {
        throw Fault("TensorRT has no tensors of " + tensor.dtype + ", and " + tensor.name + " is one");
    }
    return found->second;
}

std::string limit_fault(int64_t const (&grid)[3], int64_t const (&block)[3], int64_t shared)
{
    static constexpr int64_t grid_limits[] = {INT32_MAX, 65535, 65535}, block_limits[] = {1024, 1024, 64};
    constexpr int64_t most_threads = 1024, most_shared = 227 * 1024;
    int64_t threads = 1;
    for (int axis = 0; axis < 3; ++axis) {
        std::string name(1, "xyz"[axis]);
        if (grid[axis] != not_known && (grid[axis] < 1 || grid[axis] > grid_limits[axis])) {
            return "grid " + name + " is " + std::to_string(grid[axis]) + ", allowed are 1 to "
                + std::to_string(grid_limits[axis]);
        }
        if (block[axis] != not_known && (block[axis] < 1 || block[axis] > block_limits[axis])) {
            return "block " + name + " is " + std::to_string(block[axis]) + ", allowed are 1 to "
                + std::to_string(block_limits[axis]);
        }
        threads *= block[axis] == not_known ? 1 : block[axis];
    }
    if (threads > most_threads) {
        return "a block has " + std::to_string(threads) + " threads, allowed are 1024";
    }
    if (shared != not_known && (shared < 0 || shared > most_shared)) {
        return "dynamic shared memory is " + std::to_string(shared) + " bytes, no architecture has more than "
            + std::to_string(most_shared);
    }
    return "";
}

} // namespace layerport
