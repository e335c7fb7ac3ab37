// Greedy non-maximum suppression by one block, which needs no memory but the output.
//
// First the boxes' indices are written in the order of their scores.  Then the block goes through them in tiles: within
// a tile one bit for each pair says who suppresses whom, one thread follows the bits, and all threads strike out what
// the tile's kept boxes suppress behind it.  A struck index is stored inverted, so negative.  At last the kept ones are
// moved to the front.
//
// The overlap is rounded step by step as the reference is, because a fused product would decide otherwise here and there.

#include "../include/layerport_kernels.h"

using namespace layerport;

namespace {

constexpr int THREADS = 1024, TILE = 64;  // as in reference.py; bits of a mask

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

// Whether the box `other` goes before `one`: NaN is above all numbers, and of equals the first is first.
__device__ __forceinline__ bool goes_before(float other, float one, bool is_earlier) {
    if (other != other || one != one) return other != other && (one == one || is_earlier);
    return other > one || (other == one && is_earlier);
}

}  // namespace

template <typename T>
__global__ void __launch_bounds__(1024) nms(
    const T* __restrict__ boxes, const T* __restrict__ scores, const long long* __restrict__ classes,
    long long* __restrict__ order, long long* __restrict__ kept, int count, float threshold
) {
    __shared__ Box tile[TILE];
    __shared__ long long of[TILE];
    __shared__ unsigned long long hides[TILE], alive;
    __shared__ int before[THREADS / 32 + 1];
    const int thread = threadIdx.x;

    for (int one = thread; one < count; one += THREADS) {
        const float score = to_float(scores[one]);
        int rank = 0;
        for (int other = 0; other < count; ++other) rank += goes_before(to_float(scores[other]), score, other < one);
        order[rank] = one;
    }
    __syncthreads();

    for (int start = 0; start < count; start += TILE) {
        const int size = count - start < TILE ? count - start : TILE;
        const long long entry = thread < size ? order[start + thread] : -1;
        const long long index = entry < 0 ? ~entry : entry;
        if (thread < size) {
            tile[thread].read(boxes + index * 4);
            of[thread] = classes != nullptr ? classes[index] : 0;
        }
        if (thread == 0) alive = 0;
        __syncthreads();
        if (thread < size) {
            unsigned long long mask = 0;
            for (int other = thread + 1; other < size; ++other) {
                if (of[other] == of[thread] && tile[thread].overlaps(tile[other], threshold)) mask |= 1ull << other;
            }
            hides[thread] = mask;
            if (entry >= 0) atomicOr(&alive, 1ull << thread);
        }
        __syncthreads();
        if (thread == 0) {
            unsigned long long left = alive;
            for (int one = 0; one < size; ++one) {
                if (left >> one & 1) left &= ~hides[one];
            }
            alive = left;
        }
        __syncthreads();
        if (entry >= 0 && !(alive >> thread & 1)) order[start + thread] = ~entry;
        for (int behind = start + TILE + thread; behind < count; behind += THREADS) {
            const long long other = order[behind];
            if (other < 0) continue;
            Box box;
            box.read(boxes + other * 4);
            const long long its = classes != nullptr ? classes[other] : 0;
            for (unsigned long long left = alive; left != 0; left &= left - 1) {
                const int one = __ffsll(left) - 1;
                if (of[one] == its && tile[one].overlaps(box, threshold)) {
                    order[behind] = ~other;
                    break;
                }
            }
        }
        __syncthreads();
    }

    int found = 0;
    for (int start = 0; start < count; start += THREADS) {
        const long long entry = start + thread < count ? order[start + thread] : -1;
        const unsigned mask = __ballot_sync(0xffffffffu, entry >= 0);
        if (thread % 32 == 0) before[thread / 32] = __popc(mask);
        __syncthreads();
        if (thread == 0) {
            int total = found;
            for (int warp = 0; warp < THREADS / 32; ++warp) {
                const int own = before[warp];
                before[warp] = total;
                total += own;
            }
            before[THREADS / 32] = total;
        }
        __syncthreads();
        if (entry >= 0) order[before[thread / 32] + __popc(mask & ((1u << thread % 32) - 1))] = entry;
        found = before[THREADS / 32];
        __syncthreads();
    }
    if (thread == 0) *kept = found;
}
