// Scores, softmax and products for the 16-bit st_attention kernels, on the tensor cores.
// Not here: memory, norm, rotation (st_attention_rows.cuh).

#pragma once

#include "st_attention_rows.cuh"

namespace colaworld {
namespace cuda {
namespace st_attention {

// s = a b^T over the channels: tile i of 16 rows, block j of 8 columns, and the four numbers of a
// lane: row 16 i + g, columns 8 j + 2 t + {0, 1}; then row 16 i + 8 + g.
template <typename E, int D, int R, bool HOLD>
__device__ __forceinline__ void score(const Rows<E, D, R, HOLD>& a,
                                      const Rows<E, D, R, HOLD>& b,
                                      float (&s)[R / 2][R][4]) {
#pragma unroll
  for (int i = 0; i < R / 2; ++i) {
#pragma unroll
    for (int j = 0; j < R; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) s[i][j][e] = 0.f;
    }
  }
#pragma unroll Rows < E, D, R, HOLD> ::UNROLL
  for (int c = 0; c < a.CHUNKS; ++c) {
    uint32_t x[R][2], y[R][2];
    a.get(c, x);
    b.get(c, y);
#pragma unroll
    for (int i = 0; i < R / 2; ++i) {
      const uint32_t (&u)[2] = x[2 * i], (&v)[2] = x[2 * i + 1];
#pragma unroll
      for (int j = 0; j < R; ++j) {
        if (D % 16 != 0 && c == D / 16) {
          words<E>::multiply(s[i][j], u[0], v[0], y[j][0]);
        } else {
          words<E>::multiply(s[i][j], u[0], v[0], u[1], v[1], y[j][0], y[j][1]);
        }
      }
    }
  }
}

// Scores become probabilities, row by row; what a row does not see becomes 0.
template <int R>
__device__ __forceinline__ void softmax(float (&s)[R / 2][R][4],
                                        float factor,  // scale * log2(e)
                                        int T,
                                        bool causal,
                                        int lane) {
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const int row = 8 * r + row_of(lane), i = r / 2;
    float most = -infinity(), sum = 0.f;
#pragma unroll
    for (int j = 0; j < R; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float& x = s[i][j][2 * (r % 2) + e];
        x = sees(row, 8 * j + 2 * quad_of(lane) + e, T, causal) ? x * factor : -infinity();
        most = max_of(most, x);
      }
    }
    most = max_of(most, shuffle_xor(most, 1));
    most = max_of(most, shuffle_xor(most, 2));
#pragma unroll
    for (int j = 0; j < R; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float& x = s[i][j][2 * (r % 2) + e];
        x = exp2_of(x - most);
        sum += x;
      }
    }
    const float inverse = 1.f / sum_of_quad(sum);
#pragma unroll
    for (int j = 0; j < R; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) s[i][j][2 * (r % 2) + e] *= inverse;
    }
  }
}

// ds = p (dp - sum p dp) scale in the place of dp. Padding rows and what is not seen are exactly
// zero, whatever stands there.
template <int R>
__device__ __forceinline__ void softmax_backward(
    float (&s)[R / 2][R][4], float (&ds)[R / 2][R][4], float scale, int T, bool causal, int lane) {
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const int row = 8 * r + row_of(lane), i = r / 2;
    float sum = 0.f;
#pragma unroll
    for (int j = 0; j < R; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int n = 2 * (r % 2) + e;
        if (row >= T) s[i][j][n] = 0.f;
        if (row >= T || !sees(row, 8 * j + 2 * quad_of(lane) + e, T, causal)) ds[i][j][n] = 0.f;
        sum += s[i][j][n] * ds[i][j][n];
      }
    }
    sum = sum_of_quad(sum);
#pragma unroll
    for (int j = 0; j < R; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int n = 2 * (r % 2) + e;
        const bool counts = row < T && sees(row, 8 * j + 2 * quad_of(lane) + e, T, causal);
        ds[i][j][n] = counts ? s[i][j][n] * (ds[i][j][n] - sum) * scale : 0.f;
      }
    }
  }
}

// A square matrix of rows by positions as the first operand of a product: tiles of 16 x 16.
template <typename E, int R>
__device__ __forceinline__ void as_operand(const float (&s)[R / 2][R][4],
                                           uint32_t (&a)[R / 2][R / 2][4]) {
#pragma unroll
  for (int i = 0; i < R / 2; ++i) {
#pragma unroll
    for (int j = 0; j < R / 2; ++j) {
      a[i][j][0] = words<E>::pack(s[i][2 * j][0], s[i][2 * j][1]);
      a[i][j][1] = words<E>::pack(s[i][2 * j][2], s[i][2 * j][3]);
      a[i][j][2] = words<E>::pack(s[i][2 * j + 1][0], s[i][2 * j + 1][1]);
      a[i][j][3] = words<E>::pack(s[i][2 * j + 1][2], s[i][2 * j + 1][3]);
    }
  }
}

template <int R>
__device__ __forceinline__ void transpose(const uint32_t (&a)[R / 2][R / 2][4],
                                          uint32_t (&b)[R / 2][R / 2][4]) {
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

// A channel block of a x, where x [R] holds it for every position.
template <typename E, int R>
__device__ __forceinline__ void multiply(const uint32_t (&a)[R / 2][R / 2][4],
                                         const uint32_t (&x)[R][2],
                                         int e,  // the first or the second block of the chunk
                                         float (&out)[R / 2][4]) {
#pragma unroll
  for (int i = 0; i < R / 2; ++i) {
#pragma unroll
    for (int n = 0; n < 4; ++n) out[i][n] = 0.f;
  }
#pragma unroll
  for (int j = 0; j < R / 2; ++j) {
    const uint32_t b0 = transposed(x[2 * j][e]), b1 = transposed(x[2 * j + 1][e]);
#pragma unroll
    for (int i = 0; i < R / 2; ++i) {
      words<E>::multiply(out[i], a[i][j][0], a[i][j][1], a[i][j][2], a[i][j][3], b0, b1);
    }
  }
}

// All of a x, written.
template <typename E, int D, int R, bool HOLD>
__device__ __forceinline__ void multiply_and_write(const uint32_t (&a)[R / 2][R / 2][4],
                                                   const Rows<E, D, R, HOLD>& rows,
                                                   uint16_t* to,
                                                   int64_t step) {
#pragma unroll Rows < E, D, R, HOLD> ::UNROLL
  for (int c = 0; c < rows.CHUNKS; ++c) {
    uint32_t x[R][2];
    float y[2][R / 2][4] = {};
    rows.get(c, x);
    multiply<E, R>(a, x, 0, y[0]);
    if (2 * c + 1 < D / 8) multiply<E, R>(a, x, 1, y[1]);
    write_rows<E, D, R>(y[0], y[1], c, rows.T, rows.lane, to, step);
  }
}

}  // namespace st_attention
}  // namespace cuda
}  // namespace colaworld
