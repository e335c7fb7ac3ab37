// GELU(gate) * up, computed in fp32, with the error function or with tanh.

#include "../gated.h"

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
