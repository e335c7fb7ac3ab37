// SiLU(gate) * up = gate / (1 + exp(-gate)) * up, computed in fp32.
//
// Each thread takes 2 packs of 16 bytes of both inputs, a block apart.  Where a pointer is not aligned to 16 bytes
// (views), packs start where y is aligned, and those of the inputs are shifted together from two aligned ones.  Only
// the packs that hang over an end go element by element.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace {

template <typename T>
struct alignas(16) Pack {
    T items[16 / sizeof(T)];
};

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

template <typename T>
__device__ __forceinline__ void store(Pack<T>* to, const Pack<T>& pack) {
    *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(&pack);
}

template <typename P>
__device__ __forceinline__ int bytes_off(const P* pointer) {
    return static_cast<int>(reinterpret_cast<unsigned long long>(pointer) % 16);
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

// Where the first pack starts, at or below 0, so that `to` is aligned there.
template <typename T>
__device__ __forceinline__ int first_index(const T* to) {
    return -(bytes_off(to) / static_cast<int>(sizeof(T)));
}

// The 16-bit types keep 8 or 11 bits, far fewer than the fast intrinsics lose; fp32 takes the exact functions.
__device__ __forceinline__ float product(float gate, float up) { return gate / (1.0f + expf(-gate)) * up; }

__device__ __forceinline__ float fast_product(float gate, float up) {
    return __fdividef(gate, 1.0f + __expf(-gate)) * up;
}

__device__ __forceinline__ __half product(__half gate, __half up) {
    return __float2half_rn(fast_product(__half2float(gate), __half2float(up)));
}

__device__ __forceinline__ __nv_bfloat16 product(__nv_bfloat16 gate, __nv_bfloat16 up) {
    return __float2bfloat16_rn(fast_product(__bfloat162float(gate), __bfloat162float(up)));
}

template <typename T>
__device__ __forceinline__ Pack<T> product(const Pack<T>& gate, const Pack<T>& up) {
    Pack<T> result;
#pragma unroll
    for (int k = 0; k < 16 / sizeof(T); ++k) result.items[k] = product(gate.items[k], up.items[k]);
    return result;
}

template <bool SHIFTED, typename T>
__device__ __forceinline__ void one_pack(
    const T* __restrict__ gate, const T* __restrict__ up, T* __restrict__ y, long long index, long long count
) {
    store_at(y, index, count, product(load_at<SHIFTED>(gate, index, count), load_at<SHIFTED>(up, index, count)));
}

}  // namespace

template <typename T>
__global__ void __launch_bounds__(256) silu_mul(
    const T* __restrict__ gate, const T* __restrict__ up, T* __restrict__ y, long long count
) {
    constexpr int WIDTH = 16 / sizeof(T);
    constexpr int PACKS = 2;
    const long long start = static_cast<long long>(blockIdx.x) * (256 * PACKS * WIDTH);
    const long long first = start + threadIdx.x * WIDTH;
    if ((bytes_off(gate) | bytes_off(up) | bytes_off(y)) == 0) {
        if (start + 256 * PACKS * WIDTH > count) {
            // The last block.
#pragma unroll 1
            for (int i = 0; i < PACKS; ++i) {
                const long long index = first + i * 256 * WIDTH;
                if (index < count) one_pack<false>(gate, up, y, index, count);
            }
            return;
        }
        const auto* gates = reinterpret_cast<const Pack<T>*>(gate + first);
        const auto* ups = reinterpret_cast<const Pack<T>*>(up + first);
        auto* results = reinterpret_cast<Pack<T>*>(y + first);
        Pack<T> g[PACKS];
        Pack<T> u[PACKS];
#pragma unroll
        for (int i = 0; i < PACKS; ++i) {
            g[i] = load(gates + i * 256);
            u[i] = load(ups + i * 256);
        }
#pragma unroll
        for (int i = 0; i < PACKS; ++i) store(results + i * 256, product(g[i], u[i]));
        return;
    }
    // Packs start below 0, where y is aligned; so the blocks may end up to a pack too early, which the last one takes.
    const int begin = first_index(y);
    const int extra = blockIdx.x == gridDim.x - 1 && threadIdx.x == 0 ? 1 : 0;
#pragma unroll 1
    for (int i = 0; i < PACKS + extra; ++i) {
        const long long index = begin + (i < PACKS ? first + i * 256 * WIDTH : start + PACKS * 256 * WIDTH);
        if (index < count) one_pack<true>(gate, up, y, index, count);
    }
}
