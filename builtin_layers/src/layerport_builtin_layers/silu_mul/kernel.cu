// SiLU(gate) * up = gate / (1 + exp(-gate)) * up, computed in fp32.

#include "../gated.h"

template <typename T>
__global__ void __launch_bounds__(256) silu_mul(
    const T* __restrict__ gate, const T* __restrict__ up, T* __restrict__ y, long long count
) {
    multiply_gated<Silu>(gate, up, y, count);
}
