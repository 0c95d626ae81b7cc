// Temporal attention on the tensor cores, for 16-bit numbers, backward: a warp per (place, head).
//
// Nothing is saved by the forward pass: scores are computed again. Every row is read once and every
// product made once: prepared queries and keys stay in registers where they fit, what the gradient
// of the norm takes away comes from the scores, and gradients take the place of the rows in shared
// memory before they are written. Gradients of the weights are summed in shared memory until the
// block has done its last pair.
//
// Not here: forward (st_attention_kernel.cuh), launches (st_attention.cu).

#pragma once

#include "st_attention_kernel.cuh"

namespace colaworld {
namespace cuda {
namespace st_attention {

// A weight's gradient as one lane sees it, in a place of its own: in registers it would cost two to
// four numbers for each of P blocks.
__device__ __forceinline__ void add(float2* place, float2 x) {
  const float2 was = *place;
  *place = make_float2(was.x + x.x, was.y + x.y);
}

template <typename E, int D, int R>
__global__ void __launch_bounds__(Memory<D, R, true>::WARPS* LANES,
                                  R == 2 && D <= 72 ? 3 : 8 / Memory<D, R, true>::WARPS)
    backward(const StAttentionCall call) {
  constexpr int P = D / 8, CHUNKS = Tile<D, R>::CHUNKS, UNROLL = Tile<D, R>::UNROLL;
  constexpr int64_t BYTES = 2;
  const Memory<D, R, true> memory;
  memory.fill(call);
  const int lane = threadIdx.x % LANES;
  const Tile<D, R> q = memory.tile(0, call.T), k = memory.tile(1, call.T),
                   v = memory.tile(2, call.T), grad = memory.tile(3, call.T);
  const Seen<R> seen(call.T, call.causal, lane);
  const bool q_norm = call.q_weight != nullptr, k_norm = call.k_weight != nullptr;
  Pairs pairs(call, memory.WARPS);
  const int64_t row = call.x_t * BYTES, part = call.x_part * BYTES, g_row = call.grad_t * BYTES;
  const int64_t out_part = call.H * D * BYTES, out_row = call.S * 3 * out_part;
  const auto x = [&] {
    return pairs.in(call.x, call.x_b, call.x_s, call.x_h) + Tile<D, R>::first_piece(lane, row);
  };
  const auto g = [&] {
    return pairs.in(call.grad, call.grad_b, call.grad_s, call.grad_h) +
           Tile<D, R>::first_piece(lane, g_row);
  };
  const auto out = [&] {
    return pairs.in(call.out, call.T * out_row / 2, 3 * out_part / 2, D) +
           Tile<D, R>::first_piece(lane, out_row);
  };
  char* from = x();
  const auto fetch_scored = [&] {
    if (pairs.here()) {
      q.fetch(from, row);
      k.fetch(from + part, row);
    }
    close_copies();
  };
  const auto fetch_values = [&] {
    if (pairs.here()) {
      v.fetch(from + 2 * part, row);
      grad.fetch(g(), g_row);
    }
    close_copies();
  };
  fetch_values();
  fetch_scored();
  while (pairs.here()) {
    Scored<E, D, R, true> rows{memory, q, k};
    Square<R> s = {}, ds = {};
    wait_for_copies<1>();
    sync_warp();
#pragma unroll UNROLL
    for (int c = 0; c < CHUNKS; ++c) {
      Chunk<R> a, b;
      grad.template load<As::first>(c, a);
      v.template load<As::second>(c, b);
      add_scores<E, D, R>(a, b, c, ds);
    }
    wait_for_copies<0>();
    sync_warp();
    rows.hold();
    rows.norm(call);
#pragma unroll UNROLL
    for (int c = 0; c < CHUNKS; ++c) add_scores(rows, c, s);
    apply_norm(rows, s);
    float q_share[R], k_share[R];
    softmax_backward<R>(s, ds, call.scale, seen, lane, q_share, k_share);
    Operand<R> of_q, of_k;
    as_operand<E, R>(s, of_q);
    transpose<R>(of_q, of_k);
    multiply_into<E>(of_k, grad, v);
    sync_warp();
    char* const to = out();
    v.write(to + 2 * out_part, out_row);
    sync_warp();
    pairs.go_on();
    from = x();
    fetch_values();

    gradient_operands(rows, ds, of_q, of_k);
#pragma unroll
    for (int r = 0; r < R; ++r) {
      q_share[r] = q_norm ? q_share[r] * rows.q_rms[r] * rows.q_rms[r] * (1.f / D) : 0.f;
      k_share[r] = k_norm ? k_share[r] * rows.k_rms[r] * rows.k_rms[r] * (1.f / D) : 0.f;
    }
#pragma unroll UNROLL
    for (int c = 0; c < CHUNKS; ++c) {
      const int at = rows.HOLD ? c : 0;
      Chunk<R> q_raw, k_raw, q_turned, k_turned;
      q.template load<As::first>(c, q_raw);
      k.template load<As::first>(c, k_raw);
      if (!rows.HOLD) {
        rows.read(c);
        rows.prepare(c);
      }
      sync_warp();
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int p = 2 * c + e;
        if (p == P) break;
#pragma unroll
        for (int r = 0; r < R; ++r) {
          q_turned[r / 2][2 * e + r % 2] = transposed(rows.a[at][r / 2][2 * e + r % 2]);
          k_turned[r / 2][2 * e + r % 2] = transposed(rows.b[at][r / 2][2 * e + r % 2]);
        }
        float dq[R / 2][4], dk[R / 2][4];
        multiply<E, R>(of_q, k_turned, e, dq);
        multiply<E, R>(of_k, q_turned, e, dk);
        const Factors<D, R, true> of(memory, p, lane);
        float2 dq_weight = make_float2(0.f, 0.f), dk_weight = make_float2(0.f, 0.f);
#pragma unroll
        for (int r = 0; r < R; ++r) {
          const int i = r / 2, n = r % 2 * 2;
          q.store(p, r,
                  pulled_back<E>(dq[i][n], dq[i][n + 1], q_raw[i][2 * e + r % 2], q_share[r],
                                 of.q_weight, of.turn[r], dq_weight));
          k.store(p, r,
                  pulled_back<E>(dk[i][n], dk[i][n + 1], k_raw[i][2 * e + r % 2], k_share[r],
                                 of.k_weight, of.turn[r], dk_weight));
        }
        if (q_norm) add(memory.sums + p * LANES + lane, dq_weight);
        if (k_norm) add(memory.sums + (P + p) * LANES + lane, dk_weight);
      }
    }
    sync_warp();
    q.write(to, out_row);
    k.write(to + out_part, out_row);
    sync_warp();
    fetch_scored();
  }
  // Over the rows that a lane's channels lie in, then over the warps, in their order.
  float* sums = reinterpret_cast<float*>(shared_memory());  // [WARPS, 2, D]
  sync_block();  // the tables are not needed any more
#pragma unroll 1
  for (int p = 0; p < 2 * P; ++p) {
    float2 sum = memory.sums[p * LANES + lane];
#pragma unroll
    for (int mask = 4; mask < LANES; mask *= 2) {
      sum = make_float2(sum.x + shuffle_xor(sum.x, mask), sum.y + shuffle_xor(sum.y, mask));
    }
    if (row_of(lane) == 0) {
      float* to = sums + threadIdx.x / LANES * 2 * D + channel_of(p, quad_of(lane));
      to[0] = sum.x;
      to[1] = sum.y;
    }
  }
  sync_block();
  for (int i = threadIdx.x; i < 2 * D; i += blockDim.x) {
    float sum = 0.f;
    for (int w = 0; w < memory.WARPS; ++w) sum += sums[w * 2 * D + i];
    call.partial[static_cast<int64_t>(blockIdx.x) * 2 * D + i] = sum;
  }
}

}  // namespace st_attention
}  // namespace cuda
}  // namespace colaworld
