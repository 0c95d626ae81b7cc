// Scores, softmax and products for the 16-bit st_attention kernels, on the tensor cores.
// Not here: memory (st_attention_tile.cuh), norm, rotation (st_attention_rows.cuh).

#pragma once

#include "st_attention_rows.cuh"

namespace colaworld {
namespace cuda {
namespace st_attention {

constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LARGEST = 3.4028234663852886e38f;

// A square matrix of positions by positions, float: tile i of 16 rows, block j of 8 columns, and
// the four numbers of a lane: row 16 i + g, columns 8 j + 2 t + {0, 1}; then row 16 i + 8 + g.
template <int R>
using Square = float[R / 2][R][4];
// The same as the first operand of a product: tiles of 16 x 16.
template <int R>
using Operand = uint32_t[R / 2][R / 2][4];

// Number n of the 2 R that a lane holds in row block r.
template <int R>
__device__ __forceinline__ float& in_row(Square<R>& s, int r, int n) {
  return s[r / 2][n / 2][2 * (r % 2) + n % 2];
}
// Calls act(r, n) for all of them.
template <int R, typename Act>
__device__ __forceinline__ void each(Act&& act) {
#pragma unroll
  for (int r = 0; r < R; ++r) {
#pragma unroll
    for (int n = 0; n < 2 * R; ++n) act(r, n);
  }
}

// Which numbers of a square count, a bit for each. Padding rows see nothing.
template <int R>
struct Seen {
  uint32_t bits = 0u;
  int rows;  // from this lane's first one on, that are no padding

