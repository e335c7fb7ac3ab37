// GELU(gate) * up, computed in fp32, with the error function or with tanh.

#include "../gated.h"

namespace {

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

}  // namespace

template <typename T>
__global__ void __launch_bounds__(256) gelu_mul_erf(
    const T* __restrict__ gate, const T* __restrict__ up, T* __restrict__ y, long long count
) {
    multiply_gated<ErfGelu>(gate, up, y, count);
}

template <typename T>
__global__ void __launch_bounds__(256) gelu_mul_tanh(
    const T* __restrict__ gate, const T* __restrict__ up, T* __restrict__ y, long long count
) {
    multiply_gated<TanhGelu>(gate, up, y, count);
}
