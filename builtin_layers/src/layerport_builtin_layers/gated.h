// activation(gate) * up, element by element; each thread takes 2 packs of 16 bytes of both inputs, a block apart.
//
// Where a pointer is not aligned to 16 bytes (views), packs start where y is aligned, and those of the inputs are
// shifted together from two aligned ones.  Only the packs that hang over an end go element by element.

#pragma once

#include "include/layerport_kernels.h"

using namespace layerport;

namespace {

struct Silu {
    // The 16-bit types keep 8 or 11 bits, far fewer than the fast intrinsics lose; fp32 takes the exact functions.
    static __device__ __forceinline__ float product(float gate, float up) { return gate / (1.0f + expf(-gate)) * up; }

    template <typename T>
    static __device__ __forceinline__ T product(T gate, T up) {
        const float value = to_float(gate);
        return from_float<T>(__fdividef(value, 1.0f + __expf(-value)) * to_float(up));
    }
};

struct ErfGelu {
    // Through erfc, because 1 + erf(x) loses all digits of negative x; the 16-bit types have none to lose.
    static __device__ __forceinline__ float product(float gate, float up) {
        return 0.5f * gate * erfcf(gate * -0.70710678118654752f) * up;
    }

    template <typename T>
    static __device__ __forceinline__ T product(T gate, T up) {
        const float value = to_float(gate);
        return from_float<T>(0.5f * value * (1.0f + erff(value * 0.70710678118654752f)) * to_float(up));
    }
};

struct TanhGelu {
    // 0.5 * (1 + tanh(u)) = 1 / (1 + exp(-2 u)), which keeps the digits of negative u; this is -2 u.
    static __device__ __forceinline__ float exponent(float gate) {
        return gate * (-1.5957691216057308f - 0.071354816272600246f * (gate * gate));
    }

    static __device__ __forceinline__ float product(float gate, float up) {
        return gate / (1.0f + expf(exponent(gate))) * up;
    }

    template <typename T>
    static __device__ __forceinline__ T product(T gate, T up) {
        const float value = to_float(gate);
        return from_float<T>(__fdividef(value, 1.0f + __expf(exponent(value))) * to_float(up));
    }
};

// ACTIVATION: one of these.
template <typename ACTIVATION, typename T>
__device__ __forceinline__ Pack<T> product_of(const Pack<T>& gate, const Pack<T>& up) {
    Pack<T> result;
#pragma unroll
    for (int k = 0; k < 16 / sizeof(T); ++k) result.items[k] = ACTIVATION::product(gate.items[k], up.items[k]);
    return result;
}

template <typename ACTIVATION, bool SHIFTED, typename T>
__device__ __forceinline__ void one_pack(
    const T* __restrict__ gate, const T* __restrict__ up, T* __restrict__ y, long long index, long long count
) {
    const Pack<T> gates = load_at<SHIFTED>(gate, index, count);
    store_at(y, index, count, product_of<ACTIVATION>(gates, load_at<SHIFTED>(up, index, count)));
}

// For blocks of 256 threads.
template <typename ACTIVATION, typename T>
__device__ __forceinline__ void multiply_gated(
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
                if (index < count) one_pack<ACTIVATION, false>(gate, up, y, index, count);
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
        for (int i = 0; i < PACKS; ++i) store(results + i * 256, product_of<ACTIVATION>(g[i], u[i]));
        return;
    }
    // Packs start below 0, where y is aligned; so the blocks may end up to a pack too early, which the last one takes.
    const int begin = first_index(y);
    const int extra = blockIdx.x == gridDim.x - 1 && threadIdx.x == 0 ? 1 : 0;
#pragma unroll 1
    for (int i = 0; i < PACKS + extra; ++i) {
        const long long index = begin + (i < PACKS ? first + i * 256 * WIDTH : start + PACKS * 256 * WIDTH);
        if (index < count) one_pack<ACTIVATION, true>(gate, up, y, index, count);
    }
}

}  // namespace
