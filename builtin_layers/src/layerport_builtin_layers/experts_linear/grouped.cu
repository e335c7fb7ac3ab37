// The same as kernel.cu for many tokens: they are sorted by expert first, so that a tile of 64 of them reads the weights of
// its expert once.  The products are on the CUDA cores, summed in fp32.
//
// Three launches.  `experts_count` counts the pairs (token, one of its experts) of each expert, `experts_sort` writes them in
// order of their expert and cuts them into tiles, `experts_grouped` multiplies tiles.  One more "expert" holds the pairs
// whose expert there is not.

#include "../include/layerport_kernels.h"

using namespace layerport;

namespace {

constexpr int THREADS = 256;
constexpr int TILE = 64;  // as in reference.py
constexpr int EACH = 4;   // rows, and columns, of a thread in a tile
constexpr int PIECE = 64;  // channels with a sum of their own: thousands one by one would each be rounded to the total

struct Tile {
    int expert, first, rows;
};

__device__ __forceinline__ bool is_mine(long long expert, int mine, int experts) {
    return mine < experts ? expert == mine : expert < 0 || expert >= experts;
}

// One pack of a row from `at` on, with zeros past its end, as floats into a column of shared memory.
template <typename T, int K>
__device__ __forceinline__ void stage(float (&into)[K][TILE + 1], int line, int k, const T* row, int at, int channels,
                                      bool in_packs) {
    constexpr int WIDTH = 16 / sizeof(T);
    if (row != nullptr && in_packs && at < channels) {
        const Pack<T> pack = load(reinterpret_cast<const Pack<T>*>(row + at));
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) into[k + i][line] = to_float(pack.items[i]);
        return;
    }
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) {
        into[k + i][line] = row != nullptr && at + i < channels ? to_float(row[at + i]) : 0.0f;
    }
}

}  // namespace

__global__ void __launch_bounds__(THREADS) experts_count(const long long* __restrict__ index, int* __restrict__ counts,
                                                         int pairs, int experts) {
    __shared__ int found[THREADS];
    int count = 0;
    for (int pair = threadIdx.x; pair < pairs; pair += THREADS) {
        count += is_mine(index[pair], blockIdx.x, experts) ? 1 : 0;
    }
    found[threadIdx.x] = count;
    for (int step = THREADS / 2; step > 0; step /= 2) {
        __syncthreads();
        if (threadIdx.x < step) found[threadIdx.x] += found[threadIdx.x + step];
    }
    if (threadIdx.x == 0) counts[blockIdx.x] = found[0];
}

// In the order of the pairs, so that every run gives the same.
__global__ void __launch_bounds__(THREADS) experts_sort(const long long* __restrict__ index,
                                                        const int* __restrict__ counts, int* __restrict__ order,
                                                        int* __restrict__ tiles, int* __restrict__ total, int pairs,
                                                        int experts) {
    constexpr int WARPS = THREADS / 32;
    __shared__ int of_warp[WARPS];
    const int mine = blockIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int start = 0, tile = 0;
    for (int other = 0; other < mine; ++other) {
        start += counts[other];
        tile += (counts[other] + TILE - 1) / TILE;
    }
    const int count = counts[mine], own = (count + TILE - 1) / TILE;
    for (int i = threadIdx.x; i < own; i += THREADS) {
        int* to = tiles + 3ll * (tile + i);
        to[0] = mine < experts ? mine : -1;
        to[1] = start + i * TILE;
        to[2] = count - i * TILE < TILE ? count - i * TILE : TILE;
    }
    if (mine == experts && threadIdx.x == 0) *total = tile + own;
    for (int first = 0; first < pairs; first += THREADS) {
        const int pair = first + threadIdx.x;
        const bool is_one = pair < pairs && is_mine(index[pair], mine, experts);
        const unsigned votes = __ballot_sync(0xffffffffu, is_one);
        if (lane == 0) of_warp[warp] = __popc(votes);
        __syncthreads();
        int place = start + __popc(votes & ((1u << lane) - 1u));
        for (int other = 0; other < WARPS; ++other) {
            if (other < warp) place += of_warp[other];
            start += of_warp[other];
        }
        if (is_one) order[place] = pair;
        __syncthreads();
    }
}

template <typename T>
__global__ void __launch_bounds__(THREADS) experts_grouped(
    const T* __restrict__ x, const int* __restrict__ order, const int* __restrict__ tiles,
    const int* __restrict__ total, const T* __restrict__ weight, const T* __restrict__ bias, T* __restrict__ y,
    int chosen, bool shared, int width, int channels
) {
    constexpr int WIDTH = 16 / sizeof(T);
    constexpr int K = 4 * WIDTH;  // a pack of each thread
    __shared__ float left[K][TILE + 1], right[K][TILE + 1];
    if (static_cast<int>(blockIdx.x) >= *total) return;
    const int* told = tiles + 3ll * blockIdx.x;
    const Tile tile = {told[0], told[1], told[2]};
    const int line = threadIdx.x / 4, pack = threadIdx.x % 4 * WIDTH;
    const int column = blockIdx.y * TILE;
    const bool in_packs = (bytes_off(x) | bytes_off(weight)) == 0 && channels % WIDTH == 0;
    const T* from = nullptr;
    if (line < tile.rows) {
        const long long pair = order[tile.first + line];
        from = x + (shared ? pair / chosen : pair) * channels;
    }
    const T* matrix = nullptr;
    if (column + line < width && tile.expert >= 0) {
        matrix = weight + (static_cast<long long>(tile.expert) * width + column + line) * channels;
    }
    const int row_of = threadIdx.x / (TILE / EACH) * EACH, column_of = threadIdx.x % (TILE / EACH) * EACH;
    float sums[EACH][EACH] = {};
    if (tile.expert >= 0) {
        float part[EACH][EACH] = {};
        for (int k = 0; k < channels; k += K) {
            stage(left, line, pack, from, k + pack, channels, in_packs);
            stage(right, line, pack, matrix, k + pack, channels, in_packs);
            __syncthreads();
#pragma unroll 4
            for (int i = 0; i < K; ++i) {
                float a[EACH], b[EACH];
#pragma unroll
                for (int e = 0; e < EACH; ++e) a[e] = left[i][row_of + e], b[e] = right[i][column_of + e];
#pragma unroll
                for (int r = 0; r < EACH; ++r) {
#pragma unroll
                    for (int c = 0; c < EACH; ++c) part[r][c] += a[r] * b[c];
                }
            }
            __syncthreads();
            if ((k + K) % PIECE != 0 && k + K < channels) continue;
#pragma unroll
            for (int r = 0; r < EACH; ++r) {
#pragma unroll
                for (int c = 0; c < EACH; ++c) sums[r][c] += part[r][c], part[r][c] = 0.0f;
            }
        }
    }
#pragma unroll
    for (int r = 0; r < EACH; ++r) {
        if (row_of + r >= tile.rows) continue;
        T* to = y + static_cast<long long>(order[tile.first + row_of + r]) * width + column;
#pragma unroll
        for (int c = 0; c < EACH; ++c) {
            const int at = column_of + c;
            if (column + at >= width) continue;
            const bool added = tile.expert >= 0 && bias != nullptr;
            const long long place = static_cast<long long>(tile.expert) * width + column + at;
            to[at] = from_float<T>(sums[r][c] + (added ? to_float(bias[place]) : 0.0f));
        }
    }
}
