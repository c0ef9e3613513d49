// One iteration of Picard, Anderson or Broyden: residual, norms, stop test, best iterate, update.
//
// Its stages are `measure` (the norms, and the products with the history), `judge` (the stop test),
// `extend` and `settle` (the history), and `move` (the next iterate). A sample of one span goes
// through all of them in one kernel, `iterate`; those of a sample of several spans are kernels,
// where `judge` and `settle` add up what the spans handed in. All that an iteration knows of those
// before is on the device: what it counts, too, in each sample, so that nothing depends on the host.

constexpr int GROUP = 8;  // rows of a history whose products are in registers at a time
constexpr int NORMS = 4;  // sums of `measure` before the products

enum Status { diverged = 2, non_finite = 3 };
enum Scale { of_update, of_root, fixed_scale };
// What a sample does in this iteration.
enum Decision { stays = 0, moves = 1, retreats = 2, restarts = 4, keeps = 8 };

template <typename T>
struct Iteration {
    const T *z, *fz, *g, *before;  // g is zero where it is f(z) - z; before: the last iterate
    T* next;                       // zero where there is none
    T* best;
    T *last_g, *last_plain, *rows, *plain_rows;  // Anderson's; of Broyden the rows are the steps
    Sum<T>* reals;    // [REALS, batch]
    int64* counters;  // [COUNTERS, batch], and how many samples have stopped
    Sum<T>* sums;     // [batch, width]
    Sum<T>* partial;  // [batch, width, spans]
    Sum<T>* matrix;   // [batch, depth, depth], Broyden's
    const Sum<T> *floors, *fixed, *origin;  // zero, or [batch], [batch], [2, batch]
    int64 batch, lanes, n, span, spans, width, depth, period, min_steps, scale;
    double floor, tol, rounding, divergence, trust, growth, damping, ridge;
    double tiny, eps;  // of Sum<T>
};

enum Real { size_, update_, best_norm, best_limit, start_norm, ceiling, reach, REALS };
enum Counter { count_, stopped, steps, status, doubted, pending, was_plain, decision, COUNTERS };

// One sample of it.
template <typename T>
struct Sample {
    const Iteration<T>& a;
    Team team;
    int64 at, count;  // its first entry, and which iterate this is, from 1

    // `ahead` is one before the iterate has been counted, else zero. A team that is absent takes the
    // count of one that shares its warp: both are to make as many shuffles.
    __device__ Sample(const Iteration<T>& a, int ahead)
        : a(a), team(a.batch, a.lanes), at(team.sample * a.n) {
        count = a.counters[count_ * a.batch + team.sample] + ahead;
        if (team.lanes <= WARP) count = __shfl_sync(0xffffffff, count, 0);
    }

    __device__ Sum<T>& real(Real which) const { return a.reals[which * a.batch + team.sample]; }
    __device__ int64& counter(Counter which) const {
        return a.counters[which * a.batch + team.sample];
    }
    __device__ bool does(Decision what) const { return counter(decision) & what; }
    __device__ Sum<T>& sum(int64 k) const { return a.sums[team.sample * a.width + k]; }
    __device__ T* row(T* rows, int64 k) const { return rows + (team.sample * a.depth + k) * a.n; }

    __device__ bool wide() const {
        return a.n * sizeof(T) % 16 == 0 && aligned(a.z, a.fz, a.g, a.before, a.next);
    }
    template <typename Work>
    __device__ void each(bool wide, Work work) const {
        sweep<T>(team, a.n, a.span, wide, work);
    }

    // A sum of this span; of the sample, where it has but one.
    __device__ void hand_in(int64 k, Sum<T> value) const {
        if (!team.first()) return;
        if (a.spans == 1)
            sum(k) = value;
        else
            a.partial[(team.sample * a.width + k) * a.spans + blockIdx.y] = value;
    }
    // The sums of the spans of the sample.
    __device__ void gather(int64 count) const {
        for (int64 k = 0; a.spans > 1 && k < count; ++k) {
            const Sum<T>* const partial = a.partial + (team.sample * a.width + k) * a.spans;
            Sum<T> sums[1] = {0};
            for (int64 i = team.rank; i < a.spans; i += team.lanes) sums[0] += partial[i];
            team_sum(team, sums);
            if (team.first()) sum(k) = sums[0];
        }
        team.meet();
    }
};

