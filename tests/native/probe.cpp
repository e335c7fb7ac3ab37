// The library's parts by themselves, for tests that compare each with its counterpart in Python.

#include "cubin.h"
#include "expression.h"
#include "field.h"
#include "launch_text.h"
#include "lowering.h"
#include "sha256.h"
#include "spec.h"

#include <cstring>
#include <memory>
#include <vector>

using namespace layerport;

namespace {

void copy(std::string const& text, char* into, size_t size)
{
    size_t length = text.size() < size - 1 ? text.size() : size - 1;
    std::memcpy(into, text.data(), length);
    into[length] = 0;
}

// Stands in for TensorRT's builder: writes down what it is asked to make, each expression once.
struct Recorder : trt::ExprBuilderImpl {
    trt::DimensionExpr const* note(std::string const& line)
    {
        made.push_back(std::make_unique<int>(static_cast<int>(made.size())));
        text += line + "\n";
        return reinterpret_cast<trt::DimensionExpr const*>(made.back().get());
    }
    static std::string name(trt::DimensionExpr const& one) { return "#" + std::to_string(*reinterpret_cast<int const*>(&one)); }
    trt::DimensionExpr const* constant(int64_t value) override { return note("constant " + std::to_string(value)); }
    trt::DimensionExpr const* operation(
        trt::DimensionOperation op, trt::DimensionExpr const& a, trt::DimensionExpr const& b) override
    {
        return note(std::to_string(static_cast<int>(op)) + " " + name(a) + " " + name(b));
    }
    trt::DimensionExpr const* declare_size_tensor(int32_t, trt::DimensionExpr const&, trt::DimensionExpr const&) override
    {
        return nullptr;
    }
    std::string text;
    std::vector<std::unique_ptr<int>> made;
};

} // namespace

extern "C" {

// 0: the value; 1: no expression; 2: no value.
int probe_expression(char const* text, char const* const* names, int64_t const* sizes, int count, int64_t* high,
    uint64_t* low, char* message, size_t size)
{
    int stage = 1;
    try {
        Expressions expressions;
        int node = expressions.read(text);
        stage = 2;
        std::vector<int64_t> given;
        for (std::string const& symbol : expressions.symbols()) {
            int found = 0;
            while (found < count && symbol != names[found]) {
                ++found;
            }
            if (found == count) {
                return 2;
            }
            given.push_back(sizes[found]);
        }
        Values values(expressions);
        values.compute(given.data());
        Wide value = values.wide(node);
        *high = static_cast<int64_t>(value >> 64);
        *low = static_cast<uint64_t>(value);
        return 0;
    } catch (std::exception const& error) {
        copy(error.what(), message, size);
        return stage;
    }
}

int probe_lowering(char const* text, char* answer, size_t size)
{
    try {
        Expressions expressions;
        int node = expressions.read(text);
        Recorder recorder;
        std::vector<trt::DimensionExpr const*> sizes;
        for (std::string const& symbol : expressions.symbols()) {
            sizes.push_back(recorder.note(symbol));
        }
        recorder.text.clear();
        lower(expressions, node, recorder, sizes);
        copy(recorder.text, answer, size);
        return 0;
    } catch (std::exception const& error) {
        copy(error.what(), answer, size);
        return 1;
    }
}

int probe_field(void const* data, size_t length, char* message, size_t size)
{
    try {
        Field field = read_field(data, length);
        copy(read_spec(field.text).layer, message, size);
        return 0;
    } catch (std::exception const& error) {
        copy(error.what(), message, size);
        return 1;
    }
}

int probe_spec(char const* text, size_t length, char* message, size_t size)
{
    try {
        copy(read_spec(std::string(text, length)).layer, message, size);
        return 0;
    } catch (std::exception const& error) {
        copy(error.what(), message, size);
        return 1;
    }
}

// answer: architecture, static shared memory, most threads, number of parameters, their sizes.
int probe_cubin(uint8_t const* data, size_t length, char const* symbol, int64_t* answer, size_t places, char* message,
    size_t size)
{
    try {
        Cubin cubin = read_cubin(Bytes(data, data + length), symbol);
        answer[0] = cubin.architecture;
        answer[1] = cubin.static_shared;
        answer[2] = cubin.max_threads;
        answer[3] = static_cast<int64_t>(cubin.parameter_sizes.size());
        for (size_t i = 0; i < cubin.parameter_sizes.size() && i + 4 < places; ++i) {
            answer[4 + i] = cubin.parameter_sizes[i];
        }
        return 0;
    } catch (std::exception const& error) {
        copy(error.what(), message, size);
        return 1;
    }
}

int probe_number(char const* text, double* number) { return read_number(text, *number) ? 0 : 1; }

void probe_sha256(void const* data, size_t length, char* answer) { copy(sha256(data, length), answer, 65); }

} // extern "C"
