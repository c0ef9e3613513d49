// Passes over the rows of a history of one sample: several rows in one, while what they are taken
// with is near.
#pragma once

#include <cstring>
#include <mutex>
#include <type_traits>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include "sums.h"

namespace implicitcore {

// The memory of histories that ended, for the next of the same shape: fresh memory costs more than
// a pass over it. Never destroyed: a solve may end after all else has.
class Spare {
  static constexpr size_t MOST = 4, LARGEST = 1 << 22;  // tensors, and the bytes of each

 public:
  static Spare& shared() {
    static Spare* all = new Spare;
    return *all;
  }

  at::Tensor take(at::IntArrayRef sizes, const at::TensorOptions& options) {
    {
      const std::lock_guard<std::mutex> alone(mutex_);
      for (at::Tensor& each : kept_) {
        if (each.sizes() != sizes || each.dtype() != options.dtype()) continue;
        std::swap(each, kept_.back());
        at::Tensor found = std::move(kept_.back());
        kept_.pop_back();
        return found;
      }
    }
    return at::empty(sizes, options);
  }

  void give(at::Tensor memory) {
    if (memory.nbytes() > LARGEST) return;
    const std::lock_guard<std::mutex> alone(mutex_);
    if (kept_.size() == MOST) kept_.erase(kept_.begin());
    kept_.push_back(std::move(memory));
  }

 private:
  std::mutex mutex_;
  std::vector<at::Tensor> kept_;
};

// Rows of each sample, [batch, depth, n], and how many have been written.
template <class T>
struct Rows {
  at::Tensor buffer;
  T* data;
  int64_t depth, n, count = 0;

  Rows(const at::Tensor& z, int64_t depth, int64_t width)
      : buffer(Spare::shared().take({z.size(0), depth, width}, z.options())),
        data(buffer.template mutable_data_ptr<T>()), depth(depth), n(width) {}
  ~Rows() { Spare::shared().give(std::move(buffer)); }
  Rows(const Rows&) = delete;
  Rows& operator=(const Rows&) = delete;

  int64_t used() const { return std::min(count, depth); }
  int64_t slot() const { return count % depth; }
  T* row(int64_t sample, int64_t i) const { return data + (sample * depth + i) * n; }
};

// Rows that are taken in one pass: as many as Anderson keeps by default, and registers hold.
constexpr int64_t AT_ONCE = 5;

// Call work(std::integral_constant<int, count>()) for a count from 1 to MOST.
template <int MOST = AT_ONCE, class Work>
inline void by_count(int64_t count, Work work) {
  if constexpr (MOST > 1) {
    if (count < MOST) return by_count<MOST - 1>(count, work);
  }
  work(std::integral_constant<int, MOST>());
}

// Entries that are computed side by side. A compiler keeps one sum of them for each row, and by
// itself adds all entries of a sum up before the next row.
template <class R>
struct Lanes {
  typedef R type __attribute__((vector_size(32)));
  static constexpr int64_t count = 32 / sizeof(R);

  template <class T>
  static type load(const T* from) {
    type found;
    if constexpr (std::is_same_v<T, R>) {
      std::memcpy(&found, from, sizeof found);
    } else {
      R each[count];
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) each[i] = static_cast<R>(from[i]);
      std::memcpy(&found, each, sizeof found);
    }
    return found;
  }

  static void store(type values, R* to) { std::memcpy(to, &values, sizeof values); }

  static R total(type values) {
    R each[count];
    store(values, each);
    for (int64_t width = count / 2; width; width /= 2) {
      for (int64_t i = 0; i < width; ++i) each[i] += each[i + width];
    }
    return each[0];
  }
};

