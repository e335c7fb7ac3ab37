// Where a tap of a deformable convolution lies; of kernel.cu and tensor.cu.

#pragma once

namespace layerport {

// Where a tap lies along one axis: after which pixel, and how far.  Only the offset is split into whole and part: its
// sum with `base` would be rounded relative to the size of the image.
struct Along {
    int first;
    float part;
    bool near;  // false for what is not finite too

    __device__ __forceinline__ Along(int base, float offset, int size) {
        float whole = floorf(offset);
        part = offset - whole;
        if (part >= 1.0f) whole += 1.0f, part = 0.0f;  // rounded, just below 0
        const bool fits = whole >= -2147483648.0f && whole < 2147483648.0f;
        const long long place = fits ? 1ll * base + static_cast<int>(whole) : size;
        near = place < size && (place >= 0 || (place == -1 && part > 0.0f));
        first = near ? static_cast<int>(place) : 0;
    }
};

// The four pixels between which a tap lies; a share of 0 and an index of -1 for those outside of the image.
struct alignas(16) Place {
    int pixel[4];
    float share[4];

    __device__ __forceinline__ void set(const Along& y, const Along& x, int height, int width) {
#pragma unroll
        for (int corner = 0; corner < 4; ++corner) {
            const int row = y.first + (corner >> 1), column = x.first + (corner & 1);
            const bool inside = y.near && x.near && row >= 0 && row < height && column >= 0 && column < width;
            const float down = corner >> 1 ? y.part : 1.0f - y.part, right = corner & 1 ? x.part : 1.0f - x.part;
            pixel[corner] = inside ? row * width + column : -1;
            share[corner] = inside ? down * right : 0.0f;
        }
    }
};

}  // namespace layerport
