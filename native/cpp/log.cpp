#include "log.h"

#include <atomic>
#include <cstdio>
#include <dlfcn.h>

namespace layerport::log {
namespace {

// `findLogger` and `log` come first in their classes, or, since these derive from a versioned interface, after its four
// virtual functions.
constexpr int versioned_slot = 4;

std::atomic<void*> finder{nullptr};
std::atomic<void*> logger{nullptr};
std::atomic<Layout> layout{Layout::unknown};

template <typename Function> Function virtual_function(void* object, Layout of) noexcept
{
    void** table = *static_cast<void***>(object);
    return reinterpret_cast<Function>(table[of == Layout::versioned ? versioned_slot : 0]);
}

// The layout that the library has in whose memory an object's virtual table lies.
Layout layout_of_object(void* object) noexcept
{
    Dl_info place{};
    if (dladdr(*static_cast<void**>(object), &place) == 0 || place.dli_fname == nullptr) {
        return Layout::unknown;
    }
    void* library = dlopen(place.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    if (library == nullptr) {
        return Layout::unknown;
    }
    Layout found = layout_of_library(library);
    dlclose(library);
    return found;
}

} // namespace

Layout layout_of_library(void* handle) noexcept
{
    auto version = reinterpret_cast<int32_t (*)() noexcept>(dlsym(handle, "getInferLibVersion"));
    if (version == nullptr) {
        return Layout::unknown;
    }
    // TensorRT says 10 14 01 or 11 01 00, TensorRT for RTX 1 07 01, TensorRT 8 said 8 6 01.
    int32_t number = version();
    if (number >= 10000 && number < 20000) {
        return number >= 10500 ? Layout::versioned : Layout::plain;
    }
    if (number >= 100000 && number < 120000) {
        return number >= 110000 ? Layout::versioned : Layout::plain;
    }
    return Layout::unknown;
}

void use_finder(void* given) noexcept
{
    layout = given == nullptr ? Layout::unknown : layout_of_object(given);
    finder = given;
    if (given != nullptr && layout == Layout::unknown) {
        std::fputs("layerport: this TensorRT is of a version that this library does not know; "
                   "its messages go to standard error; update layerport-native\n",
            stderr);
    }
}

void use_library(void* handle) noexcept
{
    auto get = reinterpret_cast<void* (*)() noexcept>(dlsym(handle, "getLogger"));
    layout = layout_of_library(handle);
    logger = get == nullptr ? nullptr : get();
}

void write(trt::Severity severity, std::string const& message) noexcept
{
    Layout of = layout;
    void* target = logger;
    if (void* given = finder; given != nullptr && of != Layout::unknown) {
        target = virtual_function<void* (*)(void*)>(given, of)(given);
    }
    if (target == nullptr || of == Layout::unknown) {
        std::fprintf(stderr, "layerport: %s\n", message.c_str());
        return;
    }
    virtual_function<void (*)(void*, trt::Severity, char const*)>(target, of)(target, severity, message.c_str());
}

} // namespace layerport::log
