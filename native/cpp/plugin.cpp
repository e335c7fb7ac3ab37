#include "plugin.h"

#include "fault.h"
#include "log.h"
#include "lowering.h"
#include "runner.h"
#include <cstring>

namespace layerport {
namespace {

constexpr char const* creator_name = "Kernel";
constexpr char const* creator_namespace = "layerport";
constexpr char const* creator_version = "1";
constexpr char const* field_name = "layerport_spec";

class KernelPlugin final : public trt::PluginV3,
                           public trt::PluginCore,
                           public trt::PluginBuild,
                           public trt::PluginRuntime {
public:
    explicit KernelPlugin(std::shared_ptr<Layer const> layer, int32_t tactic = 0)
        : layer_(std::move(layer)), spec_(layer_->spec), tactic_(tactic)
    {
        for (std::vector<Tensor> const* tensors : {&spec_.inputs, &spec_.outputs, &spec_.sizes}) {
            for (Tensor const& tensor : *tensors) {
                types_.push_back(type_of(tensor));
            }
        }
    }

    trt::PluginCapability* capability(trt::CapabilityType kind) noexcept override
    {
        switch (kind) {
        case trt::CapabilityType::core:
            return static_cast<trt::PluginCore*>(this);
        case trt::CapabilityType::build:
            return static_cast<trt::PluginBuild*>(this);
        case trt::CapabilityType::runtime:
            return static_cast<trt::PluginRuntime*>(this);
        }
        return nullptr;
    }

    trt::PluginV3* clone() noexcept override
    {
        return guarded<trt::PluginV3*>(nullptr, [&] { return new KernelPlugin(layer_, tactic_); });
    }

    char const* plugin_name() const noexcept override { return creator_name; }
    char const* plugin_version() const noexcept override { return creator_version; }
    char const* plugin_namespace() const noexcept override { return creator_namespace; }

    // What a build asks.

    int32_t configure(trt::DynamicTensorDesc const*, int32_t, trt::DynamicTensorDesc const*, int32_t) noexcept override
    {
        return 0;
    }

    int32_t output_data_types(
        trt::DataType* types, int32_t outputs, trt::DataType const*, int32_t inputs) const noexcept override
    {
        return guarded<int32_t>(-1, [&] {
            check_counts(inputs, outputs);
            std::copy(types_.begin() + inputs, types_.end(), types);
            return 0;
        });
    }

    int32_t output_shapes(trt::DimsExprs const* in, int32_t inputs, trt::DimsExprs const*, int32_t,
        trt::DimsExprs* out, int32_t outputs, trt::ExprBuilder& builder) noexcept override
    {
        return guarded<int32_t>(-1, [&] {
            check_counts(inputs, outputs);
            answer_shapes(in, out, *builder.impl);
            return 0;
        });
    }

    bool supports_format_combination(
        int32_t place, trt::DynamicTensorDesc const* tensors, int32_t inputs, int32_t outputs) noexcept override
    {
        return guarded<bool>(false, [&] {
            check_counts(inputs, outputs);
            trt::TensorDesc const& desc = tensors[place].desc;
            return desc.format == trt::TensorFormat::linear && desc.type == types_.at(static_cast<size_t>(place));
        });
    }

    int32_t output_count() const noexcept override
    {
        return static_cast<int32_t>(spec_.outputs.size() + spec_.sizes.size());
    }

    // A failure is in the log, and no run begins without a workspace that it needs.
    size_t workspace_size(trt::DynamicTensorDesc const* in, int32_t inputs, trt::DynamicTensorDesc const*,
        int32_t outputs) const noexcept override
    {
        return guarded<size_t>(0, [&] {
            check_counts(inputs, outputs);
            return static_cast<size_t>(greatest_workspace(spec_, in, inputs));
        });
    }

    int32_t tactic_count() noexcept override
    {
        return spec_.kernel_names.size() > 1 ? static_cast<int32_t>(spec_.kernel_names.size()) : 0;
    }

    int32_t valid_tactics(int32_t* tactics, int32_t count) noexcept override
    {
        for (int32_t place = 0; place < count; ++place) {
            tactics[place] = place + 1;
        }
        return 0;
    }

    // Equal specs hold equal kernels, so what TensorRT measured of one holds for the other.
    char const* timing_cache_id() noexcept override { return layer_->key.c_str(); }

    // What TensorRT's inspector shows.
    char const* metadata_string() noexcept override { return spec_.layer.c_str(); }

    // What a plan keeps.

    trt::PluginFieldCollection const* fields_to_serialize() noexcept override
    {
        field_ = {field_name, layer_->raw.data(), trt::FieldType::int8, static_cast<int32_t>(layer_->raw.size())};
        collection_ = {1, &field_};
        return &collection_;
    }

    // What a run asks.

    trt::PluginV3* attach_to_context(void*) noexcept override
    {
        return guarded<trt::PluginV3*>(nullptr, [&] {
            auto made = std::make_unique<KernelPlugin>(layer_, tactic_);
            // Now: a CUDA graph may be captured at the first run, and nothing may be loaded in one.  What is wrong is
            // said when the shapes are set, since a plan may be opened where it cannot run.
            try {
                made->load();
            } catch (std::exception const&) {
                made->runner_.reset();
            }
            return made.release();
        });
    }

    int32_t set_tactic(int32_t tactic) noexcept override
    {
        return guarded<int32_t>(-1, [&] {
            if (tactic < 0 || tactic > static_cast<int32_t>(spec_.kernel_names.size())) {
                throw Fault("layer " + spec_.layer + " has " + std::to_string(spec_.kernel_names.size())
                        + " kernels, tactic " + std::to_string(tactic) + " was asked for",
                    "build the bundle again");
            }
            tactic_ = tactic;
            if (runner_ != nullptr) {
                runner_->prefer(preferred());
            }
            return 0;
        });
    }

    int32_t on_shape_change(
        trt::TensorDesc const* in, int32_t inputs, trt::TensorDesc const*, int32_t) noexcept override
    {
        return guarded<int32_t>(-1, [&] {
            load().set_shapes(in, inputs);
            return 0;
        });
    }

    int32_t enqueue(trt::TensorDesc const*, trt::TensorDesc const*, void const* const* inputs, void* const* outputs,
        void* workspace, void* stream) noexcept override
    {
        return guarded<int32_t>(-1, [&] {
            if (runner_ == nullptr) {
                throw Fault("layer " + spec_.layer + " is launched before its shapes are set");
            }
            runner_->launch(inputs, outputs, workspace, stream);
            return 0;
        });
    }

private:
    template <typename Answer, typename Work> Answer guarded(Answer failed, Work work) const noexcept
    {
        try {
            return work();
        } catch (std::exception const& error) {
            log::error("node " + layer_->node + ": " + error.what());
        } catch (...) {
            log::error("node " + layer_->node + ": layer " + spec_.layer + " failed");
        }
        return failed;
    }

    void check_counts(int32_t inputs, int32_t outputs) const
    {
        if (inputs != static_cast<int32_t>(spec_.inputs.size()) || outputs != output_count()) {
            throw Fault("layer " + spec_.layer + " has " + std::to_string(spec_.inputs.size()) + " inputs and "
                + std::to_string(output_count()) + " outputs, the node has " + std::to_string(inputs) + " and "
                + std::to_string(outputs));
        }
    }

    void answer_shapes(trt::DimsExprs const* in, trt::DimsExprs* out, trt::ExprBuilderImpl& builder) const
    {
        std::map<std::string, trt::DimensionExpr const*> known;
        for (size_t i = 0; i < spec_.inputs.size(); ++i) {
            if (in[i].count != spec_.inputs[i].rank) {
                throw Fault("layer " + spec_.layer + ": input " + spec_.inputs[i].name + " has rank "
                    + std::to_string(spec_.inputs[i].rank) + ", one of rank " + std::to_string(in[i].count) + " came");
            }
            for (int32_t axis = 0; axis < in[i].count && axis < trt::max_dims; ++axis) {
                known[spec_.inputs[i].name + "." + std::to_string(axis)] = in[i].sizes[axis];
            }
        }
        std::vector<trt::DimensionExpr const*> sizes;
        auto gather = [&] {
            sizes.clear();
            for (std::string const& symbol : spec_.shapes.symbols()) {
                sizes.push_back(known[symbol]);
            }
        };
        size_t outputs = spec_.outputs.size();
        for (size_t i = 0; i < spec_.sizes.size(); ++i) {
            gather();
            trt::DimensionExpr const* bound = lower(spec_.shapes, spec_.size_bounds[i], builder, sizes);
            known[spec_.sizes[i].name] = builder.declare_size_tensor(static_cast<int32_t>(outputs + i), *bound, *bound);
            out[outputs + i].count = 0;
        }
        gather();
        for (size_t i = 0; i < outputs; ++i) {
            std::vector<int> const& dims = spec_.output_dims[i];
            if (dims.size() > static_cast<size_t>(trt::max_dims)) {
                throw Fault("output " + spec_.outputs[i].name + " has " + std::to_string(dims.size())
                    + " dims, TensorRT has at most 8");
            }
            out[i].count = static_cast<int32_t>(dims.size());
            for (size_t axis = 0; axis < dims.size(); ++axis) {
                out[i].sizes[axis] = lower(spec_.shapes, dims[axis], builder, sizes);
            }
        }
    }

    Runner& load()
    {
        if (runner_ == nullptr) {
            int device = driver().architecture();
            auto made = std::make_unique<Runner>(layer_, device);
            made->prefer(preferred());
            runner_ = std::move(made);
        }
        return *runner_;
    }

    std::string preferred() const
    {
        return tactic_ == 0 ? "" : spec_.kernel_names[static_cast<size_t>(tactic_ - 1)];
    }

    std::shared_ptr<Layer const> layer_;
    Spec const& spec_;
    int32_t tactic_;
    std::vector<trt::DataType> types_; // of inputs, outputs and data-dependent sizes
    std::unique_ptr<Runner> runner_;
    trt::PluginField field_{};
    trt::PluginFieldCollection collection_{};
};

class KernelCreator final : public trt::PluginCreator {
public:
    trt::PluginV3* create_plugin(
        char const* name, trt::PluginFieldCollection const* fields, trt::Phase phase) noexcept override
    {
        std::string node = name == nullptr ? "?" : name;
        try {
            return create(node, fields, phase);
        } catch (std::exception const& error) {
            log::error("node " + node + ": " + error.what());
        } catch (...) {
            log::error("node " + node + " failed");
        }
        return nullptr;
    }

