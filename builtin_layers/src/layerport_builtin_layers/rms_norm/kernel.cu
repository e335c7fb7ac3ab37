// RMS normalisation over the last axis: y = x * rsqrt(mean(x * x) + eps) * weight, summed in fp32.
//
// T is the type of x and y, W that of weight (T or float; weight may be null).  Each thread keeps VECTORS packs of
// 16 bytes of its row in registers, so device memory is read once.  What does not fit (very wide rows), and rows
// that are not aligned to 16 bytes (odd widths, views), is read again for the second step, from L1 or L2.  There packs
// start where y is aligned; those of x and weight are shifted together from two aligned ones, and only the packs that
// hang over an end of the row go element by element.

#include "../packs.h"

namespace {

// Stops the compiler from keeping the converted floats of all packs alive across the sum, which costs more registers
// than there are; it emits nothing.
template <typename T>
__device__ __forceinline__ void keep_packed(Pack<T>& pack) {
#ifndef LAYERPORT_HOST
    auto* words = reinterpret_cast<unsigned*>(&pack);
    asm volatile("" : "+r"(words[0]), "+r"(words[1]), "+r"(words[2]), "+r"(words[3]));
#endif
}

// The sum over `width` neighbouring threads of a warp; width is a power of two and the same for the whole warp.
__device__ __forceinline__ float sum_lanes(float value, int width) {
    for (int offset = width / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
    return value;
}

struct SumOfLanes {
    __device__ __forceinline__ float operator()(float value) const { return sum_lanes(value, blockDim.x); }
};

struct SumOfBlock {
    // 33 floats: one for each warp, and the total.  The next row may follow at once: its first barrier holds the
    // total back until every warp has read this one.
    float* partial;

    __device__ __forceinline__ float operator()(float value) const {
        value = sum_lanes(value, 32);
        if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
        __syncthreads();
        if (threadIdx.x < 32) {
            const float part = threadIdx.x < blockDim.x / 32 ? partial[threadIdx.x] : 0.0f;
            const float total = sum_lanes(part, 32);
            if (threadIdx.x == 0) partial[32] = total;
        }
        __syncthreads();
        return partial[32];
    }
};

// One row, shared by the blockDim.x threads of one threadIdx.y.  `inside` is false for the threads that stand past
// the last row: they own nothing but take part in the sum.
template <int VECTORS, typename T, typename W, typename Sum>
__device__ __forceinline__ void normalise_row(
    const T* __restrict__ x, const W* __restrict__ weight, T* __restrict__ y, int cols, bool inside, float eps, Sum sum
) {
    constexpr int WIDTH = 16 / sizeof(T);
    // A weight wider than x takes several packs for one of x.
    constexpr int PIECE = 16 / sizeof(W);
    using Values = Pack<T>;
    using Piece = Pack<W>;
    // Loaded ahead of the sum where the registers allow it, which hides the latency for a single row.
    constexpr bool AHEAD = VECTORS <= 4 && sizeof(W) <= sizeof(T);

    const int packs = inside ? cols / WIDTH : 0;
    const int step = blockDim.x;
    const int first = threadIdx.x;
    const auto* x_packs = reinterpret_cast<const Values*>(x);
    const auto* weight_pieces = reinterpret_cast<const Piece*>(weight);
    auto* y_packs = reinterpret_cast<Values*>(y);

    Values kept[VECTORS];
    Piece ahead[AHEAD ? VECTORS : 1];
#pragma unroll
    for (int i = 0; i < VECTORS; ++i) {
        if (first + i * step < packs) kept[i] = load(x_packs + first + i * step);
    }
    if constexpr (AHEAD) {
        if (weight != nullptr) {
#pragma unroll
            for (int i = 0; i < VECTORS; ++i) {
                if (first + i * step < packs) ahead[i] = load(weight_pieces + first + i * step);
            }
        }
    }

    float squares = 0.0f;
    const auto add = [&squares](const Values& pack) {
#pragma unroll
        for (int k = 0; k < WIDTH; ++k) {
            const float value = to_float(pack.items[k]);
            squares += value * value;
        }
    };
#pragma unroll
    for (int i = 0; i < VECTORS; ++i) {
        if (first + i * step < packs) add(kept[i]);
    }
#pragma unroll 1
    for (int i = first + VECTORS * step; i < packs; i += step) add(load(x_packs + i));

#pragma unroll
    for (int i = 0; i < VECTORS; ++i) {
        keep_packed(kept[i]);
        if constexpr (AHEAD) keep_packed(ahead[i]);
    }
    const float scale = rsqrtf(sum(squares) / static_cast<float>(cols) + eps);

    const auto finish = [&](int index, const Values& pack, const Piece* pieces) {
        Values result;
#pragma unroll
        for (int k = 0; k < WIDTH; ++k) result.items[k] = from_float<T>(to_float(pack.items[k]) * scale);
        if (pieces != nullptr) {
#pragma unroll
            for (int p = 0; p < WIDTH / PIECE; ++p) {
                const Piece piece = load(pieces + p);
#pragma unroll
                for (int k = 0; k < PIECE; ++k) {
                    const float value = to_float(pack.items[p * PIECE + k]) * scale;
                    result.items[p * PIECE + k] = from_float<T>(value * to_float(piece.items[k]));
                }
            }
        }
        store(y_packs + index, result);
    };
    const auto pieces_at = [&](int index) {
        return weight == nullptr ? nullptr : weight_pieces + static_cast<long long>(index) * (WIDTH / PIECE);
    };
#pragma unroll
    for (int i = 0; i < VECTORS; ++i) {
        const int index = first + i * step;
        if (index < packs) finish(index, kept[i], AHEAD && weight != nullptr ? &ahead[AHEAD ? i : 0] : pieces_at(index));
    }
#pragma unroll 1
    for (int i = first + VECTORS * step; i < packs; i += step) finish(i, load(x_packs + i), pieces_at(i));
}

// The same for a row that is not aligned.
template <typename T, typename W, typename Sum>
__device__ __forceinline__ void normalise_shifted_row(
    const T* __restrict__ x, const W* __restrict__ weight, T* __restrict__ y, int cols, bool inside, float eps, Sum sum
) {
    constexpr int WIDTH = 16 / sizeof(T);
    constexpr int PIECE = 16 / sizeof(W);
    const int step = blockDim.x * WIDTH;
    const int first = first_index(y) + static_cast<int>(threadIdx.x) * WIDTH;
    const int end = inside ? cols : first;

    float squares = 0.0f;
#pragma unroll 1
    for (int i = first; i < end; i += step) {
        const Pack<T> pack = load_at<true>(x, i, cols);
#pragma unroll
        for (int k = 0; k < WIDTH; ++k) {
            const float value = to_float(pack.items[k]);
            squares += value * value;
        }
    }
    const float scale = rsqrtf(sum(squares) / static_cast<float>(cols) + eps);
#pragma unroll 1
    for (int i = first; i < end; i += step) {
        Pack<T> pack = load_at<true>(x, i, cols);
#pragma unroll
        for (int p = 0; p < WIDTH / PIECE; ++p) {
            Pack<W> piece;
            if (weight != nullptr) piece = load_at<true>(weight, i + p * PIECE, cols);
#pragma unroll
            for (int k = 0; k < PIECE; ++k) {
                T& item = pack.items[p * PIECE + k];
                const float value = to_float(item) * scale;
                item = from_float<T>(weight == nullptr ? value : value * to_float(piece.items[k]));
            }
        }
        store_at(y, i, cols, pack);
    }
}

// Whether every row of x and y and the weight can be read in packs of 16 bytes.
template <typename T, typename W>
__device__ __forceinline__ bool is_aligned(const T* x, const W* weight, const T* y, int cols) {
    const auto bits = reinterpret_cast<unsigned long long>(x) | reinterpret_cast<unsigned long long>(y) |
                      reinterpret_cast<unsigned long long>(weight);
    return bits % 16 == 0 && cols % static_cast<int>(16 / sizeof(T)) == 0;
}

}  // namespace

// Narrow rows: blockDim.x (a power of two up to 32) neighbouring lanes share a row, a block has blockDim.y rows.
template <typename T, typename W>
__global__ void __launch_bounds__(256, 4) rms_norm_narrow(
    const T* __restrict__ x, const W* __restrict__ weight, T* __restrict__ y, long long rows, int cols, float eps
) {
    const bool aligned = is_aligned(x, weight, y, cols);
    const long long row_step = static_cast<long long>(gridDim.x) * blockDim.y;
    // The whole block goes round together, because the sum needs all lanes of a warp.
    for (long long base = static_cast<long long>(blockIdx.x) * blockDim.y; base < rows; base += row_step) {
        const long long row = base + threadIdx.y;
        const bool inside = row < rows;
        const long long start = inside ? row * cols : 0;
        if (aligned) {
            normalise_row<4>(x + start, weight, y + start, cols, inside, eps, SumOfLanes{});
        } else {
            normalise_shifted_row(x + start, weight, y + start, cols, inside, eps, SumOfLanes{});
        }
    }
}

// Wide rows: a block shares a row.
template <typename T, typename W, int VECTORS>
__global__ void __launch_bounds__(VECTORS > 4 ? 1024 : 512, VECTORS > 4 ? 1 : 2) rms_norm_wide(
    const T* __restrict__ x, const W* __restrict__ weight, T* __restrict__ y, long long rows, int cols, float eps
) {
    __shared__ float partial[33];
    // Two loops, because a branch inside of one takes more registers.
    if (is_aligned(x, weight, y, cols)) {
        for (long long row = blockIdx.x; row < rows; row += gridDim.x) {
            normalise_row<VECTORS>(x + row * cols, weight, y + row * cols, cols, true, eps, SumOfBlock{partial});
        }
    } else {
        for (long long row = blockIdx.x; row < rows; row += gridDim.x) {
            normalise_shifted_row(x + row * cols, weight, y + row * cols, cols, true, eps, SumOfBlock{partial});
        }
    }
}
