#include "launch_text.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>

namespace layerport {
namespace {

constexpr size_t longest = 32;

// The digits (without a point) and the exponent of a finite number above zero, as short as they can be.
std::string shortest(double number, int& exponent)
{
    for (int digits = 1;; ++digits) {
        char text[40];
        std::snprintf(text, sizeof text, "%.*e", digits - 1, number);
        if (std::strtod(text, nullptr) == number || digits == 17) {
            std::string all(text);
            size_t e = all.find('e');
            exponent = std::atoi(all.c_str() + e + 1);
            // Without the point, whatever character the locale has for it.
            return all.substr(0, 1) + (digits == 1 ? "" : all.substr(e - static_cast<size_t>(digits - 1), digits - 1));
        }
    }
}

std::string python_text(double number)
{
    if (std::isnan(number)) {
        return "nan";
    }
    std::string sign = std::signbit(number) ? "-" : "";
    number = std::fabs(number);
    if (std::isinf(number)) {
        return sign + "inf";
    }
    if (number == 0) {
        return sign + "0.0";
    }
    int exponent = 0;
    std::string digits = shortest(number, exponent);
    if (exponent < -4 || exponent >= 16) {
        char text[16];
        std::snprintf(text, sizeof text, "e%c%02d", exponent < 0 ? '-' : '+', std::abs(exponent));
        return sign + digits.substr(0, 1) + (digits.size() > 1 ? "." + digits.substr(1) : "") + text;
    }
    if (exponent < 0) {
        return sign + "0." + std::string(static_cast<size_t>(-exponent - 1), '0') + digits;
    }
    auto whole = static_cast<size_t>(exponent) + 1;
    if (digits.size() <= whole) {
        return sign + digits + std::string(whole - digits.size(), '0') + ".0";
    }
    return sign + digits.substr(0, whole) + "." + digits.substr(whole);
}

// The value of digits with an optional point and exponent, whatever the locale is.
double value_of(std::string text)
{
    char point[8];
    std::snprintf(point, sizeof point, "%.1f", 0.5);
    std::string separator = std::string(point).substr(1, std::string(point).size() - 2);
    if (size_t at = text.find('.'); at != std::string::npos) {
        text.replace(at, 1, separator);
    }
    return std::strtod(text.c_str(), nullptr);
}

} // namespace

bool read_number(std::string const& text, double& number)
{
    if (text.empty() || text.size() > longest || text.find('\0') != std::string::npos) {
        return false;
    }
    if (text == "nan") {
        number = std::numeric_limits<double>::quiet_NaN();
    } else if (text == "inf" || text == "-inf") {
        number = text[0] == '-' ? -std::numeric_limits<double>::infinity() : std::numeric_limits<double>::infinity();
    } else {
        number = value_of(text);
    }
    return python_text(number) == text;
}

} // namespace layerport
