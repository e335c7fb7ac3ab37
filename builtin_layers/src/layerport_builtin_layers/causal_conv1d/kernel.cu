// Depthwise causal convolution of rows: y[t] = activation(bias + sum of weight[k] * x[t - width + 1 + k]), in fp32.
//
// blockDim.x neighbouring lanes share up to `chunk` packs of 16 bytes of a row, that of one channel of one sequence; a
// block has blockDim.y rows.  Packs start where y is aligned.  The columns before a pack come from L1, where the lane
// before has read them.  W is the type of weight and bias (T or float); bias may be null.

#include "../include/layerport_kernels.h"

using namespace layerport;

namespace {

// The fast intrinsics lose far less than 16 bits do.
template <typename T>
__device__ __forceinline__ T activated(float value, bool silu) {
    if (!silu) return from_float<T>(value);
    return from_float<T>(sizeof(T) == 2 ? __fdividef(value, 1.0f + __expf(-value)) : value / (1.0f + expf(-value)));
}

}  // namespace

template <typename T, typename W, int COLUMNS>
__global__ void __launch_bounds__(256) causal_conv1d(
    const T* __restrict__ x, const W* __restrict__ weight, const W* __restrict__ bias, T* __restrict__ y, long long rows,
    int channels, int length, int chunks, int chunk, bool silu
) {
    constexpr int WIDTH = 16 / sizeof(T);
    constexpr int BEFORE = COLUMNS - 1;
    static_assert(BEFORE <= WIDTH, "the columns before a pack are in the one before it");
    const long long row = static_cast<long long>(blockIdx.x / chunks) * blockDim.y + threadIdx.y;
    const int part = static_cast<int>(blockIdx.x % chunks);
    if (row >= rows) return;
    const int channel = static_cast<int>(row - quotient(row, channels) * channels);
    float factors[COLUMNS];
#pragma unroll
    for (int k = 0; k < COLUMNS; ++k) factors[k] = to_float(weight[static_cast<long long>(channel) * COLUMNS + k]);
    const float offset = bias == nullptr ? 0.0f : to_float(bias[channel]);
    const T* from = x + row * length;
    T* to = y + row * length;
    const long long start = first_index(to) + static_cast<long long>(part) * chunk * WIDTH;
    const long long end = start + chunk * WIDTH < length ? start + chunk * WIDTH : length;
#pragma unroll 2
    for (long long place = start + threadIdx.x * WIDTH; place < end; place += blockDim.x * WIDTH) {
        const int i = static_cast<int>(place);
        const Pack<T> before = load_at<true>(from, i - WIDTH, length);
        Pack<T> pack = load_at<true>(from, i, length);
        float values[BEFORE + WIDTH];
#pragma unroll
        for (int k = 0; k < BEFORE; ++k) values[k] = to_float(before.items[WIDTH - BEFORE + k]);
#pragma unroll
        for (int k = 0; k < WIDTH; ++k) values[BEFORE + k] = to_float(pack.items[k]);
#pragma unroll
        for (int k = 0; k < WIDTH; ++k) {
            float total = values[k] * factors[0];
#pragma unroll
            for (int j = 1; j < COLUMNS; ++j) total += values[k + j] * factors[j];
            pack.items[k] = activated<T>(total + offset, silu);
        }
        store_at(to, i, length, pack);
    }
}

// The same for a weight of any width, element by element.
template <typename T, typename W>
__global__ void __launch_bounds__(256) causal_conv1d_any(
    const T* __restrict__ x, const W* __restrict__ weight, const W* __restrict__ bias, T* __restrict__ y, long long rows,
    int channels, int length, int chunks, int chunk, bool silu, int columns
) {
    const long long row = static_cast<long long>(blockIdx.x / chunks) * blockDim.y + threadIdx.y;
    const int part = static_cast<int>(blockIdx.x % chunks);
    if (row >= rows) return;
    const int channel = static_cast<int>(row - quotient(row, channels) * channels);
    const W* factors = weight + static_cast<long long>(channel) * columns;
    const float offset = bias == nullptr ? 0.0f : to_float(bias[channel]);
    const T* from = x + row * length;
    const long long start = static_cast<long long>(part) * chunk;
    const long long end = start + chunk < length ? start + chunk : length;
#pragma unroll 1
    for (long long place = start + threadIdx.x; place < end; place += blockDim.x) {
        const int i = static_cast<int>(place);
        float total = 0.0f;
#pragma unroll 1
        for (int k = 0; k < columns; ++k) {
            const int column = i - columns + 1 + k;
            // Not left out: what is not finite in a weight shows in the first columns as well.
            total += (column < 0 ? 0.0f : to_float(from[column])) * to_float(factors[k]);
        }
        y[row * length + i] = activated<T>(total + offset, silu);
    }
}
