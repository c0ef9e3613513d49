// The kernels of FusedBackend, one by one: for the loops that are not whole iterations here.
#pragma once

#include <optional>
#include <type_traits>
#include <vector>

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include "sums.h"

namespace implicitcore {

// Entries of states below which one thread is faster than several.
constexpr int64_t GRAIN = 32768;

template <class Work>
inline void each_sample(int64_t batch, int64_t n, Work work) {
  const int64_t grain = std::max<int64_t>(1, GRAIN / std::max<int64_t>(1, n));
  at::parallel_for(0, batch, grain, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) work(b);
  });
}

template <class R>
inline at::Tensor norms(int64_t batch) {
  return at::empty({batch}, at::TensorOptions(c10::CppTypeToScalarType<R>::value));
}

// Call work(T()) for the dtype T of the states.
template <class Work>
inline void dispatch(const at::Tensor& z, Work work) {
  switch (z.scalar_type()) {
    case at::kFloat:
      return work(float());
    case at::kDouble:
      return work(double());
    case at::kBFloat16:
      return work(c10::BFloat16());
    default:
      TORCH_CHECK(false, "no kernels for ", z.scalar_type());
  }
}

inline std::vector<at::Tensor> residual(const at::Tensor& fz, const at::Tensor& z,
                                        at::Tensor out) {
  std::vector<at::Tensor> found(2);
  dispatch(z, [&](auto type) {
    using T = decltype(type);
    using R = Real<T>;
    const int64_t batch = z.size(0), n = z.size(1);
    found = {norms<R>(batch), norms<R>(batch)};
    R *size = found[0].mutable_data_ptr<R>(), *update = found[1].mutable_data_ptr<R>();
    const T *from = z.const_data_ptr<T>(), *to = fz.const_data_ptr<T>();
    T* g = out.mutable_data_ptr<T>();
    each_sample(batch, n, [&](int64_t b) {
      const T *from_b = from + b * n, *to_b = to + b * n;
      T* g_b = g + b * n;
      update[b] = norm<R>(to_b, n);
      subtract(to_b, from_b, g_b, n);
      size[b] = norm<R>(g_b, n);
    });
  });
  return found;
}

// The rows of a history [batch, depth, n], contiguous in the last dimension.
template <class T>
struct Lines {
  const T* data;
  int64_t sample, line;

  explicit Lines(const at::Tensor& history)
      : data(history.const_data_ptr<T>()), sample(history.stride(0)), line(history.stride(1)) {}
  const T* at(int64_t b, int64_t i) const { return data + b * sample + i * line; }
};

inline at::Tensor inner_products(const at::Tensor& history, const at::Tensor& row) {
  const int64_t batch = history.size(0), depth = history.size(1), n = history.size(2);
  at::Tensor out = at::empty({batch, 1, depth}, row.options());
  dispatch(row, [&](auto type) {
    using T = decltype(type);
    using R = Real<T>;
    const Lines<T> rows(history), one(row);
    T* products = out.mutable_data_ptr<T>();
    each_sample(batch, n * depth, [&](int64_t b) {
      const T* v = one.at(b, 0);
      for (int64_t j = 0; j < depth; ++j) {
        const T* q = rows.at(b, j);
        products[b * depth + j] = static_cast<T>(static_cast<R>(sum<R>(
            n, [&](int64_t i) { return static_cast<R>(q[i]) * static_cast<R>(v[i]); })));
      }
    });
  });
  return out;
}

inline void axpy_history(const std::optional<at::Tensor>& row, const at::Tensor& weights,
                         const at::Tensor& history, double scale, at::Tensor out) {
  constexpr int64_t TILE = 256;
  const int64_t batch = history.size(0), depth = history.size(1), n = history.size(2);
  dispatch(history, [&](auto type) {
    using T = decltype(type);
    using R = Real<T>;
    const Lines<T> rows(history), base(row ? *row : out);
    const T* w = weights.const_data_ptr<T>();
    T* to = out.mutable_data_ptr<T>();
    const int64_t stride = out.stride(0);
    each_sample(batch, n * depth, [&](int64_t b) {
      R total[TILE];
      for (int64_t begin = 0; begin < n; begin += TILE) {
        const int64_t size = std::min(TILE, n - begin);
        const T* from = base.at(b, 0) + begin;
        for (int64_t i = 0; i < size; ++i) total[i] = row ? static_cast<R>(from[i]) : R(0);
        for (int64_t j = 0; j < depth; ++j) {
          const T* p = rows.at(b, j) + begin;
          const R weight = static_cast<R>(w[b * depth + j]) * static_cast<R>(scale);
#pragma omp simd
          for (int64_t i = 0; i < size; ++i) total[i] += weight * static_cast<R>(p[i]);
        }
        for (int64_t i = 0; i < size; ++i) to[b * stride + begin + i] = static_cast<T>(total[i]);
      }
    });
  });
}

// Stages that are added in one pass over the entries of a sample.
constexpr size_t TOGETHER = 8;

