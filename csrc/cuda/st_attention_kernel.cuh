// Temporal attention on the tensor cores, for 16-bit numbers: one warp per (place, head).
//
// A warp holds the T <= 16 R / 2 rows of its sequence in registers as row blocks of 8 (R of them)
// and channel blocks of 8 (P = D / 8), a word of two numbers per lane: exactly what mma.sync takes,
// so that head dim 72 is nine blocks and nothing is padded. Norm and rotation happen in place. The
// keys are the second operand of q k^T as they lie; probabilities are the first operand of the
// next product as they fall out; movmatrix turns what must be turned. No warp waits for another,
// and no two sequences meet: what is not a number in one stays in it.
//
// Departure from the reference: norm, weight and rotation are rounded once, after the rotation, not
// after each of them, and the weights are not rounded to the 16-bit type.
//
// Not here: float32 (st_attention_float_kernel.cuh), launches (st_attention.cu).

#pragma once

#include "device.cuh"
#include "layout.h"
#include "st_attention.h"

namespace colaworld {
namespace cuda {
namespace st_attention {

constexpr int WARPS = 4;  // of a thread block
constexpr float LOG2_E = 1.4426950408889634f;

// Whether the rows of a sequence fit into registers; R row blocks of 8. Chosen so that nothing
// spills on any architecture that is compiled.
COLAWORLD_BOTH constexpr bool holds(int D, int R, bool backward) {
  return R == 2 ? !backward || D <= 96 : !backward && D <= 72;
}

// Blocks on a processor that the compiler plans for: as many as leave every kernel the registers
// that it needs (168 for 3 blocks, 128 for 4) and no reason to spill for one more.
COLAWORLD_BOTH constexpr int resident(int D, int R, bool backward) {
  if (!holds(D, R, backward)) return R == 2 ? 4 : backward ? 2 : 3;
  return R == 4 || D > 96 || (backward && D > 72) ? 2 : 3;
}

// The shared memory of a block: what its warps look up, then what they sum.
template <int D, int R>
struct Tables {
  static constexpr int P = D / 8;
  float2* turns;  // [R * P, LANES] (cos, sin) of the pair that a lane holds in a row and block
  float2* q_weight;  // [P, 4] of the pair that a quad's lane holds
  float2* k_weight;  // [P, 4]
  float2* sums;  // [WARPS, 2, P, LANES], backward only

  static constexpr int size = R * P * LANES + 2 * P * 4;
  static_assert(size * 8 >= WARPS * 2 * D * 4, "the last sums take the place of the tables");
  static constexpr int bytes(bool with_sums) {
    return (size + (with_sums ? WARPS * 2 * P * LANES : 0)) * 8;
  }

  __device__ __forceinline__ Tables() {
    turns = reinterpret_cast<float2*>(shared_memory());
    q_weight = turns + R * P * LANES;
    k_weight = q_weight + P * 4;
    sums = turns + size;
  }

