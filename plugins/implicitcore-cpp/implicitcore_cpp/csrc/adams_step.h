// A step of Adams' predictor-corrector method of variable step and order, by the formulas of Adams.
#pragma once

#include <memory>
#include <tuple>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include "adams_method.h"
#include "kernels.h"

namespace implicitcore {

class AdamsStep {
 public:
  virtual ~AdamsStep() = default;
  virtual at::Tensor end() const = 0;
  virtual std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> correct(
      at::Tensor velocity) = 0;
};

template <class T>
class Adams : public AdamsStep {
  using R = Real<T>;

 public:
  Adams(int64_t max_order, const at::Tensor& z, const at::Tensor& dt, const at::Tensor& differences,
        const at::Tensor& gaps, const at::Tensor& order, std::pair<double, double> tolerance)
      : batch_(z.size(0)), n_(z.size(1)), rows_(gaps.size(1)),
        method_(max_order, rows_, n_, tolerance.first, tolerance.second),
        differences_(differences.stride(2) == 1 ? differences : differences.contiguous()),
        start_(z.contiguous()), dt_(dt.to(c10::CppTypeToScalarType<R>::value).contiguous()),
        z_(at::empty_like(start_)), gaps_(at::empty({batch_, rows_}, gaps.options())),
        each_(batch_) {
    TORCH_CHECK(rows_ <= 12, "a step of Adams has at most 12 differences");
    const at::Tensor last = gaps.contiguous(), orders = order.contiguous();
    const R *step = dt_.template const_data_ptr<R>(), *before = last.const_data_ptr<R>();
    const int64_t* k = orders.const_data_ptr<int64_t>();
    R* after = gaps_.template mutable_data_ptr<R>();
    T* to = z_.template mutable_data_ptr<T>();
    const T* from = start_.template const_data_ptr<T>();
    each_sample(batch_, n_, [&](int64_t b) {
      method_.coefficients(step[b], before + b * rows_, after + b * rows_, k[b], each_[b]);
      method_.predict(each_[b], step[b], past(b), from + b * n_, to + b * n_);
    });
  }

  at::Tensor end() const override { return z_; }

  std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> correct(
      at::Tensor velocity) override {
    TORCH_CHECK(velocity.sizes() == z_.sizes() && velocity.scalar_type() == z_.scalar_type(),
                "a velocity must be shaped like z, [batch, n]");
    velocity = velocity.contiguous();
    at::Tensor next = at::empty({batch_, rows_, n_}, z_.options()), error = at::empty_like(z_);
    at::Tensor order = at::empty({batch_}, at::TensorOptions(at::kLong)), power = at::empty_like(order);
    int64_t *chosen = order.mutable_data_ptr<int64_t>(), *goes = power.mutable_data_ptr<int64_t>();
    const T *v = velocity.const_data_ptr<T>(), *from = start_.template const_data_ptr<T>(),
            *to = z_.template const_data_ptr<T>();
    T *out = next.mutable_data_ptr<T>(), *miss = error.mutable_data_ptr<T>();
    const R* step = dt_.template const_data_ptr<R>();
    each_sample(batch_, n_ * rows_, [&](int64_t b) {
      const int64_t at = b * n_;
      const Corrected<T> now{from + at, to + at, v + at, out + rows_ * at, miss + at};
      chosen[b] = method_.correct(each_[b], step[b], past(b), now);
      goes[b] = each_[b].order + 1;
    });
    return {error, next, gaps_, order, power};
  }

 private:
  int64_t batch_, n_, rows_;
  AdamsMethod<T> method_;
  at::Tensor differences_, start_, dt_, z_, gaps_;
  std::vector<Coefficients<R>> each_;

  Differences<T> past(int64_t b) const {
    const T* data = differences_.template const_data_ptr<T>();
    return {data + b * differences_.stride(0), differences_.stride(1)};
  }
};

inline std::unique_ptr<AdamsStep> adams_step(int64_t max_order, const at::Tensor& z,
                                             const at::Tensor& dt, const at::Tensor& differences,
                                             const at::Tensor& gaps, const at::Tensor& order,
                                             std::pair<double, double> tolerance) {
  std::unique_ptr<AdamsStep> found;
  dispatch(z, [&](auto type) {
    found = std::make_unique<Adams<decltype(type)>>(max_order, z, dt, differences, gaps, order,
                                                    tolerance);
  });
  return found;
}

}  // namespace implicitcore
