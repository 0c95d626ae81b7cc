// The qk_norm_rope kernel, written once and compiled once per instruction set.
//
//   r = 1 / sqrt(mean(x^2) + eps)      h = x r w      out = R h      R turns pairs of channels
//
// Backward, with u = R^T d out (the same turn by the opposite angle) and the mean over the channels
// that share r:
//
//   dw += u x r        dx = r (u w - x r mean(u w x r))
//
// r is computed again instead of being kept. A row is fetched once from memory and walked several
// times while it is in the cache.

#pragma once

#include <cstdint>
#include <type_traits>

#include "columns.h"
#include "qk_norm_rope.h"
#include "simd.h"

namespace colaworld {
namespace COLAWORLD_ISA {

template <typename In, typename Acc = typename accumulate<In>::type>
inline typename simd<Acc>::vec sum_of_squares(const In* x, int64_t D, typename simd<Acc>::vec sum) {
  columns<Acc>(D, [&](int64_t j, const auto how) __attribute__((always_inline)) {
    const auto v = how.load(x + j);
    sum += how.keep(v * v);
  });
  return sum;
}

// One head, its r known.
template <bool Turned, bool Norm, typename In>
inline void norm_rope_head(const NormRopeToken<In>& a,
                           const In* x,  // [D]
                           const typename accumulate<In>::type* weight,  // [D]
                           typename accumulate<In>::type r,
                           In* out) {  // [D]
  using Acc = typename accumulate<In>::type;
  using vec = typename simd<Acc>::vec;
  columns<Acc>(a.D, [&](int64_t j, const auto how) __attribute__((always_inline)) {
    vec v = how.load(x + j);
    if constexpr (Norm) v = v * r * how.load(weight + j);
    if constexpr (Turned) v = v * how.load(a.cos + j) + swap_pairs<Acc>(v) * how.load(a.sin + j);
    how.store(out + j, v);
  });
}

template <bool Turned, bool Norm, typename In>
inline void norm_rope_token(const NormRopeToken<In>& a) {
  using Acc = typename accumulate<In>::type;
  using vec = typename simd<Acc>::vec;
  Acc r = 1;
  if (Norm && a.across) {
    vec sum{};
    for (int64_t h = 0; h < a.H; ++h) sum = sum_of_squares(a.x + h * a.x_stride, a.D, sum);
    r = inverse_root(sum_of_lanes<Acc>(sum) / Acc(a.H * a.D) + a.eps);
  }
  for (int64_t h = 0; h < a.H; ++h) {
    const In* x = a.x + h * a.x_stride;
    if (Norm && !a.across) {
      r = inverse_root(sum_of_lanes<Acc>(sum_of_squares(x, a.D, vec{})) / Acc(a.D) + a.eps);
    }
    norm_rope_head<Turned, Norm>(a, x, a.weight + (a.across ? h * a.D : 0), r, a.out + h * a.D);
  }
}

// One head: u w into `scaled`, u x r onto sum_weight, u w x r onto the returned lanes. Without a
// norm u itself is the gradient.
template <bool Turned, bool Norm, typename In>
inline typename simd<typename accumulate<In>::type>::vec unturn_head(
    const NormRopeTokenBackward<In>& a,
    const In* grad,  // [D]
    const In* x,  // [D]
    const typename accumulate<In>::type* weight,  // [D]
    typename accumulate<In>::type r,
    typename accumulate<In>::type* scaled,  // [D]
    typename accumulate<In>::type* sum_weight,  // [D]
    In* dx,  // [D]
    typename simd<typename accumulate<In>::type>::vec sum) {
  using Acc = typename accumulate<In>::type;
  using vec = typename simd<Acc>::vec;
  columns<Acc>(a.D, [&](int64_t j, const auto how) __attribute__((always_inline)) {
    vec u = how.load(grad + j);
    if constexpr (Turned) u = u * how.load(a.cos + j) - swap_pairs<Acc>(u) * how.load(a.sin + j);
    if constexpr (Norm) {
      const vec h = how.load(x + j) * r;
      const vec uh = u * h, w = how.load(weight + j);
      how.store(sum_weight + j, how.load(sum_weight + j) + how.keep(uh));
      how.store(scaled + j, u * w);
      sum += how.keep(uh * w);
    } else {
      how.store(dx + j, u);
    }
  });
  return sum;
}

// dx = r (scaled - x r mean)
template <typename In>
inline void finish_head(const In* x,  // [D]
                        const typename accumulate<In>::type* scaled,  // [D]
                        int64_t D,
                        typename accumulate<In>::type r,
                        typename accumulate<In>::type mean,
                        In* dx) {  // [D]
  using Acc = typename accumulate<In>::type;
  columns<Acc>(D, [&](int64_t j, const auto how) __attribute__((always_inline)) {
    how.store(dx + j, (how.load(scaled + j) - how.load(x + j) * r * mean) * r);
  });
}

template <bool Turned, bool Norm, typename In>
inline void norm_rope_token_backward(const NormRopeTokenBackward<In>& a) {
  using Acc = typename accumulate<In>::type;
  using vec = typename simd<Acc>::vec;
  const int64_t H = a.H, D = a.D;
  // Heads that share a weight are added up within the token first: a chain of additions over every
  // head of every token of a task would round more than plain torch does.
  Acc* const sum_weight = Norm && !a.across ? a.token_sum : a.sum_weight;
  if (Norm && !a.across) {
    for (int64_t j = 0; j < D; ++j) a.token_sum[j] = 0;
  }
  Acc r = 1;
  vec sum{};
  if (Norm && a.across) {
    for (int64_t h = 0; h < H; ++h) sum = sum_of_squares(a.x + h * a.x_stride, D, sum);
    r = inverse_root(sum_of_lanes<Acc>(sum) / Acc(H * D) + a.eps);
    sum = vec{};
  }
  for (int64_t h = 0; h < H; ++h) {
    const int64_t place = a.across ? h * D : 0;
    const In* x = Norm ? a.x + h * a.x_stride : nullptr;
    if (Norm && !a.across) {
      r = inverse_root(sum_of_lanes<Acc>(sum_of_squares(x, D, vec{})) / Acc(D) + a.eps);
      sum = vec{};
    }
    sum = unturn_head<Turned, Norm>(a, a.grad + h * a.grad_stride, x, a.weight + place, r,
                                    a.scratch + place, sum_weight + place, a.dx + h * D, sum);
    if (Norm && !a.across) {
      finish_head(x, a.scratch, D, r, sum_of_lanes<Acc>(sum) / Acc(D), a.dx + h * D);
    }
  }
  if (Norm && a.across) {
    const Acc mean = sum_of_lanes<Acc>(sum) / Acc(H * D);
    for (int64_t h = 0; h < H; ++h) {
      finish_head(a.x + h * a.x_stride, a.scratch + h * D, D, r, mean, a.dx + h * D);
    }
  }
  if (Norm && !a.across) {
    for (int64_t j = 0; j < D; ++j) a.sum_weight[j] += a.token_sum[j];
  }
}

template <typename In>
void norm_rope_forward(const NormRopeToken<In>& a) {
  const bool turned = a.cos != nullptr, norm = a.weight != nullptr;
  if (turned && norm) return norm_rope_token<true, true>(a);
  if (turned) return norm_rope_token<true, false>(a);
  if (norm) return norm_rope_token<false, true>(a);
  norm_rope_token<false, false>(a);
}

template <typename In>
void norm_rope_backward(const NormRopeTokenBackward<In>& a) {
  const bool turned = a.cos != nullptr, norm = a.weight != nullptr;
  if (turned && norm) return norm_rope_token_backward<true, true>(a);
  if (turned) return norm_rope_token_backward<true, false>(a);
  if (norm) return norm_rope_token_backward<false, true>(a);
  norm_rope_token_backward<false, false>(a);
}

}  // namespace COLAWORLD_ISA

QkNormRopeKernels COLAWORLD_JOIN(qk_norm_rope_, COLAWORLD_ISA)() {
  using namespace COLAWORLD_ISA;
  return {{&norm_rope_forward<float>, &norm_rope_backward<float>},
          {&norm_rope_forward<double>, &norm_rope_backward<double>},
          {&norm_rope_forward<bfloat16>, &norm_rope_backward<bfloat16>}};
}

}  // namespace colaworld
