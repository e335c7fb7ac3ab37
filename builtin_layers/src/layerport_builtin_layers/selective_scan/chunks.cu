// What kernel.cu does, for 8, 16 or 32 states: eight steps of the sequence at a time.
//
// A channel's lanes hold a state each.  Of eight steps each lane prepares one: its softplus and its gate are computed
// once, and shuffles tell the others.  The sums over states of all eight go round together, each exchange halving how
// many a lane still holds, until lane t has that of step t and writes it.  Of b and c a lane loads eight steps at once,
// those of the next eight steps ahead.

#include "../include/layerport_kernels.h"

using namespace layerport;

namespace {

constexpr int STEPS = 8;

// Eight items from `at` on; zeros past the end.
template <typename T>
__device__ __forceinline__ void read_steps(const T* from, int at, int length, bool packed, float (&values)[STEPS]) {
    constexpr int WIDTH = 16 / sizeof(T);
    if (packed && at < length) {
#pragma unroll
        for (int p = 0; p < STEPS / WIDTH; ++p) {
            const Pack<T> pack = load(reinterpret_cast<const Pack<T>*>(from + at) + p);
#pragma unroll
            for (int k = 0; k < WIDTH; ++k) values[p * WIDTH + k] = to_float(pack.items[k]);
        }
        return;
    }
#pragma unroll
    for (int k = 0; k < STEPS; ++k) values[k] = at + k < length ? to_float(from[at + k]) : 0.0f;
}

// One step of a channel, as one of its lanes reads it.
struct Step {
    float value, size, gate;
};

}  // namespace

template <typename T, int STATES>
__global__ void __launch_bounds__(128) selective_scan_chunks(
    const T* __restrict__ x, const T* __restrict__ dt, const float* __restrict__ a, const T* __restrict__ b,
    const T* __restrict__ c, const float* __restrict__ d, const T* __restrict__ z, const float* __restrict__ dt_bias,
    T* __restrict__ y, float* __restrict__ last, long long count, int channels, int length, bool softplus
) {
    const long long item = static_cast<long long>(blockIdx.x) * blockDim.y + threadIdx.y;
    const bool inside = item < count;  // the lanes of others still take part in the sums
    const long long row = inside ? item : count - 1;
    const int channel = static_cast<int>(row % channels);
    const int lane = threadIdx.x, mine = lane % STEPS;
    const T* of_b = b + (row / channels * STATES + lane) * length;
    const T* of_c = c + (row / channels * STATES + lane) * length;
    const bool packed = (bytes_off(b) | bytes_off(c)) == 0 && length % STEPS == 0;
    const float rate = a[static_cast<long long>(channel) * STATES + lane];
    const float bias = dt_bias == nullptr ? 0.0f : dt_bias[channel];
    const float skip = d == nullptr ? 0.0f : d[channel];
    const auto step_at = [&](int at) {
        const long long place = row * length + at;
        const bool there = at < length;
        return Step{there ? to_float(x[place]) : 0.0f, there ? to_float(dt[place]) : 0.0f,
                    there && z != nullptr ? to_float(z[place]) : 0.0f};
    };

    float state = 0.0f;
    float next_b[STEPS], next_c[STEPS];
    read_steps(of_b, 0, length, packed, next_b);
    read_steps(of_c, 0, length, packed, next_c);
    Step next = step_at(mine);
    for (int start = 0; start < length; start += STEPS) {
        float at_b[STEPS], at_c[STEPS], sums[STEPS];
#pragma unroll
        for (int t = 0; t < STEPS; ++t) at_b[t] = next_b[t], at_c[t] = next_c[t];
        const Step own = next;
        if (start + STEPS < length) {
            read_steps(of_b, start + STEPS, length, packed, next_b);
            read_steps(of_c, start + STEPS, length, packed, next_c);
            next = step_at(start + STEPS + mine);
        }
        float size = own.size + bias;
        // As Torch does: softplus of more than 20 is the number itself.
        if (softplus && size <= 20.0f) size = log1pf(expf(size));
        // A step that there is not leaves the state as it is.
        if (start + mine >= length) size = 0.0f;
#pragma unroll
        for (int t = 0; t < STEPS; ++t) {
            const float step = __shfl_sync(0xffffffffu, size, t, STATES);
            const float value = __shfl_sync(0xffffffffu, own.value, t, STATES);
            if (start + t < length) state = state * expf(step * rate) + step * value * at_b[t];
            sums[t] = state * at_c[t];
        }
#pragma unroll
        for (int half = STEPS / 2; half > 0; half /= 2) {
            const bool upper = lane & half;
#pragma unroll
            for (int k = 0; k < half; ++k) {
                const float sent = upper ? sums[k] : sums[k + half];
                const float kept = upper ? sums[k + half] : sums[k];
                sums[k] = kept + __shfl_xor_sync(0xffffffffu, sent, half);
            }
        }
#pragma unroll
        for (int other = STEPS; other < STATES; other *= 2) sums[0] += __shfl_xor_sync(0xffffffffu, sums[0], other);
        if (!inside || lane >= STEPS || start + mine >= length) continue;
        float sum = sums[0];
        if (d != nullptr) sum += skip * own.value;
        if (z != nullptr) sum *= own.gate / (1.0f + expf(-own.gate));
        y[row * length + start + mine] = from_float<T>(sum);
    }
    if (inside) last[row * STATES + lane] = state;
}
