// Sums over the entries of a sample, and the dtypes that they are computed in.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include <c10/util/BFloat16.h>

namespace implicitcore {

template <class T>
struct RealOf {
  using type = float;
};
template <>
struct RealOf<double> {
  using type = double;
};

// The dtype of norms and coefficients: float for bfloat16 states.
template <class T>
using Real = typename RealOf<T>::type;

// Partial sums are of so many entries, and their totals double: the error does not grow with n.
constexpr int64_t BLOCK = 1024;

// Vectorised: only the order of these additions is free, NaN and infinity keep their meaning.
template <class R, class Term>
inline double sum(int64_t n, Term term) {
  double total = 0;
  for (int64_t begin = 0; begin < n; begin += BLOCK) {
    const int64_t end = std::min(n, begin + BLOCK);
    R part = 0;
#pragma omp simd reduction(+ : part)
    for (int64_t i = begin; i < end; ++i) part += term(i);
    total += part;
  }
  return total;
}

// A square beyond the dtype is infinite and one below it is zero, as in the torch backend.
template <class R>
inline R root(double square) {
  return std::sqrt(static_cast<R>(square));
}

template <class R, class T>
inline double sum_of_squares(const T* values, int64_t n) {
  return sum<R>(n, [=](int64_t i) {
    const R value = static_cast<R>(values[i]);
    return value * value;
  });
}

template <class R, class T>
inline R norm(const T* values, int64_t n) {
  return root<R>(sum_of_squares<R>(values, n));
}

// |f(z) - z|^2, each difference rounded to the dtype, and |f(z)|^2.
struct Squares {
  double residual, update;
};

// Both in one pass; the differences are written where WRITES, and without |f(z)| where not OF_F.
template <bool WRITES, bool OF_F, class T>
inline Squares squares(const T* fz, const T* z, T* out, int64_t n) {
  using R = Real<T>;
  Squares found = {};
  for (int64_t begin = 0; begin < n; begin += BLOCK) {
    const int64_t end = std::min(n, begin + BLOCK);
    R residual = 0, update = 0;
#pragma omp simd reduction(+ : residual, update)
    for (int64_t i = begin; i < end; ++i) {
      const R to = static_cast<R>(fz[i]);
      const T difference = static_cast<T>(to - static_cast<R>(z[i]));
      const R value = static_cast<R>(difference);
      if constexpr (WRITES) out[i] = difference;
      residual += value * value;
      if constexpr (OF_F) update += to * to;
    }
    found.residual += residual;
    found.update += update;
  }
  return found;
}

// The same, written to `out` where it is, and of f where that is asked for.
template <class T>
inline Squares squares(const T* fz, const T* z, T* out, bool of_f, int64_t n) {
  if (out) return of_f ? squares<true, true>(fz, z, out, n) : squares<true, false>(fz, z, out, n);
  return of_f ? squares<false, true>(fz, z, out, n) : squares<false, false>(fz, z, out, n);
}

template <class T>
inline Real<T> distance(const T* a, const T* b, int64_t n) {
  return root<Real<T>>(squares<false, false, T>(a, b, nullptr, n).residual);
}

// The largest absolute value, or one that is not finite: as whole numbers their order is the same,
// with infinity and then NaN at its end.
template <class R, class T>
inline R largest(const T* values, int64_t n) {
  using Bits = std::conditional_t<sizeof(R) == 4, uint32_t, uint64_t>;
  constexpr Bits unsigned_bits = ~Bits(0) >> 1;
  Bits most = 0;
#pragma omp simd reduction(max : most)
  for (int64_t i = 0; i < n; ++i) {
    const Bits each = std::bit_cast<Bits>(static_cast<R>(values[i])) & unsigned_bits;
    most = std::max(most, each);
  }
  return std::bit_cast<R>(most);
}

// The norm where squares underflow, for another pass.
template <class R, class T>
inline R scaled_norm(const T* values, int64_t n) {
  R most = 0;
  for (int64_t i = 0; i < n; ++i) most = std::max(most, std::abs(static_cast<R>(values[i])));
  if (!(most > 0) || !std::isfinite(most)) return most;
  return most * root<R>(sum<R>(n, [=](int64_t i) {
    const R value = static_cast<R>(values[i]) / most;
    return value * value;
  }));
}

template <class T>
inline void subtract(const T* __restrict a, const T* __restrict b, T* __restrict out, int64_t n) {
  using R = Real<T>;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    out[i] = static_cast<T>(static_cast<R>(a[i]) - static_cast<R>(b[i]));
  }
}

// A row for one thread, which is allocated once.
template <class R>
inline R* scratch(int64_t n) {
  thread_local std::vector<R> row;
  if (static_cast<int64_t>(row.size()) < n) row.resize(n);
  return row.data();
}

}  // namespace implicitcore
