// The softmax of the st_attention kernel and its gradient, on a panel of scores [keys, width] whose
// queries stand in the lanes: everything runs down the keys. Not here: the scores themselves.

#pragma once

#include <cstdint>

#include "simd.h"
#include "st_attention_product.h"

namespace colaworld {
namespace COLAWORLD_ISA {
namespace st_attention {

// Lanes of vector v of a panel that starts at query q0 and may see key k.
template <typename Acc>
inline typename simd<Acc>::ivec visible(int64_t q0, int64_t v, int64_t k) {
  using Int = typename simd<Acc>::Int;
  return lane_numbers<Acc>() + static_cast<Int>(q0 + v * simd<Acc>::lanes - k) >= 0;
}

// exp(score - maximum) in place and 1 / sum. From key `masked` on, a query q sees keys up to q
// only.
template <typename Acc>
inline void softmax(Acc* scores,  // [keys, width]
                    int64_t keys,
                    int64_t width,
                    int64_t q0,
                    int64_t masked,
                    Acc* inverse) {  // [width]
  using vec = typename simd<Acc>::vec;
  constexpr int64_t L = simd<Acc>::lanes;
  const vec lowest = broadcast<Acc>(-static_cast<Acc>(__builtin_inf()));
  for (int64_t v = 0; v * L < width; ++v) {
    Acc* column = scores + v * L;
    vec most = lowest;
    for (int64_t k = 0; k < masked; ++k) most = maximum<Acc>(load(column + k * width), most);
    for (int64_t k = masked; k < keys; ++k) {
      const vec s = visible<Acc>(q0, v, k) != 0 ? load(column + k * width) : lowest;
      store<Acc>(column + k * width, s);
      most = maximum<Acc>(s, most);
    }
    vec sum{};
    for (int64_t start = 0; start < keys; start += TERMS_PER_SUM) {
      const int64_t end = start + TERMS_PER_SUM < keys ? start + TERMS_PER_SUM : keys;
      vec part{};
      for (int64_t k = start; k < end; ++k) {
        const vec e = exponential<Acc>(load(column + k * width) - most);
        store<Acc>(column + k * width, e);
        part += e;
      }
      sum += part;
    }
    store<Acc>(inverse + v * L, 1 / sum);
  }
}

// P = e / sum and dS = P * (dP - sum of P * dP), both in place.
template <typename Acc>
inline void softmax_backward(Acc* p,  // [keys, width]
                             Acc* dp,  // [keys, width]
                             int64_t keys,
                             int64_t width,
                             int64_t q0,
                             int64_t masked,
                             const Acc* inverse) {  // [width]
  using vec = typename simd<Acc>::vec;
  constexpr int64_t L = simd<Acc>::lanes;
  for (int64_t v = 0; v * L < width; ++v) {
    const vec factor = load(inverse + v * L);
    vec sum{};
    for (int64_t start = 0; start < keys; start += TERMS_PER_SUM) {
      const int64_t end = start + TERMS_PER_SUM < keys ? start + TERMS_PER_SUM : keys;
      vec part{};
      for (int64_t k = start; k < end; ++k) {
        const int64_t at = k * width + v * L;
        const vec here = load(p + at) * factor;
        vec d = load(dp + at);
        if (k >= masked) {
          d = visible<Acc>(q0, v, k) != 0 ? d : vec{};
          store<Acc>(dp + at, d);
        }
        store<Acc>(p + at, here);
        part += here * d;
      }
      sum += part;
    }
    for (int64_t k = 0; k < keys; ++k) {
      const int64_t at = k * width + v * L;
      store<Acc>(dp + at, load(p + at) * (load(dp + at) - sum));
    }
  }
}

}  // namespace st_attention
}  // namespace COLAWORLD_ISA
}  // namespace colaworld
