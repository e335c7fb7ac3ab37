// Reads a request from a file, launches the kernel on it, and writes the buffers back: the program around a kernel.
//
// Part of runtime.cpp, for tests only.
#pragma once

#include <csignal>
#include <sys/time.h>

#include "atomics.h"
#include "barriers.h"

namespace cuda_host {

enum class Tag : uint64_t { buffer, integer, real, null };

struct Argument {
    Tag tag;
    union {
        int64_t integer;
        double real;
    };
};

inline std::vector<Argument> arguments;

namespace detail {

class Reader {
  public:
    explicit Reader(const char* path) : file(fopen(path, "rb")) {
        if (file == nullptr) fail(std::string("cannot read the request ") + path);
    }
    ~Reader() { fclose(file); }

    void bytes(void* to, size_t count) {
        if (count > 0 && fread(to, 1, count, file) != count) fail("the request is truncated");
    }
    uint64_t number() {
        uint64_t value;
        bytes(&value, sizeof value);
        return value;
    }
    std::string text() {
        std::string value(number(), '\0');
        bytes(value.data(), value.size());
        return value;
    }

  private:
    FILE* file;
};

// A constant after a static is of the program as well, so the range of them all is told, not made of them.
inline void read_statics(Reader& reader) {
    auto* const anchor = reinterpret_cast<unsigned char*>(&layerport_anchor);
    statics_begin = reinterpret_cast<uintptr_t>(anchor + static_cast<int64_t>(reader.number()));
    statics_bytes = reader.number();
    for (uint64_t left = reader.number(); left > 0; --left) {
        std::string name = reader.text();
        unsigned char* address = anchor + static_cast<int64_t>(reader.number());
        shared_statics.push_back({std::move(name), address, reader.number()});
    }
}

inline void read_buffers(Reader& reader) {
    const uint64_t count = reader.number();
    reserve_slots(count, reader.number());
    for (uint64_t left = count; left > 0; --left) {
        std::string name = reader.text();
        const bool input = reader.number() != 0;
        const size_t offset = reader.number();
        const size_t bytes = reader.number();
        add_buffer(std::move(name), bytes, offset, input);
        reader.bytes(buffers.back().data, bytes);
    }
    protect_inputs();
}

inline double read_request(const char* path) {
    Reader reader(path);
    if (reader.text() != "layerport host request 3") fail("the request has another format");
    order = static_cast<Order>(reader.number());
    generator.seed(reader.number());
    strict = reader.number() != 0;
    once = reader.number() != 0;
    poison_byte = static_cast<unsigned char>(reader.number());
    const double seconds = static_cast<double>(reader.number()) / 1000.0;
    for (unsigned* size : {&block.grid.x, &block.grid.y, &block.grid.z, &block.size.x, &block.size.y, &block.size.z}) {
        *size = static_cast<unsigned>(reader.number());
    }
    shared_bytes = reader.number();
    if (shared_bytes > SHARED_LIMIT) fail("the launch asks for " + std::to_string(shared_bytes) + " bytes of shared memory");
    read_statics(reader);
    read_buffers(reader);
    for (uint64_t left = reader.number(); left > 0; --left) {
        Argument argument{static_cast<Tag>(reader.number()), {}};
        argument.integer = static_cast<int64_t>(reader.number());
        if (argument.tag == Tag::null) null_parameters.push_back(arguments.size());
        arguments.push_back(argument);
    }
    return seconds;
}

inline void write_outputs(const char* path) {
    FILE* file = fopen(path, "wb");
    bool written = file != nullptr;
    for (const Buffer& buffer : buffers) {
        if (buffer.input || buffer.bytes == 0) continue;
        written = written && fwrite(buffer.data, 1, buffer.bytes, file) == buffer.bytes;
    }
    if (!written || fclose(file) != 0) fail(std::string("cannot write the answer ") + path);
}

// The sanitiser would object to writing its own gaps between statics.
__attribute__((no_sanitize("address"), noinline)) inline void poison(unsigned char* address, size_t bytes) {
    for (size_t i = 0; i < bytes; ++i) const_cast<volatile unsigned char*>(address)[i] = poison_byte;
}

inline void run_grid() {
    std::vector<size_t> places(static_cast<size_t>(block.grid.x) * block.grid.y * block.grid.z);
    for (size_t place = 0; place < places.size(); ++place) places[place] = place;
    if (order == Order::backward) std::reverse(places.begin(), places.end());
    if (order == Order::random) std::shuffle(places.begin(), places.end(), generator);
    make_threads(block.size);
#if defined(__SANITIZE_ADDRESS__)
    __asan_poison_memory_region(dynamic_memory, SHARED_GAP);
    __asan_poison_memory_region(dynamic_shared + shared_bytes, SHARED_LIMIT + SHARED_GAP - shared_bytes);
#endif
    for (const size_t place : places) {
        for (const Shared& one : shared_statics) poison(one.address, one.bytes);
        poison(dynamic_shared, shared_bytes);
        const size_t x = block.grid.x;
        const size_t y = block.grid.y;
        run_block({static_cast<unsigned>(place % x), static_cast<unsigned>(place / x % y), static_cast<unsigned>(place / x / y)});
    }
}

inline std::string parameter(size_t place) { return "parameter " + std::to_string(place) + " of the kernel"; }

constexpr int TIME_UP = 4;

inline std::string fault_near(uintptr_t address, bool write) {
    for (const Thread& thread : threads) {
        const auto stack = reinterpret_cast<uintptr_t>(thread.stack);
        if (address < stack && address >= stack - PAGE_BYTES) return "needs too much stack";
    }
    const std::string fault = describe(address, 1, write);
    return fault.empty() ? "touches memory that is none of its arguments" : fault;
}

inline void on_signal(int number, siginfo_t* info, void* data) {
    const void* from = nullptr;
    bool write = false;
#if defined(__x86_64__)
    const auto& registers = static_cast<const ucontext_t*>(data)->uc_mcontext.gregs;
    from = reinterpret_cast<const char*>(registers[REG_RIP]) + 1;
    write = (registers[REG_ERR] & 2) != 0;
#endif
    if (number == SIGALRM) fail(current == nullptr ? "no thread runs" : place_of(*current) + " runs", from, TIME_UP);
    if (current == nullptr) fail("the host program was stopped by signal " + std::to_string(number));
    const std::string place = place_of(*current);
    if (number == SIGABRT) fail(place + " aborted");
    if (number == SIGFPE) fail(place + " divides an integer by zero", from);
    if (number == SIGILL || number == SIGTRAP) fail(place + " runs into what must not be reached", from);
    fail(place + " " + fault_near(reinterpret_cast<uintptr_t>(info->si_addr), write), from);
}

inline void catch_signals(double seconds) {
    static unsigned char stack[64 * 1024];
    stack_t alternative{};
    alternative.ss_sp = stack;
    alternative.ss_size = sizeof stack;
    sigaltstack(&alternative, nullptr);
    struct sigaction action {};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (const int number : {SIGABRT, SIGFPE, SIGILL, SIGTRAP, SIGALRM}) sigaction(number, &action, nullptr);
#if !defined(__SANITIZE_ADDRESS__)
    for (const int number : {SIGSEGV, SIGBUS}) sigaction(number, &action, nullptr);
#endif
    itimerval timer{};
    timer.it_value.tv_sec = static_cast<time_t>(seconds);
    timer.it_value.tv_usec = static_cast<suseconds_t>((seconds - static_cast<double>(timer.it_value.tv_sec)) * 1e6);
    setitimer(ITIMER_REAL, &timer, nullptr);
}

#if defined(__SANITIZE_ADDRESS__)
inline void on_sanitizer_report(const char*) {
    const auto address = reinterpret_cast<uintptr_t>(__asan_get_report_address());
    const std::string does = __asan_get_report_access_type() != 0 ? "writes " : "reads ";
    if (current != nullptr) fprintf(stderr, "layerport: %s ", place_of(*current).c_str());
    for (const Buffer& buffer : buffers) {
        const auto begin = reinterpret_cast<uintptr_t>(buffer.data);
        if (address + ALIGNMENT < begin || address > begin + buffer.bytes + ALIGNMENT) continue;
        const std::string where = distance_from(address, 1, begin, buffer.bytes);
        fprintf(stderr, "%s%s %s\n", does.c_str(), buffer.name.c_str(), where.c_str());
        return;
    }
    const std::string fault = describe(address, 1, __asan_get_report_access_type() != 0);
    fprintf(stderr, "%s\n", fault.empty() ? "touches memory that is not its own" : fault.c_str());
}

// A heap block cannot be made read-only.
inline std::vector<std::string> copies_of_inputs() {
    std::vector<std::string> copies;
    for (const Buffer& buffer : buffers) {
        copies.emplace_back(reinterpret_cast<char*>(buffer.data), buffer.input ? buffer.bytes : 0);
    }
    return copies;
}

inline void compare_inputs(const std::vector<std::string>& copies) {
    for (size_t place = 0; place < buffers.size(); ++place) {
        const Buffer& buffer = buffers[place];
        if (buffer.input && memcmp(copies[place].data(), buffer.data, buffer.bytes) != 0) {
            fail("the kernel writes its input " + buffer.name);
        }
    }
}
#endif

}  // namespace detail

void expect_arguments(size_t count) {
    if (arguments.size() != count) {
        fail(
            "the kernel has " + std::to_string(count) + " parameters, the launch rule gives " +
            std::to_string(arguments.size())
        );
    }
}

void* pointer_argument(size_t place) {
    const Argument& given = arguments[place];
    if (given.tag == Tag::null) return nullptr;
    if (given.tag != Tag::buffer) fail(detail::parameter(place) + " is a pointer, the launch rule gives a number");
    return buffers[given.integer].data;
}

double real_argument(size_t place) {
    const Argument& given = arguments[place];
    if (given.tag == Tag::integer) return static_cast<double>(given.integer);
    if (given.tag != Tag::real) fail(detail::parameter(place) + " is a number, the launch rule gives a tensor");
    return given.real;
}

int64_t integer_argument(size_t place, bool is_signed, size_t bytes) {
    const Argument& given = arguments[place];
    if (given.tag != Tag::integer) fail(detail::parameter(place) + " is a whole number, the launch rule gives something else");
    const int bits = static_cast<int>(bytes) * 8;
    const int64_t least = is_signed ? -(int64_t{1} << (bits - 2)) * 2 : 0;
    const int64_t most = is_signed ? -(least + 1) : bits == 64 ? INT64_MAX : (int64_t{1} << bits) - 1;
    if (given.integer < least || given.integer > most) {
        fail(detail::parameter(place) + " cannot hold " + std::to_string(given.integer));
    }
    return given.integer;
}

int run_program(int count, char** paths, void (*check)(), void (*body)()) {
    if (count != 3) fail("usage: program request answer");
    const double seconds = detail::read_request(paths[1]);
    check();
    detail::catch_signals(seconds);
    thread_body = body;
#if defined(__SANITIZE_ADDRESS__)
    __asan_set_error_report_callback(detail::on_sanitizer_report);
    const auto copies = detail::copies_of_inputs();
    detail::run_grid();
    detail::compare_inputs(copies);
#else
    detail::run_grid();
#endif
    detail::write_outputs(paths[2]);
    return 0;
}

}  // namespace cuda_host
