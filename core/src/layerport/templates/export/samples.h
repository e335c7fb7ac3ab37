// The samples of the bundle: `samples.txt` lists them, each tensor's bytes are a file.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

struct Sample {
    bool is_input = false;
    std::string name, dtype;
    std::vector<int64_t> shape;
    double absolute = 0, relative = 0; // how far an output may be from Torch's
    std::vector<char> data;
};

inline std::vector<char> read_file(std::string const& path)
{
    std::ifstream file(path, std::ios::binary);
    if (!file) {
        throw std::runtime_error("cannot read " + path);
    }
    return {std::istreambuf_iterator<char>(file), {}};
}

// A line: input or output, file, dtype, tolerances, rank, sizes, and to its end the name.
inline std::vector<Sample> read_samples(std::string const& folder)
{
    std::ifstream list(folder + "/samples.txt");
    std::vector<Sample> samples;
    std::string kind, path;
    for (Sample one; list >> kind >> path >> one.dtype >> one.absolute >> one.relative; samples.push_back(one)) {
        size_t rank = 0;
        list >> rank;
        one.shape.resize(rank);
        for (int64_t& size : one.shape) {
            list >> size;
        }
        std::getline(list.ignore(), one.name);
        one.is_input = kind == "input";
        one.data = read_file(folder + "/" + path);
    }
    if (samples.empty()) {
        throw std::runtime_error("cannot read " + folder + "/samples.txt");
    }
    return samples;
}

template <typename Number> Number number_at(char const* data, size_t place)
{
    Number number;
    std::memcpy(&number, data + place * sizeof(Number), sizeof(Number));
    return number;
}

inline double half(uint16_t bits)
{
    int exponent = bits >> 10 & 31, mantissa = bits & 1023;
    double size = exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
    size = exponent < 31 ? size : mantissa == 0 ? INFINITY : NAN;
    return (bits & 0x8000) != 0 ? -size : size;
}

inline double brain(uint16_t bits)
{
    uint32_t wide = uint32_t{bits} << 16;
    return number_at<float>(reinterpret_cast<char const*>(&wide), 0);
}

// Floats within the tolerances, everything else byte for byte.
inline bool agrees(Sample const& wanted, std::vector<char> const& got)
{
    std::map<std::string, size_t> const sizes = {{"float32", 4}, {"float16", 2}, {"bfloat16", 2}};
    auto size = sizes.find(wanted.dtype);
    if (size == sizes.end()) {
        return got == wanted.data;
    }
    auto value = [&](std::vector<char> const& data, size_t place) -> double {
        if (size->second == 4) {
            return number_at<float>(data.data(), place);
        }
        auto bits = number_at<uint16_t>(data.data(), place);
        return wanted.dtype == "float16" ? half(bits) : brain(bits);
    };
    for (size_t place = 0; place < got.size() / size->second; ++place) {
        double a = value(got, place), b = value(wanted.data, place);
        bool same = a == b || (std::isnan(a) && std::isnan(b));
        if (!same && !(std::isfinite(b) && std::fabs(a - b) <= wanted.absolute + wanted.relative * std::fabs(b))) {
            return false;
        }
    }
    return true;
}
