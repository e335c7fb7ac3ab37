// How threads wait for each other: barriers of the block and operations of a warp, and who is missing there.
//
// Part of runtime.cpp, for tests only.
#pragma once

#include "memory.h"

namespace cuda_host {

namespace detail {

// --- __syncthreads -------------------------------------------------------------------------------------------------

inline void release_block_if_complete() {
    if (alive == 0 || at_barrier < alive) return;
    const Thread* first = nullptr;
    const Thread* gone = nullptr;
    int count = 0;
    for (const Thread& thread : threads) {
        if (thread.wait == Wait::done && gone == nullptr) gone = &thread;
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
    if (strict && gone != nullptr) {
        fail(
            "not all threads of the block reach the barrier of line " + std::to_string(first->line) + ": " +
            place_of(*first) + " waits there, " + place_of(*gone) + " has returned"
        );
    }
    ++meetings;
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

class Members {
  public:
    void add(Thread* thread) { all[count++] = thread; }
    bool empty() const { return count == 0; }
    Thread* operator[](size_t place) const { return all[place]; }
    Thread* const* begin() const { return all; }
    Thread* const* end() const { return all + count; }

  private:
    Thread* all[32];
    size_t count = 0;
};

inline uint64_t reduce(WarpKind kind, bool is_signed, const Members& members) {
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

inline void complete_warp(const Members& members) {
    ++meetings;
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
                // A lane that does not take part has no value.
                if (source < 0 || source > 31 || !(present >> source & 1)) memset(member->result, poison_byte, VALUE_BYTES);
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
    Members members;
    const Thread* gone = nullptr;
    for (unsigned lane = 0; lane < 32; ++lane) {
        Thread* thread = mask >> lane & 1 ? lane_of(warp, lane) : nullptr;
        if (thread == nullptr) continue;
        if (thread->wait == Wait::done) {
            gone = thread;
            continue;
        }
        if (thread->wait != Wait::warp || thread->mask != mask) return;
        members.add(thread);
    }
    if (members.empty()) return;
    if (strict && gone != nullptr) {
        char text[16];
        snprintf(text, sizeof text, "0x%08x", mask);
        fail(
            std::string("the mask ") + text + " of line " + std::to_string(members[0]->line) +
            " names a lane that never comes: " + place_of(*members[0]) + " waits there, " + place_of(*gone) +
            " has returned"
        );
    }
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

void thread_ended(Thread& thread) {
    thread.wait = Wait::done;
    --alive;
    release_block_if_complete();
    for (unsigned lane = 0; lane < 32; ++lane) {
        Thread* other = lane_of(thread.warp, lane);
        if (other != nullptr && other->wait == Wait::warp) release_warp_if_complete(thread.warp, other->mask);
    }
}

[[noreturn]] void deadlock() {
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
    detail::pause();  // the last one to arrive too, which would run ahead in every order
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
    detail::pause();
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

}  // namespace cuda_host
