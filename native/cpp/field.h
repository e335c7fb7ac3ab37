// The field that a plugin keeps in a plan, as `layerport.engine.plan_fields` writes it: its spec as JSON, and those of
// its kernels' images that no other plugin of the plan keeps.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace layerport {

using Bytes = std::vector<uint8_t>;

struct Image {
    std::string digest;
    Bytes data;
};

using Images = std::map<std::string, std::shared_ptr<Image const>>;

struct Field {
    std::string key;
    std::string text;
    Images images;
    Bytes raw; // the field itself, to be given back as it is
};

// Reads a field, its digests checked.  Throws Fault where it is damaged.
// as_text: whether it comes from an ONNX parser, which ends a text with a NUL.
Field read_field(void const* data, size_t size, bool as_text = false);

// Put an image into the table of this process, where the plugins that do not keep it find it; it stays there as long as
// somebody holds the answer.
std::shared_ptr<Image const> share(std::shared_ptr<Image const> image);

// The image of a digest, null where no plan that is open holds it.
std::shared_ptr<Image const> shared_image(std::string const& digest);

} // namespace layerport