template <int width, typename T>
__device__ void round_to(Values<T, width>& values) {
    T as;
#pragma unroll
    for (int j = 0; j < width; ++j) {
        narrow(values.at[j], as);
        values.at[j] = widen(as);
    }
}

template <int width, typename T>
__device__ Values<T, width> residual_at(const Iteration<T>& a, int64 i) {
    if (a.g) return load<width>(a.g + i);
    const auto f = load<width>(a.fz + i), z = load<width>(a.z + i);
    Values<T, width> g;
#pragma unroll
    for (int j = 0; j < width; ++j) g.at[j] = f.at[j] - z.at[j];
    round_to<width, T>(g);
    return g;
}

template <int width, typename T>  // as torch.lerp
__device__ Values<T, width> plain_at(const Iteration<T>& a, int64 i) {
    auto f = load<width>(a.fz + i);
    if (a.damping == 1) return f;
    const auto z = load<width>(a.z + i);
    const Sum<T> weight = a.damping;
    const bool near = weight < static_cast<Sum<T>>(0.5);
    const Sum<T> share = near ? weight : weight - 1;
#pragma unroll
    for (int j = 0; j < width; ++j)
        f.at[j] = (near ? z.at[j] : f.at[j]) + share * (f.at[j] - z.at[j]);
    round_to<width, T>(f);
    return f;
}

// A number that takes what has no square to where it has one.
__device__ inline float magnifier(float) { return 1.2676506e30f; }       // 2^100
__device__ inline double magnifier(double) { return 5.922386521532856e225; }  // 2^750

// ------------------------------------------------------------------------------- the stop test

// |f(z) - z| and |f(z)|, where squares underflow from the magnified ones.
template <typename T>
__device__ void take_norms(const Sample<T>& s) {
    using S = Sum<T>;
    const Iteration<T>& a = s.a;
    const S small = 100 * sqrt(static_cast<S>(a.tiny)), by = magnifier(S());
    S size = sqrt(s.sum(0)), update = a.fixed ? a.fixed[s.team.sample] : sqrt(s.sum(1));
    if (size < small) {
        size = sqrt(s.sum(2)) / by;
        if (size > 0 && update < small && !a.fixed) update = sqrt(s.sum(3)) / by;
    }
    s.real(size_) = size;
    s.real(update_) = update;
}

template <typename T>
__device__ Sum<T> scale_of(const Sample<T>& s, Sum<T> update) {
    if (s.a.scale == fixed_scale) return s.a.fixed[s.team.sample];
    return s.a.scale == of_update ? update
                                  : most<Sum<T>>(least(s.real(start_norm), update), 1);
}

template <typename T>
__device__ Sum<T> floor_of(const Sample<T>& s) {
    return s.a.floors ? s.a.floors[s.team.sample] : static_cast<Sum<T>>(s.a.floor);
}

// What follows from the first residual, or from where another solver began.
template <typename T>
__device__ void begin(const Sample<T>& s, Sum<T> limit) {
    using S = Sum<T>;
    const Iteration<T>& a = s.a;
    S first = limit;
    if (a.origin) {
        const S at_start = scale_of(s, s.real(ceiling) / static_cast<S>(a.divergence));
        first = least(first, floor_of(s) + at_start * static_cast<S>(a.tol));
    }
    s.real(reach) = most(first, s.real(start_norm) * static_cast<S>(a.trust));
}

