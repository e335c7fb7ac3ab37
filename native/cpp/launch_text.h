// Floats of launch rules, as Python's `repr` writes them.
#pragma once

#include <string>

namespace layerport {

// Reads the text of a float; false for anything but what `repr(float)` gives.
bool read_number(std::string const& text, double& number);

} // namespace layerport
