// The scan of Mamba2 over a whole sequence, in fp32.
//
// A block has up to BLOCK_ROWS rows of the state of one head of one image of the batch.  Eight neighbouring lanes hold
// ROWS of them in registers, each lane 4 SLOTS states of each row, and go through the sequence one position after the
// other; b and c, which all rows share, are brought to shared memory some positions at a time.

#include "../include/layerport_kernels.h"

using namespace layerport;

namespace {

constexpr int THREADS = 128;
constexpr int LANES = 8;

// The width of a step; as Torch does: softplus of more than 20 is the number itself, and NaN stays.
__device__ __forceinline__ float step_size(float raw, bool softplus, float least, float most) {
    float size = softplus && raw <= 20.0f ? log1pf(expf(raw)) : raw;
    size = size < least ? least : size;
    return size > most ? most : size;
}

__device__ __forceinline__ float gated(float value, float gate) { return value * (gate / (1.0f + expf(-gate))); }

// One pack of the `count` items at `from`, as floats; zeros past the end.
template <typename T>
__device__ __forceinline__ void bring(float* to, const T* from, int count, int pack) {
    constexpr int WIDTH = 16 / sizeof(T);
    const Pack<T> values = load_at<true>(from, pack * WIDTH, count);
#pragma unroll
    for (int k = 0; k < WIDTH; ++k) to[pack * WIDTH + k] = to_float(values.items[k]);
}

}  // namespace

// WHOLE: there are 32 SLOTS states; else at most as many.
template <typename T, int SLOTS, int ROWS, bool WHOLE>
__global__ void __launch_bounds__(THREADS, 4) ssd_scan(
    const T* __restrict__ x, const T* __restrict__ dt, const float* __restrict__ a, const T* __restrict__ b,
    const T* __restrict__ c, const float* __restrict__ d, const T* __restrict__ z, const float* __restrict__ dt_bias,
    const float* __restrict__ start, float* __restrict__ y, float* __restrict__ last, int length, int heads, int groups,
    int dim, int states, bool softplus, float least, float most
) {
    constexpr int BLOCK_ROWS = THREADS / LANES * ROWS;
    constexpr int WIDTH = 16 / sizeof(T);
    constexpr int STATES = 32 * SLOTS;
    constexpr int STEPS = SLOTS > 4 ? 8 : 16;
    __shared__ alignas(16) float of_b[STEPS][STATES];
    __shared__ alignas(16) float of_c[STEPS][STATES];
    __shared__ alignas(16) float values[STEPS][BLOCK_ROWS];  // of x, and then of y in its place
    __shared__ float sizes[STEPS], decays[STEPS];

    const int slices = (dim + BLOCK_ROWS - 1) / BLOCK_ROWS;
    const int slice = static_cast<int>(blockIdx.x) % slices, item = static_cast<int>(blockIdx.x) / slices;
    const int head = item % heads, image = item / heads;
    const int group = head / (heads / groups);
    const int first_row = slice * BLOCK_ROWS;
    const int rows = min(BLOCK_ROWS, dim - first_row);
    const int lane = threadIdx.x % LANES, own = threadIdx.x / LANES * ROWS;
    const float rate = a[head];
    const float bias = dt_bias == nullptr ? 0.0f : dt_bias[head];
    const float skip = d == nullptr ? 0.0f : d[head];
    const auto column = [&](int slot, int i) { return slot * 32 + lane * 4 + i; };
    const auto is_state = [&](int slot, int i) { return WHOLE || column(slot, i) < states; };
    const long long kept = (static_cast<long long>(item) * dim + first_row) * states;

    float state[ROWS][SLOTS * 4];
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
#pragma unroll
        for (int k = 0; k < SLOTS * 4; ++k) {
            const bool there = start != nullptr && own + r < rows && is_state(k / 4, k % 4);
            state[r][k] = there ? start[kept + (own + r) * states + column(k / 4, k % 4)] : 0.0f;
        }
    }

    for (int begin = 0; begin < length; begin += STEPS) {
        const int steps = min(STEPS, length - begin);
        const long long place = static_cast<long long>(image) * length + begin;
        constexpr int OF_STATES = STATES / WIDTH, OF_ROWS = BLOCK_ROWS / WIDTH;
        for (int p = threadIdx.x; p < steps * OF_STATES; p += THREADS) {
            const int t = p / OF_STATES, pack = p % OF_STATES;
            const long long at = ((place + t) * groups + group) * states;
            bring(of_b[t], b + at, states, pack);
            bring(of_c[t], c + at, states, pack);
        }
        for (int p = threadIdx.x; p < steps * OF_ROWS; p += THREADS) {
            const int t = p / OF_ROWS;
            bring(values[t], x + ((place + t) * heads + head) * dim + first_row, rows, p % OF_ROWS);
        }
        if (threadIdx.x < steps) {
            const float raw = to_float(dt[(place + threadIdx.x) * heads + head]) + bias;
            const float size = step_size(raw, softplus, least, most);
            sizes[threadIdx.x] = size;
            decays[threadIdx.x] = expf(size * rate);
        }
        __syncthreads();
        for (int t = 0; t < steps; ++t) {
            const float size = sizes[t], decay = decays[t];
            float weighted[ROWS], sums[ROWS];
#pragma unroll
            for (int r = 0; r < ROWS; ++r) weighted[r] = size * values[t][own + r], sums[r] = 0.0f;
#pragma unroll
            for (int slot = 0; slot < SLOTS; ++slot) {
                const float4 at_b = reinterpret_cast<const float4*>(of_b[t])[slot * LANES + lane];
                const float4 at_c = reinterpret_cast<const float4*>(of_c[t])[slot * LANES + lane];
                const float in[4] = {at_b.x, at_b.y, at_b.z, at_b.w}, out[4] = {at_c.x, at_c.y, at_c.z, at_c.w};
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    if (!is_state(slot, i)) continue;
#pragma unroll
                    for (int r = 0; r < ROWS; ++r) {
                        float& one = state[r][slot * 4 + i];
                        one = one * decay + weighted[r] * in[i];
                        sums[r] += one * out[i];
                    }
                }
            }
            // Each exchange halves how many rows a lane still sums, until it has that of one.
            int row = own, mask = LANES / 2;
#pragma unroll
            for (int half = ROWS / 2; half > 0; half /= 2, mask /= 2) {
                const bool upper = lane & mask;
                if (upper) row += half;
#pragma unroll
                for (int r = 0; r < half; ++r) {
                    const float sent = upper ? sums[r] : sums[r + half];
                    const float held = upper ? sums[r + half] : sums[r];
                    sums[r] = held + __shfl_xor_sync(0xffffffffu, sent, mask);
                }
            }
#pragma unroll
            for (int other = LANES / 2 / ROWS; other > 0; other /= 2) {
                sums[0] += __shfl_xor_sync(0xffffffffu, sums[0], other);
            }
            __syncwarp();
            if (lane % (LANES / ROWS) == 0) values[t][row] = sums[0] + (d == nullptr ? 0.0f : skip * values[t][row]);
        }
        __syncthreads();
        // Each thread writes what it brought, so that it may bring the next at once.
        for (int p = threadIdx.x; p < steps * OF_ROWS; p += THREADS) {
            const int t = p / OF_ROWS, first = p % OF_ROWS * WIDTH;
            const long long at = ((place + t) * heads + head) * dim + first_row;
            Pack<T> gates;
            if (z != nullptr) gates = load_at<true>(z + at, first, rows);
#pragma unroll
            for (int part = 0; part < WIDTH; part += 4) {
                Pack<float> pack;
#pragma unroll
                for (int k = 0; k < 4; ++k) {
                    const float value = values[t][first + part + k];
                    pack.items[k] = z == nullptr ? value : gated(value, to_float(gates.items[part + k]));
                }
                store_anywhere(y + at, first + part, rows, pack);
            }
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
#pragma unroll
        for (int k = 0; k < SLOTS * 4; ++k) {
            if (own + r >= rows || !is_state(k / 4, k % 4)) continue;
            last[kept + (own + r) * states + column(k / 4, k % 4)] = state[r][k];
        }
    }
}

