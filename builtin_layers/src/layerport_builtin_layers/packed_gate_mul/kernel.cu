// activation(gate) * up of the halves of each row of one tensor, computed in fp32; each thread has a pack of 16 bytes of y.

#include "../gated.h"

template <typename ACTIVATION, typename T>
__global__ void __launch_bounds__(256) packed_gate_mul(
    const T* __restrict__ x, T* __restrict__ y, long long count, int width, bool gate_last
) {
    constexpr int WIDTH = 16 / sizeof(T);
    const long long index = (static_cast<long long>(blockIdx.x) * 256 + threadIdx.x) * WIDTH;
    if (index >= count) return;
    const int gate = gate_last ? width : 0, up = gate_last ? 0 : width;
    if ((bytes_off(x) | bytes_off(y)) == 0 && width % WIDTH == 0) {
        const T* from = x + index / width * 2 * width + index % width;
        const Pack<T> gates = load(reinterpret_cast<const Pack<T>*>(from + gate));
        const Pack<T> ups = load(reinterpret_cast<const Pack<T>*>(from + up));
        store(reinterpret_cast<Pack<T>*>(y + index), product_of<ACTIVATION>(gates, ups));
        return;
    }
#pragma unroll 1
    for (long long i = index; i < index + WIDTH && i < count; ++i) {
        const T* from = x + i / width * 2 * width + i % width;
        y[i] = ACTIVATION::product(from[gate], from[up]);
    }
}
