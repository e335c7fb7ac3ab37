// cap * tanh(x / cap), computed in fp32; a thread for each element.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

template <typename T>
__global__ void softcap(const T* x, T* y, long long count, float cap) {
    const long long i = blockIdx.x * 256ll + threadIdx.x;
    if (i < count) y[i] = static_cast<T>(cap * tanhf(static_cast<float>(x[i]) / cap));
}
