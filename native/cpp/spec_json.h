// JSON from strangers, read as strictly as `layerport.system.strict_json` reads it.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace layerport {

using Json = nlohmann::json;

// Throws Fault that says what is wrong.  NaN and the infinities of Python, which JSON lacks, are read as some number.
Json read_json(std::string const& text);

} // namespace layerport
