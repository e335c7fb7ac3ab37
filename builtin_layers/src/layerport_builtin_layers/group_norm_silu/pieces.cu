// What kernel.cu computes, for groups that are large for a block: each is cut into pieces, a block has a piece.
//
// The first launch writes the mean of each piece and the sum of the squares around it; the second merges those of a
// group (Chan et al., 1979), each block by itself and all in the same order.  T is the type of x and y, W that of weight
// and bias.

#include "../include/layerport_kernels.h"

using namespace layerport;

namespace {

constexpr int THREADS = 256;
constexpr int ROUND = 8192;  // items that a block keeps in registers, as in reference.py

// A group cut into pieces of whole packs, but for the last.  As reference.py cuts, none is shorter than two packs.
struct Pieces {
    long long count, length;

    __device__ __forceinline__ Pieces(int pieces, long long count)
        : count(count), length((quotient(count - 1, pieces) / 8 + 1) * 8) {}

    __device__ __forceinline__ long long start(int index) const { return index * length; }

    __device__ __forceinline__ int size(int index) const {
        const long long rest = count - start(index);
        return static_cast<int>(rest < length ? rest : length);
    }
};

// The aligned packs of `size` items at `items`, and the fewer than two packs of items before and after them.
template <typename T>
struct Cut {
    static constexpr int WIDTH = 16 / sizeof(T);
    int head, packs, loose;

    __device__ __forceinline__ Cut(const T* items, int size) : head((WIDTH + first_index(items)) % WIDTH) {
        packs = (size - head) / WIDTH;
        loose = size - packs * WIDTH;
    }

    // Where the items are that are in no pack.
    __device__ __forceinline__ int at(int index) const { return index < head ? index : index + packs * WIDTH; }
};

// The packs of a thread from `index` on, the last one again for what lies past it: without a branch around any load, so
// that all are on their way at once.
template <typename T, int PACKS>
__device__ __forceinline__ void bring(Pack<T> (&packs)[PACKS], const Pack<T>* from, int index, int count) {
#pragma unroll
    for (int j = 0; j < PACKS; ++j) packs[j] = load(from + min(index + j * THREADS, count - 1));
}

template <typename T>
__device__ __forceinline__ T activated(T item, float mean, float weight, float bias) {
    const float value = (to_float(item) - mean) * weight + bias;
    // Two units in the last place off, for a third of the instructions; below -87 the result is 0.
    return from_float<T>(__fdividef(value, 1.0f + expf(-value)));
}

}  // namespace

template <typename T>
__global__ void __launch_bounds__(THREADS) group_norm_moments(
    const T* __restrict__ x, float* __restrict__ moments, int pieces, long long count
) {
    constexpr int WIDTH = 16 / sizeof(T), PACKS = ROUND / THREADS / WIDTH;
    __shared__ float partial[33];
    const SumOfBlock sum{partial};
    const Pieces cut_into(pieces, count);
    const int piece = blockIdx.x % pieces;
    const int items = cut_into.size(piece);
    const T* from = x + blockIdx.x / pieces * count + cut_into.start(piece);
    const Cut<T> cut(from, items);
    const auto* aligned = reinterpret_cast<const Pack<T>*>(from + cut.head);
    const bool has_loose = static_cast<int>(threadIdx.x) < cut.loose;
    const float loose = has_loose ? to_float(from[cut.at(threadIdx.x)]) : 0.0f;
    float mean = 0.0f, squares = 0.0f, before = 0.0f;
#pragma unroll 1
    for (int base = 0; base < cut.packs; base += PACKS * THREADS) {
        const int first = base + static_cast<int>(threadIdx.x);
        Pack<T> packs[PACKS];
        bring(packs, aligned, first, cut.packs);
        float values = base == 0 ? loose : 0.0f;
#pragma unroll
        for (int j = 0; j < PACKS; ++j) {
            float of_pack = 0.0f;
#pragma unroll
            for (int k = 0; k < WIDTH; ++k) of_pack += to_float(packs[j].items[k]);
            if (first + j * THREADS < cut.packs) values += of_pack;
            keep_packed(packs[j]);
        }
        const int now = min(PACKS * THREADS, cut.packs - base) * WIDTH + (base == 0 ? cut.loose : 0);
        const float size = static_cast<float>(now), total = before + size;
        const float center = sum(values) / size;
        float more = base == 0 && has_loose ? (loose - center) * (loose - center) : 0.0f;
#pragma unroll
        for (int j = 0; j < PACKS; ++j) {
            float of_pack = 0.0f;
#pragma unroll
            for (int k = 0; k < WIDTH; ++k) {
                const float off = to_float(packs[j].items[k]) - center;
                of_pack += off * off;
            }
            if (first + j * THREADS < cut.packs) more += of_pack;
        }
        const float off = center - mean, part = size / total;
        mean += off * part;
        squares += sum(more) + off * off * part * before;
        before = total;
    }
    if (threadIdx.x == 0) {
        moments[2ll * blockIdx.x] = mean;
        moments[2ll * blockIdx.x + 1] = squares;
    }
}

