// What a registry of TensorRT asks a library for that it loads: for `loadLibrary` and `trtexec --dynamicPlugins`.

#include "log.h"
#include "plugin.h"

extern "C" __attribute__((visibility("default"))) layerport::trt::PluginCreator* const* getCreators(int32_t* count)
{
    static layerport::trt::PluginCreator* const creators[] = {&layerport::kernel_creator()};
    *count = 1;
    return creators;
}

extern "C" __attribute__((visibility("default"))) void setLoggerFinder(void* finder)
{
    layerport::log::use_finder(finder);
}
