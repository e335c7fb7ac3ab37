// A TensorRT of a version that the environment names: all that a library that registers itself asks it for.

#include <cstdint>
#include <cstdlib>

extern "C" {

int32_t getInferLibVersion() { return std::atoi(std::getenv("STAND_IN_VERSION")); }
void* getPluginRegistry() { return nullptr; }
void* getLogger() { return nullptr; }

} // extern "C"
