// The sum x + residual, rounded to T, and its RMS normalisation over the last axis; see rows.h.
//
// T is the type of all but weight, which has W (T or float; it may be null).

#include "../rows.h"

template <typename T, typename W>
__global__ void __launch_bounds__(256, 3) add_rms_norm_narrow(
    const T* __restrict__ x,
    const T* __restrict__ residual,
    const W* __restrict__ weight,
    T* __restrict__ total,
    T* __restrict__ y,
    long long rows,
    int cols,
    float eps
) {
    normalise_narrow<false, true>(Row<T, W>{x, residual, weight, nullptr, total, y, cols, eps}, rows);
}

template <typename T, typename W>
__global__ void __launch_bounds__(1024) add_rms_norm_wide(
    const T* __restrict__ x,
    const T* __restrict__ residual,
    const W* __restrict__ weight,
    T* __restrict__ total,
    T* __restrict__ y,
    long long rows,
    int cols,
    float eps
) {
    __shared__ float partial[33];
    normalise_wide<4, false, true>(
        Row<T, W>{x, residual, weight, nullptr, total, y, cols, eps}, rows, partial
    );
}
