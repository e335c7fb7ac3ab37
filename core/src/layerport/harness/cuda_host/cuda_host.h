// Compiles an unchanged CUDA C++ kernel for the host, for tests.  Never a run-time fallback.
//
// The generated program is this header, the kernel's source and a main that names the kernel; it is linked to the
// runtime (runtime.cpp).
// A kernel can tell that it is compiled here by LAYERPORT_HOST, and so give a plain variant of what is not
// supported: tensor cores, asynchronous copies, inline PTX, cooperative groups, clusters, dynamic parallelism.
#pragma once

#define LAYERPORT_HOST 1

#include "intrinsics.h"

#include <cassert>
#include <cstdio>
#include <cstdlib>

#include <cuda_runtime_api.h>
#include <vector_functions.h>
#include <vector_types.h>

// Under __CUDACC__ these headers declare their arithmetic too, all of which has host code.
#define __CUDACC__
LAYERPORT_DEVICE void __syncthreads() {}
#ifdef LAYERPORT_FP16
#include <cuda_fp16.h>
#endif
#ifdef LAYERPORT_BF16
#include <cuda_bf16.h>
#endif
#ifdef LAYERPORT_FP8
#include <cuda_fp8.h>
#endif
#undef __CUDACC__

#include "threads.h"

// --- qualifiers ----------------------------------------------------------------------------------------------------

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __constant__
#undef __managed__
#undef __launch_bounds__
#undef __forceinline__
#undef __noinline__
#undef __restrict__
#undef __grid_constant__
#undef __align__
#define __global__
#define __device__
#define __host__
// One block runs at a time, so a static is shared by exactly the threads of a block.
#define __shared__ static __attribute__((aligned(65536)))
#define __constant__ static
#define __managed__
#define __launch_bounds__(...)
#define __cluster_dims__(...) static_assert(false, "layerport-unsupported: clusters")
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __restrict__ __restrict
#define __grid_constant__
#define __align__(BYTES) alignas(BYTES)
#define __builtin_assume(CONDITION) ((void)0)
#define __builtin_assume_aligned(POINTER, ...) (POINTER)

// --- what a thread is told -----------------------------------------------------------------------------------------

#define threadIdx (::cuda_host::thread_index())
#define blockIdx (::cuda_host::block_index())
#define blockDim (::cuda_host::block_size())
#define gridDim (::cuda_host::grid_size())
#define warpSize 32

#define __trap() ::cuda_host::fail_at(__LINE__, "__trap()")
#define __isGlobal(POINTER) true

namespace cuda_host {

template <typename T>
LAYERPORT_UNCHECKED T shuffle(int line, WarpKind kind, unsigned mask, T value, int operand, int width = 32) {
    static_assert(sizeof(T) <= VALUE_BYTES, "a shuffle moves at most 16 bytes");
    if (width < 1 || width > 32 || (width & (width - 1)) != 0) {
        fail_at(line, "the width of a shuffle is a power of two up to 32");
    }
    memset(calling->value, 0, VALUE_BYTES);
    memcpy(calling->value, &value, sizeof value);
    calling->operand = operand;
    calling->width = width;
    wait_for_warp(line, kind, mask);
    memcpy(&value, calling->result, sizeof value);
    return value;
}

template <typename T>
LAYERPORT_UNCHECKED unsigned long long vote(int line, WarpKind kind, unsigned mask, T value) {
    memset(calling->value, 0, VALUE_BYTES);
    memcpy(calling->value, &value, sizeof value);
    calling->is_signed = std::is_signed_v<T>;
    wait_for_warp(line, kind, mask);
    unsigned long long answer;
    memcpy(&answer, calling->result, sizeof answer);
    return answer;
}

inline void sync_warp(int line, unsigned mask = 0xffffffffu) { vote(line, WarpKind::sync, mask, 0); }

template <typename T>
unsigned match_all(int line, unsigned mask, T value, int* all) {
    const auto found = static_cast<unsigned>(vote(line, WarpKind::match_all, mask, value));
    *all = found != 0;
    return found;
}

}  // namespace cuda_host

