// Registers the plugin when the library is loaded: for programs that only open plugin libraries, such as
// `trtexec --staticPlugins`, Triton Inference Server, DeepStream, or any under LD_PRELOAD.

#include "log.h"
#include "plugin.h"

#include <dlfcn.h>

namespace {

using layerport::log::Layout;
namespace log = layerport::log;

// `IPluginRegistry::registerCreator(IPluginCreatorInterface&, char const*)`: its place among the virtual functions.
constexpr int plain_slot = 12, versioned_slot = 8;

using GetRegistry = void* (*)() noexcept;

// The library of TensorRT in this process, which is there before its plugins are.
void* loaded_tensorrt()
{
    Dl_info place{};
    if (void* function = dlsym(RTLD_DEFAULT, "getPluginRegistry"); function != nullptr && dladdr(function, &place) != 0) {
        return dlopen(place.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    }
    for (char const* name : {"libnvinfer.so.11", "libnvinfer.so.10", "libtensorrt_rtx.so.1"}) {
        if (void* found = dlopen(name, RTLD_LAZY | RTLD_NOLOAD)) {
            return found; // never closed, because the registry holds our creator
        }
    }
    return nullptr;
}

void register_creator()
{
    void* tensorrt = loaded_tensorrt();
    auto get = tensorrt == nullptr ? nullptr : reinterpret_cast<GetRegistry>(dlsym(tensorrt, "getPluginRegistry"));
    if (get == nullptr) {
        log::error("no TensorRT is loaded in this process; load this library after TensorRT");
        return;
    }
    Layout layout = log::layout_of_library(tensorrt);
    if (layout == Layout::unknown) {
        log::error("this TensorRT is of a version that this library does not know; update layerport-native");
        return;
    }
    log::use_library(tensorrt);
    void* registry = get();
    void** functions = *static_cast<void***>(registry);
    auto add = reinterpret_cast<bool (*)(void*, layerport::trt::PluginCreator&, char const*)>(
        functions[layout == Layout::versioned ? versioned_slot : plain_slot]);
    layerport::trt::PluginCreator& creator = layerport::kernel_creator();
    if (!add(registry, creator, creator.plugin_namespace())) {
        log::write(layerport::trt::Severity::warning,
            "the plugin layerport::Kernel is registered already; load one build of the library only");
    }
}

struct Registration {
    Registration() noexcept
    {
        try {
            register_creator();
        } catch (...) {
            log::error("registering the plugin failed");
        }
    }
} const registration;

} // namespace
