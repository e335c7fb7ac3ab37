// Sums over equal indices: the base to the sums, the rows of source to these by atomic additions, the sums to y.
//
// The sums are float32: y itself where that is float32, else scratch, and the third launch rounds them once.  Each thread
// has a pack of 16 bytes, wherever rows begin and end in it, so rows of one item are read in whole packs too.

#include "../include/layerport_kernels.h"

using namespace layerport;

namespace {

constexpr int THREADS = 256;  // as in reference.py

// The first item of this thread's pack.
template <typename T>
__device__ __forceinline__ long long first_item() {
    return (1ll * blockIdx.x * THREADS + threadIdx.x) * (16 / sizeof(T));
}

}  // namespace

template <typename T>
__global__ void __launch_bounds__(THREADS) index_add_begin(
    const T* __restrict__ base, float* __restrict__ sums, long long count
) {
    constexpr int WIDTH = 16 / sizeof(T);
    const long long first = first_item<T>();
    if (first >= count) return;
    const Pack<T> pack = load_at<true>(base, first, count);
#pragma unroll
    for (int at = 0; at < WIDTH; at += 4) {
        Pack<float> wide;
#pragma unroll
        for (int k = 0; k < 4; ++k) wide.items[k] = to_float(pack.items[at + k]);
        store_anywhere(sums, first + at, count, wide);
    }
}

// I is the type of the index.  A row whose index is no row of the sums is NaN in the nearest one: a kernel cannot raise.
template <typename T, typename I>
__global__ void __launch_bounds__(THREADS) index_add_rows(
    const T* __restrict__ source, const I* __restrict__ index, float* __restrict__ sums, int rows, int channels,
    long long count
) {
    constexpr int WIDTH = 16 / sizeof(T);
    const long long first = first_item<T>();
    if (first >= count || rows == 0) return;
    const Pack<T> pack = load_at<true>(source, first, count);
    long long row = quotient(first, channels), place = index[row];
    int column = static_cast<int>(first - row * channels);
#pragma unroll
    for (int k = 0; k < WIDTH; ++k) {
        if (first + k >= count) break;
        if (column == channels) {
            column = 0;
            place = index[++row];
        }
        float value = to_float(pack.items[k]);
        long long to = place < 0 ? place + rows : place;
        if (to < 0 || to >= rows) {
            to = to < 0 ? 0 : rows - 1;
            value = nanf("");
        }
        atomicAdd(sums + to * channels + column++, value);
    }
}

template <typename T>
__global__ void __launch_bounds__(THREADS) index_add_end(
    const float* __restrict__ sums, T* __restrict__ y, long long count
) {
    constexpr int WIDTH = 16 / sizeof(T);
    const long long first = first_item<T>();
    if (first >= count) return;
    Pack<T> pack;
#pragma unroll
    for (int at = 0; at < WIDTH; at += 4) {
        const Pack<float> wide = load_at<false>(sums, first + at, count);
#pragma unroll
        for (int k = 0; k < 4; ++k) pack.items[at + k] = from_float<T>(wide.items[k]);
    }
    store_anywhere(y, first, count, pack);
}
