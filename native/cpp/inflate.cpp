#include "inflate.h"

#include "fault.h"
#include <dlfcn.h>

namespace layerport {
namespace {

// int uncompress2(Bytef *dest, uLongf *destLen, const Bytef *source, uLong *sourceLen)
using Uncompress = int (*)(uint8_t*, unsigned long*, uint8_t const*, unsigned long*);

Uncompress find_zlib()
{
    void* library = dlopen("libz.so.1", RTLD_NOW);
    void* function = library == nullptr ? nullptr : dlsym(library, "uncompress2");
    if (function == nullptr) {
        throw Fault(library == nullptr ? "libz.so.1 is not on this machine" : "libz.so.1 is older than 1.2.9",
            "install zlib of the system (zlib1g)");
    }
    return reinterpret_cast<Uncompress>(function);
}

} // namespace

std::vector<uint8_t> decompressed(uint8_t const* packed, size_t packed_size, size_t size, std::string const& what)
{
    static Uncompress const uncompress = find_zlib();
    std::vector<uint8_t> data(size == 0 ? 1 : size);
    unsigned long made = size, taken = packed_size;
    if (uncompress(data.data(), &made, packed, &taken) != 0 || made != size || taken != packed_size) {
        throw Fault("a plugin's " + what + " does not have the " + std::to_string(size) + " bytes that its head says",
            damaged);
    }
    data.resize(size);
    return data;
}

} // namespace layerport
