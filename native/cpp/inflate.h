// Decompression by the system's zlib, opened when it is first wanted: a library that every Linux has, kept by others.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace layerport {

// The decompressed bytes.  Throws Fault where they are not exactly `size`, or more follows.
std::vector<uint8_t> decompressed(uint8_t const* packed, size_t packed_size, size_t size, std::string const& what);

} // namespace layerport
