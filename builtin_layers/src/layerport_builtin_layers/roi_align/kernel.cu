// The boxes of a map, averaged to one size, summed in fp32; or the largest point of each bin.
//
// Each thread has one bin of one box and CHANNELS channels, whose points lie at the same places.  The threads of a box
// are neighbours, so that what they read lies together.

#include "../include/layerport_kernels.h"

using namespace layerport;

namespace {

constexpr int CHANNELS = 4;  // as in reference.py

// The points of a bin along one axis.
struct Axis {
    float start, bin, points;  // of the bin: where it starts, how large it is, how many points it has
    float first;               // the first point that may lie in the map
    int size, most;            // of the map; how many points from `first` on may lie in it

    __device__ __forceinline__ Axis(float from, float to, int size, int bins, int number, int ratio, float scale, bool aligned)
        : size(size) {
        const float shift = aligned ? 0.5f : 0.0f;
        start = from * scale - shift;
        float extent = to * scale - shift - start;
        const bool finite = extent - extent == 0.0f;
        if (!aligned && finite && extent < 1.0f) extent = 1.0f;
        bin = extent / static_cast<float>(bins);
        start += static_cast<float>(number) * bin;
        if (ratio > 0) {
            points = static_cast<float>(ratio);
            first = 0.0f;
            most = ratio;
            return;
        }
        points = finite ? fmaxf(ceilf(bin), 0.0f) : 0.0f;
        first = points > 0.0f && bin > 0.0f ? fmaxf(ceilf((-1.0f - start) * points / bin - 0.5f), 0.0f) : 0.0f;
        most = 2 * size + 3;  // they are at least half a pixel apart
    }

    // The pixels before and after a point and the share of the latter; false where there is no such point in the map.
    __device__ __forceinline__ bool at(int index, int& low, int& high, float& part) const {
        const float number = first + static_cast<float>(index);
        const float place = start + (number + 0.5f) * bin / points;
        if (!(number < points && place >= -1.0f && place <= static_cast<float>(size))) return false;
        const float inside = fminf(fmaxf(place, 0.0f), static_cast<float>(size - 1));
        low = static_cast<int>(inside);
        high = low + 1 < size ? low + 1 : size - 1;
        part = inside - static_cast<float>(low);
        return true;
    }
};

}  // namespace

// T is the type of x and y, B that of the boxes (T or float).  LARGEST: of a bin's points, instead of their average.
template <typename T, typename B, bool LARGEST>
__global__ void __launch_bounds__(256) roi_align(
    const T* __restrict__ x, const B* __restrict__ boxes, T* __restrict__ y, int images, int channels, int height,
    int width, int bins_y, int bins_x, float scale, int ratio, bool aligned
) {
    const int index = blockIdx.y * 256 + threadIdx.x;
    const int bin = index % (bins_y * bins_x);
    const int channel = index / (bins_y * bins_x) * CHANNELS;
    if (channel >= channels) return;
    const long long number = blockIdx.x;
    const B* box = boxes + number * 5;
    const float image = to_float(box[0]);
    const Axis rows(to_float(box[2]), to_float(box[4]), height, bins_y, bin / bins_x, ratio, scale, aligned);
    const Axis columns(to_float(box[1]), to_float(box[3]), width, bins_x, bin % bins_x, ratio, scale, aligned);
    const long long pixels = 1ll * height * width;
    const int inside = channels - channel < CHANNELS ? channels - channel : CHANNELS;

    float sums[CHANNELS];
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) sums[c] = LARGEST ? -__int_as_float(0x7f800000) : 0.0f;
    int rows_inside = 0, columns_inside = 0;
    const bool has_image = image > -1.0f && image < static_cast<float>(images);
    if (has_image) {
        const T* map = x + (static_cast<long long>(image) * channels + channel) * pixels;
        for (int i = 0; i < rows.most; ++i) {
            int top, bottom;
            float down;
            if (!rows.at(i, top, bottom, down)) continue;
            ++rows_inside;
            columns_inside = 0;
            for (int j = 0; j < columns.most; ++j) {
                int left, right;
                float across;
                if (!columns.at(j, left, right, across)) continue;
                ++columns_inside;
                const T* upper = map + static_cast<long long>(top) * width;
                const T* lower = map + static_cast<long long>(bottom) * width;
#pragma unroll
                for (int c = 0; c < CHANNELS; ++c) {
                    if (c >= inside) continue;
                    const float above = to_float(upper[c * pixels + left]) * (1.0f - across) +
                                        to_float(upper[c * pixels + right]) * across;
                    const float below = to_float(lower[c * pixels + left]) * (1.0f - across) +
                                        to_float(lower[c * pixels + right]) * across;
                    const float value = above * (1.0f - down) + below * down;
                    if (LARGEST) {
                        sums[c] = value > sums[c] || value != value ? value : sums[c];  // NaN stays
                    } else {
                        sums[c] += value;
                    }
                }
            }
        }
    }
    const float points = fmaxf(rows.points * columns.points, 1.0f);
    const bool has_points = has_image && rows.points > 0.0f && columns.points > 0.0f;
    // Points outside of the map read zero.
    const bool zero_too =
        static_cast<float>(rows_inside) < rows.points || static_cast<float>(columns_inside) < columns.points;
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) {
        if (c >= inside) continue;
        float value = sums[c] / points;
        if (LARGEST) value = !has_points || (zero_too && sums[c] < 0.0f) ? 0.0f : sums[c];
        y[((number * channels + channel + c) * bins_y + bin / bins_x) * bins_x + bin % bins_x] = from_float<T>(value);
    }
}
