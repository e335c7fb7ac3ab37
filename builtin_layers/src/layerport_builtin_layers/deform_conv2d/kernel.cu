// Deformable convolution, summed in fp32, as a product of the filters and of what their taps read.
//
// Each block has PIXELS of the output and OUTPUTS channels of one group.  It goes through the taps and, DEPTH channels
// at a time, reads what the tap finds for each pixel and the filters' elements into shared memory; then each thread
// adds them to its COLUMNS output channels of one pixel.  Where a tap lies is computed once for all its channels.

#include "../include/layerport_kernels.h"

using namespace layerport;

namespace {

constexpr int PIXELS = 32, OUTPUTS = 128;  // as in reference.py
constexpr int WARPS = 8, DEPTH = 32, COLUMNS = OUTPUTS / WARPS;

// The four pixels between which a tap lies; a share of 0 and an index of -1 for those outside of the image.
//
// The offset alone is cut into pixels and a fraction, which is exact: a place far from the origin would be rounded.
struct Place {
    int pixel[4];
    float share[4];

    __device__ __forceinline__ void set(int y, float down, int x, float right, int height, int width) {
        const float rows = floorf(down), columns = floorf(right);
        const float below = down - rows, beside = right - columns;
        // Not true for NaN; an offset that is larger leads out of any image.
        const bool finite = fabsf(rows) < 1e9f && fabsf(columns) < 1e9f;
        const int top = finite ? y + static_cast<int>(rows) : 0, left = finite ? x + static_cast<int>(columns) : 0;
        const bool near = finite && top < height && left < width && (top > -1 || (top == -1 && below > 0.0f)) &&
                          (left > -1 || (left == -1 && beside > 0.0f));
#pragma unroll
        for (int corner = 0; corner < 4; ++corner) {
            const int row = top + (corner >> 1), column = left + (corner & 1);
            const bool inside = near && row >= 0 && row < height && column >= 0 && column < width;
            pixel[corner] = inside ? row * width + column : -1;
            share[corner] = (corner >> 1 ? below : 1.0f - below) * (corner & 1 ? beside : 1.0f - beside);
        }
    }
};

}  // namespace

template <typename T>
__global__ void __launch_bounds__(32 * WARPS) deform_conv2d(
    const T* __restrict__ x, const T* __restrict__ offset, const T* __restrict__ weight, const T* __restrict__ bias,
    const T* __restrict__ mask, T* __restrict__ y, int tiles, int parts, int channels, int height, int width,
    int outputs, int depth, int rows, int columns, int taps, int kernel_width, int of_offset_group, int stride_y,
    int stride_x, int padding_y, int padding_x, int dilation_y, int dilation_x
) {
    __shared__ float read[DEPTH][PIXELS];
    __shared__ alignas(16) float filters[DEPTH][OUTPUTS];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const long long batch = blockIdx.x / tiles, group = blockIdx.y / parts, places = 1ll * rows * columns;
    const long long place = static_cast<long long>(blockIdx.x % tiles) * PIXELS + lane;
    const int first = static_cast<int>(blockIdx.y % parts) * OUTPUTS;  // of the group's outputs
    const bool inside = place < places;
    const int row = static_cast<int>(place / columns) * stride_y - padding_y;
    const int column = static_cast<int>(place % columns) * stride_x - padding_x;
    const int offset_groups = channels / of_offset_group;
    const long long pixels = 1ll * height * width;
    const T* image = x + (batch * channels + group * depth) * pixels;
    const T* elements = weight + (group * outputs + first) * depth * taps;

    float sums[COLUMNS] = {};
    for (int tap = 0; tap < taps; ++tap) {
        int offset_group = -1;
        Place at;
        float scale = 1.0f;
        for (int start = 0; start < depth; start += DEPTH) {
#pragma unroll
            for (int step = 0; step < DEPTH / WARPS; ++step) {
                const int i = step * WARPS + warp, channel = start + i;
                float value = 0.0f;
                if (inside && channel < depth) {
                    const int wanted = static_cast<int>((group * depth + channel) / of_offset_group);
                    if (wanted != offset_group) {
                        offset_group = wanted;
                        const long long index = (batch * offset_groups + offset_group) * taps + tap;
                        const float down = to_float(offset[2 * index * places + place]);
                        const float right = to_float(offset[(2 * index + 1) * places + place]);
                        const int tap_y = row + tap / kernel_width * dilation_y;
                        const int tap_x = column + tap % kernel_width * dilation_x;
                        at.set(tap_y, down, tap_x, right, height, width);
                        if (mask != nullptr) scale = to_float(mask[index * places + place]);
                    }
#pragma unroll
                    for (int corner = 0; corner < 4; ++corner) {
                        if (at.pixel[corner] < 0) continue;
                        value += at.share[corner] * to_float(image[channel * pixels + at.pixel[corner]]);
                    }
                    if (mask != nullptr) value *= scale;
                }
                read[i][lane] = value;
            }
            for (int i = threadIdx.x; i < DEPTH * OUTPUTS; i += 32 * WARPS) {
                const int output = i % OUTPUTS, channel = start + i / OUTPUTS;
                const bool is_one = first + output < outputs && channel < depth;
                const long long index = (static_cast<long long>(output) * depth + channel) * taps + tap;
                filters[i / OUTPUTS][output] = is_one ? to_float(elements[index]) : 0.0f;
            }
            __syncthreads();
            if (first + warp * COLUMNS < outputs) {
                const int count = depth - start < DEPTH ? depth - start : DEPTH;
                // A long sum is rounded less in pieces; half of them at a time, because more do not fit the registers.
#pragma unroll
                for (int half = 0; half < COLUMNS; half += COLUMNS / 2) {
                    float piece[COLUMNS / 2] = {};
                    for (int i = 0; i < count; ++i) {
                        const float value = read[i][lane];
                        const auto* from = reinterpret_cast<const float4*>(&filters[i][warp * COLUMNS + half]);
#pragma unroll
                        for (int c = 0; c < COLUMNS / 8; ++c) {
                            const float4 four = from[c];
                            piece[4 * c] += value * four.x;
                            piece[4 * c + 1] += value * four.y;
                            piece[4 * c + 2] += value * four.z;
                            piece[4 * c + 3] += value * four.w;
                        }
                    }
#pragma unroll
                    for (int c = 0; c < COLUMNS / 2; ++c) sums[half + c] += piece[c];
                }
            }
            __syncthreads();
        }
    }
    if (!inside) return;
#pragma unroll
    for (int c = 0; c < COLUMNS; ++c) {
        const int output = first + warp * COLUMNS + c;
        if (output >= outputs) break;
        const long long channel = group * outputs + output;
        const float added = bias != nullptr ? to_float(bias[channel]) : 0.0f;
        y[(batch * channels / depth * outputs + channel) * places + place] = from_float<T>(sums[c] + added);
    }
}
