// y[t, k] = weight[index[t, k]] @ x[t, k] + bias[index[t, k]], summed in fp32.
//
// Each block has the columns of one token and one of its experts; each of its warps has COLUMNS of them, and reads their
// rows of the weight and the token's row once.  So the weights of a few tokens are read once from device memory; many
// tokens read those of a shared expert again, from L2.

#include "../include/layerport_kernels.h"

using namespace layerport;

namespace {

constexpr int COLUMNS = 2;  // as in reference.py
constexpr int WARPS = 8;

template <typename T>
__device__ __forceinline__ float product(const Pack<T>& left, const Pack<T>& right, float sum) {
#pragma unroll
    for (int k = 0; k < 16 / sizeof(T); ++k) sum += to_float(left.items[k]) * to_float(right.items[k]);
    return sum;
}

}  // namespace

template <typename T>
__global__ void __launch_bounds__(256) experts_linear(
    const T* __restrict__ x, const long long* __restrict__ index, const T* __restrict__ weight,
    const T* __restrict__ bias, T* __restrict__ y, int blocks, int chosen, bool shared, int experts, int width,
    int channels
) {
    constexpr int WIDTH = 16 / sizeof(T);
    const long long pair = blockIdx.x / blocks;  // token, one of its experts
    const int first = (static_cast<int>(blockIdx.x % blocks) * WARPS + threadIdx.y) * COLUMNS;
    if (first >= width) return;
    const long long expert = index[pair];
    const bool is_one = expert >= 0 && expert < experts;
    const T* row = x + (shared ? pair / chosen : pair) * channels;
    float sums[COLUMNS] = {};
    if (is_one) {
        const T* columns = weight + (expert * width + first) * channels;
        const int count = width - first < COLUMNS ? width - first : COLUMNS;
        if ((bytes_off(x) | bytes_off(weight)) == 0 && channels % WIDTH == 0) {
            for (int i = threadIdx.x * WIDTH; i < channels; i += 32 * WIDTH) {
                const Pack<T> values = load(reinterpret_cast<const Pack<T>*>(row + i));
#pragma unroll
                for (int c = 0; c < COLUMNS; ++c) {
                    if (c >= count) continue;
                    const T* from = columns + static_cast<long long>(c) * channels + i;
                    sums[c] = product(values, load(reinterpret_cast<const Pack<T>*>(from)), sums[c]);
                }
            }
        } else {
            for (int i = threadIdx.x; i < channels; i += 32) {
                const float value = to_float(row[i]);
#pragma unroll
                for (int c = 0; c < COLUMNS; ++c) {
                    if (c < count) sums[c] += value * to_float(columns[static_cast<long long>(c) * channels + i]);
                }
            }
        }
    }
#pragma unroll
    for (int c = 0; c < COLUMNS; ++c) {
        const float sum = sum_lanes(sums[c], 32);
        const int column = first + c;
        if (threadIdx.x != 0 || column >= width) continue;
        const float added = is_one && bias != nullptr ? to_float(bias[expert * width + column]) : 0.0f;
        y[pair * width + column] = from_float<T>(sum + added);
    }
}
