// RMS normalisation of rows that are gated before or after it, in fp32.
//
// Some lanes of a warp (lanes) or a block (block) have a row.  Each thread keeps ITEMS items of it in registers, so that x
// and gate are read once; what does not fit, and rows that are not aligned to 16 bytes, are read again after the sum, from
// L1 or L2.  An item is a pack of 16 bytes of the narrowest of the three types: T is that of x and y, G the gate's, W that
// of weight, which may be null.

#include "../include/layerport_kernels.h"

using namespace layerport;

namespace {

constexpr int ITEMS = 2;

__host__ __device__ constexpr int least(int one, int other) { return one < other ? one : other; }

template <typename T, typename G, typename W>
constexpr int ITEM = 16 / least(sizeof(T), least(sizeof(G), sizeof(W)));

// T: what the result is rounded to.  The fast intrinsics lose far less than 16 bits do.
template <typename T>
__device__ __forceinline__ float silu(float value) {
    return sizeof(T) == 2 ? __fdividef(value, 1.0f + __expf(-value)) : value / (1.0f + expf(-value));
}

// WIDTH elements as packs of 16 bytes.
template <int WIDTH, typename T>
struct Item {
    static constexpr int PIECE = 16 / sizeof(T);
    Pack<T> packs[WIDTH / PIECE];

    __device__ __forceinline__ T& operator[](int k) { return packs[k / PIECE].items[k % PIECE]; }

    // What follows is computed of this item after what came before, which would else take registers for all items at once.
    __device__ __forceinline__ void keep() {
#pragma unroll
        for (int p = 0; p < WIDTH / PIECE; ++p) keep_packed(packs[p]);
    }
};

template <int WIDTH>
__device__ __forceinline__ void keep(float (&values)[WIDTH]) {
#ifndef LAYERPORT_HOST
#pragma unroll
    for (int k = 0; k < WIDTH; ++k) asm volatile("" : "+f"(values[k]));
#endif
}

// The elements from `index` on of a row of `cols`; zeros for what lies outside.
template <bool SHIFTED, int WIDTH, typename T>
__device__ __forceinline__ Item<WIDTH, T> read(const T* row, int index, int cols) {
    Item<WIDTH, T> item;
#pragma unroll
    for (int p = 0; p < WIDTH / item.PIECE; ++p) {
        if constexpr (SHIFTED) {
            item.packs[p] = load_at<true>(row, index + p * item.PIECE, cols);
        } else {
            item.packs[p] = load(reinterpret_cast<const Pack<T>*>(row + index) + p);
        }
    }
    return item;
}

template <typename T, typename G, typename W>
struct Row {
    const T* x;
    const G* gate;
    const W* weight;
    T* y;
    int cols;
};

// What is normalised, of an item.
template <bool GATE_FIRST, int WIDTH, typename T, typename G>
__device__ __forceinline__ void begin(Item<WIDTH, T>& x, Item<WIDTH, G>& gate, float (&values)[WIDTH], float& squares) {
#pragma unroll
    for (int k = 0; k < WIDTH; ++k) {
        values[k] = to_float(x[k]);
        if constexpr (GATE_FIRST) values[k] *= silu<T>(to_float(gate[k]));
        squares += values[k] * values[k];
    }
}

template <bool GATE_FIRST, bool SHIFTED, int WIDTH, typename T, typename G, typename W>
__device__ __forceinline__ void finish(
    const Row<T, G, W>& row, int index, const float (&values)[WIDTH], float scale
) {
    Item<WIDTH, T> result;
    Item<WIDTH, W> weight;
    Item<WIDTH, G> gate;
    if (row.weight != nullptr) weight = read<SHIFTED, WIDTH>(row.weight, index, row.cols);
    if constexpr (!GATE_FIRST) gate = read<SHIFTED, WIDTH>(row.gate, index, row.cols);
    weight.keep();
    if constexpr (!GATE_FIRST) gate.keep();
#pragma unroll
    for (int k = 0; k < WIDTH; ++k) {
        float value = values[k] * scale;
        if (row.weight != nullptr) value *= to_float(weight[k]);
        if constexpr (!GATE_FIRST) value *= silu<T>(to_float(gate[k]));
        result[k] = from_float<T>(value);
    }
#pragma unroll
    for (int p = 0; p < WIDTH / result.PIECE; ++p) {
        if constexpr (SHIFTED) {
            store_at(row.y, index + p * result.PIECE, row.cols, result.packs[p]);
        } else {
            store(reinterpret_cast<Pack<T>*>(row.y + index) + p, result.packs[p]);
        }
    }
}

// The items of a row from the thread's `start` on, which are not in registers.
template <bool GATE_FIRST, bool SHIFTED, int WIDTH, typename T, typename G, typename W>
struct Rest {
    const Row<T, G, W>& row;
    int start;
    int end;

    __device__ __forceinline__ void values_at(int index, float (&values)[WIDTH], float& squares) const {
        Item<WIDTH, T> x = read<SHIFTED, WIDTH>(row.x, index, row.cols);
        Item<WIDTH, G> gate;
        if constexpr (GATE_FIRST) gate = read<SHIFTED, WIDTH>(row.gate, index, row.cols);
        begin<GATE_FIRST>(x, gate, values, squares);
    }