template <typename T>
__device__ void origin(const Sample<T>& s) {
    using S = Sum<T>;
    const Iteration<T>& a = s.a;
    const S size = s.real(size_);
    if (a.origin) {
        s.real(start_norm) = a.origin[s.team.sample];
        s.real(ceiling) = a.origin[a.batch + s.team.sample];
    } else {
        s.real(start_norm) = finite(size) ? size : size - size;  // an infinite one is NaN
        s.real(ceiling) =
            most(s.real(start_norm), s.real(update_)) * static_cast<S>(a.divergence);
    }
}

// Whether a limit that was met is not owed to a growth of |f(z)|; else the sample may run away.
template <typename T>
__device__ bool counts(const Sample<T>& s, bool& away) {
    using S = Sum<T>;
    const S size = s.real(size_), update = s.real(update_);
    const S hidden = update * static_cast<S>(s.a.rounding);
    if (!s.counter(doubted)) s.real(reach) = most(s.real(reach), size * static_cast<S>(s.a.trust));
    s.counter(doubted) = 1;
    const S rounded = 128 * s.a.rounding / s.a.divergence;
    const S bound = most(s.real(reach), s.real(ceiling) * rounded);
    if (most(size, hidden) <= bound) return true;
    away = hidden > bound || update > s.real(ceiling);
    return false;
}

template <typename T>
__device__ void stop(const Sample<T>& s, int64 failure) {
    s.counter(stopped) = 1;
    s.counter(steps) = s.count;
    s.counter(status) = failure;
    atomicAdd(reinterpret_cast<unsigned long long*>(s.a.counters + COUNTERS * s.a.batch), 1ull);
}

// The test of a sample that has not stopped; what it does next.
template <typename T>
__device__ int64 test(const Sample<T>& s, Sum<T> last) {
    using S = Sum<T>;
    const Iteration<T>& a = s.a;
    const bool first = s.count == 1;
    if (first) origin(s);
    const S size = s.real(size_), best = s.real(best_norm);
    const S limit = floor_of(s) + static_cast<S>(a.tol) * scale_of(s, s.real(update_));
    if (first) begin(s, limit);
    bool met = false, away = false;
    int64 failure = 0;
    // Where the residual is the least so far and above its limit, there is nothing to look at.
    if (a.min_steps > 1 || !(limit <= size && (first || size <= best))) {
        met = s.count >= a.min_steps && size <= limit && counts(s, away);
        if (away) failure = diverged;
        if (!(size <= s.real(ceiling))) failure = finite(size) ? diverged : non_finite;
        if (met || failure) stop(s, failure);
    }
    const bool improved = met || first || size <= best, grown = !first && size > a.growth * last;
    if (improved) {
        s.real(best_norm) = finite(size) ? size : 1 / S(0);
        s.real(best_limit) = finite(size) ? limit : floor_of(s);
    }
    int64 found = s.counter(stopped) ? stays : moves;
    if (!improved && s.counter(pending)) found |= keeps;
    s.counter(pending) = improved;
    if (grown) found |= s.counter(was_plain) ? restarts : restarts | retreats;
    s.counter(was_plain) = first || grown;
    return found;
}

template <typename T>
__device__ void judge_sample(const Sample<T>& s) {
    if (s.team.first()) {
        const Sum<T> last = s.real(size_);
        s.counter(count_) = s.count;
        take_norms(s);
        s.counter(decision) = s.counter(stopped) ? stays : test(s, last);
    }
    s.team.meet();
}

// The norms of a sample.
template <typename T>
__device__ void measure_norms(const Sample<T>& s) {
    using S = Sum<T>;
    const Iteration<T>& a = s.a;
    const S by = magnifier(S());
    S sums[NORMS] = {};
    s.each(s.wide(), [&](auto w, int64 i) {
        const auto g = residual_at<w.width>(a, s.at + i), f = load<w.width>(a.fz + s.at + i);
#pragma unroll
        for (int j = 0; j < w.width; ++j) {
            const S large = g.at[j] * by, larger = f.at[j] * by;
            sums[0] += g.at[j] * g.at[j];
            sums[1] += f.at[j] * f.at[j];
            sums[2] += large * large;
            sums[3] += larger * larger;
        }
    });
    team_sum(s.team, sums);
#pragma unroll
    for (int k = 0; k < NORMS; ++k) s.hand_in(k, sums[k]);
}

