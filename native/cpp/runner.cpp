#include "runner.h"

#include "fault.h"
#include <algorithm>
#include <set>

namespace layerport {
namespace {

// Those for which every kernel has an image; one kernel may stand several times under its name.
std::set<int> architectures(Spec const& spec)
{
    std::map<std::string, std::set<int>> by_name;
    for (Kernel const& kernel : spec.kernels) {
        std::set<int> own = kernel.architectures();
        by_name[kernel.name].insert(own.begin(), own.end());
    }
    std::set<int> common;
    bool is_first = true;
    for (auto const& [name, found] : by_name) {
        std::set<int> both;
        for (int architecture : found) {
            if (is_first || common.count(architecture) != 0) {
                both.insert(architecture);
            }
        }
        common = both;
        is_first = false;
    }
    return common;
}

std::shared_ptr<Image const> find_image(Layer const& layer, std::string const& digest)
{
    auto kept = layer.kept.find(digest);
    std::shared_ptr<Image const> image = kept == layer.kept.end() ? shared_image(digest) : kept->second;
    if (image == nullptr) {
        throw Fault(
            "layer " + layer.spec.layer + ": kernel image " + digest.substr(0, 12) + " is in no plan that is open",
            "build the bundle again; this plan is damaged");
    }
    return image;
}

std::string shapes_text(Spec const& spec, trt::TensorDesc const* inputs)
{
    std::string text;
    for (size_t i = 0; i < spec.inputs.size(); ++i) {
        text += (i == 0 ? "" : ", ") + spec.inputs[i].name + " [";
        for (int32_t axis = 0; axis < spec.inputs[i].rank; ++axis) {
            text += (axis == 0 ? "" : ", ") + std::to_string(inputs[i].dims.sizes[axis]);
        }
        text += "]";
    }
    return text;
}

} // namespace

std::optional<int> fitting_architecture(Spec const& spec, int device)
{
    std::optional<int> best;
    for (int architecture : architectures(spec)) {
        if (architecture / 10 == device / 10 && architecture <= device) {
            best = architecture; // they come in ascending order
        }
    }
    return best;
}

Runner::Runner(std::shared_ptr<Layer const> layer, int device) : layer_(std::move(layer))
{
    Spec const& spec = layer_->spec;
    std::optional<int> architecture = fitting_architecture(spec, device);
    if (!architecture) {
        std::string known;
        for (int one : architectures(spec)) {
            known += (known.empty() ? "sm_" : ", sm_") + std::to_string(one);
        }
        throw Fault("layer " + spec.layer + " has kernels for " + (known.empty() ? "no architecture" : known)
                + ", not for sm_" + std::to_string(device),
            "build with a target that includes sm_" + std::to_string(device));
    }
    for (Kernel const& kernel : spec.kernels) {
        if (kernel.architectures().count(*architecture) != 0) {
            std::string label = "layer " + spec.layer + ", kernel " + kernel.name;
            auto launches = std::make_unique<Launches>(kernel, label);
            for (Step const& step : kernel.steps) {
                std::shared_ptr<Image const> image = find_image(*layer_, step.images.at(*architecture));
                Cubin cubin = read_cubin(image->data, step.symbol); // before the driver, which is not told its length
                if (cubin.architecture != *architecture) {
                    throw Fault(label + ": its image for sm_" + std::to_string(*architecture) + " is one for sm_"
                            + std::to_string(cubin.architecture),
                        damaged);
                }
                launches->add(load_kernel(*image, step.symbol, cubin));
            }
            launches_.emplace_back(kernel.name, std::move(launches));
        }
    }
    for (Tensor const& input : spec.inputs) {
        sizes_.resize(sizes_.size() + static_cast<size_t>(input.rank));
    }
}

void Runner::set_shapes(trt::TensorDesc const* inputs, int count)
{
    std::vector<Tensor> const& wanted = layer_->spec.inputs;
    current_ = nullptr;
    if (count != static_cast<int>(wanted.size())) {
        throw Fault("layer " + layer_->spec.layer + " has " + std::to_string(wanted.size()) + " inputs, "
            + std::to_string(count) + " came");
    }
    size_t place = 0;
    for (size_t i = 0; i < wanted.size(); ++i) {
        trt::Dims const& dims = inputs[i].dims;
        if (dims.count != wanted[i].rank || dims.count > trt::max_dims) {
            throw Fault("layer " + layer_->spec.layer + ": input " + wanted[i].name + " has rank "
                + std::to_string(wanted[i].rank) + ", one of rank " + std::to_string(dims.count) + " came");
        }
        for (int32_t axis = 0; axis < dims.count; ++axis) {
            sizes_[place++] = dims.sizes[axis];
        }
    }
    has_shapes_ = true;
    choose();
    if (current_ == nullptr) {
        throw Fault("layer " + layer_->spec.layer + ": no kernel takes the shapes "
                + shapes_text(layer_->spec, inputs),
            "give the layer a kernel without a predicate, or build with --decompose " + layer_->spec.layer);
    }
}

void Runner::prefer(std::string const& name)
{
    preferred_ = name;
    if (has_shapes_) {
        choose();
    }
}

void Runner::choose()
{
    current_ = nullptr;
    for (bool preferred : {true, false}) {
        for (auto const& [name, launch] : launches_) {
            if ((name == preferred_) == preferred && launch->takes(sizes_.data())) {
                launch->prepare(sizes_.data(), sizes_.size());
                current_ = launch.get();
                return;
            }
        }
    }
}

void Runner::launch(void const* const* inputs, void* const* outputs, void* workspace, void* stream)
{
    if (current_ == nullptr) {
        throw Fault("layer " + layer_->spec.layer + " is launched before its shapes are set");
    }
    (*current_)(inputs, static_cast<int>(layer_->spec.inputs.size()), outputs, workspace, stream);
}

int64_t greatest_workspace(Spec const& spec, trt::DynamicTensorDesc const* inputs, int count)
{
    std::vector<int64_t> sizes;
    for (int i = 0; i < count; ++i) {
        for (int32_t axis = 0; axis < spec.inputs[static_cast<size_t>(i)].rank; ++axis) {
            sizes.push_back(axis < inputs[i].max.count && axis < trt::max_dims ? inputs[i].max.sizes[axis] : 0);
        }
    }
    int64_t most = 0;
    std::vector<int64_t> offsets;
    for (Kernel const& kernel : spec.kernels) {
        try {
            most = std::max(most, lay_out(kernel, sizes.data(), offsets));
        } catch (Fault const& fault) {
            throw Fault("layer " + spec.layer + ", kernel " + kernel.name
                + ": its workspace is not known: " + fault.what());
        }
    }
    return most;
}

} // namespace layerport
