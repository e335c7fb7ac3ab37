// Rotary position embedding, the halves of a row's first `rotary` elements rotated against each other, in fp32.
//
// blockDim.x neighbouring lanes share a row, a block has blockDim.y rows.  A row is gone through in items: first the
// pairs (i, i + rotary / 2), then what lies behind `rotary`, which is copied.  An item is a pack of 16 bytes where every
// pointer and both sizes allow it, else one element.

#include "../include/layerport_kernels.h"

using namespace layerport;

namespace {

template <int WIDTH, typename T>
__device__ __forceinline__ void read_item(const T* __restrict__ from, float (&values)[WIDTH]) {
    if constexpr (WIDTH == 1) {
        values[0] = to_float(from[0]);
    } else {
        constexpr int PIECE = 16 / sizeof(T);
#pragma unroll
        for (int p = 0; p < WIDTH / PIECE; ++p) {
            const Pack<T> pack = load(reinterpret_cast<const Pack<T>*>(from) + p);
#pragma unroll
            for (int k = 0; k < PIECE; ++k) values[p * PIECE + k] = to_float(pack.items[k]);
        }
    }
}

template <int WIDTH, typename T>
__device__ __forceinline__ void write_item(T* __restrict__ to, const float (&values)[WIDTH]) {
    if constexpr (WIDTH == 1) {
        to[0] = from_float<T>(values[0]);
    } else {
        Pack<T> pack;
#pragma unroll
        for (int k = 0; k < WIDTH; ++k) pack.items[k] = from_float<T>(values[k]);
        store(reinterpret_cast<Pack<T>*>(to), pack);
    }
}

template <int WIDTH, typename T, typename C>
__device__ __forceinline__ void rotate_row(
    const T* __restrict__ x, const C* __restrict__ cos, const C* __restrict__ sin, T* __restrict__ y, int width, int half
) {
    for (int i = static_cast<int>(threadIdx.x) * WIDTH; i < width - half; i += blockDim.x * WIDTH) {
        float second[WIDTH];
        read_item<WIDTH>(x + i + half, second);
        if (i < half) {
            float first[WIDTH], first_cos[WIDTH], first_sin[WIDTH], second_cos[WIDTH], second_sin[WIDTH];
            read_item<WIDTH>(x + i, first);
            read_item<WIDTH>(cos + i, first_cos);
            read_item<WIDTH>(sin + i, first_sin);
            read_item<WIDTH>(cos + i + half, second_cos);
            read_item<WIDTH>(sin + i + half, second_sin);
#pragma unroll
            for (int k = 0; k < WIDTH; ++k) {
                const float value = first[k];
                first[k] = value * first_cos[k] - second[k] * first_sin[k];
                second[k] = second[k] * second_cos[k] + value * second_sin[k];
            }
            write_item<WIDTH>(y + i, first);
        }
        write_item<WIDTH>(y + i + half, second);
    }
}

}  // namespace

template <typename T, typename C>
__global__ void __launch_bounds__(256) rope(
    const T* __restrict__ x, const C* __restrict__ cos, const C* __restrict__ sin, T* __restrict__ y, long long rows,
    int heads, int positions, int width, int rotary, int tables
) {
    constexpr int WIDTH = 16 / sizeof(T);
    const int half = rotary / 2;
    const bool aligned =
        (bytes_off(x) | bytes_off(cos) | bytes_off(sin) | bytes_off(y)) == 0 && width % WIDTH == 0 && half % WIDTH == 0;
    const long long step = static_cast<long long>(gridDim.x) * blockDim.y;
    for (long long row = static_cast<long long>(blockIdx.x) * blockDim.y + threadIdx.y; row < rows; row += step) {
        const long long position = row % positions;
        const long long table = tables == 1 ? 0 : row / positions / heads;
        const long long angle = (table * positions + position) * rotary;
        const long long start = row * width;
        if (aligned) {
            rotate_row<WIDTH>(x + start, cos + angle, sin + angle, y + start, width, half);
        } else {
            rotate_row<1>(x + start, cos + angle, sin + angle, y + start, width, half);
        }
    }
}
