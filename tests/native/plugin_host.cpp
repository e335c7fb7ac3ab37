// Does to the plugin what TensorRT does, through the library's own exports and the interface alone; its log has the
// layout of the version that the test chooses.

#include "tensorrt.h"

#include <chrono>
#include <cstring>
#include <dlfcn.h>
#include <mutex>
#include <string>
#include <vector>

using namespace layerport::trt;

namespace {

int version = 110100;
std::mutex lock;
std::string logged;

void note(int severity, char const* text)
{
    std::lock_guard<std::mutex> guard(lock);
    logged += std::to_string(severity) + " " + text + "\n";
}

struct PlainLogger {
    virtual void log(int severity, char const* text) noexcept { note(severity, text); }
    virtual ~PlainLogger() = default;
} plain_logger;

struct PlainFinder {
    virtual PlainLogger* find() { return &plain_logger; }
    virtual ~PlainFinder() = default;
} plain_finder;

struct VersionedLogger : VersionedInterface {
    InterfaceInfo interface_info() const noexcept override { return {"LOGGER", 1, 0}; }
    virtual void log(int severity, char const* text) noexcept { note(severity, text); }
} versioned_logger;

struct VersionedFinder : VersionedInterface {
    InterfaceInfo interface_info() const noexcept override { return {"FINDER", 1, 0}; }
    virtual VersionedLogger* find() { return &versioned_logger; }
} versioned_finder;

template <typename Interface> Interface& part(void* plugin, CapabilityType kind)
{
    return *static_cast<Interface*>(static_cast<PluginV3*>(plugin)->capability(kind));
}

PluginRuntime& runtime(void* plugin) { return part<PluginRuntime>(plugin, CapabilityType::runtime); }
PluginBuild& build(void* plugin) { return part<PluginBuild>(plugin, CapabilityType::build); }

std::vector<TensorDesc> described(int count, int const* ranks, int64_t const* dims)
{
    std::vector<TensorDesc> tensors(static_cast<size_t>(count));
    for (TensorDesc& tensor : tensors) {
        tensor.dims.count = *ranks++;
        for (int axis = 0; axis < tensor.dims.count; ++axis, ++dims) {
            if (axis < max_dims) { // a rank that no tensor has is a test of its own
                tensor.dims.sizes[axis] = *dims;
            }
        }
    }
    return tensors;
}

} // namespace

extern "C" {

int32_t getInferLibVersion() { return version; }

// The creator of a plugin library, whose log is ours from then on.
void* host_open(char const* path, int as_version)
{
    version = as_version;
    void* library = dlopen(path, RTLD_NOW);
    if (library == nullptr) {
        return nullptr;
    }
    void* finder = version >= 110000 || (version >= 10500 && version < 20000) ? static_cast<void*>(&versioned_finder)
                                                                              : static_cast<void*>(&plain_finder);
    reinterpret_cast<void (*)(void*)>(dlsym(library, "setLoggerFinder"))(finder);
    int32_t count = 0;
    auto get = reinterpret_cast<PluginCreator* const* (*)(int32_t*)>(dlsym(library, "getCreators"));
    PluginCreator* const* creators = get(&count);
    return count == 1 ? creators[0] : nullptr;
}

size_t host_log(char* into, size_t size)
{
    std::lock_guard<std::mutex> guard(lock);
    size_t length = logged.size() < size ? logged.size() : size;
    std::memcpy(into, logged.data(), length);
    logged.clear();
    return length;
}

void* host_create(void* creator, void const* data, int size, int phase, int type)
{
    PluginField fields[] = {{"other", nullptr, FieldType::unknown, 0}, {nullptr, data, FieldType::int8, size},
        {"layerport_spec", data, static_cast<FieldType>(type), size}};
    PluginFieldCollection collection = {3, fields};
    return static_cast<PluginCreator*>(creator)->create_plugin("the_node", &collection, static_cast<Phase>(phase));
}

// What a caller that is in error may hand over: no fields, none of ours, a field without data or of a length below 0.
int host_create_strangely(void* creator)
{
    auto* kernels = static_cast<PluginCreator*>(creator);
    PluginField other = {"other", "x", FieldType::character, 1};
    PluginFieldCollection none = {0, nullptr}, strange = {1, &other};
    int made = kernels->create_plugin("the_node", nullptr, Phase::build) != nullptr;
    made += kernels->create_plugin("the_node", &none, Phase::build) != nullptr;
    made += kernels->create_plugin("the_node", &strange, Phase::runtime) != nullptr;
    for (PluginField bad : {PluginField{"layerport_spec", nullptr, FieldType::int8, 100},
             PluginField{"layerport_spec", "x", FieldType::int8, -1}, PluginField{"layerport_spec", "x", FieldType::int8, 0}}) {
        PluginFieldCollection collection = {1, &bad};
        made += kernels->create_plugin(nullptr, &collection, Phase::runtime) != nullptr;
    }
    return made;
}

void* host_clone(void* plugin) { return static_cast<PluginV3*>(plugin)->clone(); }
void* host_attach(void* plugin) { return runtime(plugin).attach_to_context(nullptr); }
void host_destroy(void* plugin) { delete static_cast<PluginV3*>(plugin); }

int host_shapes(void* plugin, int count, int const* ranks, int64_t const* dims)
{
    return runtime(plugin).on_shape_change(described(count, ranks, dims).data(), count, nullptr, 0);
}

// The bytes of workspace for inputs up to these sizes.
size_t host_workspace(void* plugin, int count, int const* ranks, int64_t const* dims)
{
    std::vector<DynamicTensorDesc> inputs;
    for (TensorDesc const& desc : described(count, ranks, dims)) {
        inputs.push_back({desc, desc.dims, desc.dims, desc.dims});
    }
    return build(plugin).workspace_size(inputs.data(), count, nullptr, build(plugin).output_count());
}

int host_enqueue(void* plugin, void const* const* inputs, void* const* outputs, void* workspace, void* stream)
{
    return runtime(plugin).enqueue(nullptr, nullptr, inputs, outputs, workspace, stream);
}

int host_tactics(void* plugin) { return build(plugin).tactic_count(); }
int host_set_tactic(void* plugin, int tactic) { return runtime(plugin).set_tactic(tactic); }
char const* host_metadata(void* plugin) { return build(plugin).metadata_string(); }
char const* host_cache_id(void* plugin) { return build(plugin).timing_cache_id(); }

int host_types(void* plugin, int inputs, int outputs, int* types)
{
    return build(plugin).output_data_types(reinterpret_cast<DataType*>(types), outputs, nullptr, inputs);
}

int host_field(void* plugin, char* into, int size)
{
    PluginFieldCollection const* collection = runtime(plugin).fields_to_serialize();
    PluginField const& field = collection->fields[0];
    std::memcpy(into, field.data, static_cast<size_t>(field.length < size ? field.length : size));
    return field.length;
}

// Nanoseconds for each of some calls.
double host_time(void* plugin, int calls, int count, int const* ranks, int64_t const* dims, void const* const* inputs,
    void* const* outputs)
{
    std::vector<TensorDesc> tensors = described(count, ranks, dims);
    PluginRuntime& one = runtime(plugin);
    auto begun = std::chrono::steady_clock::now();
    for (int i = 0; i < calls; ++i) {
        if (inputs == nullptr) {
            one.on_shape_change(tensors.data(), count, nullptr, 0);
        } else {
            one.enqueue(nullptr, nullptr, inputs, outputs, nullptr, nullptr);
        }
    }
    return std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - begun).count() / calls;
}

} // extern "C"
