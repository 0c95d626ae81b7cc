// st_attention on the CPU: checks, memory, threads. The arithmetic is in st_attention_kernel.h,
// compiled once per instruction set and chosen here at run time.

#include <cstdint>
#include <cstring>
#include <optional>
#include <tuple>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include "../checks.h"
#include "buffer.h"
#include "instruction_set.h"
#include "st_attention.h"

namespace colaworld {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// A multiply-add takes about 1 / 16 ns; a thread should be worth some 20 microseconds.
constexpr int64_t MULTIPLY_ADDS_PER_TASK = 1 << 19;
// The backward is cut into as many tasks whatever the number of threads: each sums the gradients of
// the weights for itself, and the partial sums meet in the order of the tasks.
constexpr int64_t BACKWARD_TASKS = 64;

const StAttentionKernels& kernels() {
  static const StAttentionKernels chosen = COLAWORLD_KERNELS(st_attention);
  return chosen;
}

// What a call asks for beside qkv.
struct Options {
  const std::optional<Tensor>& q_weight;  // [D]
  const std::optional<Tensor>& k_weight;  // [D]
  const std::optional<Tensor>& cos;  // [L, D/2], L = T (temporal) or S
  const std::optional<Tensor>& sin;  // [L, D/2]
  bool temporal;
  bool causal;
  double eps;
  double scale;
};

// Rows of a weight or a table, padded with zeros to whole vectors; no rows, no memory.
template <typename Acc>
class Rows {
 public:
  Rows(int64_t rows, int64_t stride) : data_(rows * stride), given_(rows > 0) {
    if (given_) std::memset(data_.get(), 0, rows * stride * sizeof(Acc));
  }
  Acc* get() const { return given_ ? data_.get() : nullptr; }

 private:
  AlignedBuffer<Acc> data_;
  bool given_;
};

template <typename Acc>
constexpr ScalarType dtype_of = sizeof(Acc) == 8 ? ScalarType::Double : ScalarType::Float;

// The arguments as the kernel takes them, and the memory behind its pointers.
template <typename In>
class Call {
 public:
  using Acc = typename accumulate<In>::type;

  StAttentionCall<In> call;
  int64_t pairs;  // sequences times heads; heads are neighbours, as they are in memory

  Call(const StAttentionKernel<In>& kernel, const Tensor& qkv, const Options& options)
      : temporal_(options.temporal),
        T_(qkv.size(1)),
        S_(qkv.size(2)),
        H_(qkv.size(4)),
        D_(qkv.size(5)),
        L_(options.temporal ? T_ : S_),
        stride_(kernel.padded(D_)),
        q_weight_(options.q_weight ? 1 : 0, stride_),
        k_weight_(options.k_weight ? 1 : 0, stride_),
        cos_(options.cos ? L_ : 0, stride_),
        sin_(options.cos ? L_ : 0, stride_) {
    if (options.q_weight) fill_weight(*options.q_weight, qkv.scalar_type(), q_weight_.get());
    if (options.k_weight) fill_weight(*options.k_weight, qkv.scalar_type(), k_weight_.get());
    if (options.cos) fill_tables(*options.cos, *options.sin);
    const int64_t row = temporal_ ? S_ * H_ * D_ : H_ * D_;  // of a contiguous [B, T, S, H, D]
    pairs = qkv.size(0) * (temporal_ ? S_ : T_) * H_;
    call.L = L_;
    call.D = D_;
    call.x_row = qkv.stride(temporal_ ? 1 : 2);
    call.x_part = qkv.stride(3);
    call.out_row = row;
    call.grad_row = row;
    call.dx_row = 3 * row;
    call.dx_part = H_ * D_;
    call.q_weight = q_weight_.get();
    call.k_weight = k_weight_.get();
    call.cos = cos_.get();
    call.sin = sin_.get();
    call.causal = options.causal;
    call.eps = static_cast<Acc>(options.eps);
    call.scale = static_cast<Acc>(options.scale);
  }

  // Where position 0 of a sequence and head lies, from the strides of b, t, s and h.
  int64_t start(int64_t pair, int64_t b, int64_t t, int64_t s, int64_t h) const {
    const int64_t sequence = pair / H_, others = temporal_ ? S_ : T_;
    return sequence / others * b + sequence % others * (temporal_ ? s : t) + pair % H_ * h;
  }
  // The same in a contiguous [B, T, S, parts, H, D].
  int64_t start(int64_t pair, int64_t parts) const {
    const int64_t s = parts * H_ * D_;
    return start(pair, T_ * S_ * s, S_ * s, s, D_);
  }
  // Of one sequence and head, forward: the two products and the preparation of a row.
  int64_t multiply_adds() const { return L_ * (2 * L_ / (call.causal ? 2 : 1) + 16) * D_; }

