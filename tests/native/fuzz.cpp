// A fuzzer of one reader of the library, guided by coverage: `fuzz READER SECONDS SEED LAST FILE...`.
//
// The library is compiled with `-fsanitize-coverage=trace-pc`, which g++ has, and with sanitizers.  Inputs that reach new
// code are kept and changed further.  LAST is the file that holds the input at hand when a run ends early.

#include "cubin.h"
#include "expression.h"
#include "field.h"
#include "spec.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <fstream>
#include <functional>
#include <iostream>
#include <iterator>
#include <map>
#include <random>

using namespace layerport;

namespace {

constexpr size_t places = 1 << 16, longest = 1 << 16, most_kept = 20'000;
uint8_t reached[places];
size_t reached_count = 0;
std::string symbol;

} // namespace

extern "C" void __sanitizer_cov_trace_pc()
{
    auto place = reinterpret_cast<uintptr_t>(__builtin_return_address(0));
    uint8_t& one = reached[(place ^ place >> 16) % places];
    reached_count += one == 0;
    one = 1;
}

namespace {

void read_as_expression(std::string const& input)
{
    Expressions expressions;
    int node = expressions.read(input);
    Values values(expressions);
    for (int64_t size : {int64_t{0}, int64_t{1}, int64_t{4096}, int64_t{-1}, INT64_MAX}) {
        std::vector<int64_t> sizes(expressions.symbols().size(), size);
        values.compute(sizes.data());
        try {
            values.wide(node);
            values.at(node);
        } catch (std::exception const&) {
        }
    }
}

void read_as_field(std::string const& input)
{
    Field field = read_field(input.data(), input.size(), true);
    read_spec(field.text);
}

std::map<std::string, std::function<void(std::string const&)>> const readers = {{"expression", read_as_expression},
    {"spec", [](std::string const& input) { read_spec(input); }}, {"field", read_as_field},
    {"cubin", [](std::string const& input) { read_cubin(Bytes(input.begin(), input.end()), symbol); }}};

std::string read_file(char const* path)
{
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

class Mutator {
public:
    explicit Mutator(unsigned seed) : dice_(seed) {}

    size_t below(size_t limit) { return limit == 0 ? 0 : dice_() % limit; }

    std::string changed(std::string text, std::string const& other)
    {
        for (size_t count = 1 + below(4); count > 0; --count) {
            change(text, other);
        }
        text.resize(std::min(text.size(), longest));
        return text;
    }

private:
    void change(std::string& text, std::string const& other)
    {
        static char const* const words[] = {"x.0", "(", ")", "//", "%", "==", "<=", "min(", "where(", "not(", ",", "-", "*",
            "9223372036854775807", "1e999", "NaN", "null", "true", "[", "]", "{", "}", "\"", "\\u0000", "\xff", "65", "-1"};
        static uint64_t const numbers[] = {0, 1, 0x7f, 0xff, 0x7fffffff, 0xffffffff, 0x7fffffffffffffff, UINT64_MAX, 1 << 16};
        size_t at = below(text.size() + 1), rest = text.size() - at;
        switch (below(7)) {
        case 0:
            if (rest != 0) {
                text[at] = static_cast<char>(text[at] ^ 1 << below(8));
            }
            return;
        case 1:
            if (rest != 0) {
                text[at] = static_cast<char>(dice_());
            }
            return;
        case 2:
            text.erase(at, 1 + below(std::min<size_t>(rest, 16)));
            return;
        case 3:
            text.insert(at, words[below(std::size(words))]);
            return;
        case 4: {
            size_t size = size_t{1} << below(4);
            uint64_t number = below(4) == 0 ? text.size() - below(64) : numbers[below(std::size(numbers))];
            std::memcpy(text.data() + at, &number, std::min(size, rest));
            return;
        }
        case 5:
            text.insert(at, text.substr(below(text.size() + 1), below(32)));
            return;
        default:
            text = text.substr(0, at) + other.substr(below(other.size() + 1));
        }
    }

    std::mt19937 dice_;
};

} // namespace

int main(int count, char** arguments)
{
    auto const& reader = readers.at(arguments[1]);
    double seconds = std::stod(arguments[2]);
    Mutator mutator(static_cast<unsigned>(std::stoul(arguments[3])));
    std::vector<std::string> kept;
    for (int i = 5; i < count; ++i) {
        kept.push_back(read_file(arguments[i]));
        symbol = std::string(arguments[i]).substr(std::string(arguments[i]).rfind('/') + 1); // of a cubin: its name
    }
    std::fstream last(arguments[4], std::ios::in | std::ios::out | std::ios::binary | std::ios::trunc);
    std::vector<std::string> todo = kept;
    size_t runs = 0, refused = 0;
    auto begun = std::chrono::steady_clock::now();
    auto elapsed = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count(); };
    while (elapsed() < seconds) {
        std::string input;
        if (todo.empty()) {
            input = mutator.changed(kept[mutator.below(kept.size())], kept[mutator.below(kept.size())]);
        } else {
            input = todo.back();
            todo.pop_back();
        }
        last.seekp(0) << input.size() << ' ' << input << std::flush;
        size_t before = reached_count;
        try {
            reader(input);
        } catch (std::exception const&) {
            ++refused;
        }
        ++runs;
        if (reached_count > before && kept.size() < most_kept) {
            kept.push_back(input);
        }
    }
    std::cout << arguments[1] << ": " << runs << " inputs, " << refused << " refused, " << kept.size() << " kept, "
              << reached_count << " places reached\n";
}
