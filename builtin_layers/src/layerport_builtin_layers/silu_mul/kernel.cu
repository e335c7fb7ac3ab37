// SiLU(gate) * up = gate / (1 + exp(-gate)) * up, computed in fp32.
//
// Each thread takes 2 packs of 16 bytes of both inputs, a block apart.  Pointers that are not aligned to 16 bytes
// (views) and the last few elements go one by one.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace {

template <typename T>
struct alignas(16) Pack {
    T items[16 / sizeof(T)];
};

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

}  // namespace

template <typename T>
__global__ void __launch_bounds__(256) silu_mul(
    const T* __restrict__ gate, const T* __restrict__ up, T* __restrict__ y, long long count
) {
    constexpr int WIDTH = 16 / sizeof(T);
    constexpr int PACKS = 2;
    const auto bits = reinterpret_cast<unsigned long long>(gate) | reinterpret_cast<unsigned long long>(up) |
                      reinterpret_cast<unsigned long long>(y);
    const long long block_start = static_cast<long long>(blockIdx.x) * (256 * PACKS * WIDTH);
    if (bits % 16 == 0 && block_start + 256 * PACKS * WIDTH <= count) {
        const auto* gates = reinterpret_cast<const Pack<T>*>(gate + block_start) + threadIdx.x;
        const auto* ups = reinterpret_cast<const Pack<T>*>(up + block_start) + threadIdx.x;
        auto* results = reinterpret_cast<Pack<T>*>(y + block_start) + threadIdx.x;
        Pack<T> g[PACKS];
        Pack<T> u[PACKS];
#pragma unroll
        for (int i = 0; i < PACKS; ++i) {
            g[i] = gates[i * 256];
            u[i] = ups[i * 256];
        }
#pragma unroll
        for (int i = 0; i < PACKS; ++i) {
            Pack<T> result;
#pragma unroll
            for (int k = 0; k < WIDTH; ++k) result.items[k] = product(g[i].items[k], u[i].items[k]);
            results[i * 256] = result;
        }
        return;
    }
    // The last block, or a misaligned view: neighbouring threads take neighbouring elements.
    for (int i = threadIdx.x; i < 256 * PACKS * WIDTH && block_start + i < count; i += 256) {
        y[block_start + i] = product(gate[block_start + i], up[block_start + i]);
    }
}
