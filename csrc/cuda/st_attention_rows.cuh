// Queries and keys of the 16-bit st_attention kernels: norm and rotation, there and back.
// Not here: memory (st_attention_tile.cuh), scores, softmax, products (st_attention_product.cuh).

#pragma once

#include "st_attention_tile.cuh"

namespace colaworld {
namespace cuda {
namespace st_attention {

__device__ __forceinline__ float sum_of_quad(float x) {
  x += shuffle_xor(x, 1);
  return x + shuffle_xor(x, 2);
}

// Adds up the squares of rows, chunk by chunk: the diagonal of rows times rows.
template <typename E, int D, int R>
__device__ __forceinline__ void add_squares(const Chunk<R>& x, int c, float (&squares)[R][4]) {
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    if (2 * c + e == D / 8) break;
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const uint32_t (&rows)[4] = x[r / 2];
      words<E>::multiply(squares[r], rows[2 * e], rows[2 * e + 1], rows[2 * e + r % 2]);
    }
  }
}
// 1 / root mean square; 0 of padding. One of a row's four lanes holds its sum.
template <int D, int R>
__device__ __forceinline__ void invert(
    const float (&squares)[R][4], float eps, int T, int lane, float (&rms)[R]) {
  const int row = row_of(lane);
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const float here = row % 2 == 0 ? squares[r][r % 2 * 2] : squares[r][r % 2 * 2 + 1];
    const float inverse = rsqrt_of(shuffle(here, row * 4 + row / 2) * (1.f / D) + eps);
    if (8 * r < T - row) rms[r] = inverse;
  }
}

// Weight and rotation of a word, and the norm unless the type is wide enough to leave it for later.
template <typename E>
__device__ __forceinline__ uint32_t prepared(uint32_t word, float rms, float2 weight, float2 turn) {
  const float2 v = words<E>::unpack(word);
  const float scale = words<E>::WIDE ? 1.f : rms;
  const float even = v.x * scale * weight.x, odd = v.y * scale * weight.y;
  return words<E>::pack(even * turn.x - odd * turn.y, odd * turn.x + even * turn.y);
}

// From the gradient of a prepared word, times rms, to that of the word as it came:
//     y = turned back;  dweight += y n;  dx = (y w - n mean(y w n)) rms,  n = word rms.
template <typename E>
__device__ __forceinline__ uint32_t pulled_back(float even,
                                                float odd,
                                                uint32_t word,
                                                float share,  // mean rms^2
                                                float2 weight,
                                                float2 turn,
                                                float2& dweight) {
  const float2 v = words<E>::unpack(word);
  const float2 y = make_float2(even * turn.x + odd * turn.y, odd * turn.x - even * turn.y);
  dweight = make_float2(dweight.x + y.x * v.x, dweight.y + y.y * v.y);
  return words<E>::pack(y.x * weight.x - v.x * share, y.y * weight.y - v.y * share);
}

// What a lane looks up for channel block p.
template <int D, int R, bool BACKWARD>
struct Factors {
  float2 q_weight, k_weight;
  float2 turn[R];

  __device__ __forceinline__ Factors(const Memory<D, R, BACKWARD>& memory, int p, int lane)
      : q_weight(look_up(memory.q_weight + p * 4 + quad_of(lane))),
        k_weight(look_up(memory.k_weight + p * 4 + quad_of(lane))) {
#pragma unroll
    for (int r = 0; r < R; ++r) turn[r] = look_up(memory.turns + (r * (D / 8) + p) * LANES + lane);
  }
};

// The queries and keys of a sequence: in registers where they fit, else read from their tiles, and
// prepared, as often as they are used.
template <typename E, int D, int R, bool BACKWARD>
struct Scored {
  static constexpr bool HOLD = R == 2;
  static constexpr int CHUNKS = Tile<D, R>::CHUNKS, UNROLL = Tile<D, R>::UNROLL;
  const Memory<D, R, BACKWARD>& memory;
  const Tile<D, R>&q, &k;
  float q_rms[R], k_rms[R];  // 1 / root mean square; 1 without a norm, 0 of padding
  Chunk<R> a[HOLD ? CHUNKS : 1], b[HOLD ? CHUNKS : 1];  // of queries, of keys

  __device__ __forceinline__ void read(int c) {
    q.template load<As::first>(c, a[HOLD ? c : 0]);
    k.template load<As::first>(c, b[HOLD ? c : 0]);
  }
  __device__ __forceinline__ void hold() {
    if constexpr (HOLD) {
#pragma unroll
      for (int c = 0; c < CHUNKS; ++c) read(c);
    }
  }
  __device__ __forceinline__ void norm(const StAttentionCall& call) {
    const int lane = q.lane;
#pragma unroll
    for (int r = 0; r < R; ++r) q_rms[r] = k_rms[r] = 8 * r < call.T - row_of(lane) ? 1.f : 0.f;
    if (call.q_weight == nullptr && call.k_weight == nullptr) return;
    float q_squares[R][4] = {}, k_squares[R][4] = {};
#pragma unroll UNROLL
    for (int c = 0; c < CHUNKS; ++c) {
      if (!HOLD) read(c);
      add_squares<E, D, R>(a[HOLD ? c : 0], c, q_squares);
      add_squares<E, D, R>(b[HOLD ? c : 0], c, k_squares);
    }
    if (call.q_weight != nullptr) invert<D, R>(q_squares, call.eps, call.T, lane, q_rms);
    if (call.k_weight != nullptr) invert<D, R>(k_squares, call.eps, call.T, lane, k_rms);
  }
  __device__ __forceinline__ void prepare(int c) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int p = 2 * c + e;
      if (p == D / 8) break;
      const Factors<D, R, BACKWARD> of(memory, p, q.lane);
#pragma unroll
      for (int r = 0; r < R; ++r) {
        uint32_t& x = a[HOLD ? c : 0][r / 2][2 * e + r % 2];
        uint32_t& y = b[HOLD ? c : 0][r / 2][2 * e + r % 2];
        x = prepared<E>(x, q_rms[r], of.q_weight, of.turn[r]);
        y = prepared<E>(y, k_rms[r], of.k_weight, of.turn[r]);
      }
    }
  }
};

}  // namespace st_attention
}  // namespace cuda
}  // namespace colaworld
