// RMS normalisation of rows that are gated before or after it, in fp32.
//
// A warp (narrow) or a block (wide) has a row; x and gate are read twice, the second time from L1 or L2.  T is the type of
// all but weight, which has W (T or float; it may be null).

#include "../include/layerport_kernels.h"

using namespace layerport;

namespace {

__device__ __forceinline__ float silu(float value) { return value / (1.0f + expf(-value)); }

// A row of `cols` elements from `start` on.  `inside` is false past the last row: such threads take part in the sum.
template <bool GATE_FIRST, bool SHIFTED, typename T, typename W, typename Sum>
__device__ __forceinline__ void one_row(
    const T* x, const T* gate, const W* weight, T* y, int cols, float eps, bool inside, Sum sum
) {
    constexpr int WIDTH = 16 / sizeof(T);
    const int first = SHIFTED ? first_index(y) : 0;
    const int end = inside ? cols : first;
    float squares = 0.0f;
#pragma unroll 1
    for (int i = first + threadIdx.x * WIDTH; i < end; i += blockDim.x * WIDTH) {
        const Pack<T> values = load_at<SHIFTED>(x, i, cols);
        const Pack<T> gates = load_at<SHIFTED>(gate, i, cols);
#pragma unroll
        for (int k = 0; k < WIDTH; ++k) {
            float value = to_float(values.items[k]);
            if (GATE_FIRST) value *= silu(to_float(gates.items[k]));
            squares += value * value;
        }
    }
    const float scale = rsqrtf(sum(squares) / static_cast<float>(cols) + eps);
#pragma unroll 1
    for (int i = first + threadIdx.x * WIDTH; i < end; i += blockDim.x * WIDTH) {
        Pack<T> values = load_at<SHIFTED>(x, i, cols);
        const Pack<T> gates = load_at<SHIFTED>(gate, i, cols);
#pragma unroll
        for (int k = 0; k < WIDTH; ++k) {
            float value = to_float(values.items[k]) * silu(to_float(gates.items[k])) * scale;
            if (weight != nullptr && i + k >= 0 && i + k < cols) value *= to_float(weight[i + k]);
            values.items[k] = from_float<T>(value);
        }
        store_at(y, i, cols, values);
    }
}

template <bool GATE_FIRST, typename T, typename W, typename Sum>
__device__ __forceinline__ void all_rows(
    const T* x, const T* gate, const W* weight, T* y, long long rows, int groups, int cols, float eps, Sum sum
) {
    const bool aligned = (bytes_off(x) | bytes_off(gate) | bytes_off(y)) == 0 && cols % (16 / sizeof(T)) == 0;
    const long long step = static_cast<long long>(gridDim.x) * blockDim.y;
    for (long long base = static_cast<long long>(blockIdx.x) * blockDim.y; base < rows; base += step) {
        const bool inside = base + threadIdx.y < rows;
        const long long row = inside ? base + threadIdx.y : 0;
        const long long start = row * cols;
        const W* own = weight == nullptr ? nullptr : weight + static_cast<int>(row % groups) * cols;
        if (aligned) {
            one_row<GATE_FIRST, false>(x + start, gate + start, own, y + start, cols, eps, inside, sum);
        } else {
            one_row<GATE_FIRST, true>(x + start, gate + start, own, y + start, cols, eps, inside, sum);
        }
    }
}

}  // namespace

template <typename T, typename W, bool GATE_FIRST>
__global__ void __launch_bounds__(256, 4) gated_rms_norm_narrow(
    const T* __restrict__ x, const T* __restrict__ gate, const W* __restrict__ weight, T* __restrict__ y, long long rows,
    int groups, int cols, float eps
) {
    all_rows<GATE_FIRST>(x, gate, weight, y, rows, groups, cols, eps, SumOfLanes{});
}

template <typename T, typename W, bool GATE_FIRST>
__global__ void __launch_bounds__(256, 4) gated_rms_norm_wide(
    const T* __restrict__ x, const T* __restrict__ gate, const W* __restrict__ weight, T* __restrict__ y, long long rows,
    int groups, int cols, float eps
) {
    __shared__ float partial[33];
    all_rows<GATE_FIRST>(x, gate, weight, y, rows, groups, cols, eps, SumOfBlock{partial});
}
