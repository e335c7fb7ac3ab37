// What kernel.cu computes, on the tensor cores, for several rows of x in 16 bits and groups of a multiple of 32 codes.
//
// A warp makes 16 TILES rows by 32 columns.  It takes the codes from device memory straight into the registers in which
// the tensor cores want them: which of the 32 products of a unit are summed first does not matter, so each lane brings
// 8 neighbouring codes of a column, and 8 neighbouring items of x for them.  The warps of a block share the codes of a
// column out among them and add up what they have at the end.
//
// code - zero is a whole number below 256, which both kinds of 16 bits hold exactly; the scale of a group is applied to
// its sum, in float32.

#include "../include/layerport_mma.h"

using namespace layerport;

namespace {

constexpr int WARPS = 8;
constexpr int UNIT = 32;  // codes that four lanes bring; as in reference.py, as are the rows and columns of a block
constexpr int SIDE = 4;   // eights of columns of a warp
constexpr int ITEMS = 8;  // of a lane and unit

// Eight codes as eight items of T, in words of two: of codes of 4 bits 0 and 4, 1 and 5, 2 and 6, 3 and 7.
template <typename T, int BITS>
struct Codes;

// The number 1024 + code has the code in its last bits.
template <int BITS>
struct Codes<__half, BITS> {
    static __device__ __forceinline__ void unpack(
        const unsigned (&words)[BITS / 4], float zero, unsigned (&values)[4]
    ) {
        const __half2 less = __float2half2_rn(1024.0f + zero);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            unsigned word;
            if constexpr (BITS == 4) {
                word = words[0] >> 4 * i & 0x000f000fu | 0x64006400u;
            } else {
                word = __byte_perm(words[i / 2], 0x64u, i % 2 ? 0x4342u : 0x4140u);
            }
            const __half2 value = __hsub2(*reinterpret_cast<const __half2*>(&word), less);
            values[i] = *reinterpret_cast<const unsigned*>(&value);
        }
    }
};

// So has 128 + code, of 4 bits; it is as exact as a difference in two steps.
template <>
struct Codes<__nv_bfloat16, 4> {
    static __device__ __forceinline__ void unpack(const unsigned (&words)[1], float zero, unsigned (&values)[4]) {
        const __nv_bfloat162 first = __float2bfloat162_rn(128.0f), second = __float2bfloat162_rn(zero);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const unsigned word = words[0] >> 4 * i & 0x000f000fu | 0x43004300u;
            const __nv_bfloat162 code = __hsub2(*reinterpret_cast<const __nv_bfloat162*>(&word), first);
            const __nv_bfloat162 value = __hsub2(code, second);
            values[i] = *reinterpret_cast<const unsigned*>(&value);
        }
    }
};

// A code of 8 bits is too long for that, so it goes through float, where 2^23 + code has it.
template <>
struct Codes<__nv_bfloat16, 8> {
    static __device__ __forceinline__ void unpack(const unsigned (&words)[2], float zero, unsigned (&values)[4]) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            float pair[2];
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                const unsigned code = words[i / 2] >> (i % 2 * 2 + j) * 8 & 0xffu;
                pair[j] = __uint_as_float(0x4b000000u | code) - (8388608.0f + zero);
            }
            const __nv_bfloat162 value = __floats2bfloat162_rn(pair[0], pair[1]);
            values[i] = *reinterpret_cast<const unsigned*>(&value);
        }
    }
};

template <int BITS>
__device__ __forceinline__ void load_words(const unsigned char* from, bool aligned, unsigned (&words)[BITS / 4]) {
    if (aligned && BITS == 4) {
        words[0] = __ldg(reinterpret_cast<const unsigned*>(from));
    } else if (aligned) {
        const uint2 pair = __ldg(reinterpret_cast<const uint2*>(from));
        words[0] = pair.x, words[BITS / 4 - 1] = pair.y;
    } else {
#pragma unroll
        for (int i = 0; i < BITS / 4; ++i) {
            words[i] = from[4 * i] | from[4 * i + 1] << 8 | from[4 * i + 2] << 16 |
                       static_cast<unsigned>(from[4 * i + 3]) << 24;
        }
    }
}

// Eight items of x, in the order in which the codes are.
template <typename T, int BITS>
__device__ __forceinline__ void load_items(const T* from, bool aligned, unsigned (&items)[4]) {
    Pack<T> pack;
    if (aligned) {
        pack = load(reinterpret_cast<const Pack<T>*>(from));
    } else {
#pragma unroll
        for (int i = 0; i < ITEMS; ++i) pack.items[i] = from[i];
    }
    const auto* words = reinterpret_cast<const unsigned*>(&pack);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        items[i] = BITS == 4 ? __byte_perm(words[i / 2], words[i / 2 + 2], i % 2 ? 0x7632u : 0x5410u) : words[i];
    }
}

}  // namespace

