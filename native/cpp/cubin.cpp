#include "cubin.h"

#include "fault.h"
#include <cstring>
#include <map>

namespace layerport {
namespace {

// Attributes of a `.nv.info` section, which NVIDIA does not document.
constexpr uint8_t attribute_max_threads = 0x05;
constexpr uint8_t attribute_frame_size = 0x11;
constexpr uint8_t attribute_parameter = 0x17;
constexpr uint8_t attribute_registers = 0x2F;
constexpr uint8_t attribute_parameter_v2 = 0x45; // for kernels with more than 4 KiB of parameters
constexpr uint8_t format_sized = 4;
constexpr uint32_t no_bits = 8; // a section without bytes in the file
constexpr int64_t reserved_shared = 1024;
constexpr size_t header_size = 64, section_size = 64, segment_size = 56, symbol_size = 24;

struct Section {
    uint32_t name, type;
    uint64_t offset, size;
};

class Reader {
public:
    Reader(uint8_t const* data, size_t size) : data_(data), size_(size) {}

    template <typename Number> Number at(uint64_t offset) const
    {
        require(offset, sizeof(Number));
        Number number;
        std::memcpy(&number, data_ + offset, sizeof(Number));
        return number;
    }

    void require(uint64_t offset, uint64_t length) const
    {
        if (offset > size_ || length > size_ - offset) {
            throw Fault("it is cut short");
        }
    }

    Reader part(uint64_t offset, uint64_t length) const
    {
        require(offset, length);
        return {data_ + offset, length};
    }

    std::string text(uint64_t offset) const
    {
        require(offset, 1);
        void const* end = std::memchr(data_ + offset, 0, size_ - offset);
        if (end == nullptr) {
            throw Fault("a name does not end");
        }
        return {reinterpret_cast<char const*>(data_ + offset), static_cast<char const*>(end)};
    }

    size_t size() const { return size_; }

private:
    uint8_t const* data_;
    size_t size_;
};

class Elf {
public:
    explicit Elf(Reader image) : image_(image)
    {
        static constexpr uint8_t magic[] = {0x7f, 'E', 'L', 'F', 2, 1};
        constexpr uint16_t cuda = 190;
        if (image.size() < header_size || std::memcmp(&image_header()[0], magic, sizeof magic) != 0
            || image.at<uint16_t>(18) != cuda) {
            throw Fault("no CUDA ELF header");
        }
        uint32_t flags = image.at<uint32_t>(48);
        // The ABI version tells which byte of the flags holds the architecture: it moved with CUDA 13.
        architecture = static_cast<int>(image.at<uint8_t>(8) >= 8 ? flags >> 8 & 0xFF : flags & 0xFF);
        read_sections();
        check_segments();
    }

    Section const* find(std::string const& name) const
    {
        auto found = sections_.find(name);
        return found == sections_.end() ? nullptr : &found->second;
    }

    Section const& require(std::string const& name) const
    {
        Section const* found = find(name);
        if (found == nullptr) {
            throw Fault("section " + name + " is missing");
        }
        return *found;
    }

    Reader bytes(Section const& section) const { return image_.part(section.offset, section.size); }

    int architecture;

private:
    std::string image_header() const
    {
        std::string start;
        for (size_t i = 0; i < header_size; ++i) {
            start += static_cast<char>(image_.at<uint8_t>(i));
        }
        return start;
    }

    void read_sections()
    {
        uint64_t start = image_.at<uint64_t>(40);
        uint16_t size = image_.at<uint16_t>(58), count = image_.at<uint16_t>(60), names = image_.at<uint16_t>(62);
        if (size != section_size || names >= count) {
            throw Fault("no section table");
        }
        Reader table = image_.part(start, uint64_t{count} * size);
        auto row = [&](uint64_t index) {
            uint64_t at = index * section_size;
            return Section{table.at<uint32_t>(at), table.at<uint32_t>(at + 4), table.at<uint64_t>(at + 24),
                table.at<uint64_t>(at + 32)};
        };
        Reader texts = bytes(row(names));
        for (uint64_t index = 0; index < count; ++index) {
            Section section = row(index);
            if (section.type != no_bits) {
                image_.require(section.offset, section.size);
            }
            sections_[texts.text(section.name)] = section;
        }
    }

