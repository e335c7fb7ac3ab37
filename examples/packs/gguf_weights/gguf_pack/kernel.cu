// y = x @ (levels * scales).T: a thread for each element of y, a row of blocks for each row of x.

#include <cuda_fp16.h>

__global__ void q8_0_linear(
    const float* x, const signed char* levels, const __half* scales, float* y, int columns, int k
) {
    const int column = blockIdx.x * 64 + threadIdx.x;
    if (column >= columns) return;
    const float* row = x + static_cast<long long>(blockIdx.y) * k;
    const signed char* weight = levels + static_cast<long long>(column) * k;
    const __half* scale = scales + static_cast<long long>(column) * (k / 32);
    float sum = 0.0f;
    for (int block = 0; block < k / 32; ++block) {
        float part = 0.0f;
        for (int i = block * 32; i < block * 32 + 32; ++i) part += row[i] * static_cast<float>(weight[i]);
        sum += part * static_cast<float>(scale[block]);
    }
    y[static_cast<long long>(blockIdx.y) * columns + column] = sum;
}
