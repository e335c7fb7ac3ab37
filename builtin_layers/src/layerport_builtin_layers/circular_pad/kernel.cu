// y, taken flat, is made in packs of 16 bytes.  A pack within a row of y and of x lies together in x, at any address, and
// is read in packs too.  The others cross an edge of x or the end of a row and are gathered one by one: a block notes
// them first, so that few warps gather, and not the one lane with an edge that almost every warp has.

#include "../include/layerport_kernels.h"

using namespace layerport;

namespace {

constexpr int THREADS = 256, PACKS = 2 * THREADS;  // of a block; as in reference.py

// Where `at` lies once it is wrapped round; pads up to the size itself need no remainder.
__device__ __forceinline__ int wrapped(int at, int size) {
    if (at < 0) {
        at += size;
    } else if (at >= size) {
        at -= size;
    }
    if (at < 0 || at >= size) {
        at %= size;
        if (at < 0) at += size;
    }
    return at;
}

struct Sizes {
    int height, width, y_height, y_width, left, top;
};

// An element of y, and where it lies in x.
struct Place {
    long long plane;
    int row, column, from_row, from_column;

    __device__ __forceinline__ Place(long long index, const Sizes& sizes) {
        const long long rows = quotient(index, sizes.y_width);
        plane = quotient(rows, sizes.y_height);
        row = static_cast<int>(rows - plane * sizes.y_height);
        column = static_cast<int>(index - rows * sizes.y_width);
        from_row = wrapped(row - sizes.top, sizes.height);
        from_column = wrapped(column - sizes.left, sizes.width);
    }

    __device__ __forceinline__ long long in_x(const Sizes& sizes) const {
        return (plane * sizes.height + from_row) * sizes.width + from_column;
    }
};

// The elements of y from `index` on.  All addresses first: then the loads wait for memory together.
template <typename T>
__device__ __forceinline__ Pack<T> gathered(const T* x, long long index, long long count, const Sizes& sizes) {
    constexpr int WIDTH = 16 / sizeof(T);
    const int first_column = wrapped(-sizes.left, sizes.width), first_row = wrapped(-sizes.top, sizes.height);
    Place place(index < 0 ? 0 : index, sizes);
    const T* from[WIDTH];
#pragma unroll
    for (int k = 0; k < WIDTH; ++k) {
        from[k] = x;
        if (index + k < 0 || index + k >= count) continue;
        from[k] += place.in_x(sizes);
        if (++place.from_column == sizes.width) place.from_column = 0;
        if (++place.column < sizes.y_width) continue;
        place.column = 0;
        place.from_column = first_column;
        if (++place.from_row == sizes.height) place.from_row = 0;
        if (++place.row < sizes.y_height) continue;
        place.row = 0;
        place.from_row = first_row;
        ++place.plane;
    }
    Pack<T> pack;
#pragma unroll
    for (int k = 0; k < WIDTH; ++k) pack.items[k] = *from[k];
    return pack;
}

}  // namespace

template <typename T>
__global__ void __launch_bounds__(THREADS, 6) circular_pad(
    const T* __restrict__ x, T* __restrict__ y, long long x_count, long long count, int height, int width, int y_height,
    int y_width, int left, int top
) {
    constexpr int WIDTH = 16 / sizeof(T);
    __shared__ short noted[PACKS];
    __shared__ int many;
    const Sizes sizes{height, width, y_height, y_width, left, top};
    const long long first = static_cast<long long>(blockIdx.x) * PACKS * WIDTH + first_index(y);
    if (threadIdx.x == 0) many = 0;
    __syncthreads();
#pragma unroll 1
    for (int pack = threadIdx.x; pack < PACKS; pack += THREADS) {
        const long long index = first + pack * WIDTH;
        const long long start = index < 0 ? 0 : index;
        if (start >= count) break;
        const Place place(start, sizes);
        if (index >= 0 && y_width - place.column >= WIDTH && width - place.from_column >= WIDTH) {
            store(reinterpret_cast<Pack<T>*>(y + index), load_at<true>(x, place.in_x(sizes), x_count));
        } else {
            noted[atomicAdd(&many, 1)] = static_cast<short>(pack);
        }
    }
    __syncthreads();
#pragma unroll 1
    for (int i = threadIdx.x; i < many; i += THREADS) {
        const long long index = first + noted[i] * WIDTH;
        store_at(y, index, count, gathered(x, index, count, sizes));
    }
}
