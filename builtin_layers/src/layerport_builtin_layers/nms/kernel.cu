// Greedy non-maximum suppression in three launches, as torchvision's: order, masks of overlaps, and who is left.
//
// `nms_order` counts for each box how many go before it.  `nms_masks` compares tiles of 64 boxes in that order, one bit
// for each pair.  `nms_walk`, one block, goes through the tiles: it settles which boxes of a tile are kept, and strikes
// out what those hide behind it.
//
// The overlap is rounded step by step as the reference is: a fused product would decide otherwise here and there.

#include "../include/layerport_kernels.h"

using namespace layerport;

namespace {

using Mask = unsigned long long;

// All as in reference.py.
constexpr int TILE = 64;  // bits of a mask
constexpr int OWN = 4;    // boxes whose rank a warp counts at once
constexpr int WARPS = 8;  // of a block of `nms_order` and of `nms_masks`
constexpr int WALKERS = 1024;

struct Box {
    float left, top, right, bottom, area;

    template <typename T>
    __device__ __forceinline__ void read(const T* from) {
        left = to_float(from[0]), top = to_float(from[1]), right = to_float(from[2]), bottom = to_float(from[3]);
        area = __fmul_rn(__fsub_rn(right, left), __fsub_rn(bottom, top));
    }

    __device__ __forceinline__ bool overlaps(const Box& other, float threshold) const {
        const float width = fmaxf(__fsub_rn(fminf(right, other.right), fmaxf(left, other.left)), 0.0f);
        const float height = fmaxf(__fsub_rn(fminf(bottom, other.bottom), fmaxf(top, other.top)), 0.0f);
        const float shared = __fmul_rn(width, height);
        return __fdiv_rn(shared, __fsub_rn(__fadd_rn(area, other.area), shared)) > threshold;
    }
};

// Greater for the score that goes first: NaN is above all numbers, and both zeros are equal.
__device__ __forceinline__ unsigned key_of(float score) {
    if (score != score) return 0xffffffffu;
    const unsigned bits = score == 0.0f ? 0u : __float_as_uint(score);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ Mask bit(int place) { return 1ull << place; }

}  // namespace

template <typename T>
__global__ void __launch_bounds__(32 * WARPS) nms_order(
    const T* __restrict__ scores, int* __restrict__ order, int count
) {
    const int lane = threadIdx.x % 32;
    const int first = (static_cast<int>(blockIdx.x) * WARPS + static_cast<int>(threadIdx.x) / 32) * OWN;
    unsigned own[OWN];
    int rank[OWN] = {};
#pragma unroll
    for (int i = 0; i < OWN; ++i) own[i] = first + i < count ? key_of(to_float(scores[first + i])) : 0;
    for (int other = lane; other < count; other += 32) {
        const unsigned its = key_of(to_float(scores[other]));
#pragma unroll
        for (int i = 0; i < OWN; ++i) rank[i] += its > own[i] || (its == own[i] && other < first + i);
    }
#pragma unroll
    for (int i = 0; i < OWN; ++i) {
        for (int offset = 16; offset > 0; offset /= 2) rank[i] += __shfl_xor_sync(0xffffffffu, rank[i], offset);
        if (lane == 0 && first + i < count) order[rank[i]] = first + i;
    }
}

// hides: for each box in its order, and each tile from its own on, whom it hides there; in its own tile who hides it.
template <typename T>
__global__ void __launch_bounds__(32 * WARPS) nms_masks(
    const T* __restrict__ boxes, const long long* __restrict__ classes, const int* __restrict__ order,
    Mask* __restrict__ hides, int count, int tiles, float threshold
) {
    __shared__ Box mine[TILE];
    __shared__ long long of_mine[TILE];
    const int behind = blockIdx.x, tile = blockIdx.y;
    if (behind < tile) return;
    const int start = tile * TILE, size = count - start < TILE ? count - start : TILE;
    if (static_cast<int>(threadIdx.x) < size) {
        const long long index = order[start + threadIdx.x];
        mine[threadIdx.x].read(boxes + index * 4);
        of_mine[threadIdx.x] = classes != nullptr ? classes[index] : 0;
    }
    const int lane = threadIdx.x % 32;
    Box theirs[2] = {};
    long long of_theirs[2] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int place = behind * TILE + half * 32 + lane;
        if (place >= count) continue;
        const long long index = order[place];
        theirs[half].read(boxes + index * 4);
        of_theirs[half] = classes != nullptr ? classes[index] : 0;
    }
    __syncthreads();
    for (int row = threadIdx.x / 32; row < size; row += WARPS) {
        const Box one = mine[row];
        const long long its = of_mine[row];
        unsigned found[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int column = half * 32 + lane;
            const bool asked = behind == tile ? column < row : behind * TILE + column < count;
            const bool hidden = asked && of_theirs[half] == its && one.overlaps(theirs[half], threshold);
            found[half] = __ballot_sync(0xffffffffu, hidden);
        }
        if (lane == 0) {
            hides[static_cast<long long>(start + row) * tiles + behind] = static_cast<Mask>(found[1]) << 32 | found[0];
        }
    }
}

__global__ void __launch_bounds__(WALKERS) nms_walk(
    const Mask* __restrict__ hides, const int* __restrict__ order, long long* __restrict__ output,
    long long* __restrict__ kept, int count, int tiles
) {
    extern __shared__ Mask struck[];  // of each tile
    __shared__ Mask chosen;
    const int thread = threadIdx.x, lane = thread % 32;
    for (int tile = thread; tile < tiles; tile += WALKERS) struck[tile] = 0;
    __syncthreads();
    // Who hides box `lane` and box `lane` + 32 of a tile; the next ones are loaded while a tile is settled.
    const auto hiders = [&](int tile, int half) -> Mask {
        const int place = tile * TILE + half * 32 + lane;
        return place < count ? hides[static_cast<long long>(place) * tiles + tile] : 0;
    };
    Mask low = thread < 32 ? hiders(0, 0) : 0, high = thread < 32 ? hiders(0, 1) : 0;
    int found = 0;
    for (int tile = 0; tile < tiles; ++tile) {
        const int start = tile * TILE;
        if (thread < 32) {
            const Mask own_low = low, own_high = high;
            low = hiders(tile + 1, 0), high = hiders(tile + 1, 1);
            const Mask within = count - start < TILE ? bit(count - start) - 1 : ~0ull;
            const Mask alive = ~struck[tile] & within;
            // A box is kept if no kept box hides it.  Asked of all at once, again and again: after n rounds the first n
            // are right and stay so, and most tiles take few.
            Mask now = alive, before;
            do {
                before = now;
                const bool first = alive & bit(lane) && !(own_low & before);
                const bool second = alive & bit(lane + 32) && !(own_high & before);
                now = __ballot_sync(0xffffffffu, first);
                now |= static_cast<Mask>(__ballot_sync(0xffffffffu, second)) << 32;
            } while (now != before);
            if (lane == 0) chosen = now;
        }
        __syncthreads();
        const Mask left = chosen;
        if (thread < TILE && left & bit(thread)) {
            output[found + __popcll(left & (bit(thread) - 1))] = order[start + thread];
        }
        found += __popcll(left);
        for (int row = thread / 32; row < TILE; row += WALKERS / 32) {
            if (!(left & bit(row))) continue;
            const Mask* of_row = hides + static_cast<long long>(start + row) * tiles;
            for (int behind = tile + 1 + lane; behind < tiles; behind += 32) {
                if (const Mask mask = of_row[behind]) atomicOr(&struck[behind], mask);
            }
        }
        __syncthreads();
    }
    if (thread == 0) *kept = found;
}
