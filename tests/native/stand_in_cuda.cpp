// A stand-in for the CUDA driver: it counts what is loaded and hands each launch to a function that the test sets.
// With OLD_DRIVER it is one of before CUDA 12, which lacks a function.

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace {

using Launch = int (*)(void* kernel, unsigned const* geometry, void* stream, void** arguments);

std::atomic<Launch> on_launch{nullptr};
std::atomic<int> architecture{90}, loaded{0}, launches{0}, widened{0}, load_status{0}, launch_status{0};

struct Library {
    void const* image;
};

} // namespace

extern "C" {

void stand_in_on_launch(Launch launch) { on_launch = launch; }
void stand_in_architecture(int number) { architecture = number; }
void stand_in_fail(int load, int launch)
{
    load_status = load;
    launch_status = launch;
}
int stand_in_loaded() { return loaded; }
int stand_in_launches() { return launches; }
int stand_in_widened() { return widened; }

int cuInit(unsigned) { return std::getenv("STAND_IN_NO_GPU") == nullptr ? 0 : 100; }
int cuCtxGetDevice(int* device)
{
    *device = 0;
    return 0;
}
int cuDeviceGetAttribute(int* value, int attribute, int)
{
    *value = attribute == 75 ? architecture / 10 : architecture % 10;
    return 0;
}
#ifndef OLD_DRIVER
int cuLibraryLoadData(void** library, void const* code, void*, void**, unsigned, void*, void**, unsigned)
{
    if (load_status != 0) {
        return load_status;
    }
    ++loaded;
    *library = new Library{code};
    return 0;
}
#endif
int cuLibraryUnload(void* library)
{
    --loaded;
    delete static_cast<Library*>(library);
    return 0;
}
// A kernel is its image here: the test knows which is which.
int cuLibraryGetKernel(void** kernel, void* library, char const*)
{
    *kernel = const_cast<void*>(static_cast<Library*>(library)->image);
    return 0;
}
int cuKernelSetAttribute(int, int value, void*, int)
{
    widened = value;
    return 0;
}
int cuLaunchKernel(void* kernel, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
    unsigned shared, void* stream, void** arguments, void**)
{
    ++launches;
    Launch launch = on_launch;
    unsigned const geometry[] = {gx, gy, gz, bx, by, bz, shared};
    return launch == nullptr ? launch_status.load() : launch(kernel, geometry, stream, arguments);
}
int cuGetErrorName(int status, char const** name)
{
    *name = status == 209 ? "CUDA_ERROR_NO_BINARY_FOR_GPU" : status == 100 ? "CUDA_ERROR_NO_DEVICE" : "CUDA_ERROR_UNKNOWN";
    return 0;
}

} // extern "C"
