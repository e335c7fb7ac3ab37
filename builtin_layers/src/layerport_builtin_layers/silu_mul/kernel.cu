// SiLU(gate) * up = gate / (1 + exp(-gate)) * up, computed in fp32.

#include "../gated.h"

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

}  // namespace

template <typename T>
__global__ void __launch_bounds__(256) silu_mul(
    const T* __restrict__ gate, const T* __restrict__ up, T* __restrict__ y, long long count
) {
    multiply_gated<Silu>(gate, up, y, count);
}
