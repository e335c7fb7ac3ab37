// Size expressions: their text read, as `layerport.sizes.text` writes it, and their value for given sizes.
//
// Arithmetic is Python's: `//` rounds down.  A value is exact as long as it and those that it is made of fit 127 bits;
// beyond that, and where a divisor is zero, there is no value.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace layerport {

using Wide = __int128;

enum class Op : uint8_t {
    constant,
    symbol,
    add,
    mul,
    floordiv,
    ceildiv,
    min,
    max,
    eq,
    lt,
    logical_and,
    logical_or,
    logical_not,
    where
};

// Equal subexpressions are one node.
struct Node {
    Op op;
    int64_t value; // of a constant; the place of a symbol in `symbols`
    std::vector<int> args;
};

// Expressions that are evaluated together, each named by its last node.
class Expressions {
public:
    // The node of a text.  Throws Fault that says where the text is wrong.
    int read(std::string_view text);

    Node const& node(int index) const { return nodes_[index]; }
    int size() const { return static_cast<int>(nodes_.size()); }
    std::vector<std::string> const& symbols() const { return symbols_; }

    bool is_constant(int node) const { return nodes_[node].op == Op::constant; }
    bool is_zero(int node) const { return is_constant(node) && nodes_[node].value == 0; }
    // Whether it can only be 0 or 1.
    bool is_condition(int node) const;
    // Whether it is taken away as a term of a sum: its whole factor is below zero.
    bool is_negative(int node) const;
    int negated(int node);

    int constant(Wide value);
    int symbol(std::string const& name);
    int operation(Op op, std::vector<int> args);
    // Sums within sums and products within products are taken apart.
    int sum(std::vector<int> const& terms);
    int product(std::vector<int> const& factors);

private:
    int joined(Op op, std::vector<int> const& parts);
    int interned(Node node);

    std::vector<Node> nodes_;
    std::vector<std::string> symbols_;
    std::unordered_map<std::string, int> known_symbols_;
    std::unordered_map<std::string, int> known_nodes_;
};

// The values of expressions for one set of sizes after another, in memory that is there once.
class Values {
public:
    explicit Values(Expressions const& expressions);

    // sizes: one for each of the expressions' symbols.
    void compute(int64_t const* sizes) noexcept;

    // The value of a node.  Throws Fault where there is none, or where it does not fit 64 bits.
    int64_t at(int node) const;
    Wide wide(int node) const;

private:
    enum class State : uint8_t { good, zero_divisor, too_large };

    State compute_node(Node const& node, int64_t const* sizes, Wide& result) const noexcept;

    Expressions const* expressions_;
    std::vector<Wide> values_;
    std::vector<State> states_;
};

} // namespace layerport