  __device__ __forceinline__ void fill(const StAttentionCall& call) const {
    for (int i = threadIdx.x; i < R * P * LANES; i += blockDim.x) {
      const int lane = i % LANES, p = i / LANES % P, row = i / LANES / P * 8 + row_of(lane);
      float2 turn = make_float2(1.f, 0.f);
      if (call.cos != nullptr && row < call.T) {
        const int at = row * (D / 2) + channel_of<D>(p, quad_of(lane)) / 2;
        turn = make_float2(call.cos[at], call.sin[at]);
      }
      turns[i] = turn;
    }
    for (int i = threadIdx.x; i < P * 4; i += blockDim.x) {
      const int at = channel_of<D>(i / 4, i % 4);
      const float2 one = make_float2(1.f, 1.f);
      const float *q = call.q_weight, *k = call.k_weight;
      q_weight[i] = q == nullptr ? one : make_float2(q[at], q[at + 1]);
      k_weight[i] = k == nullptr ? one : make_float2(k[at], k[at + 1]);
    }
    sync_block();
  }
};

__device__ __forceinline__ float sum_of_quad(float x) {
  x += shuffle_xor(x, 1);
  return x + shuffle_xor(x, 2);
}

// Blocks 2 c and 2 c + 1 of the rows (the last one may be alone); padding rows are zeros.
template <int D, int R>
__device__ __forceinline__ void read_chunk(const uint16_t* from,  // row 0
                                           int64_t step,  // from row to row, in elements
                                           int c,
                                           int T,
                                           int lane,
                                           uint32_t (&x)[R][2]) {
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const int row = 8 * r + row_of(lane);
    const uint16_t* at = from + row * step + channel_of<D>(2 * c, quad_of(lane));
    x[r][0] = x[r][1] = 0u;
    if (row >= T) continue;
    if (D % 16 != 0 && c == D / 16) {
      x[r][0] = read_one(at);
    } else {
      const uint2 two = read_two(at);
      x[r][0] = two.x;
      x[r][1] = two.y;
    }
  }
}

// RMSNorm, weight and rotation of a chunk.
template <typename E, int D, int R>
__device__ __forceinline__ void prepare_chunk(uint32_t (&x)[R][2],
                                              int c,
                                              const float2* weight,  // [P, 4]
                                              const float2* turns,  // [R * P, LANES]
                                              const float (&rms)[R],
                                              int lane) {
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const int p = 2 * c + e;
    if (p == D / 8) break;
    const float2 w = look_up(weight + p * 4 + quad_of(lane));
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const float2 turn = look_up(turns + (r * (D / 8) + p) * LANES + lane);
      const float2 v = words<E>::unpack(x[r][e]);
      const float even = v.x * rms[r] * w.x, odd = v.y * rms[r] * w.y;
      x[r][e] = words<E>::pack(even * turn.x - odd * turn.y, odd * turn.x + even * turn.y);
    }
  }
}

// The rows of one sequence: in registers (HOLD), or read, from a cache near the core, as often as
// they are used. Long rows would not fit otherwise.
template <typename E, int D, int R, bool HOLD>
struct Rows {
  static constexpr int CHUNKS = (D / 8 + 1) / 2;
  static constexpr int UNROLL = HOLD ? CHUNKS : 1;
  const uint16_t* from;  // row 0
  int64_t step;  // from row to row, in elements
  int T, lane;
  const float2* weight;  // of prepared rows
  const float2* turns;
  float rms[R];  // of prepared rows: 1 / root mean square, 1 without a norm, 0 of padding
  uint32_t held[HOLD ? CHUNKS : 1][R][2];

  __device__ __forceinline__ Rows(const uint16_t* row, int64_t next, int length, int here)
      : from(row), step(next), T(length), lane(here), weight(nullptr) {
    if constexpr (HOLD) {
#pragma unroll
      for (int c = 0; c < CHUNKS; ++c) read_chunk<D, R>(from, step, c, T, lane, held[c]);
    }
  }

  __device__ __forceinline__ void get(int c, uint32_t (&x)[R][2]) const {
    if constexpr (HOLD) {
#pragma unroll
      for (int r = 0; r < R; ++r) {
        x[r][0] = held[c][r][0];
        x[r][1] = held[c][r][1];
      }
    } else {
      read_chunk<D, R>(from, step, c, T, lane, x);
      if (weight != nullptr) prepare_chunk<E, D, R>(x, c, weight, turns, rms, lane);
    }
  }

