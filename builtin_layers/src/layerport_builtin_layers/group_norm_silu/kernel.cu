// silu((x - mean) * rsqrt(var + eps) * weight + bias) of groups of channels, which lie together where channels come first.
//
// A block has a group of one image.  x is read three times, for the mean, for the squares around it and for the result; a
// group that fits into L2 comes from device memory once.  T is the type of x and y, W that of weight and bias.

#include "../include/layerport_kernels.h"

using namespace layerport;

namespace {

template <typename T, typename Use>
__device__ __forceinline__ void each_pack(const T* x, int first, long long count, bool shifted, Use use) {
    constexpr int WIDTH = 16 / sizeof(T);
#pragma unroll 1
    for (long long i = first + static_cast<int>(threadIdx.x) * WIDTH; i < count; i += blockDim.x * WIDTH) {
        use(i, shifted ? load_at<true>(x, i, count) : load_at<false>(x, i, count));
    }
}

}  // namespace

template <typename T, typename W>
__global__ void __launch_bounds__(512) group_norm_silu(
    const T* __restrict__ x, const W* __restrict__ weight, const W* __restrict__ bias, T* __restrict__ y, int groups,
    int channels, int pixels, long long count, float eps
) {
    constexpr int WIDTH = 16 / sizeof(T);
    __shared__ float partial[33];
    const SumOfBlock sum{partial};
    const T* from = x + blockIdx.x * count;
    T* to = y + blockIdx.x * count;
    const bool shifted = (bytes_off(from) | bytes_off(to)) != 0;
    const int first = shifted ? first_index(to) : 0;

    float values = 0.0f;
    each_pack(from, first, count, shifted, [&](long long, const Pack<T>& pack) {
#pragma unroll
        for (int k = 0; k < WIDTH; ++k) values += to_float(pack.items[k]);
    });
    const float mean = sum(values) / static_cast<float>(count);
    float squares = 0.0f;
    each_pack(from, first, count, shifted, [&](long long index, const Pack<T>& pack) {
#pragma unroll
        for (int k = 0; k < WIDTH; ++k) {
            // The zeros that stand for what lies outside are as far from the mean as any.
            const bool counts = index + k >= 0 && index + k < count;
            const float off = counts ? to_float(pack.items[k]) - mean : 0.0f;
            squares += off * off;
        }
    });
    const float scale = rsqrtf(sum(squares) / static_cast<float>(count) + eps);
    const int start = static_cast<int>(blockIdx.x % groups) * channels;
    each_pack(from, first, count, shifted, [&](long long index, Pack<T> pack) {
        int channel = index < 0 ? 0 : static_cast<int>(index / pixels);
        long long next = static_cast<long long>(channel + 1) * pixels;
#pragma unroll
        for (int k = 0; k < WIDTH; ++k) {
            if (index + k < 0 || index + k >= count) continue;
            while (index + k >= next) ++channel, next += pixels;
            const float w = to_float(weight[start + channel]) * scale;
            const float value = (to_float(pack.items[k]) - mean) * w + to_float(bias[start + channel]);
            pack.items[k] = from_float<T>(value / (1.0f + expf(-value)));
        }
        store_at(to, index, count, pack);
    });
}
