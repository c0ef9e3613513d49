// What an adaptive step is beside its evaluations: its control, and both halves of a step of Adams.
//
// A sample of one span is judged by the kernel that adds up its errors; of several spans each hands
// in its sums, and a second kernel adds those up.

constexpr int EXPONENTS = 3, ERRORS = 3;  // an error: that in units of the tolerances, the step's
                                          // move, and the error itself
// What the host is told of a sample, one byte each of a whole number.
enum Event : unsigned { stays = 1u, arrived = 1u << 8, refused = 1u << 16, passing = 1u << 24 };
constexpr int EVENTS = 4;

template <typename T, typename Time>
struct Control {
    const T *z, *z_next, *error;
    const Time *t, *dt, *end, *target, *due, *memory;  // the stop and the next output: zero for none
    const bool *arrives, *active, *done, *forwards;    // zero where `forward` is that of all
    const int64* orders;                               // zero where `order` is that of all
    Time* reals;      // [rows, batch]: error, size, t, dt and end of the next step, and the memory
    bool* flags;      // [4, batch]: accept, follows, passed, and whether the next step arrives
    int64* counts;    // [EVENTS]
    Sum<T>* partial;  // [batch, ERRORS, spans]
    int64 batch, lanes, n, span, spans;
    int64 order, forward, count, memory_step;  // of the exponents; from error to error of a sample
    double rtol, atol, safety, shrink, grow, min_step, max_step, move_bound;
    double exponents[EXPONENTS];
    double least, tiny;  // the least error that is remembered; of Sum<T>
};

template <typename T, typename Time>
__device__ Time scaled_error(const Control<T, Time>& a, const Sum<T> (&sums)[ERRORS]) {
    using S = Sum<T>;
    S found = sqrt(sums[0] / static_cast<S>(a.n));
    if (finite(a.move_bound)) {
        const S move = most<S>(sqrt(sums[1]), static_cast<S>(a.tiny));
        found = most<S>(found, sqrt(sums[2]) / (static_cast<S>(a.move_bound) * move));
    }
    return found;
}

template <typename T, typename Time>
__device__ Time next_size(const Control<T, Time>& a, int64 b, Time error, bool takes) {
    const Time root = a.orders ? a.orders[b] : a.order;
    Time factor = pow(error, -static_cast<Time>(takes ? a.exponents[0] : 1) / root);
    for (int64 i = 1; takes && i < a.count; ++i) {
        const Time past = most<Time>(a.memory[(i - 1) * a.memory_step + b], static_cast<Time>(a.least));
        factor *= pow(past, -static_cast<Time>(a.exponents[i]) / root);
    }
    factor *= static_cast<Time>(a.safety);
    const Time shrink = a.shrink, grow = a.grow;
    factor = factor >= shrink ? least<Time>(factor, grow) : shrink;  // a NaN shrinks too
    Time size = static_cast<Time>(fabs(a.dt[b])) * factor;
    if (takes && a.min_step > 0) size = most<Time>(size, static_cast<Time>(a.min_step));
    return least<Time>(size, static_cast<Time>(a.max_step));
}

// The next step of a sample that is at `t`.
template <typename T, typename Time>
__device__ void look_ahead(const Control<T, Time>& a, int64 b, Time t, Time size) {
    const Time remaining = a.target[b] - t;
    const Time dt = least<Time>(most<Time>(remaining, -size), size);
    const bool arrives = dt == remaining;
    a.reals[3 * a.batch + b] = dt;
    a.reals[4 * a.batch + b] = arrives ? a.target[b] : t + dt;
    a.flags[3 * a.batch + b] = arrives;
}

