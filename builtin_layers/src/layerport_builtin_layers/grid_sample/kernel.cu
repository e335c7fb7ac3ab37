// A map read between its pixels at the places of a grid, summed in fp32.
//
// Each thread has one place and CHANNELS channels, which are read at the same pixels.  Neighbouring threads have
// neighbouring places, so that what they read lies together where the grid is smooth, and what they write always.

#include "../include/layerport_kernels.h"

using namespace layerport;

namespace {

constexpr int CHANNELS = 4;  // as in reference.py

enum Padding { ZEROS, BORDER, REFLECTION };  // as in reference.py

__device__ __forceinline__ long long clipped(long long pixel, int size) {
    return pixel < 0 ? 0 : pixel < size ? pixel : size - 1;
}

// Where a coordinate lies along one axis: after which pixel, and how far.  The product and the sum that bring it to
// pixels are rounded relative to the size of the map; what they lost, which is known exactly, is added to the part.
struct Along {
    long long first;
    float part;
    bool finite;

    __device__ __forceinline__ Along(float coordinate, int size, bool align) {
        const float scale = 0.5f * static_cast<float>(align ? size - 1 : size);
        const float middle = 0.5f * static_cast<float>(size - 1);
        const float product = __fmul_rn(coordinate, scale), lost = __fmaf_rn(coordinate, scale, -product);
        const float place = product + middle, added = place - product;
        const float lost_too = (product - (place - added)) + (middle - added);
        finite = place - place == 0.0f;
        const float whole = floorf(place);
        first = static_cast<long long>(fminf(fmaxf(whole, -1e12f), 1e12f));  // NaN lies before the map
        part = 0.0f;
        if (fabsf(place) < 4194304.0f) {  // beyond, float32 has no part
            part = (place - whole) + (lost + lost_too);
            // What was lost may be what it lies beyond a pixel.
            if (part < 0.0f) --first, part += 1.0f;
            if (part >= 1.0f) ++first, part -= 1.0f;
        }
    }

    // Folded and clipped, as the padding says; what zeros padding reads may still lie outside.
    __device__ __forceinline__ void pad(int size, Padding padding, bool align) {
        if (padding == ZEROS) return;
        if (padding == REFLECTION) {
            if (!finite) first = 0;
            // Mirrors lie at -0.5 and size - 0.5, with align at 0 and size - 1; between them nothing is moved.
            const long long span = align ? size - 1 : size, shift = align ? 0 : 1;
            if (first < 0 || first >= size - 1) {
                first = span > 0 ? first % (2 * span) : 0;
                if (first < 0) first += 2 * span;
                if (first + shift > span || (first + shift == span && (align || part > 0.5f))) {
                    first = 2 * span - shift - first;
                    if (part > 0.0f) --first, part = 1.0f - part;
                }
            }
        }
        if (first < 0 || first >= size - 1) first = clipped(first, size), part = 0.0f;
    }

    // Which pixel is nearest; halves go to the even one.
    __device__ __forceinline__ long long nearest() const {
        return first + (part > 0.5f || (part == 0.5f && (first & 1)) ? 1 : 0);
    }
};

// The pixel of the map that one outside of it stands for; -1 for none.
__device__ __forceinline__ long long padded(long long pixel, int size, Padding padding, bool align) {
    if (pixel >= 0 && pixel < size) return pixel;
    if (padding == ZEROS) return -1;
    if (padding == REFLECTION) {
        const long long span = align ? size - 1 : size, shift = align ? 0 : 1;
        pixel = span > 0 ? pixel % (2 * span) : 0;
        if (pixel < 0) pixel += 2 * span;
        if (pixel >= size) pixel = 2 * span - shift - pixel;
    }
    return clipped(pixel, size);
}

// The weights of four pixels, `part` after the second one.
struct Cubic {
    float weight[4];

    __device__ __forceinline__ explicit Cubic(float part) {
        const float after = 1.0f - part;
        weight[0] = outer(1.0f + part);
        weight[1] = inner(part);
        weight[2] = inner(after);
        weight[3] = outer(1.0f + after);
    }

    static constexpr float A = -0.75f;
    static __device__ __forceinline__ float inner(float x) { return ((A + 2.0f) * x - (A + 3.0f)) * x * x + 1.0f; }
    static __device__ __forceinline__ float outer(float x) { return ((A * x - 5.0f * A) * x + 8.0f * A) * x - 4.0f * A; }
};

// Of a thread its place, and where its channels begin and end.
struct Thread {
    long long index, image, point;

    __device__ __forceinline__ explicit Thread(long long points) {
        index = blockIdx.x * 256ll + threadIdx.x;
        image = points <= 0x7fffffff ? quotient(index, static_cast<int>(points)) : index / points;
        point = index - image * points;
    }
};

// For each of the thread's channels y = read(the map of that channel); AT_ONCE are read before the first is written.
template <int AT_ONCE, typename T, typename Read>
__device__ __forceinline__ void each_channel(
    const T* x, T* y, const Thread& thread, long long points, long long pixels, int channels, Read read
) {
    for (long long group = blockIdx.y * static_cast<long long>(CHANNELS); group < channels;
         group += gridDim.y * static_cast<long long>(CHANNELS)) {
        const long long end = group + CHANNELS < channels ? group + CHANNELS : channels;
#pragma unroll 1
        for (long long channel = group; channel < end; channel += AT_ONCE) {
            const long long map = thread.image * channels + channel;
            float values[AT_ONCE];
#pragma unroll
            for (int c = 0; c < AT_ONCE; ++c) values[c] = channel + c < end ? read(x + (map + c) * pixels) : 0.0f;
#pragma unroll
            for (int c = 0; c < AT_ONCE; ++c) {
                if (channel + c < end) y[(map + c) * points + thread.point] = from_float<T>(values[c]);
            }
        }
    }
}

// The coordinates of a place along width, height and depth; a map of two dimensions has a depth of one pixel.
template <int DIMS, typename G>
struct Coordinates {
    float values[3] = {};