  // From here on `get` gives normed and rotated rows.
  __device__ __forceinline__ void prepare(const float2* weights,
                                          const float2* table,
                                          bool norm,
                                          float eps) {
#pragma unroll
    for (int r = 0; r < R; ++r) rms[r] = 0.f;
#pragma unroll UNROLL
    for (int c = 0; c < CHUNKS; ++c) {
      uint32_t x[R][2];
      get(c, x);
#pragma unroll
      for (int r = 0; r < R; ++r) {
        const float2 u = words<E>::unpack(x[r][0]), v = words<E>::unpack(x[r][1]);
        rms[r] += u.x * u.x + u.y * u.y + v.x * v.x + v.y * v.y;
      }
    }
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const float squares = sum_of_quad(rms[r]);
      rms[r] = norm ? rsqrt_of(squares / D + eps) : 1.f;
      if (8 * r + row_of(lane) >= T) rms[r] = 0.f;
    }
    weight = weights;
    turns = table;
    if constexpr (HOLD) {
#pragma unroll
      for (int c = 0; c < CHUNKS; ++c) {
#pragma unroll
        for (int r = 0; r < R; ++r) {
          held[c][r][0] = opaque(held[c][r][0]);
          held[c][r][1] = opaque(held[c][r][1]);
        }
        prepare_chunk<E, D, R>(held[c], c, weight, turns, rms, lane);
      }
    }
  }
};

// Blocks 2 c and 2 c + 1 (the last one alone: `second` is not used) of the rows below T.
template <typename E, int D, int R>
__device__ __forceinline__ void write_rows(const float (&first)[R / 2][4],
                                           const float (&second)[R / 2][4],
                                           int c,
                                           int T,
                                           int lane,
                                           uint16_t* to,  // row 0
                                           int64_t step) {
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const int row = 8 * r + row_of(lane), i = r / 2, j = 2 * (r % 2);
    if (row >= T) continue;
    uint16_t* at = to + row * step + channel_of<D>(2 * c, quad_of(lane));
    const uint32_t low = words<E>::pack(first[i][j], first[i][j + 1]);
    if (D % 16 != 0 && c == D / 16) {
      *reinterpret_cast<uint32_t*>(at) = low;
    } else {
      *reinterpret_cast<uint2*>(at) =
          make_uint2(low, words<E>::pack(second[i][j], second[i][j + 1]));
    }
  }
}

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

template <typename E, int D, int R>
__global__ void __launch_bounds__(WARPS* LANES, resident(D, R, false))
    forward(const StAttentionCall call) {
  constexpr bool HOLD = holds(D, R, false);
  using Here = Rows<E, D, R, HOLD>;
  const Tables<D, R> tables;
  tables.fill(call);
  const int lane = threadIdx.x % LANES;
  const int64_t step = call.S * call.H * D;  // of the output
  const unsigned stride = gridDim.x * WARPS;
  for (int64_t pair = static_cast<int64_t>(blockIdx.x) * WARPS + threadIdx.x / LANES;
       pair < call.pairs; pair += stride) {
    const Place at = place_of(pair, call.S, call.H);
    const uint16_t* from =
        static_cast<const uint16_t*>(call.x) + at.b * call.x_b + at.s * call.x_s + at.h * call.x_h;
    uint16_t* to =
        static_cast<uint16_t*>(call.out) + at.b * call.T * step + (at.s * call.H + at.h) * D;
    Here q(from, call.x_t, call.T, lane), k(from + call.x_part, call.x_t, call.T, lane);
    const Here v(from + 2 * call.x_part, call.x_t, call.T, lane);
    q.prepare(tables.q_weight, tables.turns, call.q_weight != nullptr, call.eps);
    k.prepare(tables.k_weight, tables.turns, call.k_weight != nullptr, call.eps);
    float s[R / 2][R][4];
    score(q, k, s);
    softmax<R>(s, call.scale * LOG2_E, call.T, call.causal, lane);
    uint32_t probability[R / 2][R / 2][4];
    as_operand<E, R>(s, probability);
    multiply_and_write(probability, v, to, step);
  }
}

// The gradient of a weight as one lane sees it, in a place of its own in shared memory: in
// registers it would cost two to four numbers for each of P blocks, and with them a third of the
// warps.
template <int P>
struct WeightSum {
  float2* place;  // [P, LANES], from this lane on

  __device__ __forceinline__ explicit WeightSum(float2* sums) : place(sums) {
    for (int p = 0; p < P; ++p) place[p * LANES] = make_float2(0.f, 0.f);
  }
  __device__ __forceinline__ void add(int p, float2 x) {
    const float2 was = place[p * LANES];
    place[p * LANES] = make_float2(was.x + x.x, was.y + x.y);
  }
  __device__ __forceinline__ float2 get(int p) const { return place[p * LANES]; }
};

