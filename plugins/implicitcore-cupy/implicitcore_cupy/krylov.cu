// What GMRES does beside a product: it is made orthogonal to the basis of its sample's Krylov space,
// twice, and the least residual over the space is found, by the formulas of Krylov of implicitcore.
//
// The stages are `project` (the inner products with the basis), `reduce` (the product without its
// parts along the basis, and what parts are left) and `settle` (the next vector, and what is known
// of the sample). A sample of one span goes through them in one kernel, `expand`; of several spans
// each is a kernel, and each of its blocks adds up for itself what all of them handed in. So a
// kernel reads no number of a sample that it writes: that of each product has a place of its own.

constexpr int GROUP = 8;  // rows of the basis whose products are in registers at a time

enum Real { beta, bound, length };  // the last before each product, and behind the last

template <typename T>
struct Space {
    const T* product;   // g at first
    T* next;            // zero where there is no next vector; the minimisers, for their kernels
    int64 rows;         // of the basis: zero at first
    T* basis;           // [most, batch, n]
    Sum<T>* rest;       // [batch, n]
    Sum<T>* columns;    // [batch, most, most + 1]: of R, and an entry of w
    Sum<T>* reals;      // [most + 3, batch]
    const Sum<T>* limits;
    int64* counters;    // [batch], the products that were used, and how many samples need no more
    Sum<T>* sums;       // [batch, 2 most + 2]
    Sum<T>* partial;    // [batch, 2 most + 2, spans]
    int64 batch, lanes, n, span, spans, most;
    double tiny, eps;  // of Sum<T>
};

template <int width, typename T>
__device__ Values<Sum<T>, width> take(const T* from) {
    const auto values = load<width>(from);
    Values<Sum<T>, width> taken;
#pragma unroll
    for (int j = 0; j < width; ++j) taken.at[j] = values.at[j];
    return taken;
}

// One sample of it. Its sums are first the products with the rows and the square of the norm of what
// was multiplied, then the same of what is left of it.
template <typename T>
struct Sample {
    using S = Sum<T>;
    const Space<T>& a;
    Team team;
    int64 at;
    bool wide;
    S* sums;

    __device__ explicit Sample(const Space<T>& a)
        : a(a), team(a.batch, a.lanes), at(team.sample * a.n) {
        extern __shared__ double shared[];  // behind what a sum over the team takes
        wide = a.n * sizeof(T) % 16 == 0 && aligned(a.product, a.next, a.basis, a.rest);
        sums = a.spans == 1 ? a.sums + team.sample * width()
                            : reinterpret_cast<S*>(shared) + team.lanes / WARP * (GROUP + 1);
    }

    __device__ int64 width() const { return 2 * a.most + 2; }
    __device__ S& real(int64 which) const { return a.reals[which * a.batch + team.sample]; }
    __device__ const T* row(int64 k) const { return a.basis + (k * a.batch + team.sample) * a.n; }
    __device__ S& entry(int64 product, int64 row) const {
        return a.columns[(team.sample * a.most + product) * (a.most + 1) + row];
    }
    __device__ int64& used() const { return a.counters[team.sample]; }
    __device__ S again(int64 k) const { return sums[a.rows + 1 + k]; }

    template <typename Work>
    __device__ void each(Work work) const {
        sweep<T>(team, a.n, a.span, wide, work);
    }

    // Whether it needed the product; at first, whether it needs any.
    __device__ bool goes() const {
        return a.rows ? real(length + a.rows - 1) < real(bound) : 1 < first_bound();
    }
    __device__ S first_bound() const {
        const S share = sqrt(sums[0]) / a.limits[team.sample];
        return share * share;
    }

    // A sum of this span; of the sample, where it has but one.
    __device__ void hand_in(int64 k, S value) const {
        if (!team.first()) return;
        if (a.spans == 1)
            sums[k] = value;
        else
            a.partial[(team.sample * width() + k) * a.spans + blockIdx.y] = value;
    }
    // The sums of the spans of the sample, a warp for each.
    __device__ void gather(int64 count) const {
        const int lane = threadIdx.x % WARP;
        for (int64 k = threadIdx.x / WARP; a.spans > 1 && k < count; k += blockDim.x / WARP) {
            const S* const partial = a.partial + (team.sample * width() + k) * a.spans;
            S total = 0;
            for (int64 i = lane; i < a.spans; i += WARP) total += partial[i];
            for (int step = WARP / 2; step; step /= 2)
                total += __shfl_xor_sync(0xffffffff, total, step);
            if (lane == 0) sums[k] = total;
        }
        team.meet();
    }
};

