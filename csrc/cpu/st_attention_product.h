// Small matrix products for the st_attention kernel: C = A B or C += A B, sums in registers.
//
//            vector 0   vector 1   vector 2
//   row 0    sum        sum        sum        each step k: V vectors of B's row k, one number of A
//   row 1    sum        sum        sum        per row, R * V multiply-adds
//   ...
//
// A is read across (a row's terms are neighbours) or down (a term's rows are neighbours: A is the
// transpose of what lies in memory), so nothing is turned around for it. The order in which a
// sum runs over its terms does not depend on the tile it falls into. Not here: packing, softmax,
// attention.

#pragma once

#include <cstdint>

#include "simd.h"

namespace colaworld {
namespace COLAWORLD_ISA {
namespace st_attention {

// Rows and vectors of a tile. 24 sums, 3 vectors of B and a number of A in 32 registers; 12, 3 and
// one in 16; without FMA a product needs one more.
constexpr int ROWS = COLAWORLD_VECTOR_REGISTERS == 32 ? 8 : 4;
constexpr int VECTORS = COLAWORLD_VECTOR_BYTES == 16 && COLAWORLD_VECTOR_REGISTERS == 16 ? 2 : 3;
// Long sums are sums of sums over this many terms: the rounding of one grows with its length.
constexpr int64_t TERMS_PER_SUM = 256;

// Which terms a row of C sums. Terms that are left out are never multiplied: a NaN there stays out.
enum class Terms {
  all,
  up_to_row,  // row r: terms 0 .. base + r
  from_row,  // row r: terms r .. the last
};

template <typename Acc, int R, int V, bool DOWN>
__attribute__((always_inline)) inline void step(typename simd<Acc>::vec (&sum)[R][V],
                                                const Acc* a,
                                                int64_t a_stride,
                                                const Acc* b,
                                                int first,
                                                int last) {
  using vec = typename simd<Acc>::vec;
  constexpr int64_t L = simd<Acc>::lanes;
  vec x[V];
#pragma GCC unroll 3
  for (int v = 0; v < V; ++v) x[v] = *reinterpret_cast<const vec*>(b + v * L);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    if (r < first || r >= last) continue;
    const vec y = broadcast<Acc>(DOWN ? a[r] : a[r * a_stride]);
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v) sum[r][v] += y * x[v];
  }
}

// R rows by V vectors of C; `terms` counts the terms outside of the R x R triangle.
template <typename Acc, int R, int V, bool DOWN, Terms TERMS>
inline void tile(const Acc* a,  // DOWN ? [terms, a_stride] : [R, a_stride]
                 int64_t a_stride,
                 const Acc* b,  // [terms, b_stride]
                 int64_t b_stride,
                 int64_t terms,
                 Acc* c,  // [R, c_stride]
                 int64_t c_stride,
                 bool add) {
  using vec = typename simd<Acc>::vec;
  constexpr int64_t L = simd<Acc>::lanes;
  const int64_t a_step = DOWN ? a_stride : 1;
  vec sum[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v) {
      sum[r][v] = vec{};
    }
  }
  if constexpr (TERMS == Terms::from_row) {
#pragma GCC unroll 8
    for (int k = 0; k < R; ++k, a += a_step, b += b_stride) {
      step<Acc, R, V, DOWN>(sum, a, a_stride, b, 0, k + 1);
    }
  }
  for (int64_t k = 0; k < terms; ++k, a += a_step, b += b_stride) {
    step<Acc, R, V, DOWN>(sum, a, a_stride, b, 0, R);
  }
  if constexpr (TERMS == Terms::up_to_row) {
#pragma GCC unroll 8
    for (int k = 0; k < R; ++k, a += a_step, b += b_stride) {
      step<Acc, R, V, DOWN>(sum, a, a_stride, b, k, R);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v) {
      vec* to = reinterpret_cast<vec*>(c + r * c_stride + v * L);
      *to = add ? *to + sum[r][v] : sum[r][v];
    }
  }
}

template <typename Acc>
struct Product {
  const Acc* a;
  int64_t a_stride;
  const Acc* b;  // vector aligned, as is every row
  int64_t b_stride;
  int64_t rows;
  int64_t terms;  // all of them; with up_to_row only `base` counts
  int64_t base;
  Acc* c;  // vector aligned, as is every row
  int64_t c_stride;
  bool add;
};

template <typename Acc, int R, int V, bool DOWN, Terms TERMS>
inline int64_t rows_of(const Product<Acc>& p, int64_t row, int64_t column) {
  for (; row + R <= p.rows; row += R) {
    const Acc* a = DOWN ? p.a + row : p.a + row * p.a_stride;
    const Acc* b = p.b + column;
    Acc* c = p.c + row * p.c_stride + column;
    bool add = p.add;
    int64_t terms = p.terms;
    if constexpr (TERMS == Terms::up_to_row) terms = p.base + row;
    if constexpr (TERMS == Terms::from_row) {
      terms -= row + R;  // a panel of queries: few enough for one sum
      a += DOWN ? row * p.a_stride : row;
      b += row * p.b_stride;
    } else {
      for (; terms > TERMS_PER_SUM; terms -= TERMS_PER_SUM, add = true) {
        tile<Acc, R, V, DOWN, Terms::all>(a, p.a_stride, b, p.b_stride, TERMS_PER_SUM, c,
                                          p.c_stride, add);
        a += DOWN ? TERMS_PER_SUM * p.a_stride : TERMS_PER_SUM;
        b += TERMS_PER_SUM * p.b_stride;
      }
    }
    tile<Acc, R, V, DOWN, TERMS>(a, p.a_stride, b, p.b_stride, terms, c, p.c_stride, add);
  }
  return row;
}

template <typename Acc, int V, bool DOWN, Terms TERMS>
inline void columns_of(const Product<Acc>& p, int64_t column) {
  int64_t row = 0;
  if constexpr (ROWS > 4) row = rows_of<Acc, ROWS, V, DOWN, TERMS>(p, row, column);
  row = rows_of<Acc, 4, V, DOWN, TERMS>(p, row, column);
  row = rows_of<Acc, 2, V, DOWN, TERMS>(p, row, column);
  rows_of<Acc, 1, V, DOWN, TERMS>(p, row, column);
}

// C has `vectors` vectors a row; they are shared out evenly among tiles.
template <typename Acc, bool DOWN, Terms TERMS>
inline void multiply(const Product<Acc>& p, int64_t vectors) {
  constexpr int64_t L = simd<Acc>::lanes;
  const int64_t tiles = (vectors + VECTORS - 1) / VECTORS;
  for (int64_t t = 0, done = 0; t < tiles; ++t) {
    const int64_t V = (vectors - done + tiles - t - 1) / (tiles - t);
    if (V == 1) {
      columns_of<Acc, 1, DOWN, TERMS>(p, done * L);
    } else if (V == 2) {
      columns_of<Acc, 2, DOWN, TERMS>(p, done * L);
    } else {
      columns_of<Acc, VECTORS, DOWN, TERMS>(p, done * L);
    }
    done += V;
  }
}

}  // namespace st_attention
}  // namespace COLAWORLD_ISA
}  // namespace colaworld
