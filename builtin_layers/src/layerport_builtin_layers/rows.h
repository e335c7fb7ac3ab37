// Normalisation of rows: y = (x - mean) * rsqrt(mean((x - mean)^2) + eps) * weight + bias, in fp32.
//
// CENTRED: without it the mean is taken as 0 (RMS normalisation).  ADDED: the row is x + residual, rounded to T, and
// is written to `total` as well.  weight and bias may be null.
//
// Each thread keeps VECTORS packs of 16 bytes of its row in registers, so device memory is read once.  What does not
// fit (very wide rows), and rows that are not aligned to 16 bytes (odd widths, views), is read again for each further
// step, from L1 or L2.  There packs start where y is aligned; those of the others are shifted together from two aligned
// ones, and only the packs that hang over an end of the row go element by element.

#pragma once

#include "include/layerport_kernels.h"

using namespace layerport;

namespace {

template <typename T, typename W>
struct Row {
    const T* __restrict__ x;
    const T* __restrict__ residual;
    const W* __restrict__ weight;
    const W* __restrict__ bias;
    T* __restrict__ total;
    T* __restrict__ y;
    int cols;
    float eps;

    __device__ __forceinline__ Row at(long long start) const {
        return {x + start, residual + start, weight, bias, total + start, y + start, cols, eps};
    }
};

template <typename T>
__device__ __forceinline__ Pack<T> sum_of(const Pack<T>& left, const Pack<T>& right) {
    Pack<T> result;
#pragma unroll
    for (int k = 0; k < 16 / sizeof(T); ++k) {
        result.items[k] = from_float<T>(to_float(left.items[k]) + to_float(right.items[k]));
    }
    return result;
}

// One row, shared by the blockDim.x threads of one threadIdx.y.  `inside` is false for the threads that stand past
// the last row: they own nothing but take part in the sum.
template <int VECTORS, bool CENTRED, bool ADDED, typename T, typename W, typename Sum>
__device__ __forceinline__ void normalise_row(const Row<T, W>& row, bool inside, Sum sum) {
    constexpr int WIDTH = 16 / sizeof(T);
    // A weight wider than x takes several packs for one of x.
    constexpr int PIECE = 16 / sizeof(W);
    using Values = Pack<T>;
    using Piece = Pack<W>;
    // Loaded ahead of the sum where the registers allow it, which hides the latency for a single row.
    constexpr bool AHEAD = VECTORS <= 4 && sizeof(W) <= sizeof(T) && !ADDED && !CENTRED;

    const int packs = inside ? row.cols / WIDTH : 0;
    const int step = blockDim.x;
    const int first = threadIdx.x;
    const auto* x_packs = reinterpret_cast<const Values*>(row.x);
    const auto* residual_packs = reinterpret_cast<const Values*>(row.residual);
    const auto* weight_pieces = reinterpret_cast<const Piece*>(row.weight);
    const auto* bias_pieces = reinterpret_cast<const Piece*>(row.bias);
    auto* total_packs = reinterpret_cast<Values*>(row.total);
    auto* y_packs = reinterpret_cast<Values*>(row.y);
    const auto read = [&](int index) {
        if constexpr (ADDED) {
            return sum_of(load(x_packs + index), load(residual_packs + index));
        } else {
            return load(x_packs + index);
        }
    };


    Values kept[VECTORS];
    Piece ahead[AHEAD ? VECTORS : 1];
#pragma unroll
    for (int i = 0; i < VECTORS; ++i) {
        if (first + i * step < packs) kept[i] = load(x_packs + first + i * step);
    }
    if constexpr (ADDED) {
        // Four at a time, because the packs of both tensors together are more than the registers hold.
#pragma unroll
        for (int start = 0; start < VECTORS; start += 4) {
            Values others[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                if (first + (start + i) * step < packs) others[i] = load(residual_packs + first + (start + i) * step);
            }
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                if (first + (start + i) * step < packs) {
                    keep_packed(others[i]);
                    kept[start + i] = sum_of(kept[start + i], others[i]);
                    keep_packed(kept[start + i]);
                    store(total_packs + first + (start + i) * step, kept[start + i]);
                }
            }
        }
#pragma unroll 1
        for (int i = first + VECTORS * step; i < packs; i += step) store(total_packs + i, read(i));
    }
    if constexpr (AHEAD) {
        if (row.weight != nullptr) {
#pragma unroll
            for (int i = 0; i < VECTORS; ++i) {
                if (first + i * step < packs) ahead[i] = load(weight_pieces + first + i * step);
            }
        }
    }