template <typename T, typename S, int BITS, int TILES>
__global__ void __launch_bounds__(32 * WARPS, TILES == 1 ? 2 : 1) weight_only_tensor(
    const T* __restrict__ x, const unsigned char* __restrict__ codes, const S* __restrict__ scales,
    const unsigned char* __restrict__ zeros, const T* __restrict__ bias, T* __restrict__ y, int blocks, long long rows,
    int width, int k, int row_bytes, int groups, int group_size
) {
    constexpr int ACROSS = TILES == 1 ? 1 : 2, ALONG = WARPS / ACROSS;  // how the warps of a block lie
    constexpr int COLUMNS = ACROSS * SIDE * 8, ROWS = 16 * TILES;
    constexpr int CHUNK = TILES == 1 && BITS == 4 ? 4 : 2;  // units whose codes are on their way, as registers allow
    __shared__ float result[ROWS][COLUMNS + 8];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    // Blocks that share codes follow each other, so that these are read from device memory once.
    const long long first = static_cast<long long>(blockIdx.x % blocks) * ROWS;
    const int left = static_cast<int>(blockIdx.x / blocks) * COLUMNS, side = warp % ACROSS * SIDE * 8;
    const int along = warp / ACROSS, units = k / UNIT, group_units = group_size / UNIT;
    const bool in_packs = bytes_off(x) == 0, in_words = bytes_off(codes) == 0;
    float totals[TILES][SIDE][4] = {}, sums[TILES][SIDE][4] = {};
    for (int chunk = along * CHUNK; chunk < units; chunk += ALONG * CHUNK) {
        unsigned words[CHUNK][SIDE][BITS / 4] = {};
#pragma unroll
        for (int u = 0; u < CHUNK; ++u) {
#pragma unroll
            for (int n = 0; n < SIDE; ++n) {
                const int column = left + side + n * 8 + g;
                if (column >= width || chunk + u >= units) continue;
                const unsigned char* of_column = codes + static_cast<long long>(column) * row_bytes;
                load_words<BITS>(of_column + ((chunk + u) * UNIT + q * ITEMS) / 8 * BITS, in_words, words[u][n]);
            }
        }
        int group = chunk / group_units, ends = (group + 1) * group_units;
        float zero[SIDE], scale[SIDE][2];
#pragma unroll
        for (int u = 0; u < CHUNK; ++u) {
            const int unit = chunk + u;
            if (unit >= units) break;
            if (unit == ends) ++group, ends += group_units;
            if (u == 0 || unit == ends - group_units) {
#pragma unroll
                for (int n = 0; n < SIDE; ++n) {
                    const int column = left + side + n * 8;
                    const long long at = static_cast<long long>(column + g) * groups + group;
                    const bool given = zeros != nullptr && column + g < width;
                    zero[n] = given ? static_cast<float>(zeros[at]) : static_cast<float>(1 << (BITS - 1));
#pragma unroll
                    for (int i = 0; i < 2; ++i) {
                        const int place = column + 2 * q + i;
                        scale[n][i] =
                            place < width ? to_float(scales[static_cast<long long>(place) * groups + group]) : 0.0f;
                    }
                }
            }
            unsigned items[TILES][2][4] = {};
#pragma unroll
            for (int m = 0; m < TILES; ++m) {
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const long long row = first + m * 16 + half * 8 + g;
                    const T* from = x + row * k + unit * UNIT + q * ITEMS;
                    if (row < rows) load_items<T, BITS>(from, in_packs, items[m][half]);
                }
            }
#pragma unroll
            for (int n = 0; n < SIDE; ++n) {
                unsigned values[4];
                Codes<T, BITS>::unpack(words[u][n], zero[n], values);
#pragma unroll
                for (int s = 0; s < 4; s += 2) {
                    const unsigned b[2] = {values[s], values[s + 1]};
#pragma unroll
                    for (int m = 0; m < TILES; ++m) {
                        const auto& from = items[m];
                        const unsigned a[4] = {from[0][s], from[1][s], from[0][s + 1], from[1][s + 1]};
                        mma<T>(sums[m][n], a, b);
                    }
                }
            }
            if (u < CHUNK - 1 && unit + 1 < ends && unit + 1 < units) continue;
            // The end of a group, or of a piece of it: tensor cores cut off what does not fit a long sum.
#pragma unroll
            for (int m = 0; m < TILES; ++m) {
#pragma unroll
                for (int n = 0; n < SIDE; ++n) {
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        totals[m][n][i] += sums[m][n][i] * scale[n][i % 2];
                        sums[m][n][i] = 0.0f;
                    }
                }
            }
        }
    }
    for (int turn = 0; turn < ALONG; ++turn) {
        if (along == turn) {
#pragma unroll
            for (int m = 0; m < TILES; ++m) {
#pragma unroll
                for (int n = 0; n < SIDE; ++n) {
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        float& to = result[m * 16 + i / 2 * 8 + g][side + n * 8 + 2 * q + i % 2];
                        to = totals[m][n][i] + (turn == 0 ? 0.0f : to);
                    }
                }
            }
        }
        __syncthreads();
    }
    for (int i = threadIdx.x; i < ROWS * COLUMNS; i += 32 * WARPS) {
        const int line = i / COLUMNS, place = i % COLUMNS, column = left + place;
        if (first + line >= rows || column >= width) continue;
        const float added = bias == nullptr ? 0.0f : to_float(bias[column]);
        y[(first + line) * width + column] = from_float<T>(result[line][place] + added);
    }
}