template <typename T, typename W>
__global__ void __launch_bounds__(THREADS) group_norm_apply(
    const T* __restrict__ x, const float* __restrict__ moments, const W* __restrict__ weight,
    const W* __restrict__ bias, T* __restrict__ y, int groups, int channels, int pixels, int pieces, long long count,
    float eps
) {
    constexpr int WIDTH = 16 / sizeof(T), PACKS = 4;
    __shared__ float partial[33];
    const SumOfBlock sum{partial};
    // The last pieces first: they were read last, and are in L2 where not all of x fits.
    const int block = gridDim.x - 1 - blockIdx.x;
    const int group = block / pieces, piece = block % pieces;
    const Pieces cut_into(pieces, count);
    const long long start = cut_into.start(piece);
    const int items = cut_into.size(piece);
    const T* from = x + group * count + start;
    T* to = y + group * count + start;
    const Cut<T> cut(to, items);
    const auto* packs_of_x = reinterpret_cast<const Pack<T>*>(from + cut.head);
    const bool alike = bytes_off(from) == bytes_off(to);
    Pack<T> packs[PACKS];
    if (alike) bring(packs, packs_of_x, threadIdx.x, cut.packs);  // while the pieces are merged

    const float* told = moments + 2ll * group * pieces;
    float values = 0.0f, squares = 0.0f;
#pragma unroll 1
    for (int i = threadIdx.x; i < pieces; i += THREADS) values += static_cast<float>(cut_into.size(i)) * told[2 * i];
    const float mean = sum(values) / static_cast<float>(count);
#pragma unroll 1
    for (int i = threadIdx.x; i < pieces; i += THREADS) {
        const float off = told[2 * i] - mean;
        squares += told[2 * i + 1] + static_cast<float>(cut_into.size(i)) * off * off;
    }
    const float scale = rsqrtf(sum(squares) / static_cast<float>(count) + eps);

    // The piece begins in this channel, after so many of its pixels.
    const auto first = static_cast<int>(quotient(start, pixels));
    const auto after = static_cast<unsigned>(start - static_cast<long long>(first) * pixels);
    const auto size = static_cast<unsigned>(pixels);
    weight += group % groups * channels + first;
    bias += group % groups * channels + first;
    const auto make = [&](int at) {
        const unsigned channel = (after + at) / size;
        to[at] = activated(from[at], mean, to_float(weight[channel]) * scale, to_float(bias[channel]));
    };
    if (static_cast<int>(threadIdx.x) < cut.loose) make(cut.at(threadIdx.x));
    if (!alike || size < WIDTH) {  // neither is common
#pragma unroll 1
        for (int at = cut.head + threadIdx.x; at < cut.head + cut.packs * WIDTH; at += THREADS) make(at);
        return;
    }
#pragma unroll 1
    for (int base = threadIdx.x; base < cut.packs; base += PACKS * THREADS) {
        if (base >= PACKS * THREADS) bring(packs, packs_of_x, base, cut.packs);
#pragma unroll
        for (int j = 0; j < PACKS; ++j) {
            const int index = base + j * THREADS;
            if (index >= cut.packs) break;
            const unsigned place = after + cut.head + index * WIDTH;
            const unsigned channel = place / size, rest = size - place % size, next = channel + (rest < WIDTH);
            const float w[] = {to_float(weight[channel]) * scale, to_float(weight[next]) * scale};
            const float b[] = {to_float(bias[channel]), to_float(bias[next])};
#pragma unroll
            for (int k = 0; k < WIDTH; ++k) {
                T& item = packs[j].items[k];
                item = activated(item, mean, k < rest ? w[0] : w[1], k < rest ? b[0] : b[1]);
            }
            store(reinterpret_cast<Pack<T>*>(to + cut.head) + index, packs[j]);
        }
    }
}