#define __syncthreads() ((void)::cuda_host::wait_for_block(__LINE__, ::cuda_host::BlockKind::sync, 0))
#define __syncthreads_count(VALUE) ::cuda_host::wait_for_block(__LINE__, ::cuda_host::BlockKind::count, (VALUE) != 0)
#define __syncthreads_and(VALUE) ::cuda_host::wait_for_block(__LINE__, ::cuda_host::BlockKind::all, (VALUE) != 0)
#define __syncthreads_or(VALUE) ::cuda_host::wait_for_block(__LINE__, ::cuda_host::BlockKind::any, (VALUE) != 0)
#define __syncwarp(...) ::cuda_host::sync_warp(__LINE__ __VA_OPT__(, ) __VA_ARGS__)
#define __activemask() ::cuda_host::active_mask()

#define __shfl_sync(...) ::cuda_host::shuffle(__LINE__, ::cuda_host::WarpKind::shuffle, __VA_ARGS__)
#define __shfl_up_sync(...) ::cuda_host::shuffle(__LINE__, ::cuda_host::WarpKind::shuffle_up, __VA_ARGS__)
#define __shfl_down_sync(...) ::cuda_host::shuffle(__LINE__, ::cuda_host::WarpKind::shuffle_down, __VA_ARGS__)
#define __shfl_xor_sync(...) ::cuda_host::shuffle(__LINE__, ::cuda_host::WarpKind::shuffle_xor, __VA_ARGS__)

#define LAYERPORT_VOTE(KIND, MASK, VALUE) ::cuda_host::vote(__LINE__, ::cuda_host::WarpKind::KIND, MASK, VALUE)
#define __ballot_sync(MASK, VALUE) static_cast<unsigned>(LAYERPORT_VOTE(ballot, MASK, static_cast<bool>(VALUE)))
#define __all_sync(MASK, VALUE) static_cast<int>(LAYERPORT_VOTE(all, MASK, static_cast<bool>(VALUE)))
#define __any_sync(MASK, VALUE) static_cast<int>(LAYERPORT_VOTE(any, MASK, static_cast<bool>(VALUE)))
#define __match_any_sync(MASK, VALUE) static_cast<unsigned>(LAYERPORT_VOTE(match_any, MASK, VALUE))
#define __match_all_sync(MASK, VALUE, ALL) ::cuda_host::match_all(__LINE__, MASK, VALUE, ALL)
#define __reduce_add_sync(MASK, VALUE) static_cast<decltype(VALUE)>(LAYERPORT_VOTE(add, MASK, VALUE))
#define __reduce_min_sync(MASK, VALUE) static_cast<decltype(VALUE)>(LAYERPORT_VOTE(min, MASK, VALUE))
#define __reduce_max_sync(MASK, VALUE) static_cast<decltype(VALUE)>(LAYERPORT_VOTE(max, MASK, VALUE))
#define __reduce_and_sync(MASK, VALUE) static_cast<unsigned>(LAYERPORT_VOTE(bit_and, MASK, VALUE))
#define __reduce_or_sync(MASK, VALUE) static_cast<unsigned>(LAYERPORT_VOTE(bit_or, MASK, VALUE))
#define __reduce_xor_sync(MASK, VALUE) static_cast<unsigned>(LAYERPORT_VOTE(bit_xor, MASK, VALUE))

// The compiler shows the accesses of small copies, which it makes itself, and not what the C library does.
#define LAYERPORT_MADE_HERE(BYTES) \
    (__builtin_constant_p(BYTES) && (BYTES) <= 16 && ((BYTES) & ((BYTES) - 1)) == 0)
__attribute__((always_inline)) inline void* layerport_memcpy(void* to, const void* from, size_t bytes) {
    if (!LAYERPORT_MADE_HERE(bytes)) {
        ::cuda_host::check_access(from, bytes, false);
        ::cuda_host::check_access(to, bytes, true);
    }
    return __builtin_memcpy(to, from, bytes);
}
inline void* layerport_memmove(void* to, const void* from, size_t bytes) {
    ::cuda_host::check_access(from, bytes, false);
    ::cuda_host::check_access(to, bytes, true);
    return __builtin_memmove(to, from, bytes);
}
inline void* layerport_memset(void* to, int value, size_t bytes) {
    ::cuda_host::check_access(to, bytes, true);
    return __builtin_memset(to, value, bytes);
}
namespace std {
using ::layerport_memcpy;
using ::layerport_memmove;
using ::layerport_memset;
}  // namespace std
#define memcpy layerport_memcpy
#define memmove layerport_memmove
#define memset layerport_memset

// After every header of the host, which use it themselves.  __CUDA_ARCH__ selects the kernel's own device path.
#define asm layerport_unsupported_inline_ptx
#define __asm__ layerport_unsupported_inline_ptx
#define __CUDA_ARCH__ 800
