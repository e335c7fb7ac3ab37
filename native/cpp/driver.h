// The CUDA driver, opened when it is first wanted: no library of CUDA is linked, so that plans can be built without one.
#pragma once

#include <cstdint>
#include <string>

namespace layerport {

// Some functions of the driver, with the types of its binary interface: statuses are int, handles are pointers.
struct Driver {
    int (*init)(unsigned flags);
    int (*current_device)(int* device);
    int (*device_attribute)(int* value, int attribute, int device);
    int (*load_library)(void** library, void const* code, void* options, void** values, unsigned count,
        void* library_options, void** library_values, unsigned library_count);
    int (*unload_library)(void* library);
    int (*library_kernel)(void** kernel, void* library, char const* name);
    int (*set_kernel_attribute)(int attribute, int value, void* kernel, int device);
    int (*launch)(void* kernel, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
        unsigned block_z, unsigned shared, void* stream, void** arguments, void** extra);
    int (*error_name)(int status, char const** name);

    // Throws Fault with the name of the status where it is not success.
    void check(int status, std::string const& label, char const* function) const;

    // The device of the current context, else the first one.
    int device() const;

    // The architecture of the current device, such as 89.  Throws Fault where there is no device.
    int architecture() const;
};

// Throws Fault where there is no driver or GPU, or the driver is too old.
Driver const& driver();

} // namespace layerport
