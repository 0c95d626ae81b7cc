// The tanh form of GELU and its derivative, as x * sigmoid(2 u) with u = sqrt(2 / pi) (x + 0.044715
// x^3): (1 + tanh u) / 2 is sigmoid(2 u), and this way small results of large negative x keep their
// digits. Source: Hendrycks and Gimpel 2016, arXiv 1606.08415, section 2.

#pragma once

#include <cstdint>

#include "gelu.h"
#include "simd.h"

namespace colaworld {
namespace COLAWORLD_ISA {
namespace gelu {

// 2 sqrt(2 / pi), and the factor of the cube.
template <typename Acc>
constexpr Acc SLOPE = Acc(1.59576912160573071176);
template <typename Acc>
constexpr Acc CUBE = Acc(0.044715);

template <typename Acc>
struct Sigmoid {
  typename simd<Acc>::vec value, slope;  // of 2 u, slope by 2 u
};

// e = exp(-|2 u|), so that nothing overflows; 1 / (1 + e) on the right, e / (1 + e) on the left.
template <typename Acc>
inline Sigmoid<Acc> sigmoid(typename simd<Acc>::vec x) {
  using vec = typename simd<Acc>::vec;
  const vec twice = x * (SLOPE<Acc> + (SLOPE<Acc> * CUBE<Acc>)*x * x);
  const vec e = exponential<Acc>(twice > 0 ? -twice : twice);
  const vec right = 1 / (1 + e), left = e * right;
  return {twice > 0 ? right : left, left * right};
}

template <typename Acc>
inline typename simd<Acc>::vec forward(typename simd<Acc>::vec x) {
  return x * sigmoid<Acc>(x).value;
}

template <typename Acc>
inline typename simd<Acc>::vec derivative(typename simd<Acc>::vec x) {
  using vec = typename simd<Acc>::vec;
  const Sigmoid<Acc> s = sigmoid<Acc>(x);
  const vec bend = s.slope * x * (SLOPE<Acc> + (3 * SLOPE<Acc> * CUBE<Acc>)*x * x);
  // Where the sigmoid is flat the cube may be infinite, and 0 * inf is not a number.
  return s.value + (s.slope == 0 ? vec{} : bend);
}

template <typename In>
void forward_span(const In* x, int64_t first, int64_t last, In* y) {
  using Acc = typename accumulate<In>::type;
  constexpr int64_t L = simd<Acc>::lanes;
  int64_t i = first;
  for (; i + L <= last; i += L) store<In>(y + i, forward<Acc>(load(x + i)));
  if (i < last) store_first<In>(y + i, forward<Acc>(load_first(x + i, last - i)), last - i);
}

template <typename In>
void backward_span(const In* grad, const In* x, int64_t first, int64_t last, In* dx) {
  using Acc = typename accumulate<In>::type;
  constexpr int64_t L = simd<Acc>::lanes;
  int64_t i = first;
  for (; i + L <= last; i += L) {
    store<In>(dx + i, load(grad + i) * derivative<Acc>(load(x + i)));
  }
  if (i < last) {
    const int64_t n = last - i;
    store_first<In>(dx + i, load_first(grad + i, n) * derivative<Acc>(load_first(x + i, n)), n);
  }
}

template <typename In>
GeluKernel<In> kernel() {
  return {forward_span<In>, backward_span<In>};
}

}  // namespace gelu
}  // namespace COLAWORLD_ISA

GeluKernels COLAWORLD_JOIN(gelu_, COLAWORLD_ISA)() {
  using namespace COLAWORLD_ISA::gelu;
  return {kernel<float>(), kernel<double>(), kernel<bfloat16>()};
}

}  // namespace colaworld
