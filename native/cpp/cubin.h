// What a cubin says of its kernels, with every offset checked: `cuLibraryLoadData` takes no length, so an image whose
// lengths lie must not get there.  The same as `layerport.kernels.cubin` reads, so that no new driver need be asked.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace layerport {

struct Cubin {
    int architecture;
    std::vector<int> parameter_sizes;
    int64_t static_shared;
    int64_t max_threads; // 0 where the source states none
};

// The kernel of this symbol.  Throws Fault where the image is no cubin, has no such kernel or is cut short.
Cubin read_cubin(std::vector<uint8_t> const& image, std::string const& symbol);

// Bytes of shared memory that one block may use on an architecture, 0 where that is not known.
int64_t shared_limit(int architecture);

} // namespace layerport
