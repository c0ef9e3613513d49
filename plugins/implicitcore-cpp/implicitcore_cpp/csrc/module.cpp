// The module that implicitcore_cpp loads.
#include <pybind11/gil_safe_call_once.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

#include "adams_flow.h"
#include "adams_step.h"
#include "anderson.h"
#include "graph.h"
#include "krylov_space.h"
#include "root_iteration.h"
#include "step_control.h"

namespace implicitcore {
namespace {

// The update of a solver, as a name and its numbers.
template <class T>
std::unique_ptr<Update<T>> update_of(const std::string& name, const std::vector<double>& options,
                                     const at::Tensor& z) {
  const at::Tensor like = z.contiguous();
  if (name == "picard") return std::make_unique<Picard<T>>(options.at(0));
  if (name == "broyden") return std::make_unique<Broyden<T>>(like, options.at(0));
  TORCH_CHECK(name == "anderson", "no update ", name);
  return std::make_unique<Anderson<T>>(like, options.at(0), options.at(1), options.at(2),
                                       options.at(3), options.at(4));
}

using Values = std::variant<double, at::Tensor>;
using Begun = std::optional<std::pair<at::Tensor, at::Tensor>>;

template <class R>
std::vector<R> values_of(const Values& values, int64_t batch) {
  if (const double* each = std::get_if<double>(&values)) {
    return std::vector<R>(batch, static_cast<R>(*each));
  }
  const at::Tensor tensor = std::get<at::Tensor>(values).contiguous();
  TORCH_CHECK(tensor.numel() == batch && tensor.scalar_type() == c10::CppTypeToScalarType<R>::value,
              "one number for each sample, in the dtype of norms");
  const R* data = tensor.const_data_ptr<R>();
  return std::vector<R>(data, data + batch);
}

using Samples = std::tuple<Values, Values, Begun>;

template <class R>
StopTest<R> test_of(const Rule& rule, const Samples& samples, int64_t batch) {
  const auto& [floor, fixed, begun] = samples;
  std::vector<R> norm, ceiling;
  if (begun) {
    norm = values_of<R>(begun->first, batch);
    ceiling = values_of<R>(begun->second, batch);
  }
  return StopTest<R>(rule, values_of<R>(floor, batch), values_of<R>(fixed, batch),
                     begun.has_value(), norm, ceiling);
}

// One for the dtype of z.
std::unique_ptr<RootIteration> root_iteration(const std::string& name,
                                              const std::vector<double>& options, const Rule& rule,
                                              const Samples& samples, const at::Tensor& z) {
  std::unique_ptr<RootIteration> found;
  dispatch(z, [&](auto type) {
    using T = decltype(type);
    found = std::make_unique<Iteration<T>>(test_of<Real<T>>(rule, samples, z.size(0)),
                                           update_of<T>(name, options, z),
                                           rule.scale == Scale::fixed);
  });
  return found;
}

std::unique_ptr<RootIteration> adams_flow(const FlowRule& flow, const Rule& rule,
                                          const Samples& samples, const at::Tensor& z) {
  TORCH_CHECK(flow.rows <= 12, "a step of Adams has at most 12 differences");
  std::unique_ptr<RootIteration> found;
  dispatch(z, [&](auto type) {
    using T = decltype(type);
    found = std::make_unique<AdamsFlow<T>>(test_of<Real<T>>(rule, samples, z.size(0)), flow,
                                           rule.scale == Scale::fixed, z.size(1));
  });
  return found;
}

constexpr int64_t UPDATES = 3;
constexpr const char* NAMES[UPDATES] = {"picard", "anderson", "broyden"};

// A solve of a graph, by the numbers of its update and of its rule.
at::Tensor root_begin(const at::Tensor& z, const std::optional<at::Tensor>& fixed, int64_t update,
                      at::ArrayRef<double> options, at::ArrayRef<double> numbers, int64_t min_steps,
                      int64_t scale, int64_t most) {
  TORCH_CHECK(update >= 0 && update < UPDATES && numbers.size() == 6, "no such solve");
  const Rule rule{numbers[0], numbers[1], numbers[2], numbers[3],
                  numbers[4], min_steps,  static_cast<Scale>(scale)};
  Values relative = 0.0;
  if (fixed) relative = *fixed;
  std::unique_ptr<RootIteration> iteration =
      root_iteration(NAMES[update], options.vec(), rule, {numbers[5], relative, std::nullopt}, z);
  iteration->take_whole_range();
  return Held<GraphSolve>::tensor({std::move(iteration), most});
}

}  // namespace
}  // namespace implicitcore

