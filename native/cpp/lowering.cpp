#include "lowering.h"

#include "fault.h"

namespace layerport {
namespace {

using Expr = trt::DimensionExpr const*;
using trt::DimensionOperation;

class Lowering {
public:
    Lowering(Expressions const& expressions, trt::ExprBuilderImpl& builder, std::vector<Expr> const& sizes)
        : expressions_(expressions), builder_(builder), sizes_(sizes)
    {
    }

    Expr of(int index)
    {
        auto found = made_.find(index);
        if (found != made_.end()) {
            return found->second;
        }
        Expr made = make(expressions_.node(index));
        made_[index] = made;
        return made;
    }

private:
    Expr make(Node const node) // a copy: negated terms become nodes meanwhile
    {
        switch (node.op) {
        case Op::constant:
            return constant(node.value);
        case Op::symbol:
            if (sizes_[node.value] == nullptr) {
                throw Fault("the size " + expressions_.symbols()[node.value] + " is no input of the plugin");
            }
            return sizes_[node.value];
        case Op::add:
            return sum(node.args);
        case Op::logical_not: {
            Expr one = constant(1);
            return apply(DimensionOperation::sub, one, of(node.args[0]));
        }
        case Op::where:
            return choice(node.args);
        default:
            break;
        }
        std::vector<Expr> parts;
        for (int arg : node.args) {
            parts.push_back(of(arg));
        }
        Expr result = parts[0];
        for (size_t place = 1; place < parts.size(); ++place) {
            result = apply(operation(node.op), result, parts[place]);
        }
        return result;
    }

    static DimensionOperation operation(Op op)
    {
        switch (op) {
        case Op::floordiv:
            return DimensionOperation::floor_div;
        case Op::ceildiv:
            return DimensionOperation::ceil_div;
        case Op::min:
            return DimensionOperation::min;
        case Op::max:
        case Op::logical_or:
            return DimensionOperation::max;
        case Op::eq:
            return DimensionOperation::equal;
        case Op::lt:
            return DimensionOperation::less;
        default:
            return DimensionOperation::prod;
        }
    }

    Expr sum(std::vector<int> const& args)
    {
        // What is added comes first, so that a size such as s - (s + 1)//2 stays positive at every step.
        std::vector<Expr> added;
        for (int arg : args) {
            if (!expressions_.is_negative(arg)) {
                added.push_back(of(arg));
            }
        }
        if (added.empty()) {
            added.push_back(constant(0));
        }
        Expr result = added[0];
        for (size_t place = 1; place < added.size(); ++place) {
            result = apply(DimensionOperation::sum, result, added[place]);
        }
        for (int arg : args) {
            if (expressions_.is_negative(arg)) {
                result = apply(DimensionOperation::sub, result, of(expressions_.negated(arg)));
            }
        }
        return result;
    }

    Expr choice(std::vector<int> const& args)
    {
        Expr condition = of(args[0]), a = of(args[1]), b = of(args[2]);
        Expr one = constant(1);
        Expr inverse = apply(DimensionOperation::sub, one, condition);
        Expr first = apply(DimensionOperation::prod, condition, a);
        Expr second = apply(DimensionOperation::prod, inverse, b);
        return apply(DimensionOperation::sum, first, second);
    }

    Expr constant(int64_t value) { return checked(builder_.constant(value)); }

    Expr apply(DimensionOperation operation, Expr a, Expr b) { return checked(builder_.operation(operation, *a, *b)); }

    static Expr checked(Expr made)
    {
        if (made == nullptr) {
            throw Fault("TensorRT does not take a size expression");
        }
        return made;
    }

    Expressions expressions_; // a copy, because what is taken away needs nodes of its own
    trt::ExprBuilderImpl& builder_;
    std::vector<Expr> const& sizes_;
    std::map<int, Expr> made_;
};

} // namespace

trt::DimensionExpr const* lower(Expressions const& expressions, int node, trt::ExprBuilderImpl& builder,
    std::vector<trt::DimensionExpr const*> const& sizes)
{
    return Lowering(expressions, builder, sizes).of(node);
}

} // namespace layerport
