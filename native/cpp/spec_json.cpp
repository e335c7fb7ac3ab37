#include "spec_json.h"

#include "fault.h"
#include <algorithm>
#include <set>

namespace layerport {
namespace {

constexpr long most_values = 1'000'000;
constexpr int deepest = 40;
constexpr size_t longest_number = 40;

// Everything outside of texts that the library would read otherwise than we want: Python's names for what is no number
// become a number, since they may stand for one in an attribute, and numbers of any length are refused.
std::string prepared(std::string const& text)
{
    std::string result;
    result.reserve(text.size());
    size_t number = 0;
    for (size_t at = 0; at < text.size();) {
        if (text[at] == '"') {
            size_t end = at + 1;
            while (end < text.size() && text[end] != '"') {
                end += text[end] == '\\' ? 2 : 1;
            }
            end = std::min(end + 1, text.size());
            result.append(text, at, end - at);
            at = end;
            number = 0;
            continue;
        }
        bool replaced = false;
        for (char const* name : {"NaN", "-Infinity", "Infinity"}) {
            if (text.compare(at, std::char_traits<char>::length(name), name) == 0) {
                result += "0.5";
                at += std::char_traits<char>::length(name);
                replaced = true;
                break;
            }
        }
        if (replaced) {
            continue;
        }
        char c = text[at++];
        number = (c >= '0' && c <= '9') || c == '.' || c == '-' || c == '+' || c == 'e' || c == 'E' ? number + 1 : 0;
        if (number > longest_number) {
            throw Fault("a number of more than 40 characters");
        }
        result += c;
    }
    return result;
}

} // namespace

Json read_json(std::string const& text)
{
    long values = std::count_if(text.begin(), text.end(), [](char c) { return c == ',' || c == '[' || c == '{'; });
    if (values > most_values) {
        throw Fault("it has about " + std::to_string(values) + " values");
    }
    std::vector<std::set<std::string>> names;
    auto check = [&](int depth, Json::parse_event_t event, Json& parsed) {
        using Event = Json::parse_event_t;
        // The depth at a start is that of what surrounds it.
        if ((event == Event::object_start || event == Event::array_start) && depth >= deepest) {
            throw Fault("it is more than 40 levels deep");
        }
        if (event == Event::object_start) {
            names.emplace_back();
        } else if (event == Event::object_end) {
            names.pop_back();
        } else if (event == Event::key && !names.back().insert(parsed.get_ref<std::string const&>()).second) {
            throw Fault("one name twice: " + quote(parsed.get_ref<std::string const&>()));
        }
        return true;
    };
    try {
        return Json::parse(prepared(text), check);
    } catch (Json::exception const& error) {
        throw Fault(std::string("it is no JSON: ") + error.what());
    }
}

} // namespace layerport