TORCH_LIBRARY(implicitcore_cpp, library) {
  library.def(
      "root_begin(Tensor z, Tensor? fixed, int update, float[] options, float[] numbers, "
      "int min_steps, int scale, int most) -> Tensor");
  library.def(
      "root_advance(Tensor state, Tensor z, Tensor fz, Tensor? g, Tensor going) -> (Tensor, "
      "Tensor)");
  library.def(
      "root_result(Tensor state, Tensor z, Tensor going) -> (Tensor, Tensor, Tensor, Tensor, "
      "Tensor)");
  library.def("krylov_begin(Tensor g, Tensor limit, Tensor most) -> (Tensor, Tensor, Tensor)");
  library.def("krylov_extend(Tensor state, Tensor product, Tensor going) -> (Tensor, Tensor)");
  library.def("krylov_minimise(Tensor state, Tensor v, Tensor going) -> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(implicitcore_cpp, CPU, library) {
  library.impl("root_begin", implicitcore::root_begin);
  library.impl("root_advance", implicitcore::root_advance);
  library.impl("root_result", implicitcore::root_result);
  library.impl("krylov_begin", implicitcore::graph_space);
  library.impl("krylov_extend", implicitcore::graph_extend);
  library.impl("krylov_minimise", implicitcore::graph_minimise);
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  namespace py = pybind11;
  using namespace implicitcore;
  py::class_<Rule>(module, "Rule")
      .def(py::init([](double tol, double rounding, double divergence, double trust, double growth,
                       int64_t min_steps, int64_t scale) {
        return Rule{tol, rounding, divergence, trust, growth, min_steps, static_cast<Scale>(scale)};
      }));
  py::class_<RootIteration>(module, "RootIteration")
      .def("advance", &RootIteration::advance)
      .def("size", &RootIteration::size)
      .def("between", &RootIteration::between)
      .def("result", [](const RootIteration& self) {
        PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<py::object> type;
        const Result r = self.result();
        return type
            .call_once_and_store_result(
                [] { return py::module_::import("implicitcore.extend").attr("RootResult"); })
            .get_stored()(r.z, r.residual, r.limit, r.relative, r.status, r.steps, r.start_norm,
                          r.ceiling, r.size, r.last, r.stopped_apart, r.all_met);
      });
  py::class_<StepRule>(module, "StepRule")
      .def(py::init<double, double, std::vector<double>, double, double, double, double, double,
                    double>());
  module.def("step_control",
             [](const StepRule& rule, const at::Tensor& z, const at::Tensor& z_next,
                const at::Tensor& error, Order order, const at::Tensor& memory,
                const at::Tensor& t, const at::Tensor& dt, const at::Tensor& end,
                const at::Tensor& arrives, const std::optional<at::Tensor>& target,
                const std::optional<at::Tensor>& due, bool forward, const at::Tensor& active,
                const at::Tensor& done) {
               const StepOutcome r =
                   step_control(rule, {z, z_next, error}, std::move(order), memory,
                                {t, dt, end, target, due, forward}, {arrives, active, done});
               return py::make_tuple(r.accept, r.error, r.size, r.memory, r.t,
                                     py::make_tuple(r.follows, r.alike, r.arrived, r.refused,
                                                    r.passed, r.all_pass),
                                     r.ahead);
             });
  py::class_<KrylovSpace>(module, "KrylovSpace")
      .def("extend", &KrylovSpace::extend)
      .def("minimise", &KrylovSpace::minimise)
      .def_property_readonly("size", &KrylovSpace::size)
      .def_property_readonly("steps", &KrylovSpace::steps);
  module.def("krylov_space", &krylov_space);
  py::class_<AdamsStep>(module, "AdamsStep")
      .def_property_readonly("z", &AdamsStep::end)
      .def("correct", &AdamsStep::correct);
  module.def("adams_step", &adams_step);
  py::class_<FlowRule>(module, "FlowRule")
      .def(py::init<int64_t, int64_t, StepRule, double, double, int64_t, double, double>());
  module.def("root_iteration", &root_iteration);
  module.def("adams_flow", &adams_flow);
  module.def("residual", &residual);
  module.def("inner_products", &inner_products);
  module.def("axpy_history", &axpy_history);
  module.def("stage_combination", &stage_combination);
  module.def("error_norm", &error_norm);
}