// What becomes of the step of a sample, and the events of it.
template <typename T, typename Time>
__device__ unsigned judge(const Control<T, Time>& a, int64 b, const Sum<T> (&sums)[ERRORS]) {
    const Time error = scaled_error(a, sums);
    const bool takes = a.active[b] && error <= 1, follows = takes || a.done[b];
    const Time size = next_size(a, b, error, takes), t = takes ? a.end[b] : a.t[b];
    const bool forward = a.forwards ? a.forwards[b] : a.forward;
    bool passes = false;
    if (a.due) passes = takes && (forward ? a.end[b] > a.due[b] : a.end[b] < a.due[b]);
    Time* const remembered = a.reals + 5 * a.batch + b;
    remembered[0] = takes ? error : a.memory[b];
    if (a.count > 2) remembered[a.batch] = takes ? a.memory[b] : a.memory[a.memory_step + b];
    a.reals[b] = error;
    a.reals[a.batch + b] = size;
    a.reals[2 * a.batch + b] = t;
    a.flags[b] = takes;
    a.flags[a.batch + b] = follows;
    a.flags[2 * a.batch + b] = passes;
    if (a.target) look_ahead(a, b, t, size);
    return (follows ? 0 : stays) + (takes && a.arrives[b] ? arrived : 0) +
           (a.active[b] && !takes ? refused : 0) + (passes ? passing : 0);
}

// Judge the samples of a warp, and count their events: sums of whole numbers, in whatever order.
template <typename T, typename Time>
__device__ void conclude_team(const Control<T, Time>& a, const Team& team,
                              const Sum<T> (&sums)[ERRORS]) {
    unsigned events = team.first() ? judge(a, team.sample, sums) : 0;
    for (int step = WARP / 2; step; step /= 2) events += __shfl_xor_sync(0xffffffff, events, step);
    if (threadIdx.x % WARP != 0) return;
    for (int k = 0; k < EVENTS; ++k) {
        const unsigned long long count = events >> 8 * k & 255;
        if (count) atomicAdd(reinterpret_cast<unsigned long long*>(a.counts + k), count);
    }
}

template <typename T, typename Time>
__global__ void __launch_bounds__(MAX_THREADS) control(Control<T, Time> a) {
    using S = Sum<T>;
    const Team team(a.batch, a.lanes);
    const T* const error = a.error + team.sample * a.n;
    const T *const z = a.z + team.sample * a.n, *const z_next = a.z_next + team.sample * a.n;
    const S rtol = a.rtol, atol = a.atol;
    S sums[ERRORS] = {0, 0, 0};
    sweep<T>(team, a.n, a.span, aligned(error, z, z_next), [&](auto w, int64 i) {
        const auto e = load<w.width>(error + i);
        const auto before = load<w.width>(z + i), after = load<w.width>(z_next + i);
#pragma unroll
        for (int j = 0; j < w.width; ++j) {
            const S p = before.at[j], q = after.at[j];
            // An infinite end would divide an error by infinity; zero times it is a NaN.
            const S miss = e.at[j] + 0 * q, move = q - p;
            const S scaled = miss / (atol + rtol * most<S>(fabs(p), fabs(q)));
            sums[0] += scaled * scaled;
            sums[1] += move * move;
            sums[2] += miss * miss;
        }
    });
    team_sum(team, sums);
    if (a.spans == 1) {
        conclude_team(a, team, sums);
    } else if (team.first()) {
        for (int k = 0; k < ERRORS; ++k)
            a.partial[(team.sample * ERRORS + k) * a.spans + blockIdx.y] = sums[k];
    }
}

template <typename T, typename Time>  // a team is a block, and has a sample
__global__ void __launch_bounds__(MAX_THREADS) conclude(Control<T, Time> a) {
    const Team team(gridDim.x, blockDim.x);
    Sum<T> sums[ERRORS] = {0, 0, 0};
    for (int64 i = team.rank; i < a.spans; i += team.lanes) {
        for (int k = 0; k < ERRORS; ++k)
            sums[k] += a.partial[(team.sample * ERRORS + k) * a.spans + i];
    }
    team_sum(team, sums);
    conclude_team(a, team, sums);
}

// -------------------------------------------------------------------------------- steps of Adams

constexpr int MAX_ROWS = 12, MAX_NODES = MAX_ROWS / 2 + 1;
constexpr int NEAR = 3;  // orders that may follow: one less, the same, one more

