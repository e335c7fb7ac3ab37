// Correlation of each pixel of one map with a window of another, summed in fp32.
//
// The places of a window are one pixel apart, so they lie between the same pixels: SIDE of them along each axis.  Each
// block has PIXELS pixels of the left map; thread (pixel, row) multiplies its pixel with a row of SIDE pixels of the
// right one, and neighbours read along both maps.  Then the sums, in shared memory, are read between.

#include "../include/layerport_kernels.h"

using namespace layerport;

namespace {

constexpr int PIXELS = 32;  // as in reference.py

}  // namespace

template <typename T, int RADIUS>
__global__ void __launch_bounds__(PIXELS * (2 * RADIUS + 2)) local_correlation(
    const T* __restrict__ left, const T* __restrict__ right, const T* __restrict__ places, T* __restrict__ y,
    int channels, int pixels, int rows, int columns
) {
    constexpr int SIDE = 2 * RADIUS + 2, WINDOW = 2 * RADIUS + 1;
    __shared__ float sums[SIDE][SIDE][PIXELS];
    const int lane = threadIdx.x, part = threadIdx.y;
    const long long batch = blockIdx.y, pixel = 1ll * blockIdx.x * PIXELS + lane;
    float across = 0.0f, down = 0.0f;
    float found[SIDE] = {};
    if (pixel < pixels) {
        float x = to_float(places[2 * batch * pixels + pixel]);
        float y_of_pixel = to_float(places[(2 * batch + 1) * pixels + pixel]);
        const bool near = x > -1.0f - RADIUS && x < static_cast<float>(columns + RADIUS) &&
                          y_of_pixel > -1.0f - RADIUS && y_of_pixel < static_cast<float>(rows + RADIUS);
        if (!near) x = y_of_pixel = -2.0f - RADIUS;
        across = x - floorf(x);
        down = y_of_pixel - floorf(y_of_pixel);
        const int first = static_cast<int>(floorf(x)) - RADIUS;
        const int row = static_cast<int>(floorf(y_of_pixel)) - RADIUS + part;
        if (row >= 0 && row < rows) {
            const T* one = left + batch * channels * pixels + pixel;
            const T* other = right + (batch * channels * rows + row) * columns;
            for (int channel = 0; channel < channels; ++channel) {
                const float value = to_float(*one);
#pragma unroll
                for (int i = 0; i < SIDE; ++i) {
                    if (first + i >= 0 && first + i < columns) found[i] += value * to_float(other[first + i]);
                }
                one += pixels;
                other += 1ll * rows * columns;
            }
        }
    }
#pragma unroll
    for (int i = 0; i < SIDE; ++i) sums[part][i][lane] = found[i];
    __syncthreads();
    if (pixel >= pixels) return;
    const float scale = sqrtf(static_cast<float>(channels));
    T* to = y + batch * WINDOW * WINDOW * pixels + pixel;
    for (int place = part; place < WINDOW * WINDOW; place += SIDE) {
        const int column = place / WINDOW, row = place % WINDOW;
        const float above = sums[row][column][lane] * (1.0f - across) + sums[row][column + 1][lane] * across;
        const float below = sums[row + 1][column][lane] * (1.0f - across) + sums[row + 1][column + 1][lane] * across;
        to[1ll * place * pixels] = from_float<T>((above * (1.0f - down) + below * down) / scale);
    }
}
