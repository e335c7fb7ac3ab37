// The grammar of `layerport.sizes.text`:
//
//   expression := sum [("==" | "!=" | "<" | "<=" | ">" | ">=") sum]
//   sum        := term {("+" | "-") term}
//   term       := operand {("*" | "//" | "%") operand}
//   operand    := {"-"} (number | size | function "(" expression {"," expression} ")" | "(" expression ")")
//   function   := "min" | "max" | "ceildiv" | "where" | "and" | "or" | "not"

#include "expression.h"
#include "fault.h"

namespace layerport {
namespace {

constexpr size_t longest = 400'000;
constexpr int deepest = 110;
constexpr int most_nodes = 10'000;
constexpr size_t longest_number = 39;

enum Level { compare, additive, multiplicative, atom };

bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }
bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }

class Parser {
public:
    Parser(Expressions& into, std::string_view text) : into_(into), text_(text)
    {
        if (text.size() > longest) {
            throw Fault("a size expression of " + std::to_string(text.size()) + " characters");
        }
        advance();
    }

    int whole()
    {
        int value = expression(compare, 0);
        if (!token_.empty()) {
            fail("more text after the end of the expression");
        }
        return value;
    }

private:
    [[noreturn]] void fail(std::string const& what) const
    {
        throw Fault("size expression, character " + std::to_string(start_ + 1) + ": " + what + ", near "
            + quote(std::string(text_.substr(start_ < 30 ? 0 : start_ - 30, 60))));
    }

    // The next token into `token_`; empty at the end.
    void advance()
    {
        while (next_ < text_.size() && is_space(text_[next_])) {
            ++next_;
        }
        start_ = next_;
        if (next_ < text_.size()) {
            next_ += length_of_token(text_.substr(next_));
        }
        token_ = text_.substr(start_, next_ - start_);
    }

    size_t length_of_token(std::string_view rest) const
    {
        size_t length = 0;
        if (is_digit(rest[0])) {
            while (length < rest.size() && is_digit(rest[length])) {
                ++length;
            }
            return length;
        }
        if (is_letter(rest[0])) {
            while (length < rest.size() && (is_letter(rest[length]) || is_digit(rest[length]))) {
                ++length;
            }
            if (length + 1 < rest.size() && rest[length] == '.' && is_digit(rest[length + 1])) {
                ++length;
                while (length < rest.size() && is_digit(rest[length])) {
                    ++length;
                }
            }
            return length;
        }
        for (std::string_view sign : {"//", "<=", ">=", "==", "!=", "-", "+", "*", "%", "<", ">", "(", ")", ","}) {
            if (rest.substr(0, sign.size()) == sign) {
                return sign.size();
            }
        }
        fail("nothing of an expression");
    }

    static int level_of(std::string_view token)
    {
        if (token == "==" || token == "!=" || token == "<" || token == "<=" || token == ">" || token == ">=") {
            return compare;
        }
        if (token == "+" || token == "-") {
            return additive;
        }
        return token == "*" || token == "//" || token == "%" ? multiplicative : -1;
    }

    int expression(int level, int nesting)
    {
        int left = operand(nesting);
        while (level_of(token_) >= level) {
            int strength = level_of(token_);
            if (strength == compare) {
                std::string_view sign = token_;
                advance();
                return compared(sign, left, expression(additive, nesting));
            }
            left = strength == additive ? sum(left, nesting) : term(left, nesting);
        }
        return left;
    }

    // A whole sum at once, because each longer one would be a node of its own.
    int sum(int first, int nesting)
    {
        std::vector<int> terms{first};
        while (level_of(token_) == additive) {
            bool taken = token_ == "-";
            advance();
            int next = expression(multiplicative, nesting);
            terms.push_back(taken ? into_.negated(next) : next);
        }
        return into_.sum(terms);
    }

    // A product as far as it goes, or one division.
    int term(int first, int nesting)
    {
        if (token_ == "*") {
            std::vector<int> factors{first};
            while (token_ == "*") {
                advance();
                factors.push_back(operand(nesting));
            }
            return into_.product(factors);
        }
        bool rest = token_ == "%";
        advance();
        int divisor = operand(nesting);
        int quotient = divided(first, divisor);
        return rest ? into_.sum({first, into_.negated(into_.product({quotient, divisor}))}) : quotient;
    }