// The iterate before is the best one, and this one is not.
template <typename T>
__device__ void keep_best(const Sample<T>& s) {
    if (!s.does(keeps)) return;
    s.each(s.wide(), [&](auto w, int64 i) {
        auto z = load<w.width>(s.a.before + s.at + i);
        store<w.width>(s.a.best + s.at + i, z);
    });
}

// A sample that has stopped stays where it is.
template <typename T>
__device__ void stay(const Sample<T>& s) {
    s.each(s.wide(), [&](auto w, int64 i) {
        auto z = load<w.width>(s.a.z + s.at + i);
        store<w.width>(s.a.next + s.at + i, z);
    });
}

// ----------------------------------------------------------------------------------- the updates

struct Picard {
    template <typename T>
    __device__ static void measure(const Sample<T>&) {}
    template <typename T>
    __device__ static int64 sums(const Sample<T>&) {
        return NORMS;
    }
    template <typename T>
    __device__ static void weigh(const Sample<T>&) {}
    template <typename T>
    __device__ static void extend(const Sample<T>&) {}
    template <typename T>
    __device__ static void settle(const Sample<T>&) {}

    template <typename T>
    __device__ static void move(const Sample<T>& s) {
        s.each(s.wide(), [&](auto w, int64 i) {
            auto plain = plain_at<w.width>(s.a, s.at + i);
            store<w.width>(s.a.next + s.at + i, plain);
        });
    }
};

// Rows (q_i, p_i): a difference of residuals, orthonormal, and of the plain steps beside it. The
// sums of a sample are its norms, the products of the rows with the new difference, which become
// its coefficients (zero for rows that are not in use), and those with the residual.
struct Anderson {
    // Directions since all were forgotten, before this one; the first iterate has none.
    template <typename T>
    __device__ static int64 directions(const Sample<T>& s) {
        return s.count < 2 ? 0 : (s.count - 2) % s.a.period;
    }
    template <typename T>
    __device__ static int64 used(const Sample<T>& s) {
        const int64 all = directions(s);
        return all < s.a.depth ? all : s.a.depth;
    }
    template <typename T>
    __device__ static int64 slot(const Sample<T>& s) {
        return directions(s) % s.a.depth;
    }
    template <typename T>
    __device__ static int64 sums(const Sample<T>& s) {
        return NORMS + 2 * s.a.depth;
    }

    template <typename T>
    __device__ static void measure(const Sample<T>& s) {
        const Iteration<T>& a = s.a;
        const int64 rows = used(s);
        const bool wide = s.wide(), goes = !s.counter(stopped);
        for (int64 first = 0; first < rows; first += GROUP) {
            Sum<T> sums[2 * GROUP] = {};
            if (goes) {
                s.each(wide, [&](auto w, int64 i) {
                    const auto g = residual_at<w.width>(a, s.at + i);
                    const auto last = load<w.width>(a.last_g + s.at + i);
#pragma unroll
                    for (int k = 0; k < GROUP; ++k) {
                        if (first + k >= rows) break;
                        const auto q = load<w.width>(s.row(a.rows, first + k) + i);
#pragma unroll
                        for (int j = 0; j < w.width; ++j) {
                            sums[k] += q.at[j] * (g.at[j] - last.at[j]);
                            sums[GROUP + k] += q.at[j] * g.at[j];
                        }
                    }
                });
            }
            team_sum(s.team, sums);
#pragma unroll
            for (int k = 0; k < GROUP; ++k) {
                if (first + k >= rows) break;
                s.hand_in(NORMS + first + k, sums[k]);
                s.hand_in(NORMS + a.depth + first + k, sums[GROUP + k]);
            }
        }
    }