  __device__ __forceinline__ Seen(int T, bool causal, int lane) : rows(T - row_of(lane)) {
    each<R>([&](int r, int n) {
      const int row = 8 * r + row_of(lane), column = channel_of(n / 2, quad_of(lane)) + n % 2;
      if (row < T && sees(row, column, T, causal)) bits |= 1u << (2 * R * r + n);
    });
  }
  __device__ __forceinline__ bool at(int r, int n) const { return bits >> (2 * R * r + n) & 1; }
};

// What the lanes of a row hold of it, for the columns of the same numbers.
template <int R>
__device__ __forceinline__ void to_columns(const float (&rows)[R],
                                           int lane,
                                           float (&columns)[2 * R]) {
#pragma unroll
  for (int n = 0; n < 2 * R; ++n) {
    columns[n] = shuffle(rows[n / 2], (channel_of(0, quad_of(lane)) + n % 2) * 4);
  }
}
// The other way, of sums over the rows.
template <int R>
__device__ __forceinline__ void sum_to_rows(float (&columns)[2 * R], int lane, float (&rows)[R]) {
  const int row = row_of(lane);
#pragma unroll
  for (int n = 0; n < 2 * R; ++n) {
#pragma unroll
    for (int mask = 4; mask < LANES; mask *= 2) columns[n] += shuffle_xor(columns[n], mask);
  }
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const float even = shuffle(columns[2 * r], row / 2), odd = shuffle(columns[2 * r + 1], row / 2);
    rows[r] = row % 2 == 0 ? even : odd;
  }
}

// s += a b^T over the channels of chunk c.
template <typename E, int D, int R>
__device__ __forceinline__ void add_scores(const Chunk<R>& a,
                                           const Chunk<R>& b,
                                           int c,
                                           Square<R>& s) {
#pragma unroll
  for (int i = 0; i < R / 2; ++i) {
#pragma unroll
    for (int j = 0; j < R; ++j) {
      const uint32_t (&x)[4] = a[i], (&y)[4] = b[j / 2];
      if (D % 16 != 0 && c == D / 16) {
        words<E>::multiply(s[i][j], x[0], x[1], y[j % 2]);
      } else {
        words<E>::multiply(s[i][j], x[0], x[1], x[2], x[3], y[j % 2], y[2 + j % 2]);
      }
    }
  }
}

// s += q k^T over chunk c, which is prepared.
template <typename E, int D, int R, bool BACKWARD>
__device__ __forceinline__ void add_scores(Scored<E, D, R, BACKWARD>& rows, int c, Square<R>& s) {
  const int at = rows.HOLD ? c : 0;
  if (!rows.HOLD) rows.read(c);
  rows.prepare(c);
  add_scores<E, D, R>(rows.a[at], rows.b[at], c, s);
}

// The norm of queries and keys, on what is linear in both, where `prepare` has left it out.
template <typename E, int D, int R, bool BACKWARD>
__device__ __forceinline__ void apply_norm(const Scored<E, D, R, BACKWARD>& rows, Square<R>& s) {
  if (!words<E>::WIDE) return;
  float k_columns[2 * R];
  to_columns<R>(rows.k_rms, rows.q.lane, k_columns);
  each<R>([&](int r, int n) { in_row<R>(s, r, n) *= rows.q_rms[r] * k_columns[n]; });
}

// Scores of row block r become probabilities; what a row does not see becomes 0.
template <int R>
__device__ __forceinline__ void softmax(Square<R>& s,
                                        int r,
                                        float factor,  // scale * log2(e)
                                        const Seen<R>& seen) {
  float most = -LARGEST, sum = 0.f;
#pragma unroll
  for (int n = 0; n < 2 * R; ++n) {
    float& x = in_row<R>(s, r, n);
    x = seen.at(r, n) ? x * factor : -infinity();
    most = max_of(most, x);
  }
  most = max_of(most, shuffle_xor(most, 1));
  most = max_of(most, shuffle_xor(most, 2));
#pragma unroll
  for (int n = 0; n < 2 * R; ++n) {
    float& x = in_row<R>(s, r, n);
    x = exp2_of(x - most);
    sum += x;
  }
  sum = sum_of_quad(sum);
  const float inverse = 8 * r < seen.rows ? inverse_of(sum) : 0.f;
#pragma unroll
  for (int n = 0; n < 2 * R; ++n) in_row<R>(s, r, n) *= inverse;
}

// Scores become probabilities, and the gradient of these that of the scores:
//     ds = p (dp - sum p dp) scale.
// What the gradient of the norm takes away of a row of queries, its mean product with its gradient,
// needs no channels: (ds k') . q' = ds . (k' q'). Likewise for the keys, over columns.
template <int R>
__device__ __forceinline__ void softmax_backward(Square<R>& s,
                                                 Square<R>& ds,
                                                 float scale,
                                                 const Seen<R>& seen,
                                                 int lane,
                                                 float (&q_sum)[R],
                                                 float (&k_sum)[R]) {
  float columns[2 * R] = {};
#pragma unroll
  for (int r = 0; r < R; ++r) {
    float score[2 * R], sum = 0.f;
#pragma unroll
    for (int n = 0; n < 2 * R; ++n) score[n] = in_row<R>(s, r, n);
    softmax<R>(s, r, scale * LOG2_E, seen);
#pragma unroll
    for (int n = 0; n < 2 * R; ++n) sum += in_row<R>(s, r, n) * in_row<R>(ds, r, n);
    sum = sum_of_quad(sum);
    q_sum[r] = 0.f;
#pragma unroll
    for (int n = 0; n < 2 * R; ++n) {
      float& x = in_row<R>(ds, r, n);
      x = in_row<R>(s, r, n) * scale * (x - sum);
      q_sum[r] += x * score[n];
      columns[n] += x * score[n];
    }
    q_sum[r] = sum_of_quad(q_sum[r]);
  }
  sum_to_rows<R>(columns, lane, k_sum);
}

template <typename E, int R>
__device__ __forceinline__ void as_operand(const Square<R>& s, Operand<R>& a) {
#pragma unroll
  for (int i = 0; i < R / 2; ++i) {
#pragma unroll
    for (int j = 0; j < R; ++j) {
      a[i][j / 2][j % 2 * 2] = words<E>::pack(s[i][j][0], s[i][j][1]);
      a[i][j / 2][j % 2 * 2 + 1] = words<E>::pack(s[i][j][2], s[i][j][3]);
    }
  }
}

template <int R>
__device__ __forceinline__ void transpose(const Operand<R>& a, Operand<R>& b) {
#pragma unroll
  for (int i = 0; i < R / 2; ++i) {
#pragma unroll
    for (int j = 0; j < R / 2; ++j) {
      b[j][i][0] = transposed(a[i][j][0]);
      b[j][i][1] = transposed(a[i][j][2]);
      b[j][i][2] = transposed(a[i][j][1]);
      b[j][i][3] = transposed(a[i][j][3]);
    }
  }
}

// The gradient of scores as what makes the gradients of queries and keys, times their norm's
// factor, of prepared keys and queries.
template <typename E, int D, int R, bool BACKWARD>
__device__ __forceinline__ void gradient_operands(const Scored<E, D, R, BACKWARD>& rows,
                                                  Square<R>& ds,
                                                  Operand<R>& of_q,
                                                  Operand<R>& of_k) {
  Operand<R> turned;
  float k_columns[2 * R];
  to_columns<R>(rows.k_rms, rows.q.lane, k_columns);
  if (words<E>::WIDE) {
    each<R>([&](int r, int n) { in_row<R>(ds, r, n) *= rows.q_rms[r] * k_columns[n]; });
    as_operand<E, R>(ds, of_q);
    transpose<R>(of_q, of_k);
    return;
  }
  Square<R> of_rows;
  each<R>([&](int r, int n) {
    in_row<R>(of_rows, r, n) = in_row<R>(ds, r, n) * rows.q_rms[r];
    in_row<R>(ds, r, n) *= k_columns[n];
  });
  as_operand<E, R>(of_rows, of_q);
  as_operand<E, R>(ds, turned);
  transpose<R>(turned, of_k);
}

// A channel block of a x: block e of the chunk of x, which is loaded turned.
template <typename E, int R>
__device__ __forceinline__ void multiply(const Operand<R>& a,
                                         const Chunk<R>& x,
                                         int e,
                                         float (&out)[R / 2][4]) {
#pragma unroll
  for (int i = 0; i < R / 2; ++i) {
#pragma unroll
    for (int n = 0; n < 4; ++n) out[i][n] = 0.f;
#pragma unroll
    for (int j = 0; j < R / 2; ++j) {
      words<E>::multiply(out[i], a[i][j][0], a[i][j][1], a[i][j][2], a[i][j][3], x[j][2 * e],
                         x[j][2 * e + 1]);
    }
  }
}

// All of a x into a tile, which may be that of x.
template <typename E, int D, int R>
__device__ __forceinline__ void multiply_into(const Operand<R>& a,
                                              const Tile<D, R>& x,
                                              const Tile<D, R>& out) {
  constexpr int UNROLL = Tile<D, R>::UNROLL;
#pragma unroll UNROLL
  for (int c = 0; c < x.CHUNKS; ++c) {
    Chunk<R> turned;
    x.template load<As::turned>(c, turned);
    sync_warp();
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int p = 2 * c + e;
      if (p == D / 8) break;
      float y[R / 2][4];
      multiply<E, R>(a, turned, e, y);
#pragma unroll
      for (int r = 0; r < R; ++r) {
        out.store(p, r, words<E>::pack(y[r / 2][r % 2 * 2], y[r / 2][r % 2 * 2 + 1]));
      }
    }
  }
}

}  // namespace st_attention
}  // namespace cuda
}  // namespace colaworld
