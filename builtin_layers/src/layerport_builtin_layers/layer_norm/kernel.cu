// Layer normalisation over the last axis: y = (x - mean) * rsqrt(mean((x - mean)^2) + eps) * weight + bias, in fp32.
//
// T is the type of x and y, W that of weight and bias (T or float; either may be null).

#include "../rows.h"

template <typename T, typename W>
__global__ void __launch_bounds__(256, 3) layer_norm_narrow(
    const T* __restrict__ x,
    const W* __restrict__ weight,
    const W* __restrict__ bias,
    T* __restrict__ y,
    long long rows,
    int cols,
    float eps
) {
    normalise_narrow<true, false>(Row<T, W>{x, nullptr, weight, bias, nullptr, y, cols, eps}, rows);
}

template <typename T, typename W>
__global__ void __launch_bounds__(1024) layer_norm_wide(
    const T* __restrict__ x,
    const W* __restrict__ weight,
    const W* __restrict__ bias,
    T* __restrict__ y,
    long long rows,
    int cols,
    float eps
) {
    __shared__ float partial[33];
    normalise_wide<4, true, false>(
        Row<T, W>{x, nullptr, weight, bias, nullptr, y, cols, eps}, rows, partial
    );
}
