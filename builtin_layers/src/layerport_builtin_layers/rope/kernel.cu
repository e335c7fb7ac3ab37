// Rotary position embedding of a row's first `rotary` elements, in fp32: `rope` rotates their halves against each other,
// `rope_interleaved` neighbours.
//
// blockDim.x neighbouring lanes share a group: the rows at one position of up to `part` neighbouring heads, for which cos
// and sin are read once.  A block has blockDim.y groups.  A row is gone through in items: first the pairs
// (i, i + rotary / 2), or of neighbours, then what lies behind `rotary`, which is copied.  An item is a pack of 16 bytes where every
// pointer and both sizes allow it, else one element.

#include "../include/layerport_kernels.h"

using namespace layerport;

namespace {

template <int WIDTH, typename T>
__device__ __forceinline__ void read_item(const T* __restrict__ from, float (&values)[WIDTH]) {
    if constexpr (WIDTH * sizeof(T) < 16) {
#pragma unroll
        for (int k = 0; k < WIDTH; ++k) values[k] = to_float(from[k]);
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
    if constexpr (WIDTH * sizeof(T) < 16) {
#pragma unroll
        for (int k = 0; k < WIDTH; ++k) to[k] = from_float<T>(values[k]);
    } else {
        Pack<T> pack;
#pragma unroll
        for (int k = 0; k < WIDTH; ++k) pack.items[k] = from_float<T>(values[k]);
        store(reinterpret_cast<Pack<T>*>(to), pack);
    }
}

// Of `heads` rows at the same position, which lie `distance` apart.
template <int WIDTH, typename T, typename C>
__device__ __forceinline__ void rotate_rows(
    const T* __restrict__ x, const C* __restrict__ cos, const C* __restrict__ sin, T* __restrict__ y, int heads,
    long long distance, int width, int half
) {
    for (int i = static_cast<int>(threadIdx.x) * WIDTH; i < width - half; i += blockDim.x * WIDTH) {
        const T* from = x + i;
        T* to = y + i;
        float first[WIDTH], second[WIDTH];
        if (i >= half) {
#pragma unroll 1
            for (int head = 0; head < heads; ++head, from += distance, to += distance) {
                read_item<WIDTH>(from + half, second);
                write_item<WIDTH>(to + half, second);
            }
            continue;
        }
        // The first rows before the loop, so that they and the tables are waited for together.
        read_item<WIDTH>(from, first);
        read_item<WIDTH>(from + half, second);
        float first_cos[WIDTH], first_sin[WIDTH], second_cos[WIDTH], second_sin[WIDTH];
        read_item<WIDTH>(cos + i, first_cos);
        read_item<WIDTH>(sin + i, first_sin);
        read_item<WIDTH>(cos + i + half, second_cos);
        read_item<WIDTH>(sin + i + half, second_sin);
#pragma unroll 1
        for (int head = 1;; ++head) {
#pragma unroll
            for (int k = 0; k < WIDTH; ++k) {
                const float value = first[k];
                first[k] = value * first_cos[k] - second[k] * first_sin[k];
                second[k] = second[k] * second_cos[k] + value * second_sin[k];
            }
            write_item<WIDTH>(to, first);
            write_item<WIDTH>(to + half, second);
            if (head >= heads) break;
            from += distance;
            to += distance;
            read_item<WIDTH>(from, first);
            read_item<WIDTH>(from + half, second);
        }
    }
}

// The same for neighbours.  first: both have the angle of one column of the first half of the tables.
template <int WIDTH, typename T, typename C>
__device__ __forceinline__ void rotate_neighbours(
    const T* __restrict__ x, const C* __restrict__ cos, const C* __restrict__ sin, T* __restrict__ y, int heads,
    long long distance, int width, int rotary, bool first
) {
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x) * WIDTH; i < width; i += blockDim.x * WIDTH) {
        const T* from = x + i;
        T* to = y + i;
        float values[WIDTH];
        if (i >= rotary) {
            // An odd width ends with half an item.
            const bool whole = i + WIDTH <= width;
#pragma unroll 1
            for (int head = 0; head < heads; ++head, from += distance, to += distance) {
                if (whole) {
                    read_item<WIDTH>(from, values);
                    write_item<WIDTH>(to, values);
                } else {
                    to[0] = from[0];
                }
            }
            continue;
        }
        float by_cos[WIDTH], by_sin[WIDTH];
        if (first) {
#pragma unroll
            for (int k = 0; k < WIDTH; ++k) {
                by_cos[k] = to_float(cos[(i + k) / 2]);
                by_sin[k] = to_float(sin[(i + k) / 2]);
            }
        } else {
            read_item<WIDTH>(cos + i, by_cos);
            read_item<WIDTH>(sin + i, by_sin);
        }
#pragma unroll 1
        for (int head = 0; head < heads; ++head, from += distance, to += distance) {
            read_item<WIDTH>(from, values);
#pragma unroll
            for (int k = 0; k < WIDTH; k += 2) {
                const float value = values[k];
                values[k] = value * by_cos[k] - values[k + 1] * by_sin[k];
                values[k + 1] = values[k + 1] * by_cos[k + 1] + value * by_sin[k + 1];
            }
            write_item<WIDTH>(to, values);
        }
    }
}

}  // namespace