    __device__ __forceinline__ float squares() const {
        float result = 0.0f;
        float values[WIDTH];
#pragma unroll 1
        for (int i = start; i < end; i += blockDim.x * WIDTH) values_at(i, values, result);
        return result;
    }

    __device__ __forceinline__ void write(float scale) const {
        float values[WIDTH];
        float ignored = 0.0f;
#pragma unroll 1
        for (int i = start; i < end; i += blockDim.x * WIDTH) {
            values_at(i, values, ignored);
            finish<GATE_FIRST, SHIFTED>(row, i, values, scale);
        }
    }
};

// `inside` is false past the last row: such threads take part in the sum.
template <bool GATE_FIRST, typename T, typename G, typename W, typename Sum>
__device__ __forceinline__ void aligned_row(const Row<T, G, W>& row, float eps, bool inside, Sum sum) {
    constexpr int WIDTH = ITEM<T, G, W>;
    const int end = inside ? row.cols : 0;
    const int first = threadIdx.x * WIDTH;
    const int step = blockDim.x * WIDTH;
    Item<WIDTH, T> x[ITEMS];
    Item<WIDTH, G> gates[GATE_FIRST ? ITEMS : 1];
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        if (first + i * step < end) {
            x[i] = read<false, WIDTH>(row.x, first + i * step, row.cols);
            if constexpr (GATE_FIRST) gates[i] = read<false, WIDTH>(row.gate, first + i * step, row.cols);
        }
    }
    float squares = 0.0f;
    float kept[ITEMS][WIDTH];
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        if (first + i * step < end) {
            x[i].keep();
            if constexpr (GATE_FIRST) gates[i].keep();
            begin<GATE_FIRST>(x[i], gates[GATE_FIRST ? i : 0], kept[i], squares);
            keep(kept[i]);
        }
    }
    const Rest<GATE_FIRST, false, WIDTH, T, G, W> rest{row, first + ITEMS * step, end};
    squares += rest.squares();
    const float scale = rsqrtf(sum(squares) / static_cast<float>(row.cols) + eps);
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        if (first + i * step < end) {
            keep(kept[i]);
            finish<GATE_FIRST, false>(row, first + i * step, kept[i], scale);
        }
    }
    rest.write(scale);
}

// The same for a row that is not aligned: packs start where y is.
template <bool GATE_FIRST, typename T, typename G, typename W, typename Sum>
__device__ __forceinline__ void shifted_row(const Row<T, G, W>& row, float eps, bool inside, Sum sum) {
    constexpr int WIDTH = ITEM<T, G, W>;
    const int start = first_index(row.y) + static_cast<int>(threadIdx.x) * WIDTH;
    const Rest<GATE_FIRST, true, WIDTH, T, G, W> all{row, start, inside ? row.cols : start};
    all.write(rsqrtf(sum(all.squares()) / static_cast<float>(row.cols) + eps));
}

template <bool GATE_FIRST, typename T, typename G, typename W, typename Sum>
__device__ __forceinline__ void all_rows(
    const T* x, const G* gate, const W* weight, T* y, long long rows, int groups, int cols, float eps, Sum sum
) {
    const long long step = static_cast<long long>(gridDim.x) * blockDim.y;
    const long long first = static_cast<long long>(blockIdx.x) * blockDim.y;
    const auto row_at = [&](long long base) {
        const long long index = base + threadIdx.y < rows ? base + threadIdx.y : 0;
        const long long group = index - quotient(index, groups) * groups;
        const long long start = index * cols;
        return Row<T, G, W>{x + start, gate + start, weight == nullptr ? nullptr : weight + group * cols, y + start, cols};
    };
    // Two loops, because a branch inside of one takes more registers.
    if ((bytes_off(x) | bytes_off(gate) | bytes_off(weight) | bytes_off(y)) == 0 && cols % ITEM<T, G, W> == 0) {
        for (long long base = first; base < rows; base += step) {
            aligned_row<GATE_FIRST>(row_at(base), eps, base + threadIdx.y < rows, sum);
        }
    } else {
        for (long long base = first; base < rows; base += step) {
            shifted_row<GATE_FIRST>(row_at(base), eps, base + threadIdx.y < rows, sum);
        }
    }
}

}  // namespace

template <typename T, typename G, typename W, bool GATE_FIRST>
__global__ void __launch_bounds__(256, 1) gated_rms_norm_lanes(
    const T* __restrict__ x, const G* __restrict__ gate, const W* __restrict__ weight, T* __restrict__ y, long long rows,
    int groups, int cols, float eps
) {
    all_rows<GATE_FIRST>(x, gate, weight, y, rows, groups, cols, eps, SumOfLanes{});
}

template <typename T, typename G, typename W, bool GATE_FIRST>
__global__ void __launch_bounds__(512, 1) gated_rms_norm_block(
    const T* __restrict__ x, const G* __restrict__ gate, const W* __restrict__ weight, T* __restrict__ y, long long rows,
    int groups, int cols, float eps
) {
    __shared__ float partial[33];
    all_rows<GATE_FIRST>(x, gate, weight, y, rows, groups, cols, eps, SumOfBlock{partial});
}
