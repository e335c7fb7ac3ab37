// y = x @ ((codes - zeros) * scales).T + bias, summed in fp32, from packed codes.
//
// A warp has one column of the result, which is a row of the codes, for ROWS rows of x at once: so the codes of up to ROWS
// rows are read once from device memory, 16 bytes for each lane and load; more rows read them again, from L2.

#include "../include/layerport_kernels.h"

using namespace layerport;

namespace {

constexpr int PIECE = 8;  // codes that are taken apart together, as in convert.py: all of one group

// Eight codes as floats.  The number 2^23 + code has the code in its last bits, so none is converted.
template <int BITS>
__device__ __forceinline__ void unpack(const unsigned* words, int piece, float zero, float (&values)[PIECE]) {
    constexpr int OF_WORD = 32 / BITS;
#pragma unroll
    for (int k = 0; k < PIECE; ++k) {
        const unsigned word = words[(piece * PIECE + k) / OF_WORD];
        const unsigned code = word >> ((piece * PIECE + k) % OF_WORD * BITS) & ((1u << BITS) - 1u);
        values[k] = __uint_as_float(0x4b000000u | code) - (8388608.0f + zero);
    }
}

__device__ __forceinline__ Pack<unsigned> load_codes(const unsigned char* from) {
    if (bytes_off(from) == 0) return load(reinterpret_cast<const Pack<unsigned>*>(from));
    Pack<unsigned> result;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        result.items[i] = from[4 * i] | from[4 * i + 1] << 8 | from[4 * i + 2] << 16 |
                          static_cast<unsigned>(from[4 * i + 3]) << 24;
    }
    return result;
}

}  // namespace

template <typename T, typename S, int BITS, int ROWS>
__global__ void __launch_bounds__(256, ROWS == 1 ? 4 : 3) weight_only_linear(
    const T* __restrict__ x, const unsigned char* __restrict__ codes, const S* __restrict__ scales,
    const unsigned char* __restrict__ zeros, const T* __restrict__ bias, T* __restrict__ y, int blocks, long long rows,
    int width, int k, int row_bytes, int groups, int group_size
) {
    constexpr int OF_LOAD = 16 * 8 / BITS;
    const int column = static_cast<int>(blockIdx.x % blocks) * blockDim.y + threadIdx.y;
    if (column >= width) return;
    const long long first = static_cast<long long>(blockIdx.x / blocks) * ROWS;
    const int count = rows - first < ROWS ? static_cast<int>(rows - first) : ROWS;
    const T* from = x + first * k;
    const unsigned char* of_column = codes + static_cast<long long>(column) * row_bytes;
    const long long start = static_cast<long long>(column) * groups;
    const int group_pieces = (group_size + PIECE - 1) / PIECE;
    const int pieces = groups * group_pieces;
    const bool aligned = bytes_off(x) == 0 && group_size % PIECE == 0;
    float sums[ROWS] = {};
    for (int base = threadIdx.x; base * (OF_LOAD / PIECE) < pieces; base += 32) {
        const Pack<unsigned> loaded = load_codes(of_column + base * 16);
#pragma unroll
        for (int i = 0; i < OF_LOAD / PIECE; ++i) {
            const int piece = base * (OF_LOAD / PIECE) + i;
            if (piece >= pieces) break;
            const int group = piece / group_pieces;
            const int within = (piece - group * group_pieces) * PIECE;
            const float scale = to_float(scales[start + group]);
            const float zero =
                zeros == nullptr ? static_cast<float>(1 << (BITS - 1)) : static_cast<float>(zeros[start + group]);
            float values[PIECE];
            unpack<BITS>(loaded.items, i, zero, values);
            const T* items = from + static_cast<long long>(group) * group_size + within;
#pragma unroll
            for (int r = 0; r < ROWS; ++r, items += k) {
                if (r >= count) break;
                float sum = 0.0f;
                if (aligned) {
#pragma unroll
                    for (int p = 0; p < PIECE * static_cast<int>(sizeof(T)) / 16; ++p) {
                        const Pack<T> pack = load(reinterpret_cast<const Pack<T>*>(items) + p);
#pragma unroll
                        for (int j = 0; j < 16 / static_cast<int>(sizeof(T)); ++j) {
                            sum += to_float(pack.items[j]) * values[p * (16 / sizeof(T)) + j];
                        }
                    }
                } else {
#pragma unroll
                    for (int j = 0; j < PIECE; ++j) {
                        if (within + j < group_size) sum += to_float(items[j]) * values[j];
                    }
                }
                sums[r] += sum * scale;
            }
        }
    }
    const float added = bias == nullptr ? 0.0f : to_float(bias[column]);
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        const float sum = sum_lanes(sums[r], 32);
        if (r < count && threadIdx.x == 0) y[(first + r) * width + column] = from_float<T>(sum + added);
    }
}