// total = base + sum_j weights_j slopes_j over the entries, of S stages.
template <size_t S, class T, class R, class Base>
inline void add_stages(R* total, Base base, const T* const* slopes, const R* weights, int64_t at,
                       int64_t size) {
  const T* slope[S];
  R weight[S];
  for (size_t j = 0; j < S; ++j) slope[j] = slopes[j] + at, weight[j] = weights[j];
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) {
    R value = base(i);
    for (size_t j = 0; j < S; ++j) value += weight[j] * static_cast<R>(slope[j][i]);
    total[i] = value;
  }
}

// The same with as many stages as there are, up to TOGETHER.
template <class T, class R, class Base, size_t S = 1>
inline void add_first(size_t count, R* total, Base base, const T* const* slopes, const R* weights,
                      int64_t at, int64_t size) {
  if constexpr (S < TOGETHER) {
    if (count > S)
      return add_first<T, R, Base, S + 1>(count, total, base, slopes, weights, at, size);
  }
  add_stages<S>(total, base, slopes, weights, at, size);
}

// Entries of a chunk where one dt is that of all samples.
constexpr int64_t CHUNK = 4096;

// dt is [batch], expanded where it is one for all: samples are then gone through as one.
inline at::Tensor stage_combination(const std::optional<at::Tensor>& z, const at::Tensor& dt,
                                    const std::vector<at::Tensor>& stages,
                                    const std::vector<double>& weights) {
  constexpr int64_t TILE = 256;
  const bool one = dt.stride(0) == 0;
  const int64_t entries = stages[0].numel(), n = one ? CHUNK : stages[0].size(1);
  const int64_t rows = one ? (entries + n - 1) / n : stages[0].size(0);
  const size_t count = stages.size();
  at::Tensor out = at::empty_like(stages[0]);
  const bool narrow = dt.scalar_type() == at::kFloat;
  const at::Tensor own = one ? dt.narrow(0, 0, 1) : dt.contiguous();
  const at::Tensor times = narrow ? own : own.to(at::kDouble);
  const float* step_float = narrow ? times.const_data_ptr<float>() : nullptr;
  const double* step = narrow ? nullptr : times.const_data_ptr<double>();
  dispatch(out, [&](auto type) {
    using T = decltype(type);
    using R = Real<T>;
    std::vector<const T*> slopes;
    for (const at::Tensor& stage : stages) slopes.push_back(stage.const_data_ptr<T>());
    const T* from = z ? z->const_data_ptr<T>() : nullptr;
    T* to = out.mutable_data_ptr<T>();
    each_sample(rows, n * count, [&](int64_t b) {
      const int64_t length = std::min(n, entries - b * n), place = one ? 0 : b;
      const double size_of_step = narrow ? step_float[place] : step[place];
      R tile[TILE], scaled[TOGETHER];
      for (int64_t begin = 0; begin < length; begin += TILE) {
        const int64_t size = std::min(TILE, length - begin), at = b * n + begin;
        R* total = tile;
        if constexpr (std::is_same_v<T, R>) total = to + at;
        for (size_t first = 0; first < count; first += TOGETHER) {
          const size_t some = std::min(TOGETHER, count - first);
          for (size_t j = 0; j < some; ++j)
            scaled[j] = static_cast<R>(weights[first + j] * size_of_step);
          const auto add = [&](auto base) {
            add_first(some, total, base, slopes.data() + first, scaled, at, size);
          };
          if (first)
            add([=](int64_t i) { return total[i]; });
          else if (from)
            add([=](int64_t i) { return static_cast<R>(from[at + i]); });
          else
            add([](int64_t) { return R(0); });
        }
        if constexpr (!std::is_same_v<T, R>)
          for (int64_t i = 0; i < size; ++i) to[at + i] = static_cast<T>(total[i]);
      }
    });
  });
  return out;
}

// Root mean square of error / (atol + rtol max(|z|, |z_next|)) of one sample.
template <class T>
inline Real<T> scaled_rms(const T* error, const T* z, const T* z_next, int64_t n, double rtol,
                          double atol) {
  using R = Real<T>;
  const double total = sum<R>(n, [=](int64_t i) {
    const R before = std::abs(static_cast<R>(z[i])), after = std::abs(static_cast<R>(z_next[i]));
    // The sum is a NaN where one of them is, as the larger would not be.
    const R larger = before > after ? before : after, nan = (before + after) * 0;
    const R share = static_cast<R>(error[i]) /
                    ((larger + nan) * static_cast<R>(rtol) + static_cast<R>(atol));
    return share * share;
  });
  return root<R>(total) / std::sqrt(static_cast<R>(n));
}

inline at::Tensor error_norm(const at::Tensor& error, const at::Tensor& z,
                             const at::Tensor& z_next, double rtol, double atol) {
  at::Tensor out;
  dispatch(z, [&](auto type) {
    using T = decltype(type);
    using R = Real<T>;
    const int64_t batch = z.size(0), n = z.size(1);
    out = norms<R>(batch);
    R* found = out.mutable_data_ptr<R>();
    const T *e = error.const_data_ptr<T>(), *a = z.const_data_ptr<T>(),
            *c = z_next.const_data_ptr<T>();
    each_sample(batch, n, [&](int64_t b) {
      found[b] = scaled_rms(e + b * n, a + b * n, c + b * n, n, rtol, atol);
    });
  });
  return out;
}

}  // namespace implicitcore
