// What `experts_grouped` of grouped.cu does, on the tensor cores, for x in 16 bits.
//
// A block makes 64 rows by 128 columns, each of its four warps 32 by 64.  The channels come in steps of 32 through two
// buffers of shared memory; while one is multiplied, the next packs are on their way to registers.

#include "../include/layerport_mma.h"

using namespace layerport;

namespace {

constexpr int THREADS = 128;
constexpr int ROWS = 64, COLUMNS = 128;  // ROWS as TILE in grouped.cu, both as in reference.py
constexpr int WIDTH = 8;                 // items of a pack
constexpr int K = 32;                    // channels of a step
constexpr int PITCH = K / WIDTH + 1;     // packs of a line; one more keeps the lanes of a warp on different banks
constexpr int LINES = THREADS / (K / WIDTH);
constexpr int LEFT = ROWS / LINES, RIGHT = COLUMNS / LINES;  // packs that a thread brings
constexpr int PIECE = 8;  // steps that are summed up by themselves, because tensor cores cut off what does not fit a sum

// A pack of a row from `at` on; zeros past its end, and for no row.
template <typename T>
__device__ __forceinline__ uint4 bring(const T* row, int at, int channels, bool in_packs) {
    Pack<T> pack;
    if (row != nullptr && in_packs && at < channels) {
        pack = load(reinterpret_cast<const Pack<T>*>(row + at));
    } else {
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) {
            pack.items[i] = row != nullptr && at + i < channels ? row[at + i] : from_float<T>(0.0f);
        }
    }
    return *reinterpret_cast<const uint4*>(&pack);
}

}  // namespace

template <typename T>
__global__ void __launch_bounds__(THREADS, 2) experts_tensor(
    const T* __restrict__ x, const int* __restrict__ order, const int* __restrict__ tiles,
    const int* __restrict__ total, const T* __restrict__ weight, const T* __restrict__ bias, T* __restrict__ y,
    int chosen, bool shared, int width, int channels
) {
    __shared__ uint4 left[2][ROWS][PITCH], right[2][COLUMNS][PITCH];
    if (static_cast<int>(blockIdx.x) >= *total) return;
    const int* told = tiles + 3ll * blockIdx.x;
    const int expert = told[0], first = told[1], rows = told[2];
    const int column = blockIdx.y * COLUMNS;
    const bool in_packs = (bytes_off(x) | bytes_off(weight)) == 0 && channels % WIDTH == 0;
    const int line = threadIdx.x / (K / WIDTH), pack = threadIdx.x % (K / WIDTH);
    const T* from[LEFT];
    const T* matrix[RIGHT];
#pragma unroll
    for (int i = 0; i < LEFT; ++i) {
        const int row = line + i * LINES;
        const long long pair = row < rows ? order[first + row] : 0;
        from[i] = row < rows ? x + (shared ? pair / chosen : pair) * channels : nullptr;
    }
#pragma unroll
    for (int i = 0; i < RIGHT; ++i) {
        const int at = column + line + i * LINES;
        matrix[i] = at < width && expert >= 0 ? weight + (static_cast<long long>(expert) * width + at) * channels : nullptr;
    }
    const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const int row_of = threadIdx.x / 64 * 32, column_of = threadIdx.x / 32 % 2 * 64;
    float totals[2][8][4] = {};
    if (expert >= 0) {
        float sums[2][8][4] = {};
        uint4 coming_left[LEFT], coming_right[RIGHT];
        const int steps = (channels + K - 1) / K;
        for (int step = 0; step <= steps; ++step) {
            if (step < steps) {
                const int at = step * K + pack * WIDTH;
#pragma unroll
                for (int i = 0; i < LEFT; ++i) coming_left[i] = bring(from[i], at, channels, in_packs);
#pragma unroll
                for (int i = 0; i < RIGHT; ++i) coming_right[i] = bring(matrix[i], at, channels, in_packs);
            }
            if (step > 0) {
                const int buffer = (step - 1) % 2;
                multiply<T, K, PITCH>(sums, left[buffer], right[buffer], row_of, column_of);
                if (step % PIECE == 0 || step == steps) add_piece(totals, sums);
            }
            if (step < steps) {
#pragma unroll
                for (int i = 0; i < LEFT; ++i) left[step % 2][line + i * LINES][pack] = coming_left[i];
#pragma unroll
                for (int i = 0; i < RIGHT; ++i) right[step % 2][line + i * LINES][pack] = coming_right[i];
            }
            __syncthreads();
        }
    }
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = row_of + m * 16 + half * 8 + g;
            if (row >= rows) continue;
            T* to = y + static_cast<long long>(order[first + row]) * width;
#pragma unroll
            for (int n = 0; n < 8; ++n) {
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    const int at = column + column_of + n * 8 + q * 2 + i;
                    if (at >= width) continue;
                    const bool added = expert >= 0 && bias != nullptr;
                    const float more = added ? to_float(bias[static_cast<long long>(expert) * width + at]) : 0.0f;
                    to[at] = from_float<T>(totals[m][n][half * 2 + i] + more);
                }
            }
        }
    }
}
