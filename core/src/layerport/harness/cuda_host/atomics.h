// What the compiler calls in place of its own atomic operations (`__atomic_*`, `std::atomic`) in a kernel.
//
// Only one thread runs at a time, so plain code is atomic.  Part of runtime.cpp, for tests only.
#pragma once

#include "memory.h"

#if !defined(__SANITIZE_ADDRESS__)

namespace cuda_host::detail {

template <typename T>
T* atomic(const volatile T* address, bool write, void* from) {
    check_atomic(const_cast<const T*>(address), sizeof(T), write, from);
    let_others_run();
    return const_cast<T*>(address);
}

}  // namespace cuda_host::detail

#define LAYERPORT_HERE __builtin_return_address(0)
#define LAYERPORT_FETCH(BITS, TYPE, NAME, EXPRESSION)                                                              \
    TYPE __tsan_atomic##BITS##_##NAME(volatile TYPE* address, TYPE value, int) {                                   \
        TYPE* place = ::cuda_host::detail::atomic(address, true, LAYERPORT_HERE);                                  \
        const TYPE before = *place;                                                                                \
        *place = static_cast<TYPE>(EXPRESSION);                                                                    \
        return before;                                                                                             \
    }
#define LAYERPORT_COMPARE(BITS, TYPE, NAME)                                                                        \
    int __tsan_atomic##BITS##_##NAME(volatile TYPE* address, TYPE* expected, TYPE value, int, int) {               \
        TYPE* place = ::cuda_host::detail::atomic(address, true, LAYERPORT_HERE);                                  \
        const bool equal = *place == *expected;                                                                    \
        if (equal) *place = value;                                                                                 \
        else *expected = *place;                                                                                   \
        return equal;                                                                                              \
    }
#define LAYERPORT_ATOMICS(BITS, TYPE)                                                                              \
    TYPE __tsan_atomic##BITS##_load(const volatile TYPE* address, int) {                                           \
        return *::cuda_host::detail::atomic(address, false, LAYERPORT_HERE);                                       \
    }                                                                                                              \
    void __tsan_atomic##BITS##_store(volatile TYPE* address, TYPE value, int) {                                    \
        *::cuda_host::detail::atomic(address, true, LAYERPORT_HERE) = value;                                       \
    }                                                                                                              \
    LAYERPORT_FETCH(BITS, TYPE, exchange, (static_cast<void>(before), value))                                      \
    LAYERPORT_FETCH(BITS, TYPE, fetch_add, before + value)                                                         \
    LAYERPORT_FETCH(BITS, TYPE, fetch_sub, before - value)                                                         \
    LAYERPORT_FETCH(BITS, TYPE, fetch_and, before & value)                                                         \
    LAYERPORT_FETCH(BITS, TYPE, fetch_or, before | value)                                                          \
    LAYERPORT_FETCH(BITS, TYPE, fetch_xor, before ^ value)                                                         \
    LAYERPORT_FETCH(BITS, TYPE, fetch_nand, ~(before & value))                                                     \
    LAYERPORT_COMPARE(BITS, TYPE, compare_exchange_strong)                                                         \
    LAYERPORT_COMPARE(BITS, TYPE, compare_exchange_weak)

extern "C" {
LAYERPORT_ATOMICS(8, uint8_t)
LAYERPORT_ATOMICS(16, uint16_t)
LAYERPORT_ATOMICS(32, uint32_t)
LAYERPORT_ATOMICS(64, uint64_t)
void __tsan_atomic_thread_fence(int) { ::cuda_host::let_others_run(); }
void __tsan_atomic_signal_fence(int) {}
}
#undef LAYERPORT_ATOMICS
#undef LAYERPORT_COMPARE
#undef LAYERPORT_FETCH
#undef LAYERPORT_HERE

#endif
