// Products on the tensor cores, of one warp: sums += a b, where a is 16 x 16, b 16 x 8 and sums 16 x 8.
//
// Each lane holds, with g = lane / 4 and q = lane % 4 (two neighbouring 16-bit items in a word, the first one low):
//   a[0]: row g, k 2q and 2q + 1;  a[1]: row g + 8, the same k;  a[2], a[3]: the same rows, k + 8
//   b[0]: column g, k 2q and 2q + 1;  b[1]: the same column, k + 8
//   sums[0], sums[1]: row g, columns 2q and 2q + 1;  sums[2], sums[3]: row g + 8
// (PTX ISA, "Matrix Fragments for mma.m16n8k16".)  T: __half or __nv_bfloat16.  sm_75 has half of it, and none for
// bfloat16; there, and on the CPU, lanes ask each other for what they need.
//
// Any pack may include it, as layerport_kernels.h.

#pragma once

#include "layerport_kernels.h"

namespace layerport {

namespace mma_detail {

template <typename T>
__device__ __forceinline__ float item(unsigned word, int which) {
    const unsigned short bits = static_cast<unsigned short>(which ? word >> 16 : word & 0xffffu);
    return to_float(*reinterpret_cast<const T*>(&bits));
}

template <typename T>
__device__ __forceinline__ void by_lanes(float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    const int lane = (threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % 32;
    const int row = lane / 4 * 4, column = lane % 4 * 8;  // the first lane that holds them
    for (int k = 0; k < 8; ++k) {
        const int from = k % 4, half = k / 4;
        const unsigned upper = __shfl_sync(0xffffffffu, a[2 * half], row + from);
        const unsigned lower = __shfl_sync(0xffffffffu, a[2 * half + 1], row + from);
        const unsigned left = __shfl_sync(0xffffffffu, b[half], column + from);
        const unsigned right = __shfl_sync(0xffffffffu, b[half], column + 4 + from);
        for (int i = 0; i < 2; ++i) {
            sums[0] += item<T>(upper, i) * item<T>(left, i);
            sums[1] += item<T>(upper, i) * item<T>(right, i);
            sums[2] += item<T>(lower, i) * item<T>(left, i);
            sums[3] += item<T>(lower, i) * item<T>(right, i);
        }
    }
}

template <typename T>
struct IsHalf {
    static constexpr bool value = false;
};
template <>
struct IsHalf<__half> {
    static constexpr bool value = true;
};

}  // namespace mma_detail

template <typename T>
__device__ __forceinline__ void mma(float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#if defined(LAYERPORT_HOST)
    mma_detail::by_lanes<T>(sums, a, b);
#elif __CUDA_ARCH__ >= 800
    if constexpr (mma_detail::IsHalf<T>::value) {
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%0, %1, %2, %3};"
            : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1])
        );
    } else {
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%0, %1, %2, %3};"
            : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1])
        );
    }
#else
    if constexpr (mma_detail::IsHalf<T>::value) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            asm volatile(
                "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
                "{%0, %1, %2, %3};"
                : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
                : "r"(a[2 * half]), "r"(a[2 * half + 1]), "r"(b[half])
            );
        }
    } else {
        mma_detail::by_lanes<T>(sums, a, b);
    }
#endif
}

// sums += left right, of a warp of a block with one axis, from lines in shared memory that hold STEP items of k each:
// 16 M lines of `left` from `row` on by 8 N lines of `right` from `column` on.  A line has PITCH packs of 16 bytes; one
// more than STEP items fill keeps the lanes of a warp on different banks.
template <typename T, int STEP, int PITCH, int M, int N>
__device__ __forceinline__ void multiply(
    float (&sums)[M][N][4], const uint4 (*left)[PITCH], const uint4 (*right)[PITCH], int row, int column
) {
    const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const auto word = [](const uint4* line, int index) { return reinterpret_cast<const unsigned*>(line)[index]; };
#pragma unroll
    for (int k = 0; k < STEP / 2; k += 8) {  // in words of two
        unsigned a[M][4], b[N][2];
#pragma unroll
        for (int m = 0; m < M; ++m) {
#pragma unroll
            for (int i = 0; i < 4; ++i) a[m][i] = word(left[row + m * 16 + g + i % 2 * 8], k + q + i / 2 * 4);
        }
#pragma unroll
        for (int n = 0; n < N; ++n) {
#pragma unroll
            for (int i = 0; i < 2; ++i) b[n][i] = word(right[column + n * 8 + g], k + q + i * 4);
        }
#pragma unroll
        for (int m = 0; m < M; ++m) {
#pragma unroll
            for (int n = 0; n < N; ++n) mma<T>(sums[m][n], a[m], b[n]);
        }
    }
}

// totals += sums, which begin again.  Tensor cores cut off what does not fit a sum, so a long one is made in pieces.
template <int M, int N>
__device__ __forceinline__ void add_piece(float (&totals)[M][N][4], float (&sums)[M][N][4]) {
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int n = 0; n < N; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) totals[m][n][i] += sums[m][n][i], sums[m][n][i] = 0.0f;
        }
    }
}

}  // namespace layerport