template <typename T, typename C>
__global__ void __launch_bounds__(64) rope(
    const T* __restrict__ x, const C* __restrict__ cos, const C* __restrict__ sin, T* __restrict__ y, long long groups,
    int parts, int part, int heads, int positions, int width, int rotary, int tables
) {
    constexpr int WIDTH = 16 / sizeof(T);
    const int half = rotary / 2;
    const bool aligned =
        (bytes_off(x) | bytes_off(cos) | bytes_off(sin) | bytes_off(y)) == 0 && width % WIDTH == 0 && half % WIDTH == 0;
    const long long distance = static_cast<long long>(positions) * width;
    const long long step = static_cast<long long>(gridDim.x) * blockDim.y;
    for (long long group = static_cast<long long>(blockIdx.x) * blockDim.y + threadIdx.y; group < groups; group += step) {
        const long long above = quotient(group, positions);
        const long long position = group - above * positions;
        const long long batch = quotient(above, parts);
        const int head = static_cast<int>(above - batch * parts) * part;
        const int count = heads - head < part ? heads - head : part;
        const long long angle = ((tables == 1 ? 0 : batch) * positions + position) * rotary;
        const long long start = (batch * heads + head) * distance + position * width;
        if (aligned) {
            rotate_rows<WIDTH>(x + start, cos + angle, sin + angle, y + start, count, distance, width, half);
        } else {
            rotate_rows<1>(x + start, cos + angle, sin + angle, y + start, count, distance, width, half);
        }
    }
}

template <typename T, typename C>
__global__ void __launch_bounds__(64, 1) rope_interleaved(
    const T* __restrict__ x, const C* __restrict__ cos, const C* __restrict__ sin, T* __restrict__ y, long long groups,
    int parts, int part, int heads, int positions, int width, int rotary, int tables, bool first
) {
    constexpr int WIDTH = 16 / sizeof(T);
    const bool aligned =
        (bytes_off(x) | bytes_off(cos) | bytes_off(sin) | bytes_off(y)) == 0 && width % WIDTH == 0 && rotary % WIDTH == 0;
    const long long distance = static_cast<long long>(positions) * width;
    const long long step = static_cast<long long>(gridDim.x) * blockDim.y;
    for (long long group = static_cast<long long>(blockIdx.x) * blockDim.y + threadIdx.y; group < groups; group += step) {
        const long long above = quotient(group, positions);
        const long long position = group - above * positions;
        const long long batch = quotient(above, parts);
        const int head = static_cast<int>(above - batch * parts) * part;
        const int count = heads - head < part ? heads - head : part;
        const long long angle = ((tables == 1 ? 0 : batch) * positions + position) * rotary;
        const long long start = (batch * heads + head) * distance + position * width;
        if (aligned) {
            rotate_neighbours<WIDTH>(
                x + start, cos + angle, sin + angle, y + start, count, distance, width, rotary, first
            );
        } else {
            rotate_neighbours<2>(x + start, cos + angle, sin + angle, y + start, count, distance, width, rotary, first);
        }
    }
}