template <typename T>
struct Predict {
    const T *z, *phi;  // phi: the differences Phi_0 .., [batch, rows, n] in steps of its own
    T* end;
    const Sum<T> *dt, *gaps;
    Sum<T>*next_gaps, *known;  // known: [batch, 2 rows + 1], beta_0 .. and g_0 ..
    const int64* order;
    int64* orders;  // [3, batch]: the order plus one, the highest that may follow, and that chosen
    int64 batch, lanes, n, span, rows, sample_step, row_step, max_order, nodes;
    double longer;  // a step so many times as long as the last is of order 1
    double node[MAX_NODES], weight[MAX_NODES];  // of Gauss on [0, 1]
};

// Of one step of one sample.
template <typename S>
struct Coefficients {
    S beta[MAX_ROWS + 1], g[MAX_ROWS + 1], gaps[MAX_ROWS];
    int64 order, highest;
};

template <typename T>
__device__ Coefficients<Sum<T>> coefficients(const Predict<T>& a, int64 b) {
    using S = Sum<T>;
    const S* const before = a.gaps + b * a.rows;
    const S size = a.dt[b] == 0 ? before[0] : static_cast<S>(fabs(a.dt[b]));
    Coefficients<S> c;
    c.order = a.order[b];
    if (size / before[0] > static_cast<S>(a.longer) && c.order > 1) c.order = 1;
    c.highest = c.order + 1;
    if (c.order < 1) c.order = 1;
    c.beta[0] = 1;
    c.g[0] = 1;
#pragma unroll
    for (int j = 0; j < MAX_ROWS; ++j) {
        if (j >= a.rows) continue;
        c.gaps[j] = j ? size + before[j - 1] : size;
        c.beta[j + 1] = c.beta[j] * (c.gaps[j] / before[j]);
        c.g[j + 1] = 0;
    }
    for (int k = 0; k < a.nodes; ++k) {
        const S lever = (1 - a.node[k]) * size;
        S product = a.weight[k];
#pragma unroll
        for (int j = 0; j < MAX_ROWS; ++j) {
            if (j >= a.rows) continue;
            product *= 1 - lever / c.gaps[j];
            c.g[j + 1] += product;
        }
    }
    return c;
}

template <typename T>  // z + dt sum_{j<k} g_j beta_j Phi_j, in one span
__global__ void __launch_bounds__(MAX_THREADS) predict(Predict<T> a) {
    using S = Sum<T>;
    const Team team(a.batch, a.lanes);
    const int64 b = team.sample;
    const Coefficients<S> c = coefficients(a, b);
    const S dt = a.dt[b];
    const T *const z = a.z + b * a.n, *const phi = a.phi + b * a.sample_step;
    T* const end = a.end + b * a.n;
    const bool wide = aligned(z, phi, end) && a.row_step * sizeof(T) % 16 == 0;
    sweep<T>(team, a.n, a.span, wide, [&](auto w, int64 i) {
        auto total = load<w.width>(z + i);
#pragma unroll
        for (int j = 0; j < MAX_ROWS; ++j) {
            if (j >= c.order) continue;
            const S weight = c.g[j] * c.beta[j] * dt;
            const auto row = load<w.width>(phi + j * a.row_step + i);
#pragma unroll
            for (int l = 0; l < w.width; ++l) total.at[l] += weight * row.at[l];
        }
        store<w.width>(end + i, total);
    });
    if (!team.first() || blockIdx.y) return;
    S* const known = a.known + b * (2 * a.rows + 1);
#pragma unroll
    for (int j = 0; j < MAX_ROWS; ++j) {
        if (j >= a.rows) continue;
        known[j] = c.beta[j];
        known[a.rows + j] = c.g[j];
        known[a.rows + j + 1] = c.g[j + 1];
        a.next_gaps[b * a.rows + j] = c.gaps[j];
    }
    a.orders[b] = c.order + 1;
    a.orders[a.batch + b] = c.highest < a.max_order ? c.highest : a.max_order;
}

template <typename T>
struct Correct {
    const T *velocity, *phi, *z, *end;
    T *next, *error;  // next: the differences at the new time, [batch, rows, n]
    const Sum<T> *dt, *known;
    int64* orders;
    Sum<T>* partial;  // [batch, NEAR, spans]
    int64 batch, lanes, n, span, spans, rows, sample_step, row_step;
    double rtol, atol;  // in whose units the errors of the orders are compared
};