// Any number of states: a warp has a row of them, which it keeps in `last`.
template <typename T>
__global__ void __launch_bounds__(THREADS) ssd_scan_many(
    const T* __restrict__ x, const T* __restrict__ dt, const float* __restrict__ a, const T* __restrict__ b,
    const T* __restrict__ c, const float* __restrict__ d, const T* __restrict__ z, const float* __restrict__ dt_bias,
    const float* __restrict__ start, float* __restrict__ y, float* __restrict__ last, long long count, int length,
    int heads, int groups, int dim, int states, bool softplus, float least, float most
) {
    const long long row = static_cast<long long>(blockIdx.x) * blockDim.y + threadIdx.y;
    if (row >= count) return;  // a whole warp
    const long long item = row / dim;
    const int head = static_cast<int>(item % heads), group = head / (heads / groups);
    const long long image = item / heads;
    const float rate = a[head];
    const float bias = dt_bias == nullptr ? 0.0f : dt_bias[head];
    float* kept = last + row * states;
    for (int n = threadIdx.x; n < states; n += 32) kept[n] = start == nullptr ? 0.0f : start[row * states + n];
    for (int t = 0; t < length; ++t) {
        const long long place = image * length + t;
        const long long at = (place * heads + head) * dim + row % dim;
        const long long other = (place * groups + group) * states;
        const float size = step_size(to_float(dt[place * heads + head]) + bias, softplus, least, most);
        const float decay = expf(size * rate), value = to_float(x[at]);
        float sum = 0.0f;
        for (int n = threadIdx.x; n < states; n += 32) {
            kept[n] = kept[n] * decay + size * value * to_float(b[other + n]);
            sum += kept[n] * to_float(c[other + n]);
        }
        sum = sum_lanes(sum, 32);
        if (threadIdx.x != 0) continue;
        if (d != nullptr) sum += d[head] * value;
        y[at] = z == nullptr ? sum : gated(sum, to_float(z[at]));
    }
}