    __device__ __forceinline__ explicit Coordinates(const G* at) {
#pragma unroll
        for (int axis = 0; axis < DIMS; ++axis) values[axis] = to_float(at[axis]);
    }
};

}  // namespace

// T is the type of x and y, G that of the grid (T or float); count places in all, `points` of them of each image.
template <typename T, typename G, int DIMS>
__global__ void __launch_bounds__(256) bilinear(
    const T* __restrict__ x, const G* __restrict__ grid, T* __restrict__ y, long long count, long long points,
    int channels, int depth, int height, int width, int padding, bool align
) {
    const Thread thread(points);
    if (thread.index >= count) return;
    const Coordinates<DIMS, G> at(grid + thread.index * DIMS);
    const int sizes[3] = {width, height, depth};
    const long long steps[3] = {1, width, 1ll * height * width};
    long long offsets[DIMS][2];
    float shares[DIMS][2];
    bool inside[DIMS][2];
    bool finite = true;
#pragma unroll
    for (int axis = 0; axis < DIMS; ++axis) {
        Along along(at.values[axis], sizes[axis], align);
        along.pad(sizes[axis], static_cast<Padding>(padding), align);
        finite = finite && along.finite;
#pragma unroll
        for (int side = 0; side < 2; ++side) {
            const long long pixel = along.first + side;
            inside[axis][side] = pixel >= 0 && pixel < sizes[axis];
            offsets[axis][side] = pixel * steps[axis];
            shares[axis][side] = side ? along.part : 1.0f - along.part;
        }
    }
    const bool reads = finite || padding != ZEROS;
    each_channel<DIMS == 2 ? CHANNELS : 2>(x, y, thread, points, steps[2] * depth, channels, [&](const T* map) {
        float sum = 0.0f;
#pragma unroll
        for (int corner = 0; corner < 1 << DIMS; ++corner) {
            long long offset = 0;
            float share = 1.0f;
            bool is_inside = reads;
#pragma unroll
            for (int axis = 0; axis < DIMS; ++axis) {
                const int side = corner >> axis & 1;
                offset += offsets[axis][side];
                share *= shares[axis][side];
                is_inside = is_inside && inside[axis][side];
            }
            if (is_inside) sum += share * to_float(map[offset]);
        }
        return sum;
    });
}

template <typename T, typename G, int DIMS>
__global__ void __launch_bounds__(256) nearest(
    const T* __restrict__ x, const G* __restrict__ grid, T* __restrict__ y, long long count, long long points,
    int channels, int depth, int height, int width, int padding, bool align
) {
    const Thread thread(points);
    if (thread.index >= count) return;
    const Coordinates<DIMS, G> at(grid + thread.index * DIMS);
    const int sizes[3] = {width, height, depth};
    const long long steps[3] = {1, width, 1ll * height * width};
    long long offset = 0;
    bool is_inside = true;
#pragma unroll
    for (int axis = 0; axis < DIMS; ++axis) {
        Along along(at.values[axis], sizes[axis], align);
        along.pad(sizes[axis], static_cast<Padding>(padding), align);
        const long long pixel = along.nearest();
        is_inside = is_inside && pixel >= 0 && pixel < sizes[axis] && (along.finite || padding != ZEROS);
        offset += pixel * steps[axis];
    }
    each_channel<CHANNELS>(x, y, thread, points, steps[2] * depth, channels, [&](const T* map) {
        return is_inside ? to_float(map[offset]) : 0.0f;
    });
}

template <typename T, typename G, int DIMS>
__global__ void __launch_bounds__(256) bicubic(
    const T* __restrict__ x, const G* __restrict__ grid, T* __restrict__ y, long long count, long long points,
    int channels, int depth, int height, int width, int padding, bool align
) {
    static_assert(DIMS == 2, "bicubic is of two dimensions");
    const Thread thread(points);
    if (thread.index >= count) return;
    const Coordinates<DIMS, G> at(grid + thread.index * DIMS);
    const Along across(at.values[0], width, align), down(at.values[1], height, align);
    const Cubic of_columns(across.part), of_rows(down.part);
    long long columns[4], rows[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        columns[i] = padded(across.first + i - 1, width, static_cast<Padding>(padding), align);
        rows[i] = padded(down.first + i - 1, height, static_cast<Padding>(padding), align);
    }
    // Zero, or NaN where a coordinate is not finite.
    const float nothing = (at.values[0] - at.values[0]) + (at.values[1] - at.values[1]);
    each_channel<1>(x, y, thread, points, 1ll * depth * height * width, channels, [&](const T* map) {
        float sum = nothing;
#pragma unroll
        for (int row = 0; row < 4; ++row) {
            if (rows[row] < 0) continue;
            const T* line = map + rows[row] * width;
            float part = 0.0f;
#pragma unroll
            for (int column = 0; column < 4; ++column) {
                if (columns[column] >= 0) part += of_columns.weight[column] * to_float(line[columns[column]]);
            }
            sum += of_rows.weight[row] * part;
        }
        return sum;
    });
}
