// Temporal attention on the tensor cores, for 16-bit numbers: one warp per (place, head).
//
// A warp holds its sequence, T <= 8 R rows, in registers as row blocks of 8 (R of them) and channel
// blocks of 8 (P = D / 8), a word of two numbers per lane: exactly what mma.sync takes, so that
// head dim 72 is nine blocks and nothing is padded. Norm and rotation happen in place. The keys are
// the second operand of q k^T as they lie; probabilities are the first operand of the next product
// as they fall out; movmatrix turns what must be turned. No warp waits for another, and no two
// sequences meet: what is not a number in one stays in it.
//
// Departure from the reference: norm, weight and rotation are rounded once, after the rotation, not
// after each of them, and the weights are not rounded to the 16-bit type.
//
// Not here: float32 (st_attention_float_kernel.cuh), launches (st_attention.cu).

#pragma once

#include "st_attention_product.cuh"

namespace colaworld {
namespace cuda {
namespace st_attention {

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
