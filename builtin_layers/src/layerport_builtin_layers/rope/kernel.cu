// Rotary position embedding of a row's first `rotary` elements, in fp32: `rope` rotates their halves against each other,
// `rope_interleaved` neighbours, which may come out as halves.
//
// blockDim.x neighbouring lanes share a group: the rows at one position of up to `part` neighbouring heads, for which cos
// and sin are read once.  A block has blockDim.y groups.  A row is gone through in items: first pairs, then what lies behind
// `rotary`, which is copied.  An item is a pack of 16 bytes of each of a pair where every pointer and both sizes allow it,
// else one pair.

#include "../include/layerport_kernels.h"

using namespace layerport;

namespace {

// Where the two of pair i lie in a row: at i and i + half, or at 2i and 2i + 1.
enum class Pairs { halves, neighbours };

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

// WIDTH pairs, from pair i on.
template <Pairs PAIRS, int WIDTH, typename T>
__device__ __forceinline__ void read_pairs(
    const T* __restrict__ row, int i, int half, float (&first)[WIDTH], float (&second)[WIDTH]
) {
    if constexpr (PAIRS == Pairs::halves) {
        read_item<WIDTH>(row + i, first);
        read_item<WIDTH>(row + i + half, second);
    } else {
        float low[WIDTH], high[WIDTH];
        read_item<WIDTH>(row + 2 * i, low);
        read_item<WIDTH>(row + 2 * i + WIDTH, high);
#pragma unroll
        for (int k = 0; k < WIDTH; ++k) {
            first[k] = 2 * k < WIDTH ? low[2 * k % WIDTH] : high[2 * k % WIDTH];
            second[k] = 2 * k + 1 < WIDTH ? low[(2 * k + 1) % WIDTH] : high[(2 * k + 1) % WIDTH];
        }
    }
}

template <int WIDTH, typename T>
__device__ __forceinline__ void write_pairs(
    T* __restrict__ row, int i, int half, bool as_halves, const float (&first)[WIDTH], const float (&second)[WIDTH]
) {
    if (as_halves) {
        write_item<WIDTH>(row + i, first);
        write_item<WIDTH>(row + i + half, second);
    } else {
        float low[WIDTH], high[WIDTH];
#pragma unroll
        for (int k = 0; k < WIDTH; ++k) {
            low[k] = k % 2 ? second[k / 2] : first[k / 2];
            high[k] = (k + WIDTH) % 2 ? second[(k + WIDTH) / 2] : first[(k + WIDTH) / 2];
        }
        write_item<WIDTH>(row + 2 * i, low);
        write_item<WIDTH>(row + 2 * i + WIDTH, high);
    }
}

// Of `heads` rows at the same position, which lie `distance` apart.
// own: whether both of a pair have a column of their own in the tables.  as_halves: how they come out.  sign: -1 to rotate back.
template <Pairs PAIRS, int WIDTH, typename T, typename C>
__device__ __forceinline__ void rotate_rows(
    const T* __restrict__ from, const C* __restrict__ cos, const C* __restrict__ sin, T* __restrict__ to, int heads,
    long long distance, int width, int half, bool own, bool as_halves, float sign
) {
    for (int i = static_cast<int>(threadIdx.x) * WIDTH; i < width - half; i += blockDim.x * WIDTH) {
        const T* x = from;
        T* y = to;
        float first[WIDTH], second[WIDTH];
        if (i >= half) {
#pragma unroll 1
            for (int head = 0; head < heads; ++head, x += distance, y += distance) {
                read_item<WIDTH>(x + i + half, second);
                write_item<WIDTH>(y + i + half, second);
            }
            continue;
        }
        // The first rows before the loop, so that they and the tables are waited for together.
        read_pairs<PAIRS>(x, i, half, first, second);
        float first_cos[WIDTH], first_sin[WIDTH], second_cos[WIDTH], second_sin[WIDTH];
        if (own) {
            read_pairs<PAIRS>(cos, i, half, first_cos, second_cos);
            read_pairs<PAIRS>(sin, i, half, first_sin, second_sin);
        } else {
            read_item<WIDTH>(cos + i, first_cos);
            read_item<WIDTH>(sin + i, first_sin);
#pragma unroll
            for (int k = 0; k < WIDTH; ++k) {
                second_cos[k] = first_cos[k];
                second_sin[k] = first_sin[k];
            }
        }
#pragma unroll
        for (int k = 0; k < WIDTH; ++k) {
            first_sin[k] *= sign;
            second_sin[k] *= sign;
        }
#pragma unroll 1
        for (int head = 1;; ++head) {
#pragma unroll
            for (int k = 0; k < WIDTH; ++k) {
                const float value = first[k];
                first[k] = value * first_cos[k] - second[k] * first_sin[k];
                second[k] = second[k] * second_cos[k] + value * second_sin[k];
            }
            write_pairs(y, i, half, as_halves, first, second);
            if (head >= heads) break;
            x += distance;
            y += distance;
            read_pairs<PAIRS>(x, i, half, first, second);
        }
    }
}

// The rows of all groups.  The steps are those from one head, one position, one batch or position of the tables to the next.
template <Pairs PAIRS, typename T, typename C>
__device__ __forceinline__ void rotate_groups(
    const T* __restrict__ x, const C* __restrict__ cos, const C* __restrict__ sin, T* __restrict__ y, long long groups,
    int parts, int part, int heads, int positions, long long head_step, long long position_step,
    long long batch_angle_step, int angle_step, int width, int rotary, bool own, bool as_halves, float sign
) {
    constexpr int WIDTH = 16 / sizeof(T);
    const int half = rotary / 2;
    const bool aligned =
        (bytes_off(x) | bytes_off(cos) | bytes_off(sin) | bytes_off(y)) == 0 && width % WIDTH == 0 && half % WIDTH == 0;
    const long long batch_step = static_cast<long long>(heads) * positions * width;
    const long long step = static_cast<long long>(gridDim.x) * blockDim.y;
    for (long long group = static_cast<long long>(blockIdx.x) * blockDim.y + threadIdx.y; group < groups; group += step) {
        const long long above = quotient(group, positions);
        const long long position = group - above * positions;
        const long long batch = quotient(above, parts);
        const int head = static_cast<int>(above - batch * parts) * part;
        const int count = heads - head < part ? heads - head : part;
        const long long angle = batch * batch_angle_step + position * angle_step;
        const long long start = batch * batch_step + head * head_step + position * position_step;
        if (aligned) {
            rotate_rows<PAIRS, WIDTH>(
                x + start, cos + angle, sin + angle, y + start, count, head_step, width, half, own, as_halves, sign
            );
        } else {
            rotate_rows<PAIRS, 1>(
                x + start, cos + angle, sin + angle, y + start, count, head_step, width, half, own, as_halves, sign
            );
        }
    }
}

}  // namespace

template <typename T, typename C>
__global__ void __launch_bounds__(64) rope(
    const T* __restrict__ x, const C* __restrict__ cos, const C* __restrict__ sin, T* __restrict__ y, long long groups,
    int parts, int part, int heads, int positions, long long head_step, long long position_step,
    long long batch_angle_step, int angle_step, int width, int rotary, bool own, int sign
) {
    rotate_groups<Pairs::halves>(
        x, cos, sin, y, groups, parts, part, heads, positions, head_step, position_step, batch_angle_step, angle_step,
        width, rotary, own, true, static_cast<float>(sign)
    );
}

template <typename T, typename C>
__global__ void __launch_bounds__(64) rope_interleaved(
    const T* __restrict__ x, const C* __restrict__ cos, const C* __restrict__ sin, T* __restrict__ y, long long groups,
    int parts, int part, int heads, int positions, long long head_step, long long position_step,
    long long batch_angle_step, int angle_step, int width, int rotary, bool own, bool as_halves
) {
    rotate_groups<Pairs::neighbours>(
        x, cos, sin, y, groups, parts, part, heads, positions, head_step, position_step, batch_angle_step, angle_step,
        width, rotary, own, as_halves, 1.0f
    );
}
