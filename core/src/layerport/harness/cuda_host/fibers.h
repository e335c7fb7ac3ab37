// Runs the threads of one CUDA block as fibers, one after another, in an order of choice.
//
// A fiber runs until it waits (at __syncthreads or a warp-wide operation) or ends.  No two run at once, so a missing
// barrier shows as a wrong result in some order instead of as a rare race.  Part of runtime.cpp, for tests only.
#pragma once

#include <algorithm>
#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>
#include <vector>

#include "threads.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace cuda_host {

enum class Order : uint64_t { forward, backward, random };
enum class Wait { no, block, warp, done };
struct Thread : Calling {
    unsigned lane;
    unsigned warp;
    Wait wait;
    int line;  // of the kernel's source, where the thread waits

    BlockKind block_kind;
    int block_value;
    int block_result;

    WarpKind warp_kind;
    unsigned mask;

    unsigned turns;
    bool started;
    unsigned char* stack;
    ucontext_t context;
    jmp_buf jump;
    void* fake_stack;
};

Calling* calling = nullptr;
Running block;

inline std::vector<Thread> threads;
inline unsigned alive = 0;
inline unsigned at_barrier = 0;
inline Thread* current = nullptr;
inline void (*thread_body)() = nullptr;
inline Order order = Order::forward;
// Whether each thread of a block has to come to each barrier; else those that have returned count as there.
inline bool strict = true;
// Whether no two threads may write one element of an output, even the same value.
inline bool once = false;
inline uint32_t meetings = 0;       // how many barriers the threads of this block have passed
inline bool knows_others = false;   // whether an atomic operation may have told this block what another one has done
inline std::mt19937_64 generator;

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t STACK_BYTES = 512 * 1024;
#else
constexpr size_t STACK_BYTES = 128 * 1024;
#endif
constexpr size_t PAGE_BYTES = 4096;
constexpr unsigned TURNS = 64;

inline std::string place_of(const Thread& thread) {
    char text[200];
    snprintf(
        text, sizeof text, "thread (%u, %u, %u) of block (%u, %u, %u)", thread.index.x, thread.index.y, thread.index.z,
        block.index.x, block.index.y, block.index.z
    );
    return text;
}

// Python subtracts the address of this symbol to say where something lies in a program loaded anywhere.
extern "C" {
char layerport_anchor = 0;
}

// `from` is the address in the program behind the call that failed, of which Python makes file and line.
[[noreturn]] inline void fail(const std::string& message, const void* from = nullptr, int code = 3) {
    fflush(stdout);
    fprintf(stderr, "layerport: %s\n", message.c_str());
    if (from != nullptr) {
        const auto distance = static_cast<const char*>(from) - 1 - &layerport_anchor;
        fprintf(stderr, "layerport-at: %lld\n", static_cast<long long>(distance));
    }
    fflush(stderr);
    _exit(code);
}

namespace detail {

inline ucontext_t scheduler_context;
inline jmp_buf scheduler_jump;
inline void* scheduler_fake_stack = nullptr;
inline const void* scheduler_stack = nullptr;
inline size_t scheduler_stack_bytes = 0;

inline void pause() {
    Thread* self = current;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&self->fake_stack, scheduler_stack, scheduler_stack_bytes);
    swapcontext(&self->context, &scheduler_context);
    __sanitizer_finish_switch_fiber(self->fake_stack, &scheduler_stack, &scheduler_stack_bytes);
#else
    if (_setjmp(self->jump) == 0) _longjmp(scheduler_jump, 1);
#endif
    __asm__ volatile("" ::: "memory");
}

void thread_ended(Thread& thread);
[[noreturn]] void deadlock();

inline void fiber_main() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_bytes);
#endif
    // A thread of the next block goes on here: to make a fiber takes longer than what most of them do.
    for (;;) {
        thread_body();
        thread_ended(*current);
        pause();
    }
}

inline void start(Thread& thread) {
    thread.started = true;
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack;
    thread.context.uc_stack.ss_size = STACK_BYTES;
    thread.context.uc_link = nullptr;
    makecontext(&thread.context, fiber_main, 0);
}

inline void resume(Thread& thread) {
    calling = current = &thread;
#if defined(__SANITIZE_ADDRESS__)
    if (!thread.started) {
        __asan_unpoison_memory_region(thread.stack, STACK_BYTES);
        start(thread);
    }
    __sanitizer_start_switch_fiber(&scheduler_fake_stack, thread.stack, STACK_BYTES);
    swapcontext(&scheduler_context, &thread.context);
    __sanitizer_finish_switch_fiber(scheduler_fake_stack, nullptr, nullptr);
#else
    // _setjmp and _longjmp, because swapcontext makes a system call for the signal mask at every switch.
    if (_setjmp(scheduler_jump) == 0) {
        if (thread.started) _longjmp(thread.jump, 1);
        start(thread);
        setcontext(&thread.context);
    }
#endif
}

inline unsigned char* new_stack() {
    const size_t bytes = STACK_BYTES + PAGE_BYTES;
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) fail("no memory for the stacks of a block's threads");
    mprotect(memory, PAGE_BYTES, PROT_NONE);
    return static_cast<unsigned char*>(memory) + PAGE_BYTES;
}

}  // namespace detail

uint3 thread_index() { return current->index; }
uint3 block_index() { return block.index; }
dim3 block_size() { return block.size; }
dim3 grid_size() { return block.grid; }

void let_others_run() {
    if (current == nullptr || ++current->turns % TURNS != 0) return;
    detail::pause();
}

inline void make_threads(dim3 size) {
    block.size = size;
    threads = std::vector<Thread>(static_cast<size_t>(size.x) * size.y * size.z);
    for (Thread& thread : threads) thread.stack = detail::new_stack();
}

inline void run_block(uint3 index) {
    block.index = index;
    meetings = 0;
    knows_others = false;
    alive = static_cast<unsigned>(threads.size());
    at_barrier = 0;
    std::vector<unsigned> places(threads.size());
    for (unsigned place = 0; place < places.size(); ++place) {
        Thread& thread = threads[place];
        places[place] = order == Order::backward ? static_cast<unsigned>(places.size()) - 1 - place : place;
        thread.index = {place % block.size.x, place / block.size.x % block.size.y, place / block.size.x / block.size.y};
        thread.lane = place % 32;
        thread.warp = place / 32;
        thread.wait = Wait::no;
        thread.turns = 0;
    }
    while (alive > 0) {
        bool ran = false;
        if (order == Order::random) std::shuffle(places.begin(), places.end(), generator);
        for (const unsigned place : places) {
            if (threads[place].wait != Wait::no) continue;
            ran = true;
            detail::resume(threads[place]);
        }
        if (!ran) detail::deadlock();
    }
    calling = current = nullptr;
}

}  // namespace cuda_host
