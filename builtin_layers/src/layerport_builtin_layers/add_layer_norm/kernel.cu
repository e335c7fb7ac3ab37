// The sum x + residual, rounded to T, and its layer normalisation over the last axis; see rows.h.
//
// T is the type of all but weight and bias, which have W (T or float; either may be null).

#include "../rows.h"

template <typename T, typename W>
__global__ void __launch_bounds__(256, 3) add_layer_norm_narrow(
    const T* __restrict__ x,
    const T* __restrict__ residual,
    const W* __restrict__ weight,
    const W* __restrict__ bias,
    T* __restrict__ total,
    T* __restrict__ y,
    long long rows,
    int cols,
    float eps
) {
    normalise_narrow<true, true>(Row<T, W>{x, residual, weight, bias, total, y, cols, eps}, rows);
}

template <typename T, typename W>
__global__ void __launch_bounds__(512) add_layer_norm_wide(
    const T* __restrict__ x,
    const T* __restrict__ residual,
    const W* __restrict__ weight,
    const W* __restrict__ bias,
    T* __restrict__ total,
    T* __restrict__ y,
    long long rows,
    int cols,
    float eps
) {
    __shared__ float partial[33];
    normalise_wide<4, true, true>(
        Row<T, W>{x, residual, weight, bias, total, y, cols, eps}, rows, partial
    );
}
