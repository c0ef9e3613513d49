// The kernels of the inner loops, one for each method of the backend.

constexpr int MAX_STAGES = 16;

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
__device__ void hand_in(const Totals<T>& to, int64 sample, int64 k, Sum<T> sum) {
    if (gridDim.y == 1)
        deliver(to, sample, k, sum);
    else
        to.partial[(sample * to.count + k) * gridDim.y + blockIdx.y] = sum;
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
    const Team team(gridDim.x, blockDim.x);
    for (int64 i = team.rank; i < a.spans; i += team.lanes) sums[0] += partial[i];
    team_sum(team, sums);
    if (team.first()) deliver(a.totals, blockIdx.x, blockIdx.y, sums[0]);
}

template <typename T>
struct Residual {
    const T *fz, *z;
    T* g;
    int64 batch, lanes, n, span;
    Totals<Sum<T>> norms;
};

template <typename T>  // g = f(z) - z, |g| and |f(z)|
__global__ void __launch_bounds__(MAX_THREADS) residual(Residual<T> a) {
    const Team team(a.batch, a.lanes);
    const T *const fz = a.fz + team.sample * a.n, *const z = a.z + team.sample * a.n;
    T* const g = a.g + team.sample * a.n;
    Sum<T> sums[2] = {0, 0};
    sweep<T>(team, a.n, a.span, aligned(fz, z, g), [&](auto w, int64 i) {
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
    team_sum(team, sums);
    if (team.first()) {
        hand_in(a.norms, team.sample, 0, sums[0]);
        hand_in(a.norms, team.sample, 1, sums[1]);
    }
}

template <typename T>
struct ErrorNorm {
    const T *error, *z, *z_next;
    double rtol, atol;
    int64 batch, lanes, n, span;
    Totals<Sum<T>> norms;
};

template <typename T>  // error / (atol + rtol max(|z|, |z_next|))
__global__ void __launch_bounds__(MAX_THREADS) error_norm(ErrorNorm<T> a) {
    const Team team(a.batch, a.lanes);
    const T* const error = a.error + team.sample * a.n;
    const T *const z = a.z + team.sample * a.n, *const z_next = a.z_next + team.sample * a.n;
    const Sum<T> rtol = a.rtol, atol = a.atol;
    Sum<T> sums[1] = {0};
    sweep<T>(team, a.n, a.span, aligned(error, z, z_next), [&](auto w, int64 i) {
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
    team_sum(team, sums);
    if (team.first()) hand_in(a.norms, team.sample, 0, sums[0]);
}

template <typename T>
struct InnerProducts {
    const T *row, *history;
    int64 row_step, sample_step;  // from sample to sample, in the row and in the history
    int64 history_step;           // from row to row of the history
    int64 depth, batch, lanes, n, span;
    Totals<T> products;
};

// The row is read once for `group` rows of the history, whose sums are in registers.
template <typename T, int group>
__global__ void __launch_bounds__(MAX_THREADS) inner_products(InnerProducts<T> a) {
    const Team team(a.batch, a.lanes);
    const T* const row = a.row + team.sample * a.row_step;
    const T* const history = a.history + team.sample * a.sample_step;
    const bool wide = aligned(row, history) && a.history_step * sizeof(T) % 16 == 0;
    for (int64 first = 0; first < a.depth; first += group) {
        Sum<T> sums[group] = {};
        sweep<T>(team, a.n, a.span, wide, [&](auto w, int64 i) {
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
        team_sum(team, sums);
        if (!team.first()) continue;
#pragma unroll
        for (int k = 0; k < group; ++k)
            if (first + k < a.depth) hand_in(a.products, team.sample, first + k, sums[k]);
    }
}

template <typename T>
struct AxpyHistory {
    const T *row, *weights, *history;  // no row is zero
    T* out;                            // may be the row
    int64 row_step, out_step, sample_step, history_step;
    double scale;
    int64 depth, batch, lanes, n, span;
};

template <typename T>  // row + scale sum_k weights_k history_k
__global__ void __launch_bounds__(MAX_THREADS) axpy_history(AxpyHistory<T> a) {
    const Team team(a.batch, a.lanes);
    const T* const row = a.row ? a.row + team.sample * a.row_step : nullptr;
    const T* const weights = a.weights + team.sample * a.depth;
    const T* const history = a.history + team.sample * a.sample_step;
    T* const out = a.out + team.sample * a.out_step;
    const Sum<T> scale = a.scale;
    const bool wide = aligned(row, history, out) && a.history_step * sizeof(T) % 16 == 0;
    sweep<T>(team, a.n, a.span, wide, [&](auto w, int64 i) {
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
    int64 batch, lanes, n, span, count;
    const T* stages[MAX_STAGES];
    Sum<T> weights[MAX_STAGES];
};

template <typename T, typename Time>  // z + dt sum_s weights_s stages_s
__global__ void __launch_bounds__(MAX_THREADS) stage_combination(StageCombination<T, Time> a) {
    const Team team(a.batch, a.lanes);
    const int64 begin = team.sample * a.n;
    const Sum<T> dt = a.dt[team.sample];
    bool wide = aligned(a.out + begin, a.z ? a.z + begin : nullptr);
#pragma unroll
    for (int s = 0; s < MAX_STAGES; ++s)
        if (s < a.count) wide = wide && aligned(a.stages[s] + begin);
    sweep<T>(team, a.n, a.span, wide, [&](auto w, int64 i) {
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
