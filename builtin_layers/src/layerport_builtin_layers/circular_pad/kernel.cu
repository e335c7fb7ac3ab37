// Each thread copies one element of y, from where it lies in x once its row and column are wrapped round.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

template <typename T>
__global__ void circular_pad(
    const T* x, T* y, long long count, int height, int width, int y_height, int y_width, int left, int top
) {
    const long long index = blockIdx.x * 256ll + threadIdx.x;
    if (index >= count) return;
    const int column = static_cast<int>(index % y_width) - left;
    const int row = static_cast<int>(index / y_width % y_height) - top;
    const long long plane = index / y_width / y_height;
    // The remainder of a negative number is negative or 0.
    const int from_column = column % width + (column % width < 0 ? width : 0);
    const int from_row = row % height + (row % height < 0 ? height : 0);
    y[index] = x[(plane * height + from_row) * width + from_column];
}
