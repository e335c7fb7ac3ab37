// SHA-256 (FIPS 180-4) of bytes, as hexadecimal text.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace layerport {

std::string sha256(void const* data, size_t size);

} // namespace layerport