    // Rows from before a restart are out of use, which a third number of each row says; the one that
    // is written over has no part in the next iterate.
    template <typename T>
    __device__ static void weigh(const Sample<T>& s) {
        const Iteration<T>& a = s.a;
        const int64 rows = used(s), newest = slot(s);
        const bool restart = s.does(restarts);
        for (int64 k = s.team.rank; s.team.present && k < a.depth; k += s.team.lanes) {
            Sum<T>& in_use = s.sum(NORMS + 2 * a.depth + k);
            const bool takes = k < rows && !restart && in_use != 0;
            if (!takes) s.sum(NORMS + k) = 0;
            if (!takes || k == newest) s.sum(NORMS + a.depth + k) = 0;
            if (restart) in_use = 0;
            if (k == newest && s.count > 1) in_use = !restart;
        }
        s.team.meet();
    }

    // The new difference without its parts along the rows, over the oldest of them.
    template <typename T>
    __device__ static void extend(const Sample<T>& s) {
        using S = Sum<T>;
        const Iteration<T>& a = s.a;
        const int64 rows = used(s);
        T* const newest = s.row(a.rows, slot(s));
        S sums[2] = {};
        if (s.does(moves)) {
            s.each(s.wide(), [&](auto w, int64 i) {
                auto g = residual_at<w.width>(a, s.at + i);
                if (s.count > 1) {
                    auto q = load<w.width>(a.last_g + s.at + i);
#pragma unroll
                    for (int j = 0; j < w.width; ++j) q.at[j] = g.at[j] - q.at[j];
                    for (int64 k = 0; k < rows; ++k) {
                        const S weight = s.sum(NORMS + k);
                        if (weight == 0) continue;
                        const auto row = load<w.width>(s.row(a.rows, k) + i);
#pragma unroll
                        for (int j = 0; j < w.width; ++j) q.at[j] -= weight * row.at[j];
                    }
                    store<w.width>(newest + i, q);
#pragma unroll
                    for (int j = 0; j < w.width; ++j) {
                        sums[0] += q.at[j] * q.at[j];
                        sums[1] += q.at[j] * g.at[j];
                    }
                }
                if (!s.does(retreats)) store<w.width>(a.last_g + s.at + i, g);
            });
        }
        team_sum(s.team, sums);
        s.hand_in(0, sums[0]);
        s.hand_in(1, sums[1]);
    }

    // Of the new direction the factor that makes it a unit, and its part of the next iterate.
    template <typename T>
    __device__ static void settle(const Sample<T>& s) {
        using S = Sum<T>;
        s.gather(2);
        if (s.team.first()) {
            const S low = sqrt(static_cast<S>(s.a.tiny));
            const S length = low + static_cast<S>(s.a.ridge) * s.real(size_);
            const S scale = 1 / hypot(sqrt(s.sum(0)), length);
            s.sum(3) = s.does(restarts) ? 0 : scale * s.sum(1);
            s.sum(2) = scale;
        }
        s.team.meet();
    }

    template <typename T>
    __device__ static void move(const Sample<T>& s) {
        using S = Sum<T>;
        const Iteration<T>& a = s.a;
        const int64 rows = used(s);
        T *const q_new = s.row(a.rows, slot(s)), *const p_new = s.row(a.plain_rows, slot(s));
        const S scale = s.sum(2), share = s.sum(3);
        const bool back = s.does(retreats);
        s.each(s.wide(), [&](auto w, int64 i) {
            auto here = plain_at<w.width>(a, s.at + i);
            auto step = here;
            if (s.count > 1) {
                const auto last = load<w.width>(a.last_plain + s.at + i);
                Values<T, w.width> p;
#pragma unroll
                for (int j = 0; j < w.width; ++j) p.at[j] = here.at[j] - last.at[j];
                if (back) step = last;
                for (int64 k = 0; k < rows; ++k) {
                    const S old = s.sum(NORMS + k), part = s.sum(NORMS + a.depth + k);
                    if (old == 0 && part == 0) continue;
                    const auto row = load<w.width>(s.row(a.plain_rows, k) + i);
#pragma unroll
                    for (int j = 0; j < w.width; ++j) {
                        p.at[j] -= old * row.at[j];
                        step.at[j] -= part * row.at[j];
                    }
                }
                auto q = load<w.width>(q_new + i);
#pragma unroll
                for (int j = 0; j < w.width; ++j) q.at[j] *= scale, p.at[j] *= scale;
                store<w.width>(q_new + i, q);
                store<w.width>(p_new + i, p);
#pragma unroll
                for (int j = 0; j < w.width; ++j) step.at[j] -= share * p.at[j];
            }
            if (!back) store<w.width>(a.last_plain + s.at + i, here);
            store<w.width>(a.next + s.at + i, step);
        });
    }
};

