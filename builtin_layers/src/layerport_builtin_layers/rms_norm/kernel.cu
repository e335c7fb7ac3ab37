// RMS normalisation over the last axis: y = x * rsqrt(mean(x * x) + eps) * weight, summed in fp32.
//
// T is the type of x and y, W that of weight (T or float; weight may be null).

#include "../rows.h"

template <typename T, typename W>
__global__ void __launch_bounds__(256, 4) rms_norm_narrow(
    const T* __restrict__ x, const W* __restrict__ weight, T* __restrict__ y, long long rows, int cols, float eps
) {
    normalise_narrow<false, false>(Row<T, W>{x, nullptr, weight, nullptr, nullptr, y, cols, eps}, rows);
}

template <typename T, typename W, int VECTORS>
__global__ void __launch_bounds__(VECTORS > 4 ? 1024 : 512, VECTORS > 4 ? 1 : 2) rms_norm_wide(
    const T* __restrict__ x, const W* __restrict__ weight, T* __restrict__ y, long long rows, int cols, float eps
) {
    __shared__ float partial[33];
    normalise_wide<VECTORS, false, false>(
        Row<T, W>{x, nullptr, weight, nullptr, nullptr, y, cols, eps}, rows, partial
    );
}
