#include "spec_values.h"

#include "fault.h"
#include <algorithm>
#include <array>

namespace layerport {

static bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }

bool is_digit(char c) { return c >= '0' && c <= '9'; }

bool is_identifier(std::string const& text, size_t longest, bool dollar)
{
    auto first = [&](char c) { return is_letter(c) || (dollar && c == '$'); };
    return !text.empty() && text.size() <= longest && first(text[0])
        && std::all_of(text.begin(), text.end(), [&](char c) { return first(c) || is_digit(c); });
}

bool is_layer(std::string const& text)
{
    size_t colon = text.find("::");
    return colon != std::string::npos && is_identifier(text.substr(0, colon)) && is_identifier(text.substr(colon + 2));
}

// `module:function`, Python's names; those of other scripts than Latin are left to Python, which alone can import one.
bool is_class(std::string const& text)
{
    size_t colon = text.find(':');
    std::string module = text.substr(0, std::min(colon, text.size()));
    module.erase(std::remove(module.begin(), module.end(), '.'), module.end());
    return colon != std::string::npos && text[0] != '.' && colon <= 256 && is_identifier(module, 256)
        && is_identifier(text.substr(colon + 1));
}

Json const& member(Json const& object, char const* name)
{
    if (!object.is_object() || !object.contains(name)) {
        throw Fault(std::string("it has no ") + name);
    }
    return object.at(name);
}

std::string text_of(Json const& value, size_t longest)
{
    if (!value.is_string() || value.get_ref<std::string const&>().size() > longest) {
        throw Fault("something is no text of at most " + std::to_string(longest) + " characters");
    }
    return value.get<std::string>();
}

std::string name_of(Json const& value)
{
    std::string text = text_of(value);
    if (!is_identifier(text)) {
        throw Fault(quote(text) + " is not a name that may stand here");
    }
    return text;
}

int whole_of(Json const& value, int64_t below)
{
    if (!value.is_number_integer() || value.get<int64_t>() < 0 || value.get<int64_t>() >= below
        || (value.is_number_unsigned() && value.get<uint64_t>() >= static_cast<uint64_t>(below))) {
        throw Fault("something is no whole number below " + std::to_string(below));
    }
    return value.get<int>();
}

Json const& list_of(Json const& value, size_t length)
{
    if (!value.is_array() || (length != SIZE_MAX && value.size() != length)) {
        throw Fault("something is no list" + (length == SIZE_MAX ? "" : " of " + std::to_string(length)));
    }
    return value;
}

std::string dtype_of(Json const& value)
{
    static std::array<char const*, 17> const known = {"float64", "float32", "float16", "bfloat16", "float8_e4m3fn",
        "float8_e5m2", "int64", "int32", "int16", "int8", "int4", "uint64", "uint32", "uint16", "uint8", "uint4",
        "bool"};
    std::string text = text_of(value);
    if (std::find(known.begin(), known.end(), text) == known.end()) {
        throw Fault(quote(text) + " is no dtype");
    }
    return text;
}

bool flag_of(Json const& value)
{
    if (!value.is_boolean()) {
        throw Fault("something is neither true nor false");
    }
    return value.get<bool>();
}

} // namespace layerport