// The good method. The steps s_0, s_1, ... since all were forgotten, and the matrix that takes the
// products S g to their coefficients, which gains a row a step: see Broyden of implicitcore. The
// sums of a sample are its norms, the products of the steps with the residual, then with the newest
// step, and the coefficients, where the first, which no step has, is the factor of the new one.
struct Broyden {
    template <typename T>
    __device__ static int64 taken(const Sample<T>& s) {  // steps so far
        return (s.count - 1) % s.a.depth;
    }
    template <typename T>
    __device__ static int64 sums(const Sample<T>& s) {
        return NORMS + taken(s);
    }

    // The products of the first `rows` steps with a vector.
    template <typename T, typename Vector>
    __device__ static void products(const Sample<T>& s, int64 rows, bool goes, Vector vector) {
        const bool wide = s.wide();
        for (int64 first = 0; first < rows; first += GROUP) {
            Sum<T> sums[GROUP] = {};
            if (goes) {
                s.each(wide, [&](auto w, int64 i) {
                    const auto v = vector(w, i);
#pragma unroll
                    for (int k = 0; k < GROUP; ++k) {
                        if (first + k >= rows) break;
                        const auto row = load<w.width>(s.row(s.a.rows, first + k) + i);
#pragma unroll
                        for (int j = 0; j < w.width; ++j) sums[k] += row.at[j] * v.at[j];
                    }
                });
            }
            team_sum(s.team, sums);
#pragma unroll
            for (int k = 0; k < GROUP; ++k) {
                if (first + k >= rows) break;
                s.hand_in(NORMS + first + k, sums[k]);
            }
        }
    }

    template <typename T>
    __device__ static void measure(const Sample<T>& s) {
        products(s, taken(s), !s.counter(stopped), [&](auto w, int64 i) {
            return residual_at<w.width>(s.a, s.at + i);
        });
    }

    template <typename T>
    __device__ static Sum<T>& coefficient(const Sample<T>& s, int64 k) {
        return s.sum(NORMS + s.a.depth + k);
    }
    template <typename T>
    __device__ static Sum<T>& entry(const Sample<T>& s, int64 row, int64 column) {
        return s.a.matrix[(s.team.sample * s.a.depth + row) * s.a.depth + column];
    }

    template <typename T>
    __device__ static void weigh(const Sample<T>& s) {
        using S = Sum<T>;
        const Team& team = s.team;
        const int64 newest = taken(s);
        for (int64 j = 1 + team.rank; team.present && j <= newest; j += team.lanes) {
            S c = 0;
            for (int64 i = 0; i < j; ++i) c += entry(s, j, i) * s.sum(NORMS + i);
            coefficient(s, j) = c;
        }
        team.meet();
        if (!team.present) return;
        const S denominator = newest ? 1 - coefficient(s, newest) : 1;
        const bool safe = fabs(denominator) > 10 * static_cast<S>(s.a.eps);
        if (team.rank == 0) coefficient(s, 0) = safe ? 1 / denominator : 1;
        for (int64 i = team.rank; newest && !safe && i < newest; i += team.lanes)
            entry(s, newest, i) = 0;
    }

