// Temporal attention on the tensor cores, for 16-bit numbers, forward: a warp per (place, head).
//
// The rows of a sequence, T <= 8 R, come into a tile of shared memory; the tensor cores take them
// from there in row blocks of 8 (R of them) and channel blocks of 8 (D / 8), so that head dim 72 is
// nine blocks and nothing is padded. Norm and rotation happen on the way into q k^T; probabilities
// are the first operand of the next product as they fall out. While a warp works on one sequence,
// the rows of its next one are on their way. No warp waits for another, and no two sequences meet:
// what is not a number in one stays in it.
//
// Departure from the reference: norm, weight and rotation are rounded once, after the rotation, not
// after each of them, and the weights are not rounded to the 16-bit type. In bfloat16 the norm is
// applied to the scores, not to the rows: the same, but for the place of the rounding.
//
// Not here: backward (st_attention_backward_kernel.cuh), float32 (st_attention_float_kernel.cuh),
// launches (st_attention.cu).

#pragma once

#include "st_attention_product.cuh"

namespace colaworld {
namespace cuda {
namespace st_attention {

template <typename E, int D, int R>
__global__ void __launch_bounds__(Memory<D, R, false>::WARPS* LANES,
                                  R == 2 ? 4 : 8 / Memory<D, R, false>::WARPS)
    forward(const StAttentionCall call) {
  constexpr int UNROLL = Tile<D, R>::UNROLL;
  constexpr int64_t BYTES = 2;
  const Memory<D, R, false> memory;
  memory.fill(call);
  const int lane = threadIdx.x % LANES;
  const Tile<D, R> q = memory.tile(0, call.T), k = memory.tile(1, call.T),
                   v = memory.tile(2, call.T);
  const Seen<R> seen(call.T, call.causal, lane);
  Pairs pairs(call, memory.WARPS);
  const int64_t row = call.x_t * BYTES, part = call.x_part * BYTES;
  const int64_t out_row = call.S * call.H * D * BYTES;
  const auto x = [&] {
    return pairs.in(call.x, call.x_b, call.x_s, call.x_h) + Tile<D, R>::first_piece(lane, row);
  };
  const auto out = [&] {
    return pairs.in(call.out, call.T * call.S * call.H * D, call.H * D, D) +
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
    if (pairs.here()) v.fetch(from + 2 * part, row);
    close_copies();
  };
  fetch_scored();
  fetch_values();
  while (pairs.here()) {
    char* const to = out();
    pairs.go_on();
    from = x();
    Scored<E, D, R, false> rows{memory, q, k};
    wait_for_copies<1>();
    sync_warp();
    rows.hold();
    if (rows.HOLD) {
      sync_warp();
      fetch_scored();
    }
    rows.norm(call);
    Square<R> s = {};
#pragma unroll UNROLL
    for (int c = 0; c < rows.CHUNKS; ++c) add_scores(rows, c, s);
    if (!rows.HOLD) {
      sync_warp();
      fetch_scored();
    }
    apply_norm(rows, s);
#pragma unroll
    for (int r = 0; r < R; ++r) softmax<R>(s, r, call.scale * LOG2_E, seen);
    Operand<R> probability;
    as_operand<E, R>(s, probability);
    wait_for_copies<1>();
    sync_warp();
    multiply_into<E>(probability, v, v);
    sync_warp();
    v.write(to, out_row);
    sync_warp();
    fetch_values();
  }
}

}  // namespace st_attention
}  // namespace cuda
}  // namespace colaworld
