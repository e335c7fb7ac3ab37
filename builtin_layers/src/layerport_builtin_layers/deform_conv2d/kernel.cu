// Deformable convolution, summed in fp32, as a product of the filters and of what their taps read.
//
// Each block has PIXELS of the output and OUTPUTS channels of one group.  It goes through the taps and, DEPTH channels
// at a time, reads what the tap finds for each pixel and the filters' elements into shared memory; then each thread
// adds them to its COLUMNS output channels of one pixel.  Where a tap lies is computed once for all its channels.  Each
// DEPTH channels have a sum of their own: thousands of products one by one would each be rounded to the total.

#include "../include/layerport_kernels.h"
#include "place.h"

using namespace layerport;

namespace {

constexpr int PIXELS = 32, OUTPUTS = 128;  // as in reference.py
constexpr int WARPS = 8, DEPTH = 32, COLUMNS = OUTPUTS / WARPS;

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
                        at.set(Along(tap_y, down, height), Along(tap_x, right, width), height, width);
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
                float part[COLUMNS] = {};
#pragma unroll 4
                for (int i = 0; i < count; ++i) {
                    const float value = read[i][lane];
                    const auto* from = reinterpret_cast<const float4*>(&filters[i][warp * COLUMNS]);
#pragma unroll
                    for (int c = 0; c < COLUMNS / 4; ++c) {
                        const float4 four = from[c];
                        part[4 * c] += value * four.x;
                        part[4 * c + 1] += value * four.y;
                        part[4 * c + 2] += value * four.z;
                        part[4 * c + 3] += value * four.w;
                    }
                }
#pragma unroll
                for (int c = 0; c < COLUMNS; ++c) sums[c] += part[c];
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