    // No generic lambda: NVRTC 13.0 takes one for a function of the host.
    const auto mean_of = [&](float shift, bool squares) {
        float result = 0.0f;
        const auto add = [&](const Values& pack) {
#pragma unroll
            for (int k = 0; k < WIDTH; ++k) {
                const float value = to_float(pack.items[k]) - shift;
                result += squares ? value * value : value;
            }
        };
#pragma unroll
        for (int i = 0; i < VECTORS; ++i) {
            if (first + i * step < packs) add(kept[i]);
        }
#pragma unroll 1
        for (int i = first + VECTORS * step; i < packs; i += step) add(read(i));
#pragma unroll
        for (int i = 0; i < VECTORS; ++i) {
            keep_packed(kept[i]);
            if constexpr (AHEAD) keep_packed(ahead[i]);
        }
        return sum(result) / static_cast<float>(row.cols);
    };
    float mean = 0.0f;
    if constexpr (CENTRED) mean = mean_of(0.0f, false);
    const float scale = rsqrtf(mean_of(mean, true) + row.eps);

    const auto normal = [&](T item) { return (CENTRED ? to_float(item) - mean : to_float(item)) * scale; };
    // held: the piece of weights, where it was loaded ahead; a load from there would be one from global memory.
    const auto finish = [&](int index, const Values& pack, const Piece* weights, const Piece* held) {
        Values result;
        if constexpr (!CENTRED) {
            if (weights == nullptr) {
#pragma unroll
                for (int k = 0; k < WIDTH; ++k) result.items[k] = from_float<T>(normal(pack.items[k]));
            } else {
#pragma unroll
                for (int p = 0; p < WIDTH / PIECE; ++p) {
                    const Piece weight = held != nullptr ? held[p] : load(weights + p);
#pragma unroll
                    for (int k = 0; k < PIECE; ++k) {
                        const float value = normal(pack.items[p * PIECE + k]);
                        result.items[p * PIECE + k] = from_float<T>(value * to_float(weight.items[k]));
                    }
                }
            }
        } else {
#pragma unroll
            for (int p = 0; p < WIDTH / PIECE; ++p) {
                Piece weight;
                Piece bias;
                if (weights != nullptr) weight = load(weights + p);
                if (row.bias != nullptr) {
                    bias = load(bias_pieces + static_cast<long long>(index) * (WIDTH / PIECE) + p);
                }
                keep_packed(weight);
                keep_packed(bias);
#pragma unroll
                for (int k = 0; k < PIECE; ++k) {
                    float value = normal(pack.items[p * PIECE + k]);
                    if (weights != nullptr) value *= to_float(weight.items[k]);
                    if (row.bias != nullptr) value += to_float(bias.items[k]);
                    result.items[p * PIECE + k] = from_float<T>(value);
                }
            }
        }
        store(y_packs + index, result);
    };
    const auto weights_at = [&](int index) {
        return row.weight == nullptr ? nullptr : weight_pieces + static_cast<long long>(index) * (WIDTH / PIECE);
    };
#pragma unroll
    for (int i = 0; i < VECTORS; ++i) {
        const int index = first + i * step;
        if (index < packs) {
            if constexpr (CENTRED || ADDED) keep_packed(kept[i]);
            finish(index, kept[i], weights_at(index), AHEAD ? &ahead[AHEAD ? i : 0] : nullptr);
        }
    }
#pragma unroll 1
    for (int i = first + VECTORS * step; i < packs; i += step) finish(i, read(i), weights_at(i), nullptr);
}

