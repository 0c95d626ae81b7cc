// A walk over the columns of a row in SIMD vectors, whatever the length of the row.
// Not here: arithmetic on the vectors (simd.h and the kernels).

#pragma once

#include <cstdint>

#include "simd.h"

namespace colaworld {
namespace COLAWORLD_ISA {

// How one vector of columns is read, written and counted. `keep` zeroes the lanes that must not
// enter a sum.
template <typename Acc>
struct WholeVector {
  using vec = typename simd<Acc>::vec;
  template <typename In>
  vec load(const In* from) const {
    return colaworld::COLAWORLD_ISA::load<In>(from);
  }
  template <typename In>
  void store(In* to, vec x) const {
    colaworld::COLAWORLD_ISA::store<In>(to, x);
  }
  vec keep(vec x) const { return x; }
};

// The last vector of a row that is no whole number of vectors: it ends with the row, so its first
// lanes were seen before. Writing them again writes the same numbers, as long as no output of the
// walk is an input of it.
template <typename Acc>
struct OverlappingVector : WholeVector<Acc> {
  using vec = typename simd<Acc>::vec;
  using ivec = typename simd<Acc>::ivec;
  using Int = typename simd<Acc>::Int;
  ivec fresh;  // all bits of the lanes that were not seen before

  explicit OverlappingVector(int64_t n) {  // the last n lanes are fresh
    fresh = lane_numbers<Acc>() >= static_cast<Int>(simd<Acc>::lanes - n);
  }
  vec keep(vec x) const { return fresh ? x : vec{}; }
};

// A row shorter than a vector. Lanes past the row are read as zero.
template <typename Acc>
struct ShortVector {
  using vec = typename simd<Acc>::vec;
  int64_t n;
  template <typename In>
  vec load(const In* from) const {
    return load_first<In>(from, n);
  }
  template <typename In>
  void store(In* to, vec x) const {
    store_first<In>(to, x, n);
  }
  vec keep(vec x) const {
    for (int64_t i = n; i < simd<Acc>::lanes; ++i) x[i] = 0;
    return x;
  }
};

// step(j, how) for vectors that start at columns j and together cover 0 .. C - 1, in order.
template <typename Acc, typename Step>
inline __attribute__((always_inline)) void columns(int64_t C, const Step& step) {
  constexpr int64_t L = simd<Acc>::lanes;
  int64_t j = 0;
  for (; j + L <= C; j += L) step(j, WholeVector<Acc>{});
  if (j == C) return;
  if (C >= L) {
    step(C - L, OverlappingVector<Acc>(C - j));
  } else {
    step(0, ShortVector<Acc>{C});
  }
}

}  // namespace COLAWORLD_ISA
}  // namespace colaworld
