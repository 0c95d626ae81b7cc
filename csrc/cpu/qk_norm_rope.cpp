// qk_norm_rope on the CPU, and its packed twin's backward: checks, memory, threads. What a task
// reads is in qk_norm_rope_tokens.h; the arithmetic on a token is in qk_norm_rope_kernel.h,
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
#include "qk_norm_rope.h"
#include "qk_norm_rope_tokens.h"

namespace colaworld {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using namespace qk_norm_rope_tokens;

// Tokens of one task. Their sums for the weights cost two rows of traffic, about a hundredth of the
// work; the number does not depend on the threads, so neither does any sum.
constexpr int64_t BLOCK_TOKENS = 32;
// An element of q and of k takes about a nanosecond; a thread should be worth some 30 microseconds.
constexpr int64_t ELEMENTS_PER_TASK = 1 << 15;

const QkNormRopeKernels& kernels() {
  static const QkNormRopeKernels chosen = COLAWORLD_KERNELS(qk_norm_rope);
  return chosen;
}

template <typename Run>
void with_kernel(ScalarType dtype, const Run& run) {
  if (dtype == ScalarType::Float) return run(kernels().f32);
  if (dtype == ScalarType::Double) return run(kernels().f64);
  run(kernels().bf16);
}

ScalarType sum_type(const Tensor& q) {
  return q.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// --- checks --------------------------------------------------------------------------------------

void check_heads(const char* op, const char* name, const Tensor& tensor, const Tensor& like) {
  bool same = tensor.dim() == 4;
  for (int64_t i = 0; same && i < 4; ++i) same = tensor.size(i) == like.size(i);
  expect(same, op, ": ", name, ": expected ", shape_of(like), ", got ", shape_of(tensor));
  expect(tensor.scalar_type() == like.scalar_type(), op, ": ", name, ": expected ",
         like.scalar_type(), ", got ", tensor.scalar_type());
  expect(tensor.is_cpu(), op, ": ", name, ": expected on the CPU");
}

// q has passed nothing yet; it is the gradient of q in the backward of an op without norm.
void check(const char* op, const Tensor& q, const Tensor& k, Settings& settings) {
  expect(q.dim() == 4, op, ": q: expected [B, L, H, D], got ", shape_of(q));
  const ScalarType dtype = q.scalar_type();
  expect(dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::BFloat16,
         op, ": q: expected float32, float64 or bfloat16, got ", dtype);
  check_heads(op, "k", k, q);
  const int64_t L = q.size(1), H = q.size(2), D = q.size(3);
  expect(H >= 1 && D >= 1, op, ": q: expected H >= 1 and D >= 1, got ", shape_of(q));

  expect(settings.q_weight.has_value() == settings.k_weight.has_value(), op,
         ": q_weight and k_weight: expected both or neither");
  const int64_t width = settings.across ? H * D : D;
  const auto check_weight = [&](const char* name, MaybeTensor& weight) {
    if (!weight.has_value()) return;
    expect(weight->dim() == 1 && weight->size(0) == width, op, ": ", name, ": expected [", width,
           "], got ", shape_of(*weight));
    expect(weight->scalar_type() == sum_type(q), op, ": ", name, ": expected ", sum_type(q),
           ", got ", weight->scalar_type());
    expect(weight->is_cpu(), op, ": ", name, ": expected on the CPU");
    weight = as_contiguous(*weight);
  };
  check_weight("q_weight", settings.q_weight);
  check_weight("k_weight", settings.k_weight);

  expect(settings.cos.has_value() == settings.sin.has_value(), op,
         ": cos and sin: expected both or neither");
  if (!settings.cos.has_value()) return;
  expect(D % 2 == 0, op, ": q: expected an even D for the rotation, got D = ", D);
  const int64_t P = settings.cos->dim() > 0 ? settings.cos->size(0) : 0;
  const auto check_table = [&](const char* name, MaybeTensor& table) {
    expect(table->dim() == 2 && table->size(0) == P && table->size(1) == D / 2, op, ": ", name,
           ": expected [", P, ", ", D / 2, "], got ", shape_of(*table));
    expect(table->scalar_type() == sum_type(q), op, ": ", name, ": expected ", sum_type(q),
           ", got ", table->scalar_type());
    expect(table->is_cpu(), op, ": ", name, ": expected on the CPU");
    table = as_contiguous(*table);
  };
  check_table("cos", settings.cos);
  check_table("sin", settings.sin);

  if (!settings.position.has_value()) {
    expect(P == L, op, ": cos: expected ", L, " rows, one for each token, got ", P);
    return;
  }
  const Tensor& position = *settings.position;
  const int64_t A = static_cast<int64_t>(settings.sections.size());
  int64_t pairs = 0;
  bool whole = true;
  for (int64_t n : settings.sections) whole = whole && n >= 0, pairs += n;
  expect(whole && pairs == D / 2, op, ": sections: expected counts that sum to D/2 = ", D / 2,
         ", got a sum of ", pairs);
  expect(position.dim() == 2 && position.size(0) == L && position.size(1) == A, op,
         ": position: expected [", L, ", ", A, "], got ", shape_of(position));
  expect(position.scalar_type() == ScalarType::Long, op, ": position: expected int64, got ",
         position.scalar_type());
  expect(position.is_cpu(), op, ": position: expected on the CPU");
  settings.position = as_contiguous(position);
  const int64_t* row = static_cast<const int64_t*>(settings.position->const_data_ptr());
  for (int64_t i = 0; i < L * A; ++i) {
    expect(row[i] >= 0 && row[i] < P, op,
           ": position: expected rows 0 .. P - 1 of tables with P = ", P, " rows, got ", row[i]);
  }
}

int64_t tasks_of(const Tensor& q) {
  return (q.size(0) * q.size(1) + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
}

int64_t grain_of(const Tensor& q) {
  return 1 + ELEMENTS_PER_TASK / (BLOCK_TOKENS * q.size(2) * q.size(3));
}

// --- forward -------------------------------------------------------------------------------------

template <typename In>
void run_forward(const QkNormRopeKernel<In>& kernel,
                 const Tensor& q,  // [B, L, H, D]
                 const Tensor& k,  // [B, L, H, D]
                 const Settings& settings,
                 const Tensor& q_out,  // [B, L, H, D]
                 const Tensor& k_out) {  // [B, L, H, D]
  using Acc = typename accumulate<In>::type;
  const int64_t tokens = q.size(0) * q.size(1), L = q.size(1), H = q.size(2), D = q.size(3);
  const Heads<In> from[] = {Heads<In>(q), Heads<In>(k)};
  In* to[] = {static_cast<In*>(q_out.mutable_data_ptr()),
              static_cast<In*>(k_out.mutable_data_ptr())};
  const Acc* weight[] = {data_of<Acc>(settings.q_weight), data_of<Acc>(settings.k_weight)};
  torch::stable::parallel_for(0, tasks_of(q), grain_of(q), [&](int64_t first, int64_t last) {
    Turn<Acc> turn(settings, D);
    NormRopeToken<In> a;
    a.H = H;
    a.D = D;
    a.across = settings.across && weight[0] != nullptr;
    a.eps = static_cast<Acc>(settings.eps);
    a.cos = turn.cos();
    a.sin = turn.sin();
    const int64_t end = last * BLOCK_TOKENS < tokens ? last * BLOCK_TOKENS : tokens;
    for (int64_t token = first * BLOCK_TOKENS; token < end; ++token) {
      turn.read(token % L);
      for (int which = 0; which < 2; ++which) {
        a.x = from[which].token(token);
        a.x_stride = from[which].stride();
        a.weight = weight[which];
        a.out = to[which] + token * H * D;
        kernel.forward(a);
      }
    }
  });
}

std::tuple<Tensor, Tensor> qk_norm_rope(
    const Tensor& q,  // [B, L, H, D] float32, float64 or bfloat16, any strides
    const Tensor& k,  // [B, L, H, D] same dtype, any strides
    const MaybeTensor&
        q_weight,  // [D], or [H * D] when across, in the dtype of sums; none: no norm
    const MaybeTensor& k_weight,  // as q_weight
    const MaybeTensor& cos,  // [P, D/2] in the dtype of sums; none: no rotation
    const MaybeTensor& sin,  // as cos
    const MaybeTensor& position,  // [L, A] int64; none: P = L and token l uses row l
    const std::vector<int64_t> sections,  // [A] pairs of each axis
    double eps,
    bool across) {
  Settings settings{q_weight, k_weight, cos, sin, position, sections, eps, across};
  check("qk_norm_rope", q, k, settings);
  Tensor q_out = torch::stable::new_empty(q, q.sizes());
  Tensor k_out = torch::stable::new_empty(k, k.sizes());
  if (q.numel() > 0) {
    with_kernel(q.scalar_type(),
                [&](const auto& kernel) { run_forward(kernel, q, k, settings, q_out, k_out); });
  }
  return {q_out, k_out};
}

// --- backward ------------------------------------------------------------------------------------

template <typename In>
void run_backward(const QkNormRopeKernel<In>& kernel,
                  const std::vector<Tensor>& grads,  // of q, k and, when packed, v: [B, L, H, D]
                  const Tensor& q,  // [B, L, H, D]
                  const Tensor& k,  // [B, L, H, D]
                  const Settings& settings,
                  const std::vector<Tensor>& outs,  // one for each gradient, tokens evenly apart
                  const Tensor& dq_weight,  // [W], zero so far; [0] without a norm
                  const Tensor& dk_weight) {  // as dq_weight
  using Acc = typename accumulate<In>::type;
  const int64_t tokens = q.size(0) * q.size(1), L = q.size(1), H = q.size(2), D = q.size(3);
  const int64_t W = dq_weight.numel(), tasks = tasks_of(q);
  const std::vector<Heads<In>> grad(grads.begin(), grads.end());
  std::vector<In*> to;
  for (const Tensor& out : outs) to.push_back(static_cast<In*>(out.mutable_data_ptr()));
  const int64_t step = outs[0].stride(1);
  const Heads<In> from[] = {Heads<In>(q), Heads<In>(k)};
  const Acc* weight[] = {data_of<Acc>(settings.q_weight), data_of<Acc>(settings.k_weight)};
  const AlignedBuffer<Acc> sums(tasks * 2 * W);  // [tasks, 2, W]
  torch::stable::parallel_for(0, tasks, grain_of(q), [&](int64_t first, int64_t last) {
    Turn<Acc> turn(settings, D);
    const AlignedBuffer<Acc> scratch(H * D + D);
    NormRopeTokenBackward<In> a;
    a.H = H;
    a.D = D;
    a.across = settings.across && weight[0] != nullptr;
    a.eps = static_cast<Acc>(settings.eps);
    a.cos = turn.cos();
    a.sin = turn.sin();
    a.scratch = scratch.get();
    a.token_sum = scratch.get() + H * D;
    for (int64_t task = first; task < last; ++task) {
      std::memset(sums.get() + task * 2 * W, 0, 2 * W * sizeof(Acc));
      const int64_t end = (task + 1) * BLOCK_TOKENS < tokens ? (task + 1) * BLOCK_TOKENS : tokens;
      for (int64_t token = task * BLOCK_TOKENS; token < end; ++token) {
        turn.read(token % L);
        for (int which = 0; which < 2; ++which) {
          a.grad = grad[which].token(token);
          a.grad_stride = grad[which].stride();
          a.x = from[which].token(token);
          a.x_stride = from[which].stride();
          a.weight = weight[which];
          a.dx = to[which] + token * step;
          a.sum_weight = sums.get() + (task * 2 + which) * W;
          kernel.backward(a);
        }
        for (int64_t h = 0; grad.size() == 3 && h < H; ++h) {  // values have neither
          std::memcpy(to[2] + token * step + h * D, grad[2].token(token) + h * grad[2].stride(),
                      D * sizeof(In));
        }
      }
    }
  });
  // The tasks in their order; in double, as there may be thousands.
  std::vector<double> total(2 * W, 0.0);
  for (int64_t task = 0; task < tasks; ++task) {
    const Acc* sum = sums.get() + task * 2 * W;
    for (int64_t i = 0; i < 2 * W; ++i) total[i] += sum[i];
  }
  Acc* to_weight[] = {static_cast<Acc*>(dq_weight.mutable_data_ptr()),
                      static_cast<Acc*>(dk_weight.mutable_data_ptr())};
  for (int64_t i = 0; i < 2 * W; ++i) to_weight[i / W][i % W] = static_cast<Acc>(total[i]);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> qk_norm_rope_backward(
    const Tensor& grad_q,  // [B, L, H, D] any strides
    const Tensor& grad_k,  // [B, L, H, D] any strides
    const MaybeTensor& q,  // [B, L, H, D] as the forward read it; none without a norm
    const MaybeTensor& k,  // [B, L, H, D] as the forward read it; none without a norm
    const MaybeTensor& q_weight,  // the rest as in the forward
    const MaybeTensor& k_weight,
    const MaybeTensor& cos,
    const MaybeTensor& sin,
    const MaybeTensor& position,
    const std::vector<int64_t> sections,
    double eps,
    bool across) {
  const char* op = "qk_norm_rope_backward";
  Settings settings{q_weight, k_weight, cos, sin, position, sections, eps, across};
  expect(q.has_value() == q_weight.has_value() && k.has_value() == k_weight.has_value(), op,
         ": q and k: expected with the weights of a norm, and only with them");
  const Tensor& from_q = q.has_value() ? *q : grad_q;
  const Tensor& from_k = k.has_value() ? *k : grad_k;
  check(op, from_q, from_k, settings);
  check_heads(op, "grad_q", grad_q, from_q);
  check_heads(op, "grad_k", grad_k, from_q);

  const int64_t W = !q_weight.has_value() ? 0
                    : across              ? from_q.size(2) * from_q.size(3)
                                          : from_q.size(3);
  Tensor dq = torch::stable::new_empty(from_q, from_q.sizes());
  Tensor dk = torch::stable::new_empty(from_q, from_q.sizes());
  Tensor dq_weight = torch::stable::new_zeros(from_q, {W}, sum_type(from_q));
  Tensor dk_weight = torch::stable::new_zeros(from_q, {W}, sum_type(from_q));
  if (from_q.numel() > 0) {
    with_kernel(from_q.scalar_type(), [&](const auto& kernel) {
      run_backward(kernel, {grad_q, grad_k}, from_q, from_k, settings, {dq, dk}, dq_weight,
                   dk_weight);
    });
  }
  return {dq, dk, dq_weight, dk_weight};
}

std::tuple<Tensor, Tensor, Tensor> qkv_norm_rope_backward(
    const Tensor& grad_q,  // [B, L, H, D] any strides
    const Tensor& grad_k,  // [B, L, H, D] any strides
    const Tensor& grad_v,  // [B, L, H, D] any strides
    const MaybeTensor& qkv,  // [B, L, 3, H, D] as the forward read it; none without a norm
    const MaybeTensor& q_weight,  // the rest as in the forward, a row of the tables for each token
    const MaybeTensor& k_weight,
    const MaybeTensor& cos,
    const MaybeTensor& sin,
    double eps) {
  const char* op = "qkv_norm_rope_backward";
  Settings settings{q_weight, k_weight, cos, sin, std::nullopt, {}, eps, false};
  expect(qkv.has_value() == q_weight.has_value(), op,
         ": qkv: expected with the weights of a norm, and only with them");
  if (qkv.has_value()) {
    expect(qkv->dim() == 5 && qkv->size(2) == 3, op, ": qkv: expected [B, L, 3, H, D], got ",
           shape_of(*qkv));
  }
  const Tensor from_q = qkv.has_value() ? torch::stable::select(*qkv, 2, 0) : grad_q;
  const Tensor from_k = qkv.has_value() ? torch::stable::select(*qkv, 2, 1) : grad_k;
  check(op, from_q, from_k, settings);
  check_heads(op, "grad_q", grad_q, from_q);
  check_heads(op, "grad_k", grad_k, from_q);
  check_heads(op, "grad_v", grad_v, from_q);

  const int64_t B = from_q.size(0), L = from_q.size(1), H = from_q.size(2), D = from_q.size(3);
  const int64_t W = q_weight.has_value() ? D : 0;
  Tensor dqkv = torch::stable::new_empty(from_q, {B, L, 3, H, D});
  Tensor dq_weight = torch::stable::new_zeros(from_q, {W}, sum_type(from_q));
  Tensor dk_weight = torch::stable::new_zeros(from_q, {W}, sum_type(from_q));
  if (from_q.numel() > 0) {
    const std::vector<Tensor> parts = {torch::stable::select(dqkv, 2, 0),
                                       torch::stable::select(dqkv, 2, 1),
                                       torch::stable::select(dqkv, 2, 2)};
    with_kernel(from_q.scalar_type(), [&](const auto& kernel) {
      run_backward(kernel, {grad_q, grad_k, grad_v}, from_q, from_k, settings, parts, dq_weight,
                   dk_weight);
    });
  }
  return {dqkv, dq_weight, dk_weight};
}

}  // namespace
}  // namespace colaworld

STABLE_TORCH_LIBRARY_IMPL(colaworld, CPU, m) {
  m.impl("qk_norm_rope", TORCH_BOX(&colaworld::qk_norm_rope));
  m.impl("qk_norm_rope_backward", TORCH_BOX(&colaworld::qk_norm_rope_backward));
  m.impl("qkv_norm_rope_backward", TORCH_BOX(&colaworld::qkv_norm_rope_backward));
}
