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
inline std::mt19937_64 generator;

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t STACK_BYTES = 512 * 1024;
#else
constexpr size_t STACK_BYTES = 128 * 1024;
#endif
constexpr size_t PAGE_BYTES = 4096;

inline std::string place_of(const Thread& thread) {
    char text[200];
    snprintf(
        text, sizeof text, "thread (%u, %u, %u) of block (%u, %u, %u)", thread.index.x, thread.index.y, thread.index.z,
        block.index.x, block.index.y, block.index.z
    );
    return text;
}

[[noreturn]] inline void fail(const std::string& message) {
    fflush(stdout);
    fprintf(stderr, "layerport: %s\n", message.c_str());
    fflush(stderr);
    _exit(3);
}

namespace detail {

inline ucontext_t scheduler_context;
inline jmp_buf scheduler_jump;
inline void* scheduler_fake_stack = nullptr;
inline const void* scheduler_stack = nullptr;
inline size_t scheduler_stack_bytes = 0;

[[noreturn]] inline void leave() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(nullptr, scheduler_stack, scheduler_stack_bytes);
    setcontext(&scheduler_context);
#else
    _longjmp(scheduler_jump, 1);
#endif
    abort();
}

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

inline void fiber_main() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_bytes);
#endif
    thread_body();
    thread_ended(*current);
    leave();
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

// --- __syncthreads -------------------------------------------------------------------------------------------------

inline void release_block_if_complete() {
    if (alive == 0 || at_barrier < alive) return;
    const Thread* first = nullptr;
    int count = 0;
    for (const Thread& thread : threads) {
        if (thread.wait != Wait::block) continue;
        if (first == nullptr) first = &thread;
        if (thread.line != first->line || thread.block_kind != first->block_kind) {
            fail(
                "a barrier is reached on different paths: " + place_of(*first) + " waits at line " +
                std::to_string(first->line) + ", " + place_of(thread) + " at line " + std::to_string(thread.line)
            );
        }
        count += thread.block_value != 0;
    }
    for (Thread& thread : threads) {
        if (thread.wait != Wait::block) continue;
        thread.wait = Wait::no;
        switch (thread.block_kind) {
            case BlockKind::sync: thread.block_result = 0; break;
            case BlockKind::count: thread.block_result = count; break;
            case BlockKind::all: thread.block_result = count == static_cast<int>(alive); break;
            case BlockKind::any: thread.block_result = count > 0; break;
        }
    }
    at_barrier = 0;
}

// --- warp-wide operations ------------------------------------------------------------------------------------------

inline Thread* lane_of(unsigned warp, unsigned lane) {
    const size_t place = static_cast<size_t>(warp) * 32 + lane;
    return place < threads.size() ? &threads[place] : nullptr;
}

inline int shuffle_source(const Thread& thread) {
    const int lane = static_cast<int>(thread.lane);
    const int start = lane & ~(thread.width - 1);
    const int end = start + thread.width;
    int source = lane;
    switch (thread.warp_kind) {
        case WarpKind::shuffle: return start + (thread.operand & (thread.width - 1));
        case WarpKind::shuffle_up: source = lane - thread.operand; return source < start ? lane : source;
        case WarpKind::shuffle_down: source = lane + thread.operand; return source >= end ? lane : source;
        default: source = lane ^ thread.operand; return source >= end ? lane : source;
    }
}

inline uint64_t reduce(WarpKind kind, bool is_signed, const std::vector<Thread*>& members) {
    uint32_t total = 0;
    bool first = true;
    for (const Thread* member : members) {
        uint32_t value;
        memcpy(&value, member->value, sizeof value);
        const bool less = is_signed ? static_cast<int32_t>(value) < static_cast<int32_t>(total) : value < total;
        if (first) total = value;
        else if (kind == WarpKind::add) total += value;
        else if (kind == WarpKind::min) total = less ? value : total;
        else if (kind == WarpKind::max) total = less ? total : value;
        else if (kind == WarpKind::bit_and) total &= value;
        else if (kind == WarpKind::bit_or) total |= value;
        else total ^= value;
        first = false;
    }
    return total;
}

