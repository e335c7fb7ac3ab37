#include "driver.h"

#include "fault.h"
#include <dlfcn.h>

namespace layerport {
namespace {

template <typename Function> void find(void* library, char const* name, Function& function)
{
    function = reinterpret_cast<Function>(dlsym(library, name));
    if (function == nullptr) {
        throw Fault(std::string("the NVIDIA driver has no ") + name,
            "update it: kernels are loaded by functions that came with CUDA 12.0");
    }
}

Driver opened()
{
    void* library = dlopen("libcuda.so.1", RTLD_NOW);
    if (library == nullptr) {
        throw Fault("no NVIDIA driver on this machine (libcuda.so.1)", "run it on a machine with an NVIDIA GPU");
    }
    Driver driver{};
    find(library, "cuInit", driver.init);
    find(library, "cuCtxGetDevice", driver.current_device);
    find(library, "cuDeviceGetAttribute", driver.device_attribute);
    find(library, "cuLibraryLoadData", driver.load_library);
    find(library, "cuLibraryUnload", driver.unload_library);
    find(library, "cuLibraryGetKernel", driver.library_kernel);
    find(library, "cuKernelSetAttribute", driver.set_kernel_attribute);
    find(library, "cuLaunchKernel", driver.launch);
    find(library, "cuGetErrorName", driver.error_name);
    int status = driver.init(0);
    if (status != 0) {
        driver.check(status, "the NVIDIA driver cannot be used", "cuInit");
    }
    return driver;
}

} // namespace

void Driver::check(int status, std::string const& label, char const* function) const
{
    if (status == 0) {
        return;
    }
    char const* name = nullptr;
    error_name(status, &name);
    throw Fault(label + ": " + function + " failed: " + (name == nullptr ? std::to_string(status) : name));
}

int Driver::device() const
{
    int device = 0;
    return current_device(&device) == 0 ? device : 0;
}

int Driver::architecture() const
{
    constexpr int major_attribute = 75, minor_attribute = 76;
    int major = 0, minor = 0, place = device();
    check(device_attribute(&major, major_attribute, place), "the GPU cannot be asked", "cuDeviceGetAttribute");
    check(device_attribute(&minor, minor_attribute, place), "the GPU cannot be asked", "cuDeviceGetAttribute");
    return major * 10 + minor;
}

Driver const& driver()
{
    // Tried again after a failure, since what is missing may come.
    static Driver const found = opened();
    return found;
}

} // namespace layerport