// The products of the rows with a vector, and the square of its norm.
template <typename T, typename Vector>
__device__ void measure(const Sample<T>& s, int64 place, bool goes, Vector vector) {
    const int64 rows = s.a.rows;
    for (int64 first = 0; first == 0 || first < rows; first += GROUP) {
        Sum<T> sums[GROUP + 1] = {};
        if (goes) {
            s.each([&](auto w, int64 i) {
                const auto x = vector(w, i, first == 0);
#pragma unroll
                for (int k = 0; k < GROUP; ++k) {
                    if (first + k >= rows) break;
                    const auto row = load<w.width>(s.row(first + k) + i);
#pragma unroll
                    for (int j = 0; j < w.width; ++j) sums[k] += row.at[j] * x.at[j];
                }
#pragma unroll
                for (int j = 0; j < w.width; ++j) sums[GROUP] += x.at[j] * x.at[j];
            });
        }
        team_sum(s.team, sums);
#pragma unroll
        for (int k = 0; k < GROUP; ++k) {
            if (first + k >= rows) break;
            s.hand_in(place + first + k, sums[k]);
        }
        if (!first) s.hand_in(place + rows, sums[GROUP]);
    }
}

template <typename T>
__device__ void project_stage(const Sample<T>& s) {
    const bool goes = !s.a.rows || s.goes();
    measure(s, 0, goes, [&](auto w, int64 i, bool) {
        return take<w.width>(s.a.product + s.at + i);
    });
}

template <typename T>
__device__ void reduce_stage(const Sample<T>& s) {
    s.gather(s.a.rows + 1);
    measure(s, s.a.rows + 1, s.goes(), [&](auto w, int64 i, bool whole) {
        Sum<T>* const rest = s.a.rest + s.at + i;
        if (!whole) return take<w.width>(rest);
        auto x = take<w.width>(s.a.product + s.at + i);
#pragma unroll 4
        for (int64 k = 0; k < s.a.rows; ++k) {
            const Sum<T> weight = s.sums[k];
            const auto row = load<w.width>(s.row(k) + i);
#pragma unroll
            for (int j = 0; j < w.width; ++j) x.at[j] -= weight * row.at[j];
        }
        store<w.width>(rest, x);
        return x;
    });
}

// The size of what is left of a product: by Pythagoras, for the second parts are small beside it, or
// both are rounding. A zero is a lucky breakdown: solved.
template <typename T>
__device__ Sum<T> left(const Sample<T>& s) {
    using S = Sum<T>;
    const int64 rows = s.a.rows;
    const S tiny = s.a.tiny;
    if (!rows) return most<S>(sqrt(s.sums[0]), tiny);
    S square = s.again(rows);
    for (int64 k = 0; k < rows; ++k) square -= s.again(k) * s.again(k);
    const S rounding = static_cast<S>(s.a.eps) * sqrt(s.sums[rows]);
    return most<S>(most<S>(sqrt(most<S>(square, 0)), rounding), tiny);
}

template <typename T>
__device__ void done(const Sample<T>& s) {
    atomicAdd(reinterpret_cast<unsigned long long*>(s.a.counters + s.a.batch), 1ull);
}

template <typename T>
__device__ void begin(const Sample<T>& s, bool goes) {
    s.real(beta) = sqrt(s.sums[0]);
    s.real(bound) = s.first_bound();
    s.real(length) = 1;
    if (!goes) done(s);
}

// The column of the triangle and the entry of w that a product adds. A sample that is done gets
// none: its minimiser stays the one of its own dimension.
template <typename T>
__device__ void grow(const Sample<T>& s, bool goes, Sum<T> below) {
    using S = Sum<T>;
    const int64 newest = s.a.rows - 1, last = s.a.most;
    S now = s.real(length + newest);
    if (goes) {
        S w = s.sums[0] + s.again(0);
        for (int64 k = 1; k <= newest; ++k) {
            const S h = s.sums[k] + s.again(k);
            s.entry(newest, k - 1) = h;
            w -= h * s.entry(k - 1, last);
        }
        w /= below;
        s.entry(newest, newest) = below;
        s.entry(newest, last) = w;
        now += w * w;
        s.used() += 1;
        if (!(now < s.real(bound))) done(s);
    }
    s.real(length + newest + 1) = now;
}