 private:
  // As the reference does: rounded to the dtype of qkv before it is used.
  static void fill_weight(const Tensor& weight, ScalarType dtype, Acc* to) {
    const Tensor values = torch::stable::contiguous(
        torch::stable::to(torch::stable::to(weight, dtype), dtype_of<Acc>));
    std::memcpy(to, values.const_data_ptr(), weight.size(0) * sizeof(Acc));
  }

  // Every angle twice, as the pair that it turns; the sine with the sign of its term.
  void fill_tables(const Tensor& cos, const Tensor& sin) {
    const Tensor c = torch::stable::contiguous(torch::stable::to(cos, dtype_of<Acc>));
    const Tensor s = torch::stable::contiguous(torch::stable::to(sin, dtype_of<Acc>));
    const Acc* from_cos = static_cast<const Acc*>(c.const_data_ptr());
    const Acc* from_sin = static_cast<const Acc*>(s.const_data_ptr());
    for (int64_t l = 0; l < L_; ++l) {
      Acc* to_cos = cos_.get() + l * stride_;
      Acc* to_sin = sin_.get() + l * stride_;
      for (int64_t j = 0; j < D_ / 2; ++j) {
        to_cos[2 * j] = to_cos[2 * j + 1] = from_cos[l * (D_ / 2) + j];
        to_sin[2 * j] = -from_sin[l * (D_ / 2) + j];
        to_sin[2 * j + 1] = from_sin[l * (D_ / 2) + j];
      }
    }
  }