// From the gradient a x of prepared rows to that of the rows as they came:
//     y = turned back;  dweight += y n;  dx = (y w - n mean(y w n)) / rms,  n = row / rms.
template <typename E, int D, int R, bool HOLD>
__device__ __forceinline__ void pull_back(const uint32_t (&a)[R / 2][R / 2][4],
                                          const Rows<E, D, R, HOLD>& x,
                                          const Rows<E, D, R, HOLD>& prepared,
                                          bool norm,
                                          uint16_t* to,
                                          int64_t step,
                                          WeightSum<D / 8>& dweight) {
  const int lane = x.lane;
  const Rows<E, D, R, HOLD> raw(prepared.from, prepared.step, prepared.T, lane);
  const float (&rms)[R] = prepared.rms;
  float mean[R];
#pragma unroll
  for (int r = 0; r < R; ++r) mean[r] = 0.f;
  // The gradient of a block, turned back and not yet weighted.
  const auto turned_back = [&](const uint32_t (&of)[R][2], int p, float (&y)[R / 2][4]) {
    multiply<E, R>(a, of, p % 2, y);
#pragma unroll
    for (int r = 0; r < R; ++r) {
      float &even = y[r / 2][2 * (r % 2)], &odd = y[r / 2][2 * (r % 2) + 1];
      const float2 turn = look_up(prepared.turns + (r * (D / 8) + p) * LANES + lane);
      const float was = even;
      even = was * turn.x + odd * turn.y;
      odd = odd * turn.x - was * turn.y;
    }
  };
  if (norm) {
#pragma unroll Rows < E, D, R, HOLD> ::UNROLL
    for (int c = 0; c < raw.CHUNKS; ++c) {
      uint32_t of[R][2], were[R][2];
      x.get(c, of);
      raw.get(c, were);
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int p = 2 * c + e;
        if (p == D / 8) break;
        float y[R / 2][4];
        float2 sum = make_float2(0.f, 0.f);
        turned_back(of, p, y);
        const float2 w = look_up(prepared.weight + p * 4 + quad_of(lane));
#pragma unroll
        for (int r = 0; r < R; ++r) {
          const float2 v = words<E>::unpack(were[r][e]);
          const float even = y[r / 2][2 * (r % 2)] * v.x * rms[r];
          const float odd = y[r / 2][2 * (r % 2) + 1] * v.y * rms[r];
          sum = make_float2(sum.x + even, sum.y + odd);
          mean[r] += even * w.x + odd * w.y;
        }
        dweight.add(p, sum);
      }
    }
#pragma unroll
    for (int r = 0; r < R; ++r) mean[r] = sum_of_quad(mean[r]) / D;
  }
#pragma unroll Rows < E, D, R, HOLD> ::UNROLL
  for (int c = 0; c < raw.CHUNKS; ++c) {
    uint32_t of[R][2], were[R][2];
    float y[2][R / 2][4] = {};
    x.get(c, of);
    raw.get(c, were);
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int p = 2 * c + e;
      if (p == D / 8) break;
      turned_back(of, p, y[e]);
      const float2 w = look_up(prepared.weight + p * 4 + quad_of(lane));
#pragma unroll
      for (int r = 0; r < R; ++r) {
        const float2 v = words<E>::unpack(were[r][e]);
        float &even = y[e][r / 2][2 * (r % 2)], &odd = y[e][r / 2][2 * (r % 2) + 1];
        even = (even * w.x - v.x * rms[r] * mean[r]) * rms[r];
        odd = (odd * w.y - v.y * rms[r] * mean[r]) * rms[r];
      }
    }
    write_rows<E, D, R>(y[0], y[1], c, raw.T, lane, to, step);
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

