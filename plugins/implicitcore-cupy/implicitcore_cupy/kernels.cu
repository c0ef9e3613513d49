// The fused kernels. NVRTC compiles this file on the user's machine, and g++ in the tests: it
// includes nothing.
//
// States are [batch, n]. A block works on one span of one sample: blockIdx.x is the sample,
// blockIdx.y the span. Which block adds up what depends on n alone, and no sum is atomic: results
// are the same in every run and, where a sample fills whole 16 bytes, in every batch. Sums are in
// Sum<T>: double for double, else float. Each kernel takes one struct whose members are all eight
// bytes wide (or arrays that end on eight), so that the host packs it without padding.

using int64 = long long;

constexpr int MAX_THREADS = 512, WARP = 32, MAX_STAGES = 16;

struct bfloat16 {
    unsigned short bits;
};

template <typename T>
struct Summed {
    using type = float;
};
template <>
struct Summed<double> {
    using type = double;
};
template <typename T>
using Sum = typename Summed<T>::type;

__device__ inline float widen(float x) { return x; }
__device__ inline double widen(double x) { return x; }
__device__ inline float widen(bfloat16 x) {
    return __uint_as_float(static_cast<unsigned>(x.bits) << 16);
}

__device__ inline void narrow(float x, float& to) { to = x; }
__device__ inline void narrow(double x, double& to) { to = x; }
// To the nearest, halves to even; a NaN stays one.
__device__ inline void narrow(float x, bfloat16& to) {
    const unsigned bits = __float_as_uint(x);
    to.bits = x != x ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

template <typename T, int width>
struct alignas(width * sizeof(T)) Pack {  // what one instruction loads or stores
    T at[width];
};
template <typename T, int width>
struct Values {
    Sum<T> at[width];
};
template <int value>
struct Width {
    static constexpr int width = value;
};

template <int width, typename T>
__device__ Values<T, width> load(const T* from) {
    const Pack<T, width> pack = *reinterpret_cast<const Pack<T, width>*>(from);
    Values<T, width> values;
#pragma unroll
    for (int j = 0; j < width; ++j) values.at[j] = widen(pack.at[j]);
    return values;
}

template <int width, typename T>
__device__ void store(T* to, Values<T, width>& values) {  // the values become what was stored
    Pack<T, width> pack;
#pragma unroll
    for (int j = 0; j < width; ++j) {
        narrow(values.at[j], pack.at[j]);
        values.at[j] = widen(pack.at[j]);
    }
    *reinterpret_cast<Pack<T, width>*>(to) = pack;
}

template <typename... T>
__device__ bool aligned(const T*... rows) {
    return ((reinterpret_cast<unsigned long long>(rows) | ... | 0) & 15) == 0;
}

// work(Width<w>, i) for the entries i to i + w - 1 of the block's span: 16 bytes at a time where
// every row allows it, then one by one.
template <typename T, typename Work>
__device__ void sweep(int64 n, int64 span, bool wide, Work work) {
    constexpr int width = 16 / sizeof(T);
    const int64 first = blockIdx.y * span, last = first + span < n ? first + span : n;
    int64 rest = first;
    if (wide) {
        rest = last - (last - first) % width;
        for (int64 i = first + threadIdx.x * width; i < rest; i += blockDim.x * width)
            work(Width<width>(), i);
    }
    for (int64 i = rest + threadIdx.x; i < last; i += blockDim.x) work(Width<1>(), i);
}

// Thread k receives the block's sum of values[k]; a block has `count` threads at least.
template <int count, typename S>
__device__ S block_sum(S (&values)[count]) {
    extern __shared__ double shared[];  // [warps, count]
    S* const sums = reinterpret_cast<S*>(shared);
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
#pragma unroll
    for (int k = 0; k < count; ++k) {
#pragma unroll
        for (int step = WARP / 2; step; step /= 2)
            values[k] += __shfl_down_sync(0xffffffff, values[k], step);
        if (lane == 0) sums[warp * count + k] = values[k];
    }
    __syncthreads();
    S total = 0;
    if (threadIdx.x < count)
        for (int i = 0; i < warps; ++i) total += sums[i * count + threadIdx.x];
    return total;
}

// Where the sums of the samples go.
template <typename T>
struct Totals {
    T* out;           // sum k of sample b has its place at out[b * sample_step + k * sum_step]
    Sum<T>* partial;  // [batch, count, spans]: of the spans of long samples, which finish() adds up
    int64 sample_step, sum_step, count;
    double scale;  // above zero for a norm, sqrt(scale * sum); zero for the sum itself
};

template <typename T>
__device__ void deliver(const Totals<T>& to, int64 sample, int64 k, Sum<T> sum) {
    const Sum<T> value = to.scale > 0 ? sqrt(sum * static_cast<Sum<T>>(to.scale)) : sum;
    narrow(value, to.out[sample * to.sample_step + k * to.sum_step]);
}

template <typename T>
__device__ void hand_in(const Totals<T>& to, int64 k, Sum<T> sum) {
    if (gridDim.y == 1)
        deliver(to, blockIdx.x, k, sum);
    else
        to.partial[(blockIdx.x * to.count + k) * gridDim.y + blockIdx.y] = sum;
}

template <typename T>
struct Finish {
    Totals<T> totals;
    int64 spans;
};

template <typename T>
__global__ void __launch_bounds__(MAX_THREADS) finish(Finish<T> a) {  // blockIdx.y is the sum
    const int64 place = (blockIdx.x * a.totals.count + blockIdx.y) * a.spans;
    const Sum<T>* const partial = a.totals.partial + place;
    Sum<T> sums[1] = {0};
    for (int64 i = threadIdx.x; i < a.spans; i += blockDim.x) sums[0] += partial[i];
    const Sum<T> sum = block_sum(sums);
    if (threadIdx.x == 0) deliver(a.totals, blockIdx.x, blockIdx.y, sum);
}

template <typename T>
struct Residual {
    const T *fz, *z;
    T* g;
    int64 n, span;
    Totals<Sum<T>> norms;
};

template <typename T>  // g = f(z) - z, |g| and |f(z)|
__global__ void __launch_bounds__(MAX_THREADS) residual(Residual<T> a) {
    const T *const fz = a.fz + blockIdx.x * a.n, *const z = a.z + blockIdx.x * a.n;
    T* const g = a.g + blockIdx.x * a.n;
    Sum<T> sums[2] = {0, 0};
    sweep<T>(a.n, a.span, aligned(fz, z, g), [&](auto w, int64 i) {
        const auto f = load<w.width>(fz + i), here = load<w.width>(z + i);
        Values<T, w.width> difference;
#pragma unroll
        for (int j = 0; j < w.width; ++j) difference.at[j] = f.at[j] - here.at[j];
        store<w.width>(g + i, difference);
#pragma unroll
        for (int j = 0; j < w.width; ++j) {
            sums[0] += difference.at[j] * difference.at[j];
            sums[1] += f.at[j] * f.at[j];
        }
    });
    const Sum<T> sum = block_sum(sums);
    if (threadIdx.x < 2) hand_in(a.norms, threadIdx.x, sum);
}

template <typename T>
struct ErrorNorm {
    const T *error, *z, *z_next;
    double rtol, atol;
    int64 n, span;
    Totals<Sum<T>> norms;
};

template <typename T>  // error / (atol + rtol max(|z|, |z_next|))
__global__ void __launch_bounds__(MAX_THREADS) error_norm(ErrorNorm<T> a) {
    const T* const error = a.error + blockIdx.x * a.n;
    const T *const z = a.z + blockIdx.x * a.n, *const z_next = a.z_next + blockIdx.x * a.n;
    const Sum<T> rtol = a.rtol, atol = a.atol;
    Sum<T> sums[1] = {0};
    sweep<T>(a.n, a.span, aligned(error, z, z_next), [&](auto w, int64 i) {
        const auto e = load<w.width>(error + i);
        const auto before = load<w.width>(z + i), after = load<w.width>(z_next + i);
#pragma unroll
        for (int j = 0; j < w.width; ++j) {
            const Sum<T> p = fabs(before.at[j]), q = fabs(after.at[j]);
            const Sum<T> largest = p > q || p != p ? p : q;  // a NaN is kept, which fmax would drop
            const Sum<T> scaled = e.at[j] / (atol + rtol * largest);
            sums[0] += scaled * scaled;
        }
    });
    const Sum<T> sum = block_sum(sums);
    if (threadIdx.x == 0) hand_in(a.norms, 0, sum);
}

template <typename T>
struct InnerProducts {
    const T *row, *history;
    int64 row_step, sample_step;  // from sample to sample, in the row and in the history
    int64 history_step;           // from row to row of the history
    int64 depth, n, span;
    Totals<T> products;
};

// The row is read once for `group` rows of the history, whose sums are in registers.
template <typename T, int group>
__global__ void __launch_bounds__(MAX_THREADS) inner_products(InnerProducts<T> a) {
    const T* const row = a.row + blockIdx.x * a.row_step;
    const T* const history = a.history + blockIdx.x * a.sample_step;
    const bool wide = aligned(row, history) && a.history_step * sizeof(T) % 16 == 0;
    for (int64 first = 0; first < a.depth; first += group) {
        Sum<T> sums[group] = {};
        sweep<T>(a.n, a.span, wide, [&](auto w, int64 i) {
            const auto x = load<w.width>(row + i);
#pragma unroll
            for (int k = 0; k < group; ++k) {
                if (first + k < a.depth) {
                    const auto h = load<w.width>(history + (first + k) * a.history_step + i);
#pragma unroll
                    for (int j = 0; j < w.width; ++j) sums[k] += x.at[j] * h.at[j];
                }
            }
        });
        const Sum<T> sum = block_sum(sums);
        const int64 mine = first + threadIdx.x;
        if (threadIdx.x < group && mine < a.depth) hand_in(a.products, mine, sum);
        __syncthreads();  // the next group writes where this one is read
    }
}

template <typename T>
struct AxpyHistory {
    const T *row, *weights, *history;  // no row is zero
    T* out;                            // may be the row
    int64 row_step, out_step, sample_step, history_step;
    double scale;
    int64 depth, n, span;
};

template <typename T>  // row + scale sum_k weights_k history_k
__global__ void __launch_bounds__(MAX_THREADS) axpy_history(AxpyHistory<T> a) {
    const T* const row = a.row ? a.row + blockIdx.x * a.row_step : nullptr;
    const T* const weights = a.weights + blockIdx.x * a.depth;
    const T* const history = a.history + blockIdx.x * a.sample_step;
    T* const out = a.out + blockIdx.x * a.out_step;
    const Sum<T> scale = a.scale;
    const bool wide = aligned(row, history, out) && a.history_step * sizeof(T) % 16 == 0;
    sweep<T>(a.n, a.span, wide, [&](auto w, int64 i) {
        Values<T, w.width> total = {};
#pragma unroll 4
        for (int64 k = 0; k < a.depth; ++k) {
            const Sum<T> weight = widen(weights[k]);
            const auto h = load<w.width>(history + k * a.history_step + i);
#pragma unroll
            for (int j = 0; j < w.width; ++j) total.at[j] += weight * h.at[j];
        }
        Values<T, w.width> base = {};
        if (row) base = load<w.width>(row + i);
#pragma unroll
        for (int j = 0; j < w.width; ++j) total.at[j] = base.at[j] + scale * total.at[j];
        store<w.width>(out + i, total);
    });
}

template <typename T, typename Time>
struct StageCombination {
    const T* z;  // none is zero
    const Time* dt;
    T* out;
    int64 n, span, count;
    const T* stages[MAX_STAGES];
    Sum<T> weights[MAX_STAGES];
};

template <typename T, typename Time>  // z + dt sum_s weights_s stages_s
__global__ void __launch_bounds__(MAX_THREADS) stage_combination(StageCombination<T, Time> a) {
    const int64 begin = blockIdx.x * a.n;
    const Sum<T> dt = a.dt[blockIdx.x];
    bool wide = aligned(a.out + begin, a.z ? a.z + begin : nullptr);
#pragma unroll
    for (int s = 0; s < MAX_STAGES; ++s)
        if (s < a.count) wide = wide && aligned(a.stages[s] + begin);
    sweep<T>(a.n, a.span, wide, [&](auto w, int64 i) {
        Values<T, w.width> total = {};
#pragma unroll
        for (int s = 0; s < MAX_STAGES; ++s) {
            if (s < a.count) {
                const auto slope = load<w.width>(a.stages[s] + begin + i);
#pragma unroll
                for (int j = 0; j < w.width; ++j) total.at[j] += a.weights[s] * slope.at[j];
            }
        }
        Values<T, w.width> base = {};
        if (a.z) base = load<w.width>(a.z + begin + i);
#pragma unroll
        for (int j = 0; j < w.width; ++j) total.at[j] = base.at[j] + dt * total.at[j];
        store<w.width>(a.out + begin + i, total);
    });
}
