// The features of pillars written into a map, without a memory for who lies where.
//
// Each block has CELLS neighbouring cells of one sample.  It goes through the places of all pillars, which stay in L2,
// and keeps the last pillar of each cell in shared memory; then it writes its cells channel by channel, zeros too, so
// that the map is written once and in whole lines.

#include "../include/layerport_kernels.h"

using namespace layerport;

namespace {

constexpr int CELLS = 512, THREADS = 256;  // as in reference.py

}  // namespace

// T is the type of features and y, I that of the places.
template <typename T, typename I>
__global__ void __launch_bounds__(256) scatter_pillars(
    const T* __restrict__ features, const I* __restrict__ places, T* __restrict__ y, int pillars, int channels,
    int height, int width
) {
    __shared__ int last[CELLS];
    const long long cells = 1ll * height * width, first = 1ll * blockIdx.x * CELLS;
    for (int i = threadIdx.x; i < CELLS; i += THREADS) last[i] = -1;
    __syncthreads();
    for (int pillar = threadIdx.x; pillar < pillars; pillar += THREADS) {
        const I* place = places + pillar * 4ll;
        const long long row = place[2], column = place[3];
        if (place[0] != static_cast<I>(blockIdx.y) || row < 0 || row >= height || column < 0 || column >= width) continue;
        const long long cell = row * width + column - first;
        if (cell >= 0 && cell < CELLS) atomicMax(&last[cell], pillar);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < CELLS; i += THREADS) {
        if (first + i >= cells) break;
        const int pillar = last[i];
        const T* from = features + 1ll * pillar * channels;
        T* to = y + 1ll * blockIdx.y * channels * cells + first + i;
        for (int channel = 0; channel < channels; ++channel) {
            to[channel * cells] = pillar < 0 ? from_float<T>(0.0f) : from[channel];
        }
    }
}