// The next order: of those near this one that with the smallest error.
template <typename T>
__device__ void choose_order(const Correct<T>& a, int64 b, const Sum<T> (&squares)[NEAR]) {
    using S = Sum<T>;
    const int64 order = a.orders[b] - 1, highest = a.orders[a.batch + b];
    const S* const g = a.known + b * (2 * a.rows + 1) + a.rows;
    int64 best = order;
    S smallest = 0;
    for (int64 near = 0, seen = 0; near < NEAR; ++near) {
        const int64 k = order - 1 + near;
        if (k < 1 || k > a.rows) continue;
        const S error = sqrt(squares[near]) * g[k];
        if (!seen || error < smallest) {
            smallest = error;
            best = k;
        }
        seen = 1;
    }
    a.orders[2 * a.batch + b] = best < highest ? best : highest;
}

template <typename T>  // Phi_j = v - sum_{i<j} beta_i Phi_i of the last time
__global__ void __launch_bounds__(MAX_THREADS) correct(Correct<T> a) {
    using S = Sum<T>;
    const Team team(a.batch, a.lanes);
    const int64 b = team.sample, order = a.orders[b] - 1;
    const S *const beta = a.known + b * (2 * a.rows + 1), *const g = beta + a.rows;
    const S share = g[order] * a.dt[b];
    const T *const velocity = a.velocity + b * a.n, *const phi = a.phi + b * a.sample_step;
    const T *const z = a.z + b * a.n, *const end = a.end + b * a.n;
    T *const next = a.next + b * a.rows * a.n, *const error = a.error + b * a.n;
    const S rtol = S(a.rtol), atol = S(a.atol);
    const bool wide = aligned(velocity, phi, next, error) && aligned(z, end) &&
                      (a.row_step | a.n) * sizeof(T) % 16 == 0;
    S squares[NEAR] = {0, 0, 0};
    sweep<T>(team, a.n, a.span, wide, [&](auto w, int64 i) {
        auto value = load<w.width>(velocity + i);
        auto unit = load<w.width>(z + i);
        const auto after = load<w.width>(end + i);
#pragma unroll
        for (int l = 0; l < w.width; ++l)
            unit.at[l] = fmax(fabs(unit.at[l]), fabs(after.at[l])) * rtol + atol;
        for (int64 j = 0; j <= a.rows; ++j) {
            if (j) {
                const auto row = load<w.width>(phi + (j - 1) * a.row_step + i);
#pragma unroll
                for (int l = 0; l < w.width; ++l) value.at[l] -= beta[j - 1] * row.at[l];
            }
            if (j == order) {
                Values<T, w.width> miss;
#pragma unroll
                for (int l = 0; l < w.width; ++l) miss.at[l] = share * value.at[l];
                store<w.width>(error + i, miss);
            }
#pragma unroll
            for (int l = 0; l < w.width; ++l) {
                const S scaled = value.at[l] / unit.at[l], square = scaled * scaled;
#pragma unroll
                for (int near = 0; near < NEAR; ++near)
                    squares[near] += j == order - 1 + near ? square : 0;
            }
            if (j == a.rows) continue;
            Values<T, w.width> kept = value;  // what is stored is rounded, and the sum goes on
            store<w.width>(next + j * a.n + i, kept);
        }
    });
    team_sum(team, squares);
    if (!team.first()) return;
    if (a.spans == 1) {
        choose_order(a, b, squares);
    } else {
        for (int k = 0; k < NEAR; ++k)
            a.partial[(b * NEAR + k) * a.spans + blockIdx.y] = squares[k];
    }
}

template <typename T>  // a team is a block, and has a sample
__global__ void __launch_bounds__(MAX_THREADS) choose(Correct<T> a) {
    const Team team(gridDim.x, blockDim.x);
    Sum<T> squares[NEAR] = {0, 0, 0};
    for (int64 i = team.rank; i < a.spans; i += team.lanes) {
        for (int k = 0; k < NEAR; ++k)
            squares[k] += a.partial[(team.sample * NEAR + k) * a.spans + i];
    }
    team_sum(team, squares);
    if (team.first()) choose_order(a, team.sample, squares);
}
