// What kernel.cu does, on the tensor cores, for 16 bits: what taps read is rounded to 16 bits before it is multiplied.
//
// A run is as many channels as have both their filters and their offsets in common; its size is a multiple of WIDTH.
// `deform_packs` first puts the channels of a run next to each other, of each pixel and of each tap of a filter, so that
// all reads come in packs.  Then a block makes 64 pixels by 128 outputs of a group, each of its eight warps 32 by 32.
// Its products are those of a filter's taps, run by run and tap by tap, K channels a step through two buffers of shared
// memory; while one is multiplied, the next packs are on their way to registers.

#include "../include/layerport_mma.h"
#include "place.h"

using namespace layerport;

namespace {

constexpr int THREADS = 256;
constexpr int SIDE = 32;                   // of a square of deform_packs, as in reference.py
constexpr int PIXELS = 64, OUTPUTS = 128;  // of a block, as in reference.py
constexpr int WIDTH = 8;                   // items of a pack
constexpr int K = 32;                      // channels of a step
constexpr int LINE = K / WIDTH;            // packs of a step
constexpr int PITCH = LINE + 1;            // one more keeps the lanes of a warp on different banks
constexpr int FILTERS = OUTPUTS * LINE / THREADS;  // packs that a thread brings; of what taps read it brings one
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr int BLOCKS = 1;  // of a multiprocessor at least; lanes that ask each other take more registers
#else
constexpr int BLOCKS = 2;
#endif
constexpr int PIECE = 8;  // steps that are summed up by themselves, because tensor cores cut off what does not fit a sum

static_assert(PIXELS * LINE == THREADS, "a thread reads one pack of one pixel");

template <typename T>
__device__ __forceinline__ float item(const uint4& pack, int which) {
    return to_float(reinterpret_cast<const Pack<T>*>(&pack)->items[which]);
}

}  // namespace

// Each of many matrices, `rows` by `columns`, with its axes exchanged.
template <typename T>
__global__ void __launch_bounds__(THREADS) deform_packs(
    const T* __restrict__ from, T* __restrict__ to, int squares, int rows, int columns
) {
    __shared__ T square[SIDE][SIDE + 2];  // two more items: an odd number of words
    const int lane = threadIdx.x % SIDE, line = threadIdx.x / SIDE;
    const long long matrix = 1ll * (blockIdx.x / squares) * rows * columns;
    const int column = static_cast<int>(blockIdx.x % squares) * SIDE, row = blockIdx.y * SIDE;
#pragma unroll
    for (int i = line; i < SIDE; i += THREADS / SIDE) {
        if (row + i < rows && column + lane < columns) {
            square[i][lane] = from[matrix + 1ll * (row + i) * columns + column + lane];
        }
    }
    __syncthreads();
#pragma unroll
    for (int i = line; i < SIDE; i += THREADS / SIDE) {
        if (column + i < columns && row + lane < rows) {
            to[matrix + 1ll * (column + i) * rows + row + lane] = square[lane][i];
        }
    }
}