inline void complete_warp(const std::vector<Thread*>& members) {
    unsigned present = 0;
    unsigned voted = 0;
    for (const Thread* member : members) {
        present |= 1u << member->lane;
        if (member->value[0] != 0) voted |= 1u << member->lane;
    }
    for (Thread* member : members) {
        uint64_t answer = 0;
        switch (member->warp_kind) {
            case WarpKind::sync: break;
            case WarpKind::shuffle:
            case WarpKind::shuffle_up:
            case WarpKind::shuffle_down:
            case WarpKind::shuffle_xor: {
                const int source = shuffle_source(*member);
                // A lane that does not take part has no value; all bits set shows as NaN or -1.
                if (source < 0 || source > 31 || !(present >> source & 1)) memset(member->result, 0xff, VALUE_BYTES);
                else memcpy(member->result, lane_of(member->warp, source)->value, VALUE_BYTES);
                continue;
            }
            case WarpKind::ballot: answer = voted; break;
            case WarpKind::all: answer = voted == present; break;
            case WarpKind::any: answer = voted != 0; break;
            case WarpKind::match_any:
            case WarpKind::match_all:
                for (const Thread* other : members) {
                    if (memcmp(other->value, member->value, VALUE_BYTES) == 0) answer |= 1u << other->lane;
                }
                if (member->warp_kind == WarpKind::match_all && answer != present) answer = 0;
                break;
            default: answer = reduce(member->warp_kind, member->is_signed, members);
        }
        memcpy(member->result, &answer, sizeof answer);
    }
    for (Thread* member : members) member->wait = Wait::no;
}

// Completes the operation that `mask` names in this warp, once every lane of it that still runs has arrived.
inline void release_warp_if_complete(unsigned warp, unsigned mask) {
    std::vector<Thread*> members;
    for (unsigned lane = 0; lane < 32; ++lane) {
        Thread* thread = mask >> lane & 1 ? lane_of(warp, lane) : nullptr;
        if (thread == nullptr || thread->wait == Wait::done) continue;
        if (thread->wait != Wait::warp || thread->mask != mask) return;
        members.push_back(thread);
    }
    if (members.empty()) return;
    for (const Thread* member : members) {
        if (member->warp_kind != members[0]->warp_kind) {
            fail(
                "lanes of one warp meet in different operations: " + place_of(*members[0]) + " at line " +
                std::to_string(members[0]->line) + ", " + place_of(*member) + " at line " + std::to_string(member->line)
            );
        }
    }
    complete_warp(members);
}

inline void thread_ended(Thread& thread) {
    thread.wait = Wait::done;
    --alive;
    release_block_if_complete();
    for (unsigned lane = 0; lane < 32; ++lane) {
        Thread* other = lane_of(thread.warp, lane);
        if (other != nullptr && other->wait == Wait::warp) release_warp_if_complete(thread.warp, other->mask);
    }
}

[[noreturn]] inline void deadlock() {
    std::string message = "the block waits forever:";
    int shown = 0;
    for (const Thread& thread : threads) {
        if (thread.wait != Wait::block && thread.wait != Wait::warp) continue;
        if (++shown > 4) break;
        char mask[16];
        snprintf(mask, sizeof mask, "0x%08x", thread.mask);
        message += "\n  " + place_of(thread) + " waits at line " + std::to_string(thread.line) +
                   (thread.wait == Wait::block ? " for the block" : std::string(" for the lanes ") + mask);
    }
    fail(message);
}

}  // namespace detail

int wait_for_block(int line, BlockKind kind, int value) {
    current->line = line;
    current->block_kind = kind;
    current->block_value = value;
    current->wait = Wait::block;
    ++at_barrier;
    detail::release_block_if_complete();
    if (current->wait != Wait::no) detail::pause();
    return current->block_result;
}

void wait_for_warp(int line, WarpKind kind, unsigned mask) {
    if (!(mask >> current->lane & 1)) {
        fail_at(line, "the mask leaves out the calling lane");
    }
    current->line = line;
    current->warp_kind = kind;
    current->mask = mask;
    current->wait = Wait::warp;
    detail::release_warp_if_complete(current->warp, mask);
    if (current->wait != Wait::no) detail::pause();
}

// The lanes that still run; a GPU may answer fewer.
unsigned active_mask() {
    unsigned mask = 0;
    for (unsigned lane = 0; lane < 32; ++lane) {
        const Thread* thread = detail::lane_of(current->warp, lane);
        if (thread != nullptr && thread->wait != Wait::done) mask |= 1u << lane;
    }
    return mask;
}

void fail_at(int line, const char* message) {
    fail(place_of(*current) + ", line " + std::to_string(line) + ": " + message);
}

inline void make_threads(dim3 size) {
    block.size = size;
    threads = std::vector<Thread>(static_cast<size_t>(size.x) * size.y * size.z);
    for (Thread& thread : threads) thread.stack = detail::new_stack();
}

inline void run_block(uint3 index) {
    block.index = index;
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
        thread.started = false;
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
