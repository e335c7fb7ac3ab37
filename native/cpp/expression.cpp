#include "expression.h"

#include "fault.h"

namespace layerport {

bool Expressions::is_condition(int node) const
{
    Node const& one = nodes_[node];
    if (one.op == Op::constant) {
        return one.value == 0 || one.value == 1;
    }
    return one.op == Op::eq || one.op == Op::lt || one.op == Op::logical_and || one.op == Op::logical_or
        || one.op == Op::logical_not;
}

bool Expressions::is_negative(int node) const
{
    Node const* one = &nodes_[node];
    if (one->op == Op::mul) {
        one = &nodes_[one->args[0]];
    }
    return one->op == Op::constant && one->value < 0;
}

int Expressions::negated(int node)
{
    Node const one = nodes_[node];
    if (one.op == Op::constant) {
        return constant(-Wide{one.value});
    }
    if (one.op == Op::mul && is_constant(one.args[0])) {
        Wide factor = -Wide{nodes_[one.args[0]].value};
        std::vector<int> rest(one.args.begin() + 1, one.args.end());
        if (factor == 1) {
            return rest.size() == 1 ? rest[0] : operation(Op::mul, rest);
        }
        rest.insert(rest.begin(), constant(factor));
        return operation(Op::mul, rest);
    }
    return product({constant(-1), node});
}

int Expressions::constant(Wide value)
{
    // Without -2**63, so that every number has a negative.
    if (value > INT64_MAX || value < -INT64_MAX) {
        throw Fault("a size in an expression does not fit 64 bits");
    }
    return interned({Op::constant, static_cast<int64_t>(value), {}});
}

int Expressions::symbol(std::string const& name)
{
    auto [found, is_new] = known_symbols_.emplace(name, static_cast<int>(symbols_.size()));
    if (is_new) {
        symbols_.push_back(name);
    }
    return interned({Op::symbol, found->second, {}});
}

int Expressions::operation(Op op, std::vector<int> args) { return interned({op, 0, std::move(args)}); }

int Expressions::sum(std::vector<int> const& terms) { return joined(Op::add, terms); }

int Expressions::product(std::vector<int> const& factors) { return joined(Op::mul, factors); }

int Expressions::joined(Op op, std::vector<int> const& parts)
{
    std::vector<int> args;
    for (int part : parts) {
        if (nodes_[part].op == op) {
            args.insert(args.end(), nodes_[part].args.begin(), nodes_[part].args.end());
        } else {
            args.push_back(part);
        }
    }
    return operation(op, std::move(args));
}

int Expressions::interned(Node node)
{
    std::string key(1, static_cast<char>(node.op));
    key += std::to_string(node.value);
    for (int arg : node.args) {
        key += ' ' + std::to_string(arg);
    }
    auto [found, is_new] = known_nodes_.emplace(std::move(key), size());
    if (is_new) {
        nodes_.push_back(std::move(node));
    }
    return found->second;
}

Values::Values(Expressions const& expressions)
    : expressions_(&expressions), values_(expressions.size()), states_(expressions.size())
{
}

void Values::compute(int64_t const* sizes) noexcept
{
    // A node comes after those that it is made of.
    for (int index = 0; index < expressions_->size(); ++index) {
        states_[index] = compute_node(expressions_->node(index), sizes, values_[index]);
    }
}

Wide Values::wide(int node) const
{
    if (states_[node] != State::good) {
        throw Fault(states_[node] == State::zero_divisor ? "division by zero in a size expression"
                                                         : "a size expression has a value beyond 127 bits",
            "keep the divisor positive and sizes small");
    }
    return values_[node];
}

int64_t Values::at(int node) const
{
    Wide value = wide(node);
    if (value > INT64_MAX || value < -INT64_MAX) {
        throw Fault("a size expression has a value that does not fit 64 bits", "use smaller sizes");
    }
    return static_cast<int64_t>(value);
}

namespace {

bool fits64(Wide value) { return value == static_cast<int64_t>(value); }

// The quotient rounded down; the divisor is not zero.
Wide floored(Wide a, Wide b)
{
    if (fits64(a) && fits64(b) && b != -1) { // a division of 64 bits is much faster
        int64_t quotient = static_cast<int64_t>(a) / static_cast<int64_t>(b);
        int64_t rest = static_cast<int64_t>(a) % static_cast<int64_t>(b);
        return quotient - (rest != 0 && (rest < 0) != (b < 0));
    }
    Wide quotient = a / b;
    return quotient - (a % b != 0 && (a % b < 0) != (b < 0));
}

constexpr Wide largest = static_cast<Wide>(~static_cast<unsigned __int128>(0) >> 1);

// Whether the sum or product is within +- `largest`, so that every value has a negative.
bool add(Wide a, Wide b, Wide& result) { return !__builtin_add_overflow(a, b, &result) && result >= -largest; }

bool multiply(Wide a, Wide b, Wide& result)
{
    if (fits64(a) && fits64(b)) {
        result = a * b;
        return true;
    }
    return !__builtin_mul_overflow(a, b, &result) && result >= -largest;
}

} // namespace

Values::State Values::compute_node(Node const& node, int64_t const* sizes, Wide& result) const noexcept
{
    for (int arg : node.args) {
        if (states_[arg] != State::good) {
            return states_[arg];
        }
    }
    auto value = [&](size_t place) { return values_[node.args[place]]; };
    switch (node.op) {
    case Op::constant:
        result = node.value;
        return State::good;
    case Op::symbol:
        result = sizes[node.value];
        return State::good;
    case Op::floordiv:
    case Op::ceildiv:
        if (value(1) == 0) {
            return State::zero_divisor;
        }
        result = node.op == Op::floordiv ? floored(value(0), value(1)) : -floored(-value(0), value(1));
        return State::good;
    case Op::eq:
        result = value(0) == value(1);
        return State::good;
    case Op::lt:
        result = value(0) < value(1);
        return State::good;
    case Op::logical_not:
        result = value(0) == 0;
        return State::good;
    case Op::where:
        result = value(0) != 0 ? value(1) : value(2);
        return State::good;
    default:
        break;
    }
    Wide total = value(0);
    if (node.op == Op::logical_and || node.op == Op::logical_or) {
        total = total != 0;
    }
    for (size_t place = 1; place < node.args.size(); ++place) {
        Wide next = value(place);
        bool good = true;
        switch (node.op) {
        case Op::add:
            good = add(total, next, total);
            break;
        case Op::mul:
            good = multiply(total, next, total);
            break;
        case Op::min:
            total = next < total ? next : total;
            break;
        case Op::max:
            total = next > total ? next : total;
            break;
        case Op::logical_and:
            total = total != 0 && next != 0;
            break;
        default:
            total = total != 0 || next != 0;
            break;
        }
        if (!good) {
            return State::too_large;
        }
    }
    result = total;
    return State::good;
}

} // namespace layerport
