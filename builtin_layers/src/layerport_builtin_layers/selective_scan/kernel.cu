// The selective state space of Mamba over a whole sequence, in fp32.
//
// blockDim.x neighbouring lanes have the states of one channel of one image of the batch, and go through the sequence
// together; a block has blockDim.y channels.  Up to 32 states are in registers, one in each lane; more are kept in `last`,
// each by the lane that it belongs to.

#include "../include/layerport_kernels.h"

using namespace layerport;

namespace {

template <typename T>
__device__ __forceinline__ float advance(float state, float rate, float step, float value, T b) {
    return state * expf(step * rate) + step * value * to_float(b);
}

}  // namespace

template <typename T, bool FEW>
__global__ void __launch_bounds__(128) selective_scan(
    const T* __restrict__ x, const T* __restrict__ dt, const float* __restrict__ a, const T* __restrict__ b,
    const T* __restrict__ c, const float* __restrict__ d, const T* __restrict__ z, const float* __restrict__ dt_bias,
    T* __restrict__ y, float* __restrict__ last, long long count, int channels, int length, int states, bool softplus
) {
    const long long item = static_cast<long long>(blockIdx.x) * blockDim.y + threadIdx.y;
    const bool inside = item < count;  // the lanes of others still take part in the sums
    const long long row = inside ? item : count - 1;
    const int channel = static_cast<int>(row % channels);
    const int own = inside ? states : 0;
    const int first = threadIdx.x;
    const float* rates = a + static_cast<long long>(channel) * states;
    const T* of_b = b + row / channels * states * length;
    const T* of_c = c + row / channels * states * length;
    float* kept = last + row * states;
    const float rate = FEW && first < own ? rates[first] : 0.0f;
    float state = 0.0f;
    if constexpr (!FEW) {
        for (int n = first; n < own; n += blockDim.x) kept[n] = 0.0f;
    }
    const float bias = dt_bias == nullptr ? 0.0f : dt_bias[channel];
    const float skip = d == nullptr ? 0.0f : d[channel];
    for (int i = 0; i < length; ++i) {
        const long long place = row * length + i;
        const float value = to_float(x[place]);
        float step = to_float(dt[place]) + bias;
        // As Torch does: softplus of more than 20 is the number itself.
        if (softplus && step <= 20.0f) step = log1pf(expf(step));
        float sum = 0.0f;
        if constexpr (FEW) {
            if (first < own) {
                const long long other = static_cast<long long>(first) * length + i;
                state = advance(state, rate, step, value, of_b[other]);
                sum = state * to_float(of_c[other]);
            }
        } else {
            for (int n = first; n < own; n += blockDim.x) {
                const long long other = static_cast<long long>(n) * length + i;
                kept[n] = advance(kept[n], rates[n], step, value, of_b[other]);
                sum += kept[n] * to_float(of_c[other]);
            }
        }
        sum = sum_lanes(sum, blockDim.x);
        if (!inside || first != 0) continue;
        if (d != nullptr) sum += skip * value;
        if (z != nullptr) {
            const float gate = to_float(z[place]);
            sum *= gate / (1.0f + expf(-gate));
        }
        y[place] = from_float<T>(sum);
    }
    if constexpr (FEW) {
        if (first < own) kept[first] = state;
    }
}
