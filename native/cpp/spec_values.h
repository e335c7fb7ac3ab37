// The values in the JSON of a spec, each checked as it is read: names, numbers, texts and lists.
#pragma once

#include "spec_json.h"
#include <cstddef>
#include <cstdint>
#include <string>

namespace layerport {

constexpr size_t longest_text = 4096;

bool is_digit(char c);
bool is_identifier(std::string const& text, size_t longest = 128, bool dollar = false);
bool is_layer(std::string const& text); // "namespace::name"
bool is_class(std::string const& text); // "module:function"

// All of these throw Fault where the value is something else.
Json const& member(Json const& object, char const* name);
std::string text_of(Json const& value, size_t longest = longest_text);
std::string name_of(Json const& value);
int whole_of(Json const& value, int64_t below = int64_t{1} << 31);
Json const& list_of(Json const& value, size_t length = SIZE_MAX);
std::string dtype_of(Json const& value);
bool flag_of(Json const& value);

} // namespace layerport