    int compared(std::string_view sign, int left, int right)
    {
        if (sign == "==" || sign == "!=") {
            int equal = into_.operation(Op::eq, {left, right});
            return sign == "==" ? equal : into_.operation(Op::logical_not, {equal});
        }
        if (sign == "<" || sign == ">") {
            return sign == "<" ? into_.operation(Op::lt, {left, right}) : into_.operation(Op::lt, {right, left});
        }
        int one = into_.constant(1);
        return sign == "<=" ? into_.operation(Op::lt, {left, into_.sum({right, one})})
                            : into_.operation(Op::lt, {right, into_.sum({left, one})});
    }

    int divided(int left, int right)
    {
        if (into_.is_zero(right)) {
            fail("division by zero");
        }
        return into_.operation(Op::floordiv, {left, right});
    }

    int operand(int nesting)
    {
        bool negative = false;
        while (token_ == "-") {
            negative = !negative;
            advance();
        }
        if (token_.empty()) {
            fail("the expression ends too early");
        }
        if (nesting > deepest || into_.size() > most_nodes) {
            fail(nesting > deepest ? "nesting deeper than 110" : "too many parts");
        }
        int value = 0;
        if (is_digit(token_[0])) {
            value = number(negative);
            negative = false;
        } else if (is_letter(token_[0])) {
            std::string name(token_);
            advance();
            value = token_ == "(" ? call(name, nesting + 1) : symbol(name);
        } else if (token_ == "(") {
            advance();
            value = expression(compare, nesting + 1);
            expect(")");
        } else {
            fail("expected a number, a size or '(', got " + quote(std::string(token_)));
        }
        return negative ? into_.negated(value) : value;
    }

    int number(bool negative)
    {
        Wide value = 0;
        if (token_.size() > longest_number) {
            fail("a number of " + std::to_string(token_.size()) + " digits");
        }
        for (char digit : token_) {
            if (value <= INT64_MAX) {
                value = value * 10 + (digit - '0');
            }
        }
        int made = into_.constant(negative ? -value : value);
        advance();
        return made;
    }

    int symbol(std::string const& name)
    {
        size_t dot = name.find('.');
        size_t axis = dot == std::string::npos ? 0 : name.size() - dot - 1;
        if ((dot == std::string::npos ? name.size() : dot) > 128 || axis > 4) {
            fail(quote(name) + " is no name of a size");
        }
        return into_.symbol(name);
    }

    int call(std::string const& name, int nesting)
    {
        struct Function {
            char const* name;
            Op op;
            size_t least, most;
        };
        static constexpr Function functions[] = {{"min", Op::min, 1, 2000}, {"max", Op::max, 1, 2000},
            {"ceildiv", Op::ceildiv, 2, 2}, {"where", Op::where, 3, 3}, {"and", Op::logical_and, 1, 2000},
            {"or", Op::logical_or, 1, 2000}, {"not", Op::logical_not, 1, 1}};
        for (Function const& function : functions) {
            if (name != function.name) {
                continue;
            }
            std::vector<int> values;
            do {
                advance(); // over the parenthesis or the comma
                values.push_back(expression(compare, nesting));
            } while (token_ == "," && values.size() <= function.most);
            expect(")");
            if (values.size() < function.least || values.size() > function.most) {
                fail(name + " does not take " + std::to_string(values.size()) + " values");
            }
            return called(function.op, values);
        }
        fail("unknown function " + quote(name));
    }

    int called(Op op, std::vector<int> const& values)
    {
        if (op == Op::logical_and || op == Op::logical_or || op == Op::logical_not) {
            for (int value : values) {
                if (!into_.is_condition(value)) {
                    fail("and, or and not join conditions, and one is a number");
                }
            }
        }
        if (op == Op::ceildiv && into_.is_zero(values[1])) {
            fail("division by zero");
        }
        return values.size() == 1 && op != Op::logical_not ? values[0] : into_.operation(op, values);
    }

    void expect(std::string_view sign)
    {
        if (token_ != sign) {
            fail("expected " + quote(std::string(sign)) + ", got " + quote(std::string(token_)));
        }
        advance();
    }

    Expressions& into_;
    std::string_view text_;
    std::string_view token_;
    size_t start_ = 0;
    size_t next_ = 0;
};

} // namespace

int Expressions::read(std::string_view text) { return Parser(*this, text).whole(); }

} // namespace layerport