// The same for a row that is not aligned.
template <bool CENTRED, bool ADDED, typename T, typename W, typename Sum>
__device__ __forceinline__ void normalise_shifted_row(const Row<T, W>& row, bool inside, Sum sum) {
    constexpr int WIDTH = 16 / sizeof(T);
    constexpr int PIECE = 16 / sizeof(W);
    const int cols = row.cols;
    const int step = blockDim.x * WIDTH;
    const int first = first_index(row.y) + static_cast<int>(threadIdx.x) * WIDTH;
    const int end = inside ? cols : first;
    const auto read = [&](int index) {
        const Pack<T> pack = load_at<true>(row.x, index, cols);
        if constexpr (ADDED) {
            return sum_of(pack, load_at<true>(row.residual, index, cols));
        } else {
            return pack;
        }
    };


    float mean = 0.0f;
    if constexpr (CENTRED) {
        float values = 0.0f;
#pragma unroll 1
        for (int i = first; i < end; i += step) {
            const Pack<T> pack = read(i);
#pragma unroll
            for (int k = 0; k < WIDTH; ++k) values += to_float(pack.items[k]);
        }
        mean = sum(values) / static_cast<float>(cols);
    }
    float squares = 0.0f;
#pragma unroll 1
    for (int i = first; i < end; i += step) {
        const Pack<T> pack = read(i);
        if constexpr (ADDED) store_anywhere(row.total, i, cols, pack);
#pragma unroll
        for (int k = 0; k < WIDTH; ++k) {
            // The zeros that stand for what lies outside of the row are as far from the mean as any.
            const bool counts = !CENTRED || (i + k >= 0 && i + k < cols);
            const float off = CENTRED ? to_float(pack.items[k]) - mean : to_float(pack.items[k]);
            squares += counts ? off * off : 0.0f;
        }
    }
    const float scale = rsqrtf(sum(squares) / static_cast<float>(cols) + row.eps);
#pragma unroll 1
    for (int i = first; i < end; i += step) {
        Pack<T> pack = read(i);
#pragma unroll
        for (int p = 0; p < WIDTH / PIECE; ++p) {
            Pack<W> weight;
            Pack<W> bias;
            if (row.weight != nullptr) weight = load_at<true>(row.weight, i + p * PIECE, cols);
            if (CENTRED && row.bias != nullptr) bias = load_at<true>(row.bias, i + p * PIECE, cols);
            if constexpr (CENTRED) {
                keep_packed(weight);
                keep_packed(bias);
            }
#pragma unroll
            for (int k = 0; k < PIECE; ++k) {
                T& item = pack.items[p * PIECE + k];
                float value = (CENTRED ? to_float(item) - mean : to_float(item)) * scale;
                if (row.weight != nullptr) value *= to_float(weight.items[k]);
                if (CENTRED && row.bias != nullptr) value += to_float(bias.items[k]);
                item = from_float<T>(value);
            }
        }
        store_at(row.y, i, cols, pack);
    }
}

// Whether every row of all tensors can be read and written in packs of 16 bytes.
template <typename T, typename W>
__device__ __forceinline__ bool is_aligned(const Row<T, W>& row) {
    const auto bits = reinterpret_cast<unsigned long long>(row.x) | reinterpret_cast<unsigned long long>(row.y) |
                      reinterpret_cast<unsigned long long>(row.weight) | reinterpret_cast<unsigned long long>(row.bias) |
                      reinterpret_cast<unsigned long long>(row.residual) |
                      reinterpret_cast<unsigned long long>(row.total);
    return bits % 16 == 0 && row.cols % static_cast<int>(16 / sizeof(T)) == 0;
}

// Narrow rows: blockDim.x (a power of two up to 32) neighbouring lanes share a row, a block has blockDim.y rows.
template <bool CENTRED, bool ADDED, typename T, typename W>
__device__ __forceinline__ void normalise_narrow(const Row<T, W>& all, long long rows) {
    const long long row_step = static_cast<long long>(gridDim.x) * blockDim.y;
    const long long first = static_cast<long long>(blockIdx.x) * blockDim.y;
    const auto row_at = [&](long long index) { return all.at(index < rows ? index * all.cols : 0); };
    // The whole block goes round together, because the sum needs all lanes of a warp.  Two loops, because a branch
    // inside of one takes more registers.
    if (is_aligned(all)) {
        for (long long base = first; base < rows; base += row_step) {
            const long long index = base + threadIdx.y;
            normalise_row<4, CENTRED, ADDED>(row_at(index), index < rows, SumOfLanes{});
        }
    } else {
        for (long long base = first; base < rows; base += row_step) {
            const long long index = base + threadIdx.y;
            normalise_shifted_row<CENTRED, ADDED>(row_at(index), index < rows, SumOfLanes{});
        }
    }
}

// Wide rows: a block shares a row.  partial: 33 floats of shared memory.
template <int VECTORS, bool CENTRED, bool ADDED, typename T, typename W>
__device__ __forceinline__ void normalise_wide(const Row<T, W>& all, long long rows, float* partial) {
    if (is_aligned(all)) {
        for (long long index = blockIdx.x; index < rows; index += gridDim.x) {
            normalise_row<VECTORS, CENTRED, ADDED>(all.at(index * all.cols), true, SumOfBlock{partial});
        }
    } else {
        for (long long index = blockIdx.x; index < rows; index += gridDim.x) {
            normalise_shifted_row<CENTRED, ADDED>(all.at(index * all.cols), true, SumOfBlock{partial});
        }
    }
}

}  // namespace