    // The next step and iterate, and the products of all steps with it.
    template <typename T>
    __device__ static void extend(const Sample<T>& s) {
        using S = Sum<T>;
        s.team.meet();
        const Iteration<T>& a = s.a;
        const int64 newest = taken(s);
        T* const step = s.row(a.rows, newest);
        const S scale = coefficient(s, 0);
        const bool goes = s.does(moves);
        if (goes) {
            s.each(s.wide(), [&](auto w, int64 i) {
                auto d = residual_at<w.width>(a, s.at + i);
                for (int64 k = 1; k < newest; ++k) {
                    const S c = coefficient(s, k);
                    const auto row = load<w.width>(s.row(a.rows, k) + i);
#pragma unroll
                    for (int j = 0; j < w.width; ++j) d.at[j] += c * row.at[j];
                }
#pragma unroll
                for (int j = 0; j < w.width; ++j) d.at[j] *= scale;
                store<w.width>(step + i, d);
                auto z = load<w.width>(a.z + s.at + i);
#pragma unroll
                for (int j = 0; j < w.width; ++j) z.at[j] += d.at[j];
                store<w.width>(a.next + s.at + i, z);
            });
        }
        if (newest + 1 == a.depth) return;  // all is forgotten before the next step
        products(s, newest + 1, goes, [&](auto w, int64 i) { return load<w.width>(step + i); });
    }

    // The row of the matrix that the newest step adds.
    template <typename T>
    __device__ static void settle(const Sample<T>& s) {
        using S = Sum<T>;
        const Team& team = s.team;
        const int64 newest = taken(s);
        if (newest + 1 == s.a.depth) return;
        s.gather(NORMS + newest + 1);
        if (!team.present || !s.does(moves)) return;
        const S square = s.sum(NORMS + newest) + static_cast<S>(s.a.tiny);
        for (int64 j = team.rank; j <= newest; j += team.lanes) {
            S total = j == newest;
            for (int64 i = j + 1; i <= newest; ++i) total += s.sum(NORMS + i) * entry(s, i, j);
            entry(s, newest + 1, j) = total / square;
        }
    }

    template <typename T>
    __device__ static void move(const Sample<T>&) {}
};

// ------------------------------------------------------------------------------------ the kernels

template <typename T, typename Update>
__device__ void measure_stage(const Sample<T>& s) {
    measure_norms(s);
    Update::measure(s);
}

template <typename T, typename Update>
__device__ void judge_stage(const Sample<T>& s) {
    s.gather(Update::sums(s));
    judge_sample(s);
    if (s.a.next) Update::weigh(s);
}

template <typename T, typename Update>
__device__ void extend_stage(const Sample<T>& s) {
    keep_best(s);
    if (s.a.next) {
        if (!s.does(moves)) stay(s);
        Update::extend(s);
    }
}

template <typename T, typename Update>
__device__ void move_stage(const Sample<T>& s) {
    if (s.does(moves)) Update::move(s);
}

template <typename T, typename Update>
__global__ void __launch_bounds__(MAX_THREADS) measure(Iteration<T> a) {
    measure_stage<T, Update>(Sample<T>(a, 1));
}

template <typename T, typename Update>
__global__ void __launch_bounds__(MAX_THREADS) judge(Iteration<T> a) {
    judge_stage<T, Update>(Sample<T>(a, 1));
}

template <typename T, typename Update>
__global__ void __launch_bounds__(MAX_THREADS) extend(Iteration<T> a) {
    extend_stage<T, Update>(Sample<T>(a, 0));
}

template <typename T, typename Update>
__global__ void __launch_bounds__(MAX_THREADS) settle(Iteration<T> a) {
    Update::settle(Sample<T>(a, 0));
}

template <typename T, typename Update>
__global__ void __launch_bounds__(MAX_THREADS) move(Iteration<T> a) {
    move_stage<T, Update>(Sample<T>(a, 0));
}

template <typename T, typename Update>
__global__ void __launch_bounds__(MAX_THREADS) iterate(Iteration<T> a) {
    const Sample<T> s(a, 1);
    measure_stage<T, Update>(s);
    judge_stage<T, Update>(s);
    extend_stage<T, Update>(s);
    if (!a.next) return;
    Update::settle(s);
    move_stage<T, Update>(s);
}