template <typename T>
__device__ void settle_stage(const Sample<T>& s) {
    const int64 rows = s.a.rows;
    s.gather(rows ? 2 * rows + 2 : 1);
    const bool goes = s.goes();
    const Sum<T> below = left(s);
    if (s.a.next) {
        s.each([&](auto w, int64 i) {
            Values<T, w.width> next = {};
            if (goes) {
                const int64 here = s.at + i;
                const auto x = rows ? take<w.width>(s.a.rest + here) : take<w.width>(s.a.product + here);
#pragma unroll
                for (int j = 0; j < w.width; ++j) next.at[j] = x.at[j];
#pragma unroll 4
                for (int64 k = 0; k < rows; ++k) {
                    const Sum<T> weight = s.again(k);
                    const auto row = load<w.width>(s.row(k) + i);
#pragma unroll
                    for (int j = 0; j < w.width; ++j) next.at[j] -= weight * row.at[j];
                }
#pragma unroll
                for (int j = 0; j < w.width; ++j) next.at[j] /= below;
            }
            store<w.width>(s.a.next + s.at + i, next);
        });
    }
    if (!s.team.first() || blockIdx.y) return;
    if (rows)
        grow(s, goes, below);
    else
        begin(s, goes);
}

// R y = beta w / length, from the last column on; y is where the sums were.
template <typename T>
__device__ void solve_stage(const Sample<T>& s) {
    using S = Sum<T>;
    const Team& team = s.team;
    const int64 rows = s.a.rows, used = team.present ? s.used() : 0;
    S* const y = s.a.sums + team.sample * s.width();
    const S scale = s.real(beta) / s.real(length + rows);
    for (int64 k = team.rank; k < used; k += team.lanes) y[k] = s.entry(k, s.a.most) * scale;
    for (int64 k = rows - 1; k >= 0; --k) {
        team.meet();
        const S value = k < used ? y[k] / s.entry(k, k) : 0;
        team.meet();
        if (k >= used) continue;
        if (team.rank == 0) y[k] = value;
        for (int64 i = team.rank; i < k; i += team.lanes) y[i] -= s.entry(k, i) * value;
    }
    team.meet();
}

template <typename T>
__device__ void combine_stage(const Sample<T>& s) {
    using S = Sum<T>;
    const S* const y = s.a.sums + s.team.sample * s.width();
    const int64 used = s.used();
    const S none = s.real(beta) - s.real(beta);  // a NaN where it is not finite
    s.each([&](auto w, int64 i) {
        Values<T, w.width> total;
#pragma unroll
        for (int j = 0; j < w.width; ++j) total.at[j] = none;
#pragma unroll 4
        for (int64 k = 0; k < used; ++k) {
            const S weight = y[k];
            const auto row = load<w.width>(s.row(k) + i);
#pragma unroll
            for (int j = 0; j < w.width; ++j) total.at[j] += weight * row.at[j];
        }
        store<w.width>(s.a.next + s.at + i, total);
    });
}

// ------------------------------------------------------------------------------------ the kernels

template <typename T>
__global__ void __launch_bounds__(MAX_THREADS) project(Space<T> a) {
    project_stage(Sample<T>(a));
}

template <typename T>
__global__ void __launch_bounds__(MAX_THREADS) reduce(Space<T> a) {
    reduce_stage(Sample<T>(a));
}

template <typename T>
__global__ void __launch_bounds__(MAX_THREADS) settle(Space<T> a) {
    settle_stage(Sample<T>(a));
}

template <typename T>
__global__ void __launch_bounds__(MAX_THREADS) expand(Space<T> a) {
    const Sample<T> s(a);
    project_stage(s);
    if (a.rows) reduce_stage(s);
    settle_stage(s);
}

template <typename T>
__global__ void __launch_bounds__(MAX_THREADS) solve(Space<T> a) {
    solve_stage(Sample<T>(a));
}

template <typename T>
__global__ void __launch_bounds__(MAX_THREADS) combine(Space<T> a) {
    combine_stage(Sample<T>(a));
}

template <typename T>
__global__ void __launch_bounds__(MAX_THREADS) minimise(Space<T> a) {
    const Sample<T> s(a);
    solve_stage(s);
    combine_stage(s);
}