    trt::PluginFieldCollection const* field_names() noexcept override
    {
        static trt::PluginField const field = {field_name, nullptr, trt::FieldType::character, 0};
        static trt::PluginFieldCollection const collection = {1, &field};
        return &collection;
    }

    char const* plugin_name() const noexcept override { return creator_name; }
    char const* plugin_version() const noexcept override { return creator_version; }
    char const* plugin_namespace() const noexcept override { return creator_namespace; }

private:
    static trt::PluginV3* create(
        std::string const& node, trt::PluginFieldCollection const* fields, trt::Phase phase)
    {
        for (int32_t place = 0; fields != nullptr && place < fields->count; ++place) {
            trt::PluginField const& one = fields->fields[place];
            if (one.name == nullptr || std::strcmp(one.name, field_name) != 0) {
                continue;
            }
            auto size = static_cast<size_t>(one.length < 0 || one.data == nullptr ? 0 : one.length);
            return make(node, read_field(one.data, size, phase == trt::Phase::build));
        }
        throw Fault("it names no plugin spec", "build the bundle again");
    }

    static trt::PluginV3* make(std::string const& node, Field field)
    {
        auto layer = std::make_shared<Layer>();
        layer->node = node;
        layer->spec = read_spec(field.text);
        layer->key = field.key;
        layer->raw = std::move(field.raw);
        if (!layer->spec.plugin_class.empty()) {
            throw Fault("layer " + layer->spec.layer + " has its own plugin class " + layer->spec.plugin_class,
                "open the bundle in Python, with its pack installed");
        }
        for (auto& [digest, image] : field.images) {
            layer->kept[digest] = share(image);
        }
        return new KernelPlugin(layer);
    }
};

} // namespace

trt::PluginCreator& kernel_creator()
{
    // Never destroyed: a registry may hold it until the process is gone.
    static auto& creator = *new KernelCreator;
    return creator;
}

} // namespace layerport
