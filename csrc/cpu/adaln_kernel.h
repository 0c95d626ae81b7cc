// The adaln kernel, written once and compiled once per instruction set.
//
//   x_out = x + gate y        r = 1 / sqrt(mean_C((x_out - m)^2) + eps)        h = (x_out - m) r
//   out = h (1 + scale) + shift
//
// Backward, with g = d out, u = g (1 + scale) and means over C:
//
//   dx = d x_out + r (u - mean(u) - h mean(u h))
//   dy = gate dx        dgate += y dx        dshift += g        dscale += g h
//
// The op waits for memory, so a row is fetched once and walked several times while it is in the
// cache. ROWS rows are walked together: their sums over C do not wait for each other, and the
// sums over rows are read and written once per ROWS rows. The order of every sum is fixed by the
// number of rows and columns alone.

#pragma once

#include <cstdint>
#include <type_traits>

#include "adaln.h"
#include "columns.h"
#include "simd.h"

namespace colaworld {
namespace COLAWORLD_ISA {

// Four rows of 1152 floats and what is computed from them fit a 1 MB second-level cache many times
// over, and four sums hide the latency of an addition.
constexpr int64_t ADALN_ROWS = 4;

// R rows from row `first` on; Branch: there is a y.
template <int64_t R, bool Branch, typename In, typename Out>
inline void adaln_forward_rows(const AdalnForwardRows<In, Out>& a, int64_t first) {
  using Acc = typename accumulate<In>::type;
  using vec = typename simd<Acc>::vec;
  const int64_t C = a.C;
  const In* x = a.x + first * a.x_stride;
  const Out* y = Branch ? a.y + first * a.y_stride : nullptr;
  In* x_out = Branch ? a.x_out + first * C : nullptr;
  Out* out = a.out + first * C;
  // What the norm reads: x_out as rounded to its dtype.
  const In* stream = Branch ? x_out : x;
  const int64_t stream_stride = Branch ? C : a.x_stride;

  vec sum[R] = {};
  columns<Acc>(C, [&](int64_t j, const auto how) __attribute__((always_inline)) {
    vec gate{};
    if constexpr (Branch) gate = how.load(a.gate + j);
#pragma GCC unroll 4
    for (int64_t r = 0; r < R; ++r) {
      vec v = how.load(x + r * a.x_stride + j);
      if constexpr (Branch) {
        v += gate * how.load(y + r * a.y_stride + j);
        how.store(x_out + r * C + j, v);
        if constexpr (!std::is_same_v<In, Acc>) v = how.load(x_out + r * C + j);
      }
      sum[r] += how.keep(v);
    }
  });

  Acc mean[R], rstd[R];
  vec squares[R] = {};
  for (int64_t r = 0; r < R; ++r) mean[r] = sum_of_lanes<Acc>(sum[r]) / Acc(C);
  columns<Acc>(C, [&](int64_t j, const auto how) __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (int64_t r = 0; r < R; ++r) {
      const vec centred = how.load(stream + r * stream_stride + j) - mean[r];
      squares[r] += how.keep(centred * centred);
    }
  });
  for (int64_t r = 0; r < R; ++r) {
    rstd[r] = inverse_root(sum_of_lanes<Acc>(squares[r]) / Acc(C) + a.eps);
    a.mean[first + r] = mean[r];
    a.rstd[first + r] = rstd[r];
  }
  columns<Acc>(C, [&](int64_t j, const auto how) __attribute__((always_inline)) {
    const vec factor = how.load(a.factor + j), shift = how.load(a.shift + j);
#pragma GCC unroll 4
    for (int64_t r = 0; r < R; ++r) {
      const vec normed = (how.load(stream + r * stream_stride + j) - mean[r]) * rstd[r];
      how.store(out + r * C + j, normed * factor + shift);
    }
  });
}

template <int64_t R, bool Branch, typename In, typename Out>
inline void adaln_backward_rows(const AdalnBackwardRows<In, Out>& a, int64_t first) {
  using Acc = typename accumulate<In>::type;
  using vec = typename simd<Acc>::vec;
  const int64_t C = a.C;
  const In* grad_x_out = a.grad_x_out + first * a.grad_x_out_stride;
  const Out* grad_out = a.grad_out + first * a.grad_out_stride;
  const In* x = a.x + first * a.x_stride;
  const Out* y = Branch ? a.y + first * a.y_stride : nullptr;
  In* dx = a.dx + first * C;
  Out* dy = Branch ? a.dy + first * C : nullptr;
  const Acc* mean = a.mean + first;
  const Acc* rstd = a.rstd + first;

  vec sum_u[R] = {}, sum_uh[R] = {};
  columns<Acc>(C, [&](int64_t j, const auto how) __attribute__((always_inline)) {
    const vec factor = how.load(a.factor + j);
    vec shift{}, scale{};
#pragma GCC unroll 4
    for (int64_t r = 0; r < R; ++r) {
      const vec g = how.load(grad_out + r * a.grad_out_stride + j);
      const vec h = (how.load(x + r * a.x_stride + j) - mean[r]) * rstd[r];
      const vec gh = g * h;
      shift += g;
      scale += gh;
      sum_u[r] += how.keep(g * factor);
      sum_uh[r] += how.keep(gh * factor);
    }
    how.store(a.sum_shift + j, how.load(a.sum_shift + j) + how.keep(shift));
    how.store(a.sum_scale + j, how.load(a.sum_scale + j) + how.keep(scale));
  });

  Acc mean_u[R], mean_uh[R];
  for (int64_t r = 0; r < R; ++r) {
    mean_u[r] = sum_of_lanes<Acc>(sum_u[r]) / Acc(C);
    mean_uh[r] = sum_of_lanes<Acc>(sum_uh[r]) / Acc(C);
  }
  columns<Acc>(C, [&](int64_t j, const auto how) __attribute__((always_inline)) {
    const vec factor = how.load(a.factor + j);
    vec gate{}, sum{};
    if constexpr (Branch) gate = how.load(a.gate + j);
#pragma GCC unroll 4
    for (int64_t r = 0; r < R; ++r) {
      const vec u = how.load(grad_out + r * a.grad_out_stride + j) * factor;
      const vec h = (how.load(x + r * a.x_stride + j) - mean[r]) * rstd[r];
      const vec d = how.load(grad_x_out + r * a.grad_x_out_stride + j) +
                    (u - mean_u[r] - h * mean_uh[r]) * rstd[r];
      how.store(dx + r * C + j, d);
      if constexpr (Branch) {
        how.store(dy + r * C + j, gate * d);
        sum += d * how.load(y + r * a.y_stride + j);
      }
    }
    if constexpr (Branch) how.store(a.sum_gate + j, how.load(a.sum_gate + j) + how.keep(sum));
  });
}

template <bool Branch, typename In, typename Out>
inline void adaln_forward_block(const AdalnForwardRows<In, Out>& a) {
  int64_t row = 0;
  for (; row + ADALN_ROWS <= a.rows; row += ADALN_ROWS) {
    adaln_forward_rows<ADALN_ROWS, Branch>(a, row);
  }
  for (; row < a.rows; ++row) adaln_forward_rows<1, Branch>(a, row);
}

template <bool Branch, typename In, typename Out>
inline void adaln_backward_block(const AdalnBackwardRows<In, Out>& a) {
  int64_t row = 0;
  for (; row + ADALN_ROWS <= a.rows; row += ADALN_ROWS) {
    adaln_backward_rows<ADALN_ROWS, Branch>(a, row);
  }
  for (; row < a.rows; ++row) adaln_backward_rows<1, Branch>(a, row);
}

template <typename In, typename Out>
void adaln_forward(const AdalnForwardRows<In, Out>& a) {
  if (a.y != nullptr) return adaln_forward_block<true>(a);
  adaln_forward_block<false>(a);
}

template <typename In, typename Out>
void adaln_backward(const AdalnBackwardRows<In, Out>& a) {
  if (a.y != nullptr) return adaln_backward_block<true>(a);
  adaln_backward_block<false>(a);
}

}  // namespace COLAWORLD_ISA

AdalnKernels COLAWORLD_JOIN(adaln_, COLAWORLD_ISA)() {
  using namespace COLAWORLD_ISA;
  return {{&adaln_forward<float, float>, &adaln_backward<float, float>},
          {&adaln_forward<float, bfloat16>, &adaln_backward<float, bfloat16>},
          {&adaln_forward<double, double>, &adaln_backward<double, double>},
          {&adaln_forward<bfloat16, bfloat16>, &adaln_backward<bfloat16, bfloat16>}};
}

}  // namespace colaworld