    void check_segments() const
    {
        uint64_t start = image_.at<uint64_t>(32);
        uint16_t size = image_.at<uint16_t>(54), count = image_.at<uint16_t>(56);
        if (count == 0) {
            return;
        }
        if (size != segment_size) {
            throw Fault("no segment table");
        }
        Reader table = image_.part(start, uint64_t{count} * size);
        for (uint64_t index = 0; index < count; ++index) {
            uint64_t at = index * segment_size;
            image_.require(table.at<uint64_t>(at + 8), table.at<uint64_t>(at + 32));
        }
    }

    Reader image_;
    std::map<std::string, Section> sections_;
};

// Calls take(attribute, its bytes) for each attribute of a `.nv.info` section.
template <typename Take> void each_attribute(Reader data, Take take)
{
    uint64_t position = 0;
    while (position < data.size()) {
        uint8_t layout = data.at<uint8_t>(position), attribute = data.at<uint8_t>(position + 1);
        uint16_t value = data.at<uint16_t>(position + 2);
        position += 4;
        if (layout == format_sized) {
            take(attribute, data.part(position, value));
            position += value;
        }
    }
}

void check_size(Reader attribute, size_t size)
{
    if (attribute.size() != size) {
        throw Fault("an attribute has " + std::to_string(attribute.size()) + " bytes");
    }
}

bool has_symbol(Elf const& elf, std::string const& symbol)
{
    Reader table = elf.bytes(elf.require(".symtab")), texts = elf.bytes(elf.require(".strtab"));
    for (uint64_t at = 0; at + symbol_size <= table.size(); at += symbol_size) {
        if (texts.text(table.at<uint32_t>(at)) == symbol) {
            return true;
        }
    }
    return false;
}

Cubin read(Elf const& elf, std::string const& symbol)
{
    Section const* information = elf.find(".nv.info." + symbol);
    if (information == nullptr || !has_symbol(elf, symbol)) {
        throw Fault("no kernel " + symbol + " in it");
    }
    std::map<int, int> sizes;
    Cubin cubin{elf.architecture, {}, 0, 0};
    each_attribute(elf.bytes(*information), [&](uint8_t attribute, Reader data) {
        if (attribute == attribute_parameter) {
            check_size(data, 12);
            sizes[data.at<uint16_t>(4)] = static_cast<int>(data.at<uint32_t>(8) >> 18);
        } else if (attribute == attribute_parameter_v2) {
            check_size(data, 12);
            sizes[data.at<uint16_t>(4)] = static_cast<int>(data.at<uint32_t>(8));
        } else if (attribute == attribute_max_threads) {
            check_size(data, 12);
            __int128 threads = __int128{data.at<uint32_t>(0)} * data.at<uint32_t>(4) * data.at<uint32_t>(8);
            cubin.max_threads = static_cast<int64_t>(threads > INT32_MAX ? INT32_MAX : threads);
        }
    });
    for (auto [place, size] : sizes) {
        if (place != static_cast<int>(cubin.parameter_sizes.size())) {
            throw Fault("the parameters of " + symbol + " are not numbered from 0");
        }
        cubin.parameter_sizes.push_back(size);
    }
    // Nothing of it is wanted, but what the driver reads of it must be whole.
    each_attribute(elf.bytes(elf.require(".nv.info")), [](uint8_t attribute, Reader data) {
        if (attribute == attribute_frame_size || attribute == attribute_registers) {
            check_size(data, 8);
        }
    });
    if (Section const* shared = elf.find(".nv.shared." + symbol)) {
        // From sm_90 on, the section begins with what the system keeps of each block, outside a block's limit.
        int64_t reserved = elf.find(".nv.shared.reserved.0") != nullptr ? reserved_shared : 0;
        auto size = static_cast<int64_t>(shared->size > INT32_MAX ? INT32_MAX : shared->size);
        cubin.static_shared = size > reserved ? size - reserved : 0;
    }
    return cubin;
}

} // namespace

Cubin read_cubin(std::vector<uint8_t> const& image, std::string const& symbol)
{
    try {
        return read(Elf(Reader(image.data(), image.size())), symbol);
    } catch (Fault const& fault) {
        throw Fault(std::to_string(image.size()) + " bytes given as a cubin cannot be read: " + fault.what(),
            "compile the kernel again; if the image comes from a file, that file is damaged");
    }
}

int64_t shared_limit(int architecture)
{
    static std::map<int, int> const kib = {{75, 64}, {80, 163}, {86, 99}, {87, 163}, {88, 99}, {89, 99}, {90, 227},
        {100, 227}, {103, 227}, {107, 227}, {110, 227}, {120, 99}, {121, 99}};
    auto found = kib.find(architecture);
    return found == kib.end() ? 0 : int64_t{found->second} * 1024;
}

} // namespace layerport
