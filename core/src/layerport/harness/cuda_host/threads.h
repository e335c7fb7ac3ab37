// What a kernel's program sees of the runtime (runtime.cpp): the calling thread, waiting, arguments, failing.
//
// Light on purpose, since every kernel compiles it; the runtime is compiled once.  Part of cuda_host.h, for tests only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

namespace cuda_host {

enum class BlockKind { sync, count, all, any };
enum class WarpKind {
    sync, shuffle, shuffle_up, shuffle_down, shuffle_xor, ballot, all, any, match_any, match_all,
    add, min, max, bit_and, bit_or, bit_xor
};

constexpr size_t VALUE_BYTES = 16;
constexpr size_t SHARED_LIMIT = 227 * 1024;
// As much lies around each piece of shared memory; static ones are aligned to it, and 48 KiB at most.
constexpr size_t SHARED_GAP = 64 * 1024;

// The thread that runs, with what it hands to a warp-wide operation and gets back.
struct Calling {
    uint3 index;
    int operand;
    int width;
    bool is_signed;
    alignas(16) unsigned char value[VALUE_BYTES];
    alignas(16) unsigned char result[VALUE_BYTES];
};

struct Running {
    uint3 index;
    dim3 size;
    dim3 grid;
};

extern Calling* calling;
extern Running block;
extern unsigned char dynamic_memory[];
inline unsigned char* const dynamic_shared = dynamic_memory + SHARED_GAP;

// The same for all of a thread's life, so a thread asks once.
[[gnu::const]] uint3 thread_index();
[[gnu::const]] uint3 block_index();
[[gnu::const]] dim3 block_size();
[[gnu::const]] dim3 grid_size();

int wait_for_block(int line, BlockKind kind, int value);
void wait_for_warp(int line, WarpKind kind, unsigned mask);
unsigned active_mask();
// Called where a thread may be waiting in a loop for another one of its block.
void let_others_run();
void check_access(const void* address, size_t bytes, bool write);
void check_atomic(const void* address, size_t bytes);
[[noreturn]] void fail_at(int line, const char* message);

// The arguments that the launch rule gives; each refuses what does not fit, naming the parameter.
void expect_arguments(size_t count);
void* pointer_argument(size_t place);
double real_argument(size_t place);
int64_t integer_argument(size_t place, bool is_signed, size_t bytes);

int run_program(int count, char** paths, void (*check)(), void (*body)());

template <typename P>
P argument(size_t place) {
    if constexpr (std::is_pointer_v<P>) {
        return static_cast<P>(pointer_argument(place));
    } else if constexpr (std::is_floating_point_v<P>) {
        return static_cast<P>(real_argument(place));
    } else {
        static_assert(std::is_integral_v<P> || std::is_enum_v<P>, "kernel parameters are pointers and numbers");
        return static_cast<P>(integer_argument(place, std::is_signed_v<P>, sizeof(P)));
    }
}

template <typename... P>
struct Program {
    static inline void (*kernel)(P...) = nullptr;

    template <size_t... PLACES>
    static void call(std::index_sequence<PLACES...>) {
        kernel(argument<std::remove_cv_t<P>>(PLACES)...);
    }
    template <size_t... PLACES>
    static void convert(std::index_sequence<PLACES...>) {
        (static_cast<void>(argument<std::remove_cv_t<P>>(PLACES)), ...);
    }
    static void body() { call(std::index_sequence_for<P...>{}); }
    static void check() {
        expect_arguments(sizeof...(P));
        convert(std::index_sequence_for<P...>{});
    }
};

template <typename... P>
int run(int count, char** paths, void (*kernel)(P...)) {
    Program<P...>::kernel = kernel;
    return run_program(count, paths, Program<P...>::check, Program<P...>::body);
}

}  // namespace cuda_host
