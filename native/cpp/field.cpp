#include "field.h"

#include "fault.h"
#include "sha256.h"
#include "inflate.h"
#include <cstring>
#include <mutex>

namespace layerport {
namespace {

constexpr char magic[] = "layerport-plugin\0"; // before the number of the format
constexpr uint8_t oldest = 2, newest = 3;       // 3 where a kernel is several launches or has scratch memory
constexpr size_t magic_size = 18, head_size = 44, key_size = 12;
constexpr size_t spec_limit = 1 << 22, image_limit = 1 << 26;

class Cursor {
public:
    Cursor(uint8_t const* data, size_t size) : data_(data), size_(size) {}

    uint8_t const* take(size_t length)
    {
        if (length > size_ - at_) {
            throw Fault("a plugin's field is cut short", damaged);
        }
        at_ += length;
        return data_ + at_ - length;
    }

    // Numbers are little-endian, as the machines are that CUDA runs on.
    template <typename Number> Number number()
    {
        Number value;
        std::memcpy(&value, take(sizeof(Number)), sizeof(Number));
        return value;
    }

    size_t at() const { return at_; }

private:
    uint8_t const* data_;
    size_t size_;
    size_t at_ = 0;
};

std::string hexadecimal(uint8_t const* bytes, size_t size)
{
    std::string text;
    for (size_t i = 0; i < size; ++i) {
        text += "0123456789abcdef"[bytes[i] >> 4];
        text += "0123456789abcdef"[bytes[i] & 15];
    }
    return text;
}

Bytes unpacked(Cursor& from, size_t packed, size_t size, size_t limit, std::string const& what)
{
    if (size > limit) {
        throw Fault("a plugin's " + what + " has " + std::to_string(size) + " bytes, at most " + std::to_string(limit)
                + " are read",
            damaged);
    }
    uint8_t const* data = from.take(packed);
    return decompressed(data, packed, size, what);
}

struct Entry {
    std::string digest;
    uint32_t size, packed;
};

std::mutex lock;
// Never destroyed: plugins may be destroyed after everything else at the end of a process.
std::map<std::string, std::weak_ptr<Image const>>& table()
{
    static auto& made = *new std::map<std::string, std::weak_ptr<Image const>>;
    return made;
}

} // namespace

Field read_field(void const* data, size_t size, bool as_text)
{
    auto bytes = static_cast<uint8_t const*>(data);
    if (size < magic_size || std::memcmp(bytes, magic, magic_size - 1) != 0) {
        throw Fault("the node's field is no plugin spec of layerport", "build the bundle again");
    }
    if (bytes[magic_size - 1] < oldest || bytes[magic_size - 1] > newest) {
        throw Fault("a plugin's field has format " + std::to_string(bytes[magic_size - 1]) + ", this library reads 3",
            "update layerport-native, or build the bundle again");
    }
    Cursor cursor(bytes, size);
    cursor.take(magic_size);
    uint32_t length = cursor.number<uint32_t>();
    Field field;
    field.key = hexadecimal(cursor.take(key_size), key_size);
    uint32_t text_size = cursor.number<uint32_t>(), text_packed = cursor.number<uint32_t>();
    uint16_t count = cursor.number<uint16_t>();
    if (as_text && size == size_t{length} + 1 && bytes[length] == 0) {
        size = length;
    }
    if (length != size) {
        throw Fault("a plugin's field has " + std::to_string(size) + " bytes, its head says " + std::to_string(length),
            damaged);
    }
    std::vector<Entry> entries;
    for (int index = 0; index < count; ++index) {
        std::string digest = hexadecimal(cursor.take(32), 32);
        uint32_t raw = cursor.number<uint32_t>(), packed = cursor.number<uint32_t>();
        entries.push_back({digest, raw, packed});
    }
    Bytes text = unpacked(cursor, text_packed, text_size, spec_limit, "spec");
    field.text.assign(text.begin(), text.end());
    if (sha256(text.data(), text.size()).compare(0, 2 * key_size, field.key) != 0) {
        throw Fault("plugin spec " + field.key + " has another content", damaged);
    }
    for (Entry const& entry : entries) {
        auto image = std::make_shared<Image>();
        image->digest = entry.digest;
        image->data = unpacked(cursor, entry.packed, entry.size, image_limit, "image");
        if (sha256(image->data.data(), image->data.size()) != entry.digest) {
            throw Fault(
                "image " + entry.digest.substr(0, 12) + " does not have the content it is named after", damaged);
        }
        field.images[entry.digest] = std::move(image);
    }
    if (cursor.at() != size) {
        throw Fault("a plugin's field has " + std::to_string(size) + " bytes, of which " + std::to_string(cursor.at())
                + " are accounted for",
            damaged);
    }
    field.raw.assign(bytes, bytes + size);
    return field;
}

std::shared_ptr<Image const> share(std::shared_ptr<Image const> image)
{
    std::lock_guard<std::mutex> guard(lock);
    std::weak_ptr<Image const>& place = table()[image->digest];
    if (std::shared_ptr<Image const> there = place.lock()) {
        return there;
    }
    place = image;
    return image;
}

std::shared_ptr<Image const> shared_image(std::string const& digest)
{
    std::lock_guard<std::mutex> guard(lock);
    auto found = table().find(digest);
    return found == table().end() ? nullptr : found->second.lock();
}

} // namespace layerport
