// The one error inside this library: the fault with its values, and the repair.  It never leaves it: what TensorRT calls
// catches it, logs it and answers that the call failed.
#pragma once

#include <stdexcept>
#include <string>

namespace layerport {

struct Fault : std::runtime_error {
    explicit Fault(std::string const& fault, std::string const& repair = "")
        : std::runtime_error(repair.empty() ? fault : fault + "; " + repair)
    {
    }
};

inline std::string quote(std::string const& text)
{
    std::string shown;
    for (char c : text.substr(0, 80)) {
        shown += c >= ' ' && c <= '~' ? c : '?';
    }
    return "'" + shown + "'";
}

constexpr char const* damaged = "build the bundle again; this one is damaged";

} // namespace layerport