// Nothing is saved by the forward pass: scores are computed again. Gradients of the weights stay in
// shared memory until the block has done its last pair.
template <typename E, int D, int R>
__global__ void __launch_bounds__(WARPS* LANES, resident(D, R, true))
    backward(const StAttentionCall call) {
  constexpr int P = D / 8;
  constexpr bool HOLD = holds(D, R, true);
  using Here = Rows<E, D, R, HOLD>;
  const Tables<D, R> tables;
  tables.fill(call);
  const int lane = threadIdx.x % LANES, warp = threadIdx.x / LANES, T = call.T;
  const int64_t part = call.H * D, step = call.S * 3 * part;  // of the gradient
  const unsigned stride = gridDim.x * WARPS;
  const bool q_norm = call.q_weight != nullptr, k_norm = call.k_weight != nullptr;
  float2* sums_here = tables.sums + warp * 2 * P * LANES + lane;
  WeightSum<P> dq_weight(sums_here), dk_weight(sums_here + P * LANES);
  for (int64_t pair = static_cast<int64_t>(blockIdx.x) * WARPS + warp; pair < call.pairs;
       pair += stride) {
    const Place at = place_of(pair, call.S, call.H);
    const uint16_t* from =
        static_cast<const uint16_t*>(call.x) + at.b * call.x_b + at.s * call.x_s + at.h * call.x_h;
    const uint16_t* from_grad = static_cast<const uint16_t*>(call.grad) + at.b * call.grad_b +
                                at.s * call.grad_s + at.h * call.grad_h;
    uint16_t* to = static_cast<uint16_t*>(call.out) + at.b * T * step + at.s * 3 * part + at.h * D;
    Here q(from, call.x_t, T, lane), k(from + call.x_part, call.x_t, T, lane);
    q.prepare(tables.q_weight, tables.turns, q_norm, call.eps);
    const Here grad(from_grad, call.grad_t, T, lane);
    k.prepare(tables.k_weight, tables.turns, k_norm, call.eps);
    float s[R / 2][R][4], ds[R / 2][R][4];
    score(q, k, s);
    {
      const Here v(from + 2 * call.x_part, call.x_t, T, lane);
      score(grad, v, ds);
    }
    softmax<R>(s, call.scale * LOG2_E, T, call.causal, lane);
    softmax_backward<R>(s, ds, call.scale, T, call.causal, lane);
    uint32_t a[R / 2][R / 2][4], b[R / 2][R / 2][4];
    as_operand<E, R>(s, a);
    transpose<R>(a, b);
    multiply_and_write(b, grad, to + 2 * part, step);
    as_operand<E, R>(ds, a);
    pull_back(a, k, q, q_norm, to, step, dq_weight);
    transpose<R>(a, b);
    pull_back(b, q, k, k_norm, to + part, step, dk_weight);
  }
  // Over the rows that a lane's channels lie in, then over the warps, in their order.
  float* sums = reinterpret_cast<float*>(shared_memory());  // [WARPS, 2, D]
  sync_block();  // the tables are not needed any more
#pragma unroll 1
  for (int p = 0; p < P; ++p) {
    const int channel = channel_of<D>(p, quad_of(lane));
#pragma unroll
    for (int which = 0; which < 2; ++which) {
      float2 x = which == 0 ? dq_weight.get(p) : dk_weight.get(p);
#pragma unroll
      for (int mask = 4; mask < LANES; mask *= 2) {
        x = make_float2(x.x + shuffle_xor(x.x, mask), x.y + shuffle_xor(x.y, mask));
      }
      if (row_of(lane) == 0) {
        sums[(warp * 2 + which) * D + channel] = x.x;
        sums[(warp * 2 + which) * D + channel + 1] = x.y;
      }
    }
  }
  sync_block();
  for (int i = threadIdx.x; i < 2 * D; i += blockDim.x) {
    float sum = 0.f;
    for (int w = 0; w < WARPS; ++w) sum += sums[w * 2 * D + i];
    call.partial[static_cast<int64_t>(blockIdx.x) * 2 * D + i] = sum;
  }
}

}  // namespace st_attention
}  // namespace cuda
}  // namespace colaworld
