// The sampling of multi-scale deformable attention, summed in fp32.
//
// Each thread has 16 bytes of the channels of one head of one query, and goes through the points of all levels; the
// threads of a head are neighbours, so that a pixel's channels are read together.  Where the channels are no multiple
// of 16 bytes, or a pointer is not aligned, they are read one by one.

#include "../include/layerport_kernels.h"

using namespace layerport;

namespace {

template <int WIDTH, typename T>
__device__ __forceinline__ void add_pixel(
    const T* __restrict__ from, float share, bool packed, int inside, float (&sampled)[WIDTH]
) {
    if (packed) {
        const Pack<T> pack = load(reinterpret_cast<const Pack<T>*>(from));
#pragma unroll
        for (int k = 0; k < WIDTH; ++k) sampled[k] += share * to_float(pack.items[k]);
        return;
    }
#pragma unroll
    for (int k = 0; k < WIDTH; ++k) {
        if (k < inside) sampled[k] += share * to_float(from[k]);
    }
}

// Where a point lies on an axis of `size` pixels: between pixel `first` and the next, `fraction` behind it.
//
// location * size - 0.5 would be rounded relative to the size; the product's own rounding is added to the fraction.
struct Between {
    float first, fraction;

    __device__ __forceinline__ Between(float location, float size) {
        const float product = location * size;
        const float place = product - 0.5f;
        first = floorf(place);
        fraction = (place - first) + fmaf(location, size, -product);
        if (fraction < 0.0f) first -= 1.0f, fraction += 1.0f;
        if (fraction >= 1.0f) first += 1.0f, fraction -= 1.0f;
    }

    // Whether one of the two pixels may be there; not for NaN.
    __device__ __forceinline__ bool is_near(float size) const {
        return first < size && (first > -1.0f || (first == -1.0f && fraction > 0.0f));
    }
};

}  // namespace

// T is the type of value and y, L that of locations and weights (T or float).
template <typename T, typename L>
__global__ void __launch_bounds__(256) ms_deform_attn(
    const T* __restrict__ value, const long long* __restrict__ sizes, const L* __restrict__ locations,
    const L* __restrict__ weights, T* __restrict__ y, long long count, long long pixels, int queries, int heads,
    int channels, int levels, int points
) {
    constexpr int WIDTH = 16 / sizeof(T);
    const long long index = blockIdx.x * 256ll + threadIdx.x;
    if (index >= count) return;
    const int lanes = (channels + WIDTH - 1) / WIDTH;
    const int channel = static_cast<int>(index % lanes) * WIDTH;
    const long long item = index / lanes;  // batch, query, head
    const long long head = item % heads;
    const long long batch = item / heads / queries;
    const bool packed = (bytes_off(value) | bytes_off(y)) == 0 && channels % WIDTH == 0;
    const int inside = channels - channel;

    const T* from = value + (batch * pixels * heads + head) * channels + channel;
    const long long step = static_cast<long long>(heads) * channels;  // from pixel to pixel
    const L* weight = weights + item * levels * points;
    const L* location = locations + item * levels * points * 2;
    float sum[WIDTH] = {};
    long long start = 0;
    for (int level = 0; level < levels; ++level) {
        const long long height = sizes[2 * level], width = sizes[2 * level + 1];
        for (int point = 0; point < points; ++point, ++weight, location += 2) {
            const Between x(to_float(location[0]), static_cast<float>(width));
            const Between y_of_point(to_float(location[1]), static_cast<float>(height));
            float sampled[WIDTH] = {};
            if (x.is_near(static_cast<float>(width)) && y_of_point.is_near(static_cast<float>(height))) {
                const long long left = static_cast<long long>(x.first), top = static_cast<long long>(y_of_point.first);
#pragma unroll
                for (int corner = 0; corner < 4; ++corner) {
                    const long long column_index = left + (corner & 1), row_index = top + (corner >> 1);
                    if (column_index < 0 || column_index >= width || row_index < 0 || row_index >= height) continue;
                    // The sizes come at run time: what they claim past the pixels is not read.
                    const long long pixel = start + row_index * width + column_index;
                    if (pixel < 0 || pixel >= pixels) continue;
                    const float share = (corner & 1 ? x.fraction : 1.0f - x.fraction) *
                                        (corner >> 1 ? y_of_point.fraction : 1.0f - y_of_point.fraction);
                    add_pixel<WIDTH>(from + pixel * step, share, packed, inside, sampled);
                }
            }
            const float scale = to_float(*weight);
#pragma unroll
            for (int k = 0; k < WIDTH; ++k) sum[k] += scale * sampled[k];
        }
        start += height * width;
    }
    Pack<T> result;
#pragma unroll
    for (int k = 0; k < WIDTH; ++k) result.items[k] = from_float<T>(sum[k]);
    T* to = y + item * channels + channel;
    if (packed) {
        store(reinterpret_cast<Pack<T>*>(to), result);
    } else {
#pragma unroll
        for (int k = 0; k < WIDTH; ++k) {
            if (k < inside) to[k] = result.items[k];
        }
    }
}
