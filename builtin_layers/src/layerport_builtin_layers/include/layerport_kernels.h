// What memory-bound kernels share: packs of 16 bytes that are loaded and stored with one instruction each, at any
// address and up to the ends of a row; conversions to and from float; sums over lanes of a warp and over a block.
//
// Any pack may include it: lp.cuda(..., include=(layerport_builtin_layers.INCLUDE,)), #include <layerport_kernels.h>.

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace layerport {

template <typename T>
struct alignas(16) Pack {
    T items[16 / sizeof(T)];
};

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(__half value) { return __half2float(value); }
__device__ __forceinline__ float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

template <typename T> __device__ __forceinline__ T from_float(float value);
template <> __device__ __forceinline__ float from_float<float>(float value) { return value; }
template <> __device__ __forceinline__ __half from_float<__half>(float value) { return __float2half_rn(value); }
template <> __device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float value) {
    return __float2bfloat16_rn(value);
}

// Moved as one uint4: a plain copy of the struct may be split into smaller loads.
template <typename T>
__device__ __forceinline__ Pack<T> load(const Pack<T>* from) {
    Pack<T> pack;
    *reinterpret_cast<uint4*>(&pack) = __ldg(reinterpret_cast<const uint4*>(from));
    return pack;
}

// The same for a store: for sm_80 the compiler made four of a plain one in places.
template <typename T>
__device__ __forceinline__ void store(Pack<T>* to, const Pack<T>& pack) {
    __stwb(reinterpret_cast<uint4*>(to), *reinterpret_cast<const uint4*>(&pack));
}

template <typename P>
__device__ __forceinline__ int bytes_off(const P* pointer) {
    return static_cast<int>(reinterpret_cast<unsigned long long>(pointer) % 16);
}

// number / size, neither negative; in 32 bits where the number fits, because one in 64 bits takes three times as long.
__device__ __forceinline__ long long quotient(long long number, int size) {
    const auto divisor = static_cast<unsigned>(size);
    return number <= 0xffffffffll ? static_cast<unsigned>(number) / divisor : number / size;
}

// The 16 bytes that start `bytes` (below 16, a multiple of T's size) after the first pack.  In halving steps, because
// an index that is not a constant would put the words into local memory.
template <typename T>
__device__ __forceinline__ Pack<T> shifted(const Pack<T>& first, const Pack<T>& second, int bytes) {
    unsigned words[8];
    *reinterpret_cast<uint4*>(words) = *reinterpret_cast<const uint4*>(&first);
    *reinterpret_cast<uint4*>(words + 4) = *reinterpret_cast<const uint4*>(&second);
#pragma unroll
    for (int i = 0; i < 6; ++i) words[i] = bytes & 8 ? words[i + 2] : words[i];
#pragma unroll
    for (int i = 0; i < 5; ++i) words[i] = bytes & 4 ? words[i + 1] : words[i];
    if constexpr (sizeof(T) < 4) {
#pragma unroll
        for (int i = 0; i < 4; ++i) words[i] = bytes & 2 ? words[i] >> 16 | words[i + 1] << 16 : words[i];
    }
    Pack<T> pack;
    *reinterpret_cast<uint4*>(&pack) = *reinterpret_cast<const uint4*>(words);
    return pack;
}

// The elements from `index` on of `count` elements at `from`; zeros for what lies outside, which is not read.
// SHIFTED: `from + index` need not be aligned; then two aligned packs are read and shifted.
template <bool SHIFTED, typename T, typename Index>
__device__ __forceinline__ Pack<T> load_at(const T* from, Index index, Index count) {
    constexpr int WIDTH = 16 / sizeof(T);
    const int off = SHIFTED ? bytes_off(from + index) : 0;
    const Index start = index - off / static_cast<int>(sizeof(T));
    if (start >= 0 && start + (off ? 2 * WIDTH : WIDTH) <= count) {
        const auto* packs = reinterpret_cast<const Pack<T>*>(from + start);
        const Pack<T> first = load(packs);
        return off ? shifted(first, load(packs + 1), off) : first;
    }
    Pack<T> pack;
#pragma unroll
    for (int k = 0; k < WIDTH; ++k) {
        pack.items[k] = index + k >= 0 && index + k < count ? from[index + k] : from_float<T>(0.0f);
    }
    return pack;
}

// `to + index` is aligned; what lies outside is not written.
template <typename T, typename Index>
__device__ __forceinline__ void store_at(T* to, Index index, Index count, const Pack<T>& pack) {
    constexpr int WIDTH = 16 / sizeof(T);
    if (index >= 0 && index + WIDTH <= count) {
        store(reinterpret_cast<Pack<T>*>(to + index), pack);
        return;
    }
#pragma unroll
    for (int k = 0; k < WIDTH; ++k) {
        if (index + k >= 0 && index + k < count) to[index + k] = pack.items[k];
    }
}

// The same where `to + index` need not be aligned.
template <typename T, typename Index>
__device__ __forceinline__ void store_anywhere(T* to, Index index, Index count, const Pack<T>& pack) {
    if (bytes_off(to + index) == 0) {
        store_at(to, index, count, pack);
        return;
    }
#pragma unroll
    for (int k = 0; k < 16 / sizeof(T); ++k) {
        if (index + k >= 0 && index + k < count) to[index + k] = pack.items[k];
    }
}

// Where the first pack starts, at or below 0, so that `to` is aligned there.
template <typename T>
__device__ __forceinline__ int first_index(const T* to) {
    return -(bytes_off(to) / static_cast<int>(sizeof(T)));
}

// Stops the compiler from keeping the converted floats of all packs alive across the sum, which costs more registers
// than there are; it emits nothing.
template <typename T>
__device__ __forceinline__ void keep_packed(Pack<T>& pack) {
#ifndef LAYERPORT_HOST
    auto* words = reinterpret_cast<unsigned*>(&pack);
    asm volatile("" : "+r"(words[0]), "+r"(words[1]), "+r"(words[2]), "+r"(words[3]));
#endif
}

// The sum over `width` neighbouring threads of a warp; width is a power of two and the same for the whole warp.
__device__ __forceinline__ float sum_lanes(float value, int width) {
    for (int offset = width / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
    return value;
}

struct SumOfLanes {
    __device__ __forceinline__ float operator()(float value) const { return sum_lanes(value, blockDim.x); }
};

struct SumOfBlock {
    // 33 floats: one for each warp, and the total.  The next row may follow at once: its first barrier holds the
    // total back until every warp has read this one.
    float* partial;

    __device__ __forceinline__ float operator()(float value) const {
        value = sum_lanes(value, 32);
        if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
        __syncthreads();
        if (threadIdx.x < 32) {
            const float part = threadIdx.x < blockDim.x / 32 ? partial[threadIdx.x] : 0.0f;
            const float total = sum_lanes(part, 32);
            if (threadIdx.x == 0) partial[32] = total;
        }
        __syncthreads();
        return partial[32];
    }
};

}  // namespace layerport
