// Reads a request from a file, launches the kernel on it, and writes the buffers back: the program around a kernel.
//
// Each buffer ends at a page that cannot be touched, so an access past the end stops the program where it happens;
// in the address-sanitiser build each buffer is an exact heap block.  Part of runtime.cpp, for tests only.
#pragma once

#include <csignal>

#include "fibers.h"

namespace cuda_host {

// Python subtracts the address of this symbol to say where a static lies in a program loaded anywhere.
extern "C" {
char layerport_anchor = 0;
}

enum class Tag : uint64_t { buffer, integer, real, null };

struct Argument {
    Tag tag;
    union {
        int64_t integer;
        double real;
    };
};

struct Buffer {
    std::string name;
    size_t bytes;
    unsigned char* data;
    unsigned char* end;  // of what may be touched
};

struct Region {
    unsigned char* address;
    size_t bytes;
};

inline std::vector<Buffer> buffers;
inline std::vector<Argument> arguments;
inline std::vector<Region> shared_statics;
inline size_t shared_bytes = 0;

constexpr unsigned char POISON = 0xff;  // NaN in every floating type, -1 in every signed one
constexpr size_t SHARED_LIMIT = 227 * 1024;
alignas(1024) unsigned char dynamic_shared[SHARED_LIMIT + 1024];

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

inline size_t round_up(size_t value, size_t step) { return (value + step - 1) / step * step; }

// `offset` is how far the data is from an address of the alignment that a device allocation has.
inline Buffer new_buffer(std::string name, size_t bytes, size_t offset) {
    Buffer buffer{std::move(name), bytes, nullptr, nullptr};
#if defined(__SANITIZE_ADDRESS__)
    void* memory = nullptr;
    if (posix_memalign(&memory, 256, bytes + offset) != 0) fail("no memory for " + buffer.name);
    __asan_poison_memory_region(memory, offset);
    buffer.data = static_cast<unsigned char*>(memory) + offset;
    buffer.end = buffer.data + bytes;
#else
    const size_t kept = round_up(bytes + offset, 16);
    const size_t pages = round_up(kept, PAGE_BYTES);
    void* memory =
        mmap(nullptr, pages + 2 * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) fail("no memory for " + buffer.name);
    auto* first = static_cast<unsigned char*>(memory);
    mprotect(first, PAGE_BYTES, PROT_NONE);
    mprotect(first + PAGE_BYTES + pages, PAGE_BYTES, PROT_NONE);
    buffer.end = first + PAGE_BYTES + pages;
    buffer.data = buffer.end - kept + offset;
    memset(buffer.data + bytes, POISON, buffer.end - buffer.data - bytes);
#endif
    return buffer;
}

inline void read_request(const char* path) {
    Reader reader(path);
    if (reader.text() != "layerport host request 1") fail("the request has another format");
    order = static_cast<Order>(reader.number());
    generator.seed(reader.number());
    for (unsigned* size : {&block.grid.x, &block.grid.y, &block.grid.z, &block.size.x, &block.size.y, &block.size.z}) {
        *size = static_cast<unsigned>(reader.number());
    }
    shared_bytes = reader.number();
    if (shared_bytes > SHARED_LIMIT) fail("the launch asks for " + std::to_string(shared_bytes) + " bytes of shared memory");
    for (uint64_t left = reader.number(); left > 0; --left) {
        auto* address = reinterpret_cast<unsigned char*>(&layerport_anchor) + static_cast<int64_t>(reader.number());
        shared_statics.push_back({address, reader.number()});
    }
    for (uint64_t left = reader.number(); left > 0; --left) {
        std::string name = reader.text();
        const size_t offset = reader.number();
        const size_t bytes = reader.number();
        buffers.push_back(new_buffer(std::move(name), bytes, offset));
        reader.bytes(buffers.back().data, bytes);
    }
    for (uint64_t left = reader.number(); left > 0; --left) {
        Argument argument{static_cast<Tag>(reader.number()), {}};
        argument.integer = static_cast<int64_t>(reader.number());
        arguments.push_back(argument);
    }
}

inline void write_buffers(const char* path) {
    FILE* file = fopen(path, "wb");
    bool written = file != nullptr;
    for (const Buffer& buffer : buffers) {
        if (buffer.bytes > 0) written = written && fwrite(buffer.data, 1, buffer.bytes, file) == buffer.bytes;
    }
    if (!written || fclose(file) != 0) fail(std::string("cannot write the answer ") + path);
}

// The sanitiser would object to writing its own gaps between statics.
__attribute__((no_sanitize("address"), noinline)) inline void poison(unsigned char* address, size_t bytes) {
    for (size_t i = 0; i < bytes; ++i) const_cast<volatile unsigned char*>(address)[i] = POISON;
}

inline void run_grid() {
    std::vector<size_t> places(static_cast<size_t>(block.grid.x) * block.grid.y * block.grid.z);
    for (size_t place = 0; place < places.size(); ++place) places[place] = place;
    if (order == Order::backward) std::reverse(places.begin(), places.end());
    if (order == Order::random) std::shuffle(places.begin(), places.end(), generator);
    make_threads(block.size);
#if defined(__SANITIZE_ADDRESS__)
    __asan_poison_memory_region(dynamic_shared + shared_bytes, sizeof dynamic_shared - shared_bytes);
#endif
    for (const size_t place : places) {
        for (const Region& region : shared_statics) poison(region.address, region.bytes);
        poison(dynamic_shared, shared_bytes);
        const size_t x = block.grid.x;
        const size_t y = block.grid.y;
        run_block({static_cast<unsigned>(place % x), static_cast<unsigned>(place / x % y), static_cast<unsigned>(place / x / y)});
    }
}

inline std::string parameter(size_t place) { return "parameter " + std::to_string(place) + " of the kernel"; }

inline std::string fault_near(const unsigned char* address) {
    for (const Buffer& buffer : buffers) {
        if (address >= buffer.end && address < buffer.end + PAGE_BYTES) {
            return "touches " + buffer.name + " " + std::to_string(address - (buffer.data + buffer.bytes)) +
                   " bytes past its end";
        }
        if (address < buffer.data && address >= buffer.data - 2 * PAGE_BYTES) {
            return "touches " + buffer.name + " " + std::to_string(buffer.data - address) + " bytes before its start";
        }
    }
    for (const Thread& thread : threads) {
        if (address < thread.stack && address >= thread.stack - PAGE_BYTES) return "needs too much stack";
    }
    return "touches memory that is none of its arguments";
}

inline void on_signal(int number, siginfo_t* info, void*) {
    if (current == nullptr) fail("the host program was stopped by signal " + std::to_string(number));
    const std::string place = place_of(*current);
    if (number == SIGABRT) fail(place + " aborted");
    if (number == SIGFPE) fail(place + " divides an integer by zero");
    if (number == SIGILL || number == SIGTRAP) fail(place + " makes a misaligned access");
    fail(place + " " + fault_near(static_cast<const unsigned char*>(info->si_addr)));
}

inline void catch_signals() {
    static unsigned char stack[64 * 1024];
    stack_t alternative{};
    alternative.ss_sp = stack;
    alternative.ss_size = sizeof stack;
    sigaltstack(&alternative, nullptr);
    struct sigaction action {};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (const int number : {SIGABRT, SIGFPE, SIGILL, SIGTRAP}) sigaction(number, &action, nullptr);
#if !defined(__SANITIZE_ADDRESS__)
    for (const int number : {SIGSEGV, SIGBUS}) sigaction(number, &action, nullptr);
#endif
}

#if defined(__SANITIZE_ADDRESS__)
inline void on_sanitizer_report(const char*) {
    const auto* address = static_cast<const unsigned char*>(__asan_get_report_address());
    if (current != nullptr) fprintf(stderr, "layerport: %s ", place_of(*current).c_str());
    for (const Buffer& buffer : buffers) {
        const auto distance = address - (buffer.data + buffer.bytes);
        if (distance >= 0 && distance < 256) {
            fprintf(stderr, "touches %s %lld bytes past its end\n", buffer.name.c_str(), static_cast<long long>(distance));
            return;
        }
    }
    fprintf(stderr, "touches memory that is not its own\n");
}
#endif

inline void check_slack() {
    for (const Buffer& buffer : buffers) {
        for (const unsigned char* byte = buffer.data + buffer.bytes; byte < buffer.end; ++byte) {
            if (*byte != POISON) {
                fail("the kernel writes " + buffer.name + " " + std::to_string(byte - buffer.data - buffer.bytes) + " bytes past its end");
            }
        }
    }
}

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
    detail::read_request(paths[1]);
    check();
    detail::catch_signals();
#if defined(__SANITIZE_ADDRESS__)
    __asan_set_error_report_callback(detail::on_sanitizer_report);
#endif
    thread_body = body;
    detail::run_grid();
    detail::check_slack();
    detail::write_buffers(paths[2]);
    return 0;
}

}  // namespace cuda_host