// Products of K rows with q and with g.
template <int K, class T, class R = Real<T>>
inline void products(const T* const* rows, const R* q, const T* g, int64_t n, R* with_q,
                     R* with_g) {
  using Some = Lanes<R>;
  double of_q[K] = {}, of_g[K] = {};
  const T* row[K];
  for (int k = 0; k < K; ++k) row[k] = rows[k];
  for (int64_t begin = 0; begin < n; begin += BLOCK) {
    const int64_t end = std::min(n, begin + BLOCK);
    typename Some::type in_q[K] = {}, in_g[K] = {};
    int64_t i = begin;
    for (; i + Some::count <= end; i += Some::count) {
      const auto a = Some::load(q + i), b = Some::load(g + i);
#pragma GCC unroll 8
      for (int k = 0; k < K; ++k) {
        const auto value = Some::load(row[k] + i);
        in_q[k] += value * a;
        in_g[k] += value * b;
      }
    }
    for (int k = 0; k < K; ++k) {
      R a = Some::total(in_q[k]), b = Some::total(in_g[k]);
      for (int64_t j = i; j < end; ++j) {
        const R value = static_cast<R>(row[k][j]);
        a += value * q[j];
        b += value * static_cast<R>(g[j]);
      }
      of_q[k] += a;
      of_g[k] += b;
    }
  }
  for (int k = 0; k < K; ++k) {
    with_q[k] = static_cast<R>(of_q[k]);
    with_g[k] = static_cast<R>(of_g[k]);
  }
}

// What rows are taken from, and how often each.
template <class R>
struct Share {
  R* from;
  const R* weights;
};

// Take K rows from some vectors of n entries.
template <int K, class T, class R, size_t COUNT>
inline void take(const T* const* rows, const Share<R> (&shares)[COUNT], int64_t at, int64_t n) {
  const T* row[K];
  R weight[COUNT][K];
  for (int k = 0; k < K; ++k) {
    row[k] = rows[k] + at;
    for (size_t j = 0; j < COUNT; ++j) weight[j][k] = shares[j].weights[k];
  }
  R* from[COUNT];
  for (size_t j = 0; j < COUNT; ++j) from[j] = shares[j].from;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    R left[COUNT];
    for (size_t j = 0; j < COUNT; ++j) left[j] = from[j][i];
    for (int k = 0; k < K; ++k) {
      const R value = static_cast<R>(row[k][i]);
      for (size_t j = 0; j < COUNT; ++j) left[j] -= weight[j][k] * value;
    }
    for (size_t j = 0; j < COUNT; ++j) from[j][i] = left[j];
  }
}

// The same of any number of rows, from their entry `at` on.
template <class T, class R, size_t COUNT>
inline void take_rows(const std::vector<const T*>& rows, const Share<R> (&shares)[COUNT],
                      int64_t at, int64_t n) {
  for (size_t first = 0; first < rows.size(); first += AT_ONCE) {
    Share<R> some[COUNT];
    for (size_t j = 0; j < COUNT; ++j) some[j] = {shares[j].from, shares[j].weights + first};
    by_count(std::min<int64_t>(rows.size() - first, AT_ONCE),
             [&](auto count) { take<count>(rows.data() + first, some, at, n); });
  }
}

// d + c row, and its product with another row.
template <class T, class R = Real<T>>
inline double add_row(R* d, R c, const T* row, int64_t n) {
  using Some = Lanes<R>;
  double total = 0;
  for (int64_t begin = 0; begin < n; begin += BLOCK) {
    const int64_t end = std::min(n, begin + BLOCK);
    typename Some::type parts[2] = {};
    int64_t i = begin;
    const auto add = [&](int64_t at, int part) {
      const auto value = Some::load(row + at), sum = Some::load(d + at) + c * value;
      Some::store(sum, d + at);
      parts[part] += value * sum;
    };
    for (; i + 2 * Some::count <= end; i += 2 * Some::count) {
      add(i, 0);
      add(i + Some::count, 1);
    }
    R part = Some::total(parts[0] + parts[1]);
    for (; i < end; ++i) {
      const R value = static_cast<R>(row[i]);
      d[i] += c * value;
      part += value * d[i];
    }
    total += part;
  }
  return total;
}

}  // namespace implicitcore
