// adaln on the CPU: checks, memory, threads. What a task reads and adds up is in adaln_frames.h;
// the arithmetic on rows is in adaln_kernel.h, compiled once per instruction set and chosen here at
// run time.

#include <cstdint>
#include <optional>
#include <tuple>
#include <utility>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include "../checks.h"
#include "adaln.h"
#include "adaln_frames.h"
#include "instruction_set.h"

namespace colaworld {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using namespace adaln_frames;

const AdalnKernels& kernels() {
  static const AdalnKernels chosen = COLAWORLD_KERNELS(adaln);
  return chosen;
}

bool is_number(ScalarType type) {
  return type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::BFloat16;
}

// Sums run in this dtype, and mean, rstd and the gradients of the tables come in it.
ScalarType sum_type(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// run(kernel) with the kernel of the two dtypes; check_out has seen to it that there is one.
template <typename Run>
void with_kernel(ScalarType x, ScalarType out, const Run& run) {
  if (x == ScalarType::Double) return run(kernels().f64_f64);
  if (x == ScalarType::BFloat16) return run(kernels().bf16_bf16);
  return out == ScalarType::BFloat16 ? run(kernels().f32_bf16) : run(kernels().f32_f32);
}

// --- checks --------------------------------------------------------------------------------------

void check_clip(const char* op, const char* name, const Tensor& tensor, const Tensor& x) {
  bool same = tensor.dim() == 4;
  for (int64_t i = 0; same && i < 4; ++i) same = tensor.size(i) == x.size(i);
  expect(same, op, ": ", name, ": expected ", shape_of(x), " as x has, got ", shape_of(tensor));
  expect(tensor.is_cpu(), op, ": ", name, ": expected on the CPU as x is");
}

void check_x(const char* op, const Tensor& x) {
  expect(x.dim() == 4, op, ": x: expected [B, T, S, C], got ", shape_of(x));
  expect(x.size(3) >= 1, op, ": x: expected C >= 1, got ", shape_of(x));
  expect(is_number(x.scalar_type()), op, ": x: expected float32, float64 or bfloat16, got ",
         x.scalar_type());
}

// The dtype of out, or of its gradient: that of x, or bfloat16 beside a float32 x.
void check_out(const char* op, const char* name, ScalarType out, const Tensor& x) {
  const bool narrower = x.scalar_type() == ScalarType::Float && out == ScalarType::BFloat16;
  expect(out == x.scalar_type() || narrower, op, ": ", name, ": expected ", x.scalar_type(),
         x.scalar_type() == ScalarType::Float ? " or BFloat16" : "", " beside an x of ",
         x.scalar_type(), ", got ", out);
}

void check_y(const char* op, const Tensor& y, const Tensor& x, ScalarType out) {
  check_clip(op, "y", y, x);
  expect(y.scalar_type() == out, op, ": y: expected ", out, " as out is, got ", y.scalar_type());
}

void check_table(const char* op, const char* name, const Tensor& table, const Tensor& x) {
  expect(table.dim() == 3 && table.size(0) == x.size(0) && table.size(1) == x.size(1) &&
             table.size(2) == x.size(3),
         op, ": ", name, ": expected [", x.size(0), ", ", x.size(1), ", ", x.size(3), "], got ",
         shape_of(table));
  expect(is_number(table.scalar_type()), op, ": ", name,
         ": expected float32, float64 or bfloat16, got ", table.scalar_type());
  expect(table.is_cpu(), op, ": ", name, ": expected on the CPU as x is");
}

// --- forward -------------------------------------------------------------------------------------

template <typename In, typename Out>
void run_forward(const AdalnKernel<In, Out>& kernel,
                 const Tensor& x,  // [B, T, S, C]
                 const MaybeTensor& y,  // [B, T, S, C]
                 const std::optional<Table>& gate,
                 const Table& shift,
                 const Table& scale,
                 double eps,
                 const Tensor& x_out,  // [B, T, S, C]; not written without a y
                 const Tensor& out,  // [B, T, S, C] Out
                 const Tensor& mean,  // [B, T, S]
                 const Tensor& rstd) {  // [B, T, S]
  using Acc = typename accumulate<In>::type;
  const Tasks tasks(x);
  const int64_t C = tasks.C;
  const Clip<In> from_x(x, tasks);
  const Clip<Out> from_y(y.has_value() ? *y : x, tasks);
  In* to_x = static_cast<In*>(x_out.mutable_data_ptr());
  Out* to_out = static_cast<Out*>(out.mutable_data_ptr());
  Acc* to_mean = static_cast<Acc*>(mean.mutable_data_ptr());
  Acc* to_rstd = static_cast<Acc*>(rstd.mutable_data_ptr());
  torch::stable::parallel_for(0, tasks.count(), tasks.grain(), [&](int64_t first, int64_t last) {
    FrameRows<Acc> modulation(C);
    for (int64_t task = first; task < last; ++task) {
      const int64_t frame = task / tasks.blocks;
      const int64_t row = frame * tasks.S + tasks.first_row(task);
      modulation.read(frame, gate, scale, &shift);
      AdalnForwardRows<In, Out> a;
      a.rows = tasks.rows(task);
      a.C = C;
      a.x = from_x.rows(task);
      a.x_stride = from_x.stride();
      a.y = y.has_value() ? from_y.rows(task) : nullptr;
      a.y_stride = from_y.stride();
      a.gate = modulation.gate();
      a.factor = modulation.factor();
      a.shift = modulation.shift();
      a.eps = static_cast<Acc>(eps);
      a.x_out = y.has_value() ? to_x + row * C : nullptr;
      a.out = to_out + row * C;
      a.mean = to_mean + row;
      a.rstd = to_rstd + row;
      kernel.forward(a);
    }
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> adaln(
    const Tensor& x,  // [B, T, S, C] float32, float64 or bfloat16, any strides
    const MaybeTensor& y,  // [B, T, S, C] of out_dtype, any strides
    const MaybeTensor& gate,  // [B, T, C], any strides
    const Tensor& shift,  // as gate
    const Tensor& scale,  // as gate
    double eps,
    ScalarType out_dtype) {  // that of x, or bfloat16 beside a float32 x
  check_x("adaln", x);
  check_out("adaln", "out_dtype", out_dtype, x);
  if (y.has_value()) check_y("adaln", *y, x, out_dtype);
  check_table("adaln", "scale", scale, x);
  check_table("adaln", "shift", shift, x);
  if (gate.has_value()) check_table("adaln", "gate", *gate, x);
  expect(y.has_value() || !gate.has_value(), "adaln: gate: given without a branch y to multiply");

  Tensor x_out =
      y.has_value() ? torch::stable::new_empty(x, x.sizes()) : torch::stable::new_empty(x, {0});
  Tensor out = torch::stable::new_empty(x, x.sizes(), out_dtype);
  Tensor mean = torch::stable::new_empty(x, {x.size(0), x.size(1), x.size(2)}, sum_type(x));
  Tensor rstd = torch::stable::new_empty(x, {x.size(0), x.size(1), x.size(2)}, sum_type(x));
  if (x.numel() > 0) {
    const std::optional<Table> gates = table_of(gate);
    const Table shifts(shift), scales(scale);
    with_kernel(x.scalar_type(), out_dtype, [&](const auto& kernel) {
      run_forward(kernel, x, y, gates, shifts, scales, eps, x_out, out, mean, rstd);
    });
  }
  return {x_out, out, mean, rstd};
}

// --- backward ------------------------------------------------------------------------------------

template <typename In, typename Out>
void run_backward(const AdalnKernel<In, Out>& kernel,
                  const Tensor& grad_x_out,  // [B, T, S, C]
                  const Tensor& grad_out,  // [B, T, S, C]
                  const Tensor& x,  // [B, T, S, C]
                  const MaybeTensor& y,  // [B, T, S, C]
                  const std::optional<Table>& gate,
                  const Table& scale,
                  const Tensor& mean,  // [B, T, S]
                  const Tensor& rstd,  // [B, T, S]
                  const Tensor& dx,  // [B, T, S, C]
                  const Tensor& dy,  // [B, T, S, C]; these two are not written without a y
                  const Tensor& dgate,  // [B, T, C]
                  const Tensor& dshift,  // [B, T, C]
                  const Tensor& dscale) {  // [B, T, C]
  using Acc = typename accumulate<In>::type;
  const Tasks tasks(x);
  const int64_t C = tasks.C;
  const Clip<In> from_grad_x_out(grad_x_out, tasks), from_x(x, tasks);
  const Clip<Out> from_grad_out(grad_out, tasks);
  const Clip<Out> from_y(y.has_value() ? *y : x, tasks);
  const Acc* from_mean = static_cast<const Acc*>(mean.const_data_ptr());
  const Acc* from_rstd = static_cast<const Acc*>(rstd.const_data_ptr());
  In* to_dx = static_cast<In*>(dx.mutable_data_ptr());
  Out* to_dy = static_cast<Out*>(dy.mutable_data_ptr());
  const TableSums<Acc> sums(tasks);
  torch::stable::parallel_for(0, tasks.count(), tasks.grain(), [&](int64_t first, int64_t last) {
    FrameRows<Acc> modulation(C);
    for (int64_t task = first; task < last; ++task) {
      const int64_t frame = task / tasks.blocks;
      const int64_t row = frame * tasks.S + tasks.first_row(task);
      modulation.read(frame, gate, scale, nullptr);
      sums.clear(task);
      AdalnBackwardRows<In, Out> a;
      a.rows = tasks.rows(task);
      a.C = C;
      a.grad_x_out = from_grad_x_out.rows(task);
      a.grad_x_out_stride = from_grad_x_out.stride();
      a.grad_out = from_grad_out.rows(task);
      a.grad_out_stride = from_grad_out.stride();
      a.x = from_x.rows(task);
      a.x_stride = from_x.stride();
      a.y = y.has_value() ? from_y.rows(task) : nullptr;
      a.y_stride = from_y.stride();
      a.gate = modulation.gate();
      a.factor = modulation.factor();
      a.mean = from_mean + row;
      a.rstd = from_rstd + row;
      a.dx = to_dx + row * C;
      a.dy = y.has_value() ? to_dy + row * C : nullptr;
      a.sum_gate = sums.row(0, task);
      a.sum_shift = sums.row(1, task);
      a.sum_scale = sums.row(2, task);
      kernel.backward(a);
    }
  });
  if (y.has_value()) sums.add_up(0, dgate);
  sums.add_up(1, dshift);
  sums.add_up(2, dscale);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> adaln_backward(
    const Tensor& grad_x_out,  // [B, T, S, C] in the dtype of x; any strides
    const Tensor& grad_out,  // [B, T, S, C] in the dtype of out; any strides
    const Tensor& x,  // [B, T, S, C] what the norm read: x_out, or x where there was no y
    const MaybeTensor& y,  // [B, T, S, C], only together with a gate
    const MaybeTensor& gate,  // [B, T, C]
    const Tensor& scale,  // as gate
    const Tensor& mean,  // [B, T, S] as the forward returned it
    const Tensor& rstd) {  // [B, T, S] as the forward returned it
  const char* op = "adaln_backward";
  check_x(op, x);
  check_clip(op, "grad_x_out", grad_x_out, x);
  expect(grad_x_out.scalar_type() == x.scalar_type(), op, ": grad_x_out: expected ",
         x.scalar_type(), " as x is, got ", grad_x_out.scalar_type());
  const ScalarType out_dtype = grad_out.scalar_type();
  check_clip(op, "grad_out", grad_out, x);
  check_out(op, "grad_out", out_dtype, x);
  expect(y.has_value() == gate.has_value(), op, ": y and gate: expected both or neither");
  if (y.has_value()) check_y(op, *y, x, out_dtype);
  check_table(op, "scale", scale, x);
  if (gate.has_value()) check_table(op, "gate", *gate, x);
  for (const auto& [name, per_row] :
       {std::make_pair("mean", &mean), std::make_pair("rstd", &rstd)}) {
    expect(per_row->is_cpu() && per_row->is_contiguous() && per_row->scalar_type() == sum_type(x) &&
               per_row->dim() == 3 && per_row->numel() * x.size(3) == x.numel(),
           op, ": ", name, ": expected what the forward returned, got ", shape_of(*per_row));
  }

  Tensor dx = torch::stable::new_empty(x, x.sizes());
  Tensor dshift = torch::stable::new_empty(x, scale.sizes(), sum_type(x));
  Tensor dscale = torch::stable::new_empty(x, scale.sizes(), sum_type(x));
  Tensor dy =
      y.has_value() ? torch::stable::new_empty(*y, x.sizes()) : torch::stable::new_empty(x, {0});
  Tensor dgate = y.has_value() ? torch::stable::new_empty(x, scale.sizes(), sum_type(x))
                               : torch::stable::new_empty(x, {0}, sum_type(x));
  if (x.numel() == 0) {
    if (y.has_value()) torch::stable::zero_(dgate);
    torch::stable::zero_(dshift);
    torch::stable::zero_(dscale);
    return {dx, dy, dgate, dshift, dscale};
  }
  const std::optional<Table> gates = table_of(gate);
  const Table scales(scale);
  with_kernel(x.scalar_type(), out_dtype, [&](const auto& kernel) {
    run_backward(kernel, grad_x_out, grad_out, x, y, gates, scales, mean, rstd, dx, dy, dgate,
                 dshift, dscale);
  });
  return {dx, dy, dgate, dshift, dscale};
}

}  // namespace
}  // namespace colaworld

STABLE_TORCH_LIBRARY_IMPL(colaworld, CPU, m) {
  m.impl("adaln", TORCH_BOX(&colaworld::adaln));
  m.impl("adaln_backward", TORCH_BOX(&colaworld::adaln_backward));
}
