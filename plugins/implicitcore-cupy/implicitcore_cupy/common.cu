// What all kernels share. NVRTC compiles this text and that of the kernels, as one, on the user's
// machine, and g++ in the tests: it includes nothing.
//
// States are [batch, n]. A team of threads works on one span of one sample; blockIdx.y is the span.
// A team of more than a warp is a block; smaller ones share a block. Which thread adds up what
// depends on n alone, and no sum is atomic: results are the same in every run and, where a sample
// fills whole 16 bytes, in every batch. Sums are in Sum<T>: double for double, else float. Each
// kernel takes one struct whose members are all eight bytes wide (or arrays that end on eight), so
// that the host packs it without padding.

using int64 = long long;

constexpr int MAX_THREADS = 512, WARP = 32;

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

template <typename S>
__device__ bool finite(S x) {
    return x - x == 0;
}
// max and min of torch, which give a NaN where there is one.
template <typename S>
__device__ S most(S a, S b) {
    return a != a ? a : (b != b || b > a ? b : a);
}
template <typename S>
__device__ S least(S a, S b) {
    return a != a ? a : (b != b || b < a ? b : a);
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

// The threads that work on a sample. Where the batch ends within a block, the teams behind its end
// are absent: they go along, for all threads of a warp are to reach a shuffle, and touch nothing.
struct Team {
    int64 sample;
    int lanes, rank;  // threads, a power of two, and which of them this one is
    bool present;

    __device__ Team(int64 batch, int64 threads) {
        const bool small = threads <= WARP;
        lanes = small ? threads : blockDim.x;
        const int64 thread = static_cast<int64>(blockIdx.x) * blockDim.x + threadIdx.x;
        sample = small ? thread / lanes : blockIdx.x;
        rank = threadIdx.x % lanes;
        present = sample < batch;
        if (!present) sample = 0;
    }

    __device__ bool first() const { return present && rank == 0; }

    // What each thread wrote before, all of them see after.
    __device__ void meet() const {
        if (lanes <= WARP)
            __syncwarp();
        else
            __syncthreads();
    }
};

// work(Width<w>, i) for the entries i to i + w - 1 of the team's span: 16 bytes at a time where
// every row allows it, then one by one.
template <typename T, typename Work>
__device__ void sweep(const Team& team, int64 n, int64 span, bool wide, Work work) {
    if (!team.present) return;
    constexpr int width = 16 / sizeof(T);
    const int64 first = blockIdx.y * span, last = first + span < n ? first + span : n;
    int64 rest = first;
    if (wide) {
        rest = last - (last - first) % width;
        for (int64 i = first + team.rank * width; i < rest; i += team.lanes * width)
            work(Width<width>(), i);
    }
    for (int64 i = rest + team.rank; i < last; i += team.lanes) work(Width<1>(), i);
}

// In the first thread of the team each value becomes its sum over the team.
template <int count, typename S>
__device__ void team_sum(const Team& team, S (&values)[count]) {
    extern __shared__ double shared[];  // [warps, count], for a team of several warps
    S* const sums = reinterpret_cast<S*>(shared);
    const int within = team.lanes < WARP ? team.lanes : WARP;
    for (int step = within / 2; step; step /= 2) {
#pragma unroll
        for (int k = 0; k < count; ++k) values[k] += __shfl_xor_sync(0xffffffff, values[k], step);
    }
    if (team.lanes <= WARP) return;
    const int warp = team.rank / WARP, warps = team.lanes / WARP;
    if (team.rank % WARP == 0) {
#pragma unroll
        for (int k = 0; k < count; ++k) sums[warp * count + k] = values[k];
    }
    __syncthreads();
    if (team.rank < count) {
        S total = sums[team.rank];
        for (int i = 1; i < warps; ++i) total += sums[i * count + team.rank];
        sums[team.rank] = total;
    }
    __syncthreads();  // the next sum of this warp writes where only its first thread reads
    if (team.rank != 0) return;
#pragma unroll
    for (int k = 0; k < count; ++k) values[k] = sums[k];
}
