// The sampling of multi-scale deformable attention, summed in fp32.
//
// Each thread has 16 bytes of the channels of one head of one query, and goes through the points of all levels; the
// threads of a head are neighbours, so that a pixel's channels are read together.  Where the channels are no multiple
// of 16 bytes, or a pointer is not aligned, they are read one by one.

#include "../include/layerport_kernels.h"

using namespace layerport;

namespace {

// Where a point lies along one axis of a map: after which pixel, and how far.  The product with the size is rounded
// relative to the size; what it lost, which the fused product tells exactly, is added to the part.
struct Along {
    float first, part;
    bool near;  // false for what is not finite too

    __device__ __forceinline__ Along(float location, float size) {
        const float product = __fmul_rn(location, size), lost = __fmaf_rn(location, size, -product);
        const float place = product - 0.5f;
        first = floorf(place);
        part = (place - first) + lost;
        // What was lost may be what it lies beyond a pixel.
        if (part < 0.0f) first -= 1.0f, part += 1.0f;
        if (part >= 1.0f) first += 1.0f, part -= 1.0f;
        near = first < size && (first >= 0.0f || (first == -1.0f && part > 0.0f));
    }
};

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
            const Along across(to_float(location[0]), static_cast<float>(width));
            const Along down(to_float(location[1]), static_cast<float>(height));
            float sampled[WIDTH] = {};
            if (across.near && down.near) {
                const long long left = static_cast<long long>(across.first), top = static_cast<long long>(down.first);
#pragma unroll
                for (int corner = 0; corner < 4; ++corner) {
                    const long long column = left + (corner & 1), row = top + (corner >> 1);
                    if (column < 0 || column >= width || row < 0 || row >= height) continue;
                    // The sizes come at run time: what they claim past the pixels is not read.
                    const long long pixel = start + row * width + column;
                    if (pixel < 0 || pixel >= pixels) continue;
                    const float share = (corner & 1 ? across.part : 1.0f - across.part) *
                                        (corner >> 1 ? down.part : 1.0f - down.part);
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