  bool temporal_;
  int64_t T_, S_, H_, D_, L_, stride_;
  Rows<Acc> q_weight_, k_weight_, cos_, sin_;
};

template <typename In>
void run(const StAttentionKernel<In>& kernel,
         const Tensor& qkv,  // [B, T, S, 3, H, D], neighbours in D are neighbours in memory
         const Options& options,
         const Tensor& out) {  // [B, T, S, H, D] contiguous
  using Acc = typename accumulate<In>::type;
  const Call<In> of(kernel, qkv, options);
  const int64_t L = of.call.L, panel = kernel.panel(L), panels = (L + panel - 1) / panel;
  // A few long sequences are cut into parts of their queries, each of which prepares all keys.
  const int64_t threads = torch::stable::get_num_threads();
  int64_t parts = of.pairs >= threads ? 1 : (threads + of.pairs - 1) / of.pairs;
  if (parts > panels) parts = panels;
  const In* x = static_cast<const In*>(qkv.const_data_ptr());
  In* to = static_cast<In*>(out.mutable_data_ptr());
  const int64_t b = qkv.stride(0), t = qkv.stride(1), s = qkv.stride(2), h = qkv.stride(4);
  const auto at = [&](int64_t pair) { return x + of.start(pair, b, t, s, h); };
  const int64_t size = kernel.forward_scratch(L, of.call.D);
  const int64_t grain = 1 + MULTIPLY_ADDS_PER_TASK * parts / of.multiply_adds();
  torch::stable::parallel_for(0, of.pairs * parts, grain, [&](int64_t first, int64_t last) {
    const AlignedBuffer<Acc> scratch(size);
    std::memset(scratch.get(), 0, size * sizeof(Acc));
    for (int64_t i = first; i < last; ++i) {
      const int64_t pair = i / parts, part = i % parts;
      const int64_t from = part * panels / parts * panel;
      const int64_t until = (part + 1) * panels / parts * panel;
      kernel.forward(of.call, at(pair), i + 1 < last ? at(pair + 1) : nullptr, from,
                     until < L ? until : L, scratch.get(), to + of.start(pair, 1));
    }
  });
}

template <typename In>
void run_backward(const StAttentionKernel<In>& kernel,
                  const Tensor& grad,  // [B, T, S, H, D], neighbours in D are neighbours in memory
                  const Tensor& qkv,  // [B, T, S, 3, H, D], likewise
                  const Options& options,
                  const Tensor& dqkv,  // [B, T, S, 3, H, D] contiguous
                  double* dweight) {  // [2, D], added to: of the queries, of the keys
  using Acc = typename accumulate<In>::type;
  Call<In> of(kernel, qkv, options);
  of.call.grad_row = grad.stride(options.temporal ? 1 : 2);
  const int64_t D = of.call.D;
  const int64_t tasks = of.pairs < BACKWARD_TASKS ? of.pairs : BACKWARD_TASKS;
  const In* x = static_cast<const In*>(qkv.const_data_ptr());
  const In* g = static_cast<const In*>(grad.const_data_ptr());
  In* dx = static_cast<In*>(dqkv.mutable_data_ptr());
  const auto grad_at = [&](int64_t pair) {
    return g + of.start(pair, grad.stride(0), grad.stride(1), grad.stride(2), grad.stride(3));
  };
  std::vector<double> partial(tasks * 2 * D, 0.0);
  const int64_t b = qkv.stride(0), t = qkv.stride(1), s = qkv.stride(2), h = qkv.stride(4);
  const auto at = [&](int64_t pair) { return x + of.start(pair, b, t, s, h); };
  const int64_t size = kernel.backward_scratch(of.call.L, D);
  const int64_t work = of.multiply_adds() * 5 / 2 * of.pairs / tasks;
  const int64_t grain = 1 + MULTIPLY_ADDS_PER_TASK / work;
  torch::stable::parallel_for(0, tasks, grain, [&](int64_t first, int64_t last) {
    const AlignedBuffer<Acc> scratch(size);
    std::memset(scratch.get(), 0, size * sizeof(Acc));
    for (int64_t task = first; task < last; ++task) {
      double* sums = partial.data() + task * 2 * D;
      const int64_t end = (task + 1) * of.pairs / tasks;
      for (int64_t pair = task * of.pairs / tasks; pair < end; ++pair) {
        const bool more = pair + 1 < end;
        kernel.backward(of.call, at(pair), more ? at(pair + 1) : nullptr, grad_at(pair),
                        more ? grad_at(pair + 1) : nullptr, scratch.get(), dx + of.start(pair, 3),
                        sums, sums + D);
      }
    }
  });
  for (int64_t task = 0; task < tasks; ++task) {
    for (int64_t i = 0; i < 2 * D; ++i) dweight[i] += partial[task * 2 * D + i];
  }
}

void check(const char* op,
           const Tensor& qkv,  // [B, T, S, 3, H, D]
           const Options& options) {
  expect(qkv.dim() == 6 && qkv.size(3) == 3, op, ": qkv: expected [B, T, S, 3, H, D], got ",
         shape_of(qkv));
  const ScalarType dtype = qkv.scalar_type();
  expect(dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::BFloat16,
         op, ": qkv: expected float32, float64 or bfloat16, got ", dtype);
  const int64_t D = qkv.size(5), L = qkv.size(options.temporal ? 1 : 2);
  const auto check_beside = [&](const char* name, const Tensor& tensor) {
    expect(tensor.is_cpu(), op, ": ", name, ": expected on the CPU as qkv is");
    const ScalarType is = tensor.scalar_type();
    expect(is == ScalarType::Float || is == ScalarType::Double || is == ScalarType::BFloat16 ||
               is == ScalarType::Half,
           op, ": ", name, ": expected a floating-point tensor, got ", is);
  };
  const auto check_weight = [&](const char* name, const std::optional<Tensor>& weight) {
    if (!weight) return;
    check_beside(name, *weight);
    expect(weight->dim() == 1 && weight->size(0) == D, op, ": ", name, ": expected [", D, "], got ",
           shape_of(*weight));
  };
  check_weight("q_weight", options.q_weight);
  check_weight("k_weight", options.k_weight);
  expect(options.cos.has_value() == options.sin.has_value(), op,
         ": cos and sin: expected both or neither, got one");
  if (!options.cos) return;
  expect(D % 2 == 0, op, ": cos: rotates pairs, so qkv needs an even D, got D = ", D);
  const auto check_table = [&](const char* name, const Tensor& table) {
    check_beside(name, table);
    expect(table.dim() == 2 && table.size(0) == L && table.size(1) == D / 2, op, ": ", name,
           ": expected [", L, ", ", D / 2, "], got ", shape_of(table));
  };
  check_table("cos", *options.cos);
  check_table("sin", *options.sin);
}

bool has_none(const Tensor& tensor) {
  for (int64_t i = 0; i < tensor.dim(); ++i) {
    if (tensor.size(i) == 0) return true;
  }
  return false;
}

// The kernel takes any strides but the last.
Tensor with_neighbours(const Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  if (tensor.size(last) == 1 || tensor.stride(last) == 1) return tensor;
  return torch::stable::contiguous(tensor);
}

// A double sum in the dtype of the weight; nothing where there is no weight.
Tensor weight_gradient(const Tensor& qkv, const std::optional<Tensor>& weight, const double* sum) {
  if (!weight) return torch::stable::new_empty(qkv, {0});
  const Tensor wide = torch::stable::new_empty(*weight, {qkv.size(5)}, ScalarType::Double);
  std::memcpy(wide.mutable_data_ptr(), sum, qkv.size(5) * sizeof(double));
  return torch::stable::to(wide, weight->scalar_type());
}

Tensor st_attention(const Tensor& qkv,  // [B, T, S, 3, H, D] float32, float64 or bfloat16
                    const std::optional<Tensor>& q_weight,  // [D]
                    const std::optional<Tensor>& k_weight,  // [D]
                    const std::optional<Tensor>& cos,  // [L, D/2], L = T (temporal) or S
                    const std::optional<Tensor>& sin,  // [L, D/2]
                    bool temporal,
                    bool causal,
                    double eps,
                    double scale) {
  const Options options{q_weight, k_weight, cos, sin, temporal, causal, eps, scale};
  check("st_attention", qkv, options);
  const Tensor out = torch::stable::new_empty(
      qkv, {qkv.size(0), qkv.size(1), qkv.size(2), qkv.size(4), qkv.size(5)});
  if (has_none(qkv)) return out;
  const Tensor x = with_neighbours(qkv);
  switch (qkv.scalar_type()) {
    case ScalarType::Float:
      run(kernels().f32, x, options, out);
      break;
    case ScalarType::Double:
      run(kernels().f64, x, options, out);
      break;
    default:
      run(kernels().bf16, x, options, out);
  }
  return out;
}

std::tuple<Tensor, Tensor, Tensor> st_attention_backward(
    const Tensor& grad,  // [B, T, S, H, D] in the dtype of qkv
    const Tensor& qkv,  // [B, T, S, 3, H, D]
    const std::optional<Tensor>& q_weight,  // [D]
    const std::optional<Tensor>& k_weight,  // [D]
    const std::optional<Tensor>& cos,  // [L, D/2]
    const std::optional<Tensor>& sin,  // [L, D/2]
    bool temporal,
    bool causal,
    double eps,
    double scale) {
  const Options options{q_weight, k_weight, cos, sin, temporal, causal, eps, scale};
  const char* op = "st_attention_backward";
  check(op, qkv, options);
  const int64_t shape[] = {qkv.size(0), qkv.size(1), qkv.size(2), qkv.size(4), qkv.size(5)};
  bool same = grad.dim() == 5;
  for (int64_t i = 0; same && i < 5; ++i) same = grad.size(i) == shape[i];
  expect(same, op, ": grad: expected [", shape[0], ", ", shape[1], ", ", shape[2], ", ", shape[3],
         ", ", shape[4], "], got ", shape_of(grad));
  expect(grad.is_cpu(), op, ": grad: expected on the CPU as qkv is");
  expect(grad.scalar_type() == qkv.scalar_type(), op, ": grad: expected ", qkv.scalar_type(),
         " as qkv is, got ", grad.scalar_type());

  const Tensor dqkv = torch::stable::new_empty(qkv, qkv.sizes());
  std::vector<double> dweight(2 * qkv.size(5), 0.0);
  if (!has_none(qkv)) {
    const Tensor x = with_neighbours(qkv), g = with_neighbours(grad);
    switch (qkv.scalar_type()) {
      case ScalarType::Float:
        run_backward(kernels().f32, g, x, options, dqkv, dweight.data());
        break;
      case ScalarType::Double:
        run_backward(kernels().f64, g, x, options, dqkv, dweight.data());
        break;
      default:
        run_backward(kernels().bf16, g, x, options, dqkv, dweight.data());
    }
  }
  return {dqkv, weight_gradient(qkv, q_weight, dweight.data()),
          weight_gradient(qkv, k_weight, dweight.data() + qkv.size(5))};
}

}  // namespace
}  // namespace colaworld

STABLE_TORCH_LIBRARY_IMPL(colaworld, CPU, m) {
  m.impl("st_attention", TORCH_BOX(&colaworld::st_attention));
  m.impl("st_attention_backward", TORCH_BOX(&colaworld::st_attention_backward));
}