// image: of each run of each image pixel by pixel; filters: of each run of each filter tap by tap; both in packs.
template <typename T>
__global__ void __launch_bounds__(THREADS, BLOCKS) deform_tensor(
    const T* __restrict__ image, const T* __restrict__ offset, const T* __restrict__ filters,
    const T* __restrict__ bias, const T* __restrict__ mask, T* __restrict__ y, int tiles, int parts, int run, int groups,
    int runs, int offset_groups, int height, int width, int outputs, int rows, int columns, int taps, int kernel_width,
    int stride_y, int stride_x, int padding_y, int padding_x, int dilation_y, int dilation_x
) {
    __shared__ uint4 left[2][PIXELS][PITCH], right[2][OUTPUTS][PITCH];
    __shared__ Place at[2][PIXELS];  // of the present tap, and of the next one
    __shared__ float scales[2][PIXELS];
    const int line = threadIdx.x / LINE, pack = threadIdx.x % LINE, packs = run / WIDTH;
    const int batch = blockIdx.x / tiles, group = blockIdx.y / parts;
    const int places = rows * columns, begin = static_cast<int>(blockIdx.x % tiles) * PIXELS;
    const int first = static_cast<int>(blockIdx.y % parts) * OUTPUTS;  // of the group's outputs
    const int of_offset_group = groups * runs / offset_groups;         // runs
    const long long pixels = 1ll * height * width, filter = 1ll * runs * taps * packs;
    const auto* from = reinterpret_cast<const uint4*>(image) + pixels * (batch * groups + group) * runs * packs + pack;
    const auto* of_tap = reinterpret_cast<const uint4*>(filters) + filter * (group * outputs + first + line) + pack;
    const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const int row_of = threadIdx.x / 128 * 32, column_of = threadIdx.x / 32 % 4 * 32;
    const bool wanted = begin + row_of < places && first + column_of < outputs;

    // What a tap of this thread's pixel is told: on its way while the tap before is multiplied.
    const int place = begin + threadIdx.x;
    T down{}, aside{}, scale{};
    const auto ask = [&](int in_run, int tap) {
        if (threadIdx.x >= PIXELS || place >= places || in_run >= runs) return;
        const long long index = 1ll * (batch * offset_groups + (group * runs + in_run) / of_offset_group) * taps + tap;
        down = offset[2 * index * places + place];
        aside = offset[(2 * index + 1) * places + place];
        if (mask != nullptr) scale = mask[index * places + place];
    };
    const auto settle = [&](int buffer, int tap) {
        if (threadIdx.x >= PIXELS) return;
        const int tap_y = place / columns * stride_y - padding_y + tap / kernel_width * dilation_y;
        const int tap_x = place % columns * stride_x - padding_x + tap % kernel_width * dilation_x;
        const Along along_y(tap_y, to_float(down), height), along_x(tap_x, to_float(aside), place < places ? width : 0);
        at[buffer][threadIdx.x].set(along_y, along_x, height, width);
        scales[buffer][threadIdx.x] = mask != nullptr ? to_float(scale) : 1.0f;
    };
    ask(0, 0);
    settle(0, 0);
    __syncthreads();

    float totals[2][4][4] = {}, sums[2][4][4] = {};
    int in_run = 0, tap = 0, start = 0, buffer_of_tap = 0;  // start: in packs
    const int steps = runs * taps * ((packs + LINE - 1) / LINE);
    for (int step = 0; step <= steps; ++step) {
        uint4 corners[4], coming[FILTERS];
        if (step < steps) {
            if (start == 0) ask(tap + 1 < taps ? in_run : in_run + 1, tap + 1 < taps ? tap + 1 : 0);
            const bool is_one = start + pack < packs;
#pragma unroll
            for (int corner = 0; corner < 4; ++corner) {
                const int pixel = at[buffer_of_tap][line].pixel[corner];
                corners[corner] = is_one && pixel >= 0 ? __ldg(from + (1ll * pixel * packs + start)) : uint4{};
            }
#pragma unroll
            for (int i = 0; i < FILTERS; ++i) {
                const bool filled = is_one && first + line + i * PIXELS < outputs;
                coming[i] = filled ? __ldg(of_tap + (i * PIXELS * filter + start)) : uint4{};
            }
        }
        if (step > 0 && wanted) {
            const int buffer = (step - 1) % 2;
            multiply<T, K, PITCH>(sums, left[buffer], right[buffer], row_of, column_of);
            if (step % PIECE == 0 || step == steps) add_piece(totals, sums);
        }
        if (step < steps) {
            const float* share = at[buffer_of_tap][line].share;
            const float times = scales[buffer_of_tap][line];
            Pack<T> read;
#pragma unroll
            for (int i = 0; i < WIDTH; ++i) {
                float value = 0.0f;
#pragma unroll
                for (int corner = 0; corner < 4; ++corner) value += share[corner] * item<T>(corners[corner], i);
                read.items[i] = from_float<T>(value * times);
            }
            left[step % 2][line][pack] = *reinterpret_cast<const uint4*>(&read);
#pragma unroll
            for (int i = 0; i < FILTERS; ++i) right[step % 2][line + i * PIXELS][pack] = coming[i];
            if (start == 0) settle(1 - buffer_of_tap, tap + 1 < taps ? tap + 1 : 0);
            start += LINE;
            if (start >= packs) {
                start = 0, of_tap += packs, buffer_of_tap = 1 - buffer_of_tap;
                if (++tap == taps) tap = 0, ++in_run, from += pixels * packs;
            }
        }
        __syncthreads();
    }
    T* to = y + 1ll * (batch * groups + group) * outputs * places;
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int pixel = begin + row_of + m * 16 + half * 8 + g;
            if (pixel >= places) continue;
#pragma unroll
            for (int n = 0; n < 4; ++n) {
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    const int output = first + column_of + n * 8 + q * 2 + i;
                    if (output >= outputs) continue;
                    const float added = bias != nullptr ? to_float(bias[group * outputs + output]) : 0.0f;
                    to[1ll * output * places + pixel] = from_float<T>(totals[m][n][half * 2 + i] + added);
                }
            }
        }
    }
}
