// Temporal attention for float32: one warp, which is one thread block, per (place, head).
//
// Products are exact float32 multiply-adds. Tensor cores would need three TF32 products for each to
// keep float32's accuracy, and at T <= 32 the memory, not the arithmetic, sets the time: at head
// dim 72 and T = 16 a pair moves 18 kB and takes 37 000 multiply-adds. Rows lie in shared memory,
// four numbers of padding apart; any D that is a multiple of 8 up to 128 works.
//
// Not here: 16-bit numbers (st_attention_kernel.cuh), launches (st_attention.cu).

#pragma once

#include "device.cuh"
#include "layout.h"
#include "st_attention.h"

namespace colaworld {
namespace cuda {
namespace st_attention_float {

constexpr float LOG2_E = 1.4426950408889634f;
constexpr int MOST_CHANNELS = 128;
// Blocks on a processor that the compiler plans for. Shared memory holds about ten at T = 16, D =
// 72: registers need not be saved, and spilled, for more.
constexpr int RESIDENT = 12;

// Shared memory of a block: forward q, k, v and p; backward the gradient and ds as well.
constexpr int bytes(int rows, int D, bool backward) {
  return ((backward ? 4 : 3) * rows * (D + 4) + (backward ? 2 : 1) * rows * (rows + 1)) * 4;
}

// What a warp knows about its work. ROWS is T rounded up to 16 or 32. In products a lane owns row
// lane % ROWS and, of its columns, part lane / ROWS of PARTS; to read and write rows, four lanes
// share one and take two neighbouring channels of every eight.
template <int ROWS>
struct Warp {
  static constexpr int PARTS = LANES / ROWS;
  static constexpr int COLUMNS = ROWS / PARTS;
  const StAttentionCall& call;
  int lane, row, part, stride;

  __device__ __forceinline__ explicit Warp(const StAttentionCall& of)
      : call(of),
        lane(threadIdx.x),
        row(threadIdx.x % ROWS),
        part(threadIdx.x / ROWS),
        stride(of.D + 4) {}

  __device__ __forceinline__ static float sum_of_quad(float x) {
    x += shuffle_xor(x, 1);
    return x + shuffle_xor(x, 2);
  }

  __device__ __forceinline__ float2 turn_of(int r, int channel) const {
    if (call.cos == nullptr) return make_float2(1.f, 0.f);
    const int at = r * (call.D / 2) + channel / 2;
    return make_float2(call.cos[at], call.sin[at]);
  }
  __device__ __forceinline__ static float2 weight_of(const float* weight, int channel) {
    if (weight == nullptr) return make_float2(1.f, 1.f);
    return make_float2(weight[channel], weight[channel + 1]);
  }
  // Calls do(local row n, row r, channel) for the pairs of channels that this lane reads and
  // writes.
  template <typename Do>
  __device__ __forceinline__ void each_pair(Do&& act) const {
#pragma unroll
    for (int n = 0; n < ROWS / 8; ++n) {
      for (int d = 0; d < call.D; d += 8) act(n, 8 * n + row_of(lane), d + 2 * quad_of(lane));
    }
  }

  // Rows into shared memory; padding rows are zeros.
  __device__ __forceinline__ void read(const float* from, int64_t step, float* to) const {
    each_pair([&](int, int r, int d) {
      float2 v = make_float2(0.f, 0.f);
      if (r < call.T) v = *reinterpret_cast<const float2*>(from + r * step + d);
      *reinterpret_cast<float2*>(to + r * stride + d) = v;
    });
  }
  // The rows below T, to a contiguous tensor.
  __device__ __forceinline__ void write(const float* from, float* to, int64_t step) const {
    each_pair([&](int, int r, int d) {
      if (r < call.T) {
        *reinterpret_cast<float2*>(to + r * step + d) =
            *reinterpret_cast<const float2*>(from + r * stride + d);
      }
    });
  }
  // RMSNorm, weight and rotation in place: each lane on what it has read itself.
  __device__ __forceinline__ void prepare(float* x,
                                          const float* weight,
                                          float (&rms)[ROWS / 8]) const {
#pragma unroll
    for (int n = 0; n < ROWS / 8; ++n) rms[n] = 0.f;
    each_pair([&](int n, int r, int d) {
      const float2 v = *reinterpret_cast<const float2*>(x + r * stride + d);
      rms[n] += v.x * v.x + v.y * v.y;
    });
#pragma unroll
    for (int n = 0; n < ROWS / 8; ++n) {
      const float squares = sum_of_quad(rms[n]);
      rms[n] = weight == nullptr ? 1.f : 1.f / sqrtf(squares / call.D + call.eps);
      if (8 * n + row_of(lane) >= call.T) rms[n] = 0.f;
    }
    each_pair([&](int n, int r, int d) {
      if (r >= call.T) return;
      float2& v = *reinterpret_cast<float2*>(x + r * stride + d);
      const float2 w = weight_of(weight, d), turn = turn_of(r, d);
      const float even = v.x * rms[n] * w.x, odd = v.y * rms[n] * w.y;
      v = make_float2(even * turn.x - odd * turn.y, odd * turn.x + even * turn.y);
    });
  }

  // s[j] = a[row] . b[part * COLUMNS + j]
  __device__ __forceinline__ void score(const float* a, const float* b, float (&s)[COLUMNS]) const {
#pragma unroll
    for (int j = 0; j < COLUMNS; ++j) s[j] = 0.f;
    for (int d = 0; d < call.D; d += 4) {
      const float4 x = *reinterpret_cast<const float4*>(a + row * stride + d);
#pragma unroll
      for (int j = 0; j < COLUMNS; ++j) {
        const float4 y = *reinterpret_cast<const float4*>(b + (part * COLUMNS + j) * stride + d);
        s[j] += x.x * y.x + x.y * y.y + x.z * y.z + x.w * y.w;
      }
    }
  }
  __device__ __forceinline__ bool seen(int j) const {
    return sees(row, part * COLUMNS + j, call.T, call.causal);
  }
  __device__ __forceinline__ float sum_of_row(float x) const {
    return PARTS == 2 ? x + shuffle_xor(x, 16) : x;
  }
  __device__ __forceinline__ void softmax(float (&s)[COLUMNS]) const {
    const float factor = call.scale * LOG2_E;
    float most = -infinity(), sum = 0.f;
#pragma unroll
    for (int j = 0; j < COLUMNS; ++j) {
      s[j] = seen(j) ? s[j] * factor : -infinity();
      most = max_of(most, s[j]);
    }
    if (PARTS == 2) most = max_of(most, shuffle_xor(most, 16));
#pragma unroll
    for (int j = 0; j < COLUMNS; ++j) {
      s[j] = exp2_of(s[j] - most);
      sum += s[j];
    }
    const float inverse = 1.f / sum_of_row(sum);
#pragma unroll
    for (int j = 0; j < COLUMNS; ++j) s[j] *= inverse;
  }
  // A square matrix into shared memory, an odd number of numbers from row to row.
  __device__ __forceinline__ void keep(const float (&s)[COLUMNS], float* to) const {
#pragma unroll
    for (int j = 0; j < COLUMNS; ++j) to[row * (ROWS + 1) + part * COLUMNS + j] = s[j];
  }
  // out[row] = sum_j m[row, j] x[j], or with m[j, row]; each lane makes its part of the channels.
  // `out` may be anything but x.
  __device__ __forceinline__ void multiply(const float* m,
                                           bool turned,
                                           const float* x,
                                           float* out) const {
    float factor[ROWS];
#pragma unroll
    for (int j = 0; j < ROWS; ++j) {
      factor[j] = turned ? m[j * (ROWS + 1) + row] : m[row * (ROWS + 1) + j];
    }
    const int width = call.D / PARTS;
    for (int d = part * width; d < (part + 1) * width; d += 4) {
      float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll
      for (int j = 0; j < ROWS; ++j) {
        const float4 y = *reinterpret_cast<const float4*>(x + j * stride + d);
        sum.x += factor[j] * y.x;
        sum.y += factor[j] * y.y;
        sum.z += factor[j] * y.z;
        sum.w += factor[j] * y.w;
      }
      *reinterpret_cast<float4*>(out + row * stride + d) = sum;
    }
  }

  // From the gradient of prepared rows to that of the rows as they came, in place:
  //     y = turned back;  dweight += y n;  dx = (y w - n mean(y w n)) / rms,  n = row / rms.
  // `spare` [ROWS, stride] receives y n.
  __device__ __forceinline__ void pull_back(float* dx,
                                            const float* from,  // the rows as they came
                                            int64_t step,
                                            const float* weight,
                                            const float (&rms)[ROWS / 8],
                                            float* spare,
                                            float (&dweight)[MOST_CHANNELS / LANES]) const {
    float mean[ROWS / 8];
#pragma unroll
    for (int n = 0; n < ROWS / 8; ++n) mean[n] = 0.f;
    each_pair([&](int n, int r, int d) {
      float2 product = make_float2(0.f, 0.f);
      if (r < call.T) {
        float2& y = *reinterpret_cast<float2*>(dx + r * stride + d);
        const float2 turn = turn_of(r, d), w = weight_of(weight, d);
        const float2 v = *reinterpret_cast<const float2*>(from + r * step + d);
        y = make_float2(y.x * turn.x + y.y * turn.y, y.y * turn.x - y.x * turn.y);
        product = make_float2(y.x * v.x * rms[n], y.y * v.y * rms[n]);
        mean[n] += product.x * w.x + product.y * w.y;
      }
      *reinterpret_cast<float2*>(spare + r * stride + d) = product;
    });
    if (weight == nullptr) return;
#pragma unroll
    for (int n = 0; n < ROWS / 8; ++n) mean[n] = sum_of_quad(mean[n]) / call.D;
    each_pair([&](int n, int r, int d) {
      if (r >= call.T) return;
      float2& y = *reinterpret_cast<float2*>(dx + r * stride + d);
      const float2 w = weight_of(weight, d);
      const float2 v = *reinterpret_cast<const float2*>(from + r * step + d);
      y = make_float2((y.x * w.x - v.x * rms[n] * mean[n]) * rms[n],
                      (y.y * w.y - v.y * rms[n] * mean[n]) * rms[n]);
    });
    sync_warp();
#pragma unroll
    for (int i = 0; i < MOST_CHANNELS / LANES; ++i) {
      const int d = i * LANES + lane;
      if (d < call.D) {
        for (int r = 0; r < call.T; ++r) dweight[i] += spare[r * stride + d];
      }
    }
    sync_warp();
  }
};

template <int ROWS>
__global__ void __launch_bounds__(LANES, RESIDENT) forward(const StAttentionCall call) {
  const Warp<ROWS> warp(call);
  const int size = ROWS * warp.stride;
  float* q = reinterpret_cast<float*>(shared_memory());
  float *k = q + size, *v = k + size, *p = v + size;
  const int64_t step = call.S * call.H * call.D;
  for (int64_t pair = blockIdx.x; pair < call.pairs; pair += gridDim.x) {
    const Place at = place_of(pair, call.S, call.H);
    const float* from =
        static_cast<const float*>(call.x) + at.b * call.x_b + at.s * call.x_s + at.h * call.x_h;
    float* to =
        static_cast<float*>(call.out) + at.b * call.T * step + (at.s * call.H + at.h) * call.D;
    warp.read(from, call.x_t, q);
    warp.read(from + call.x_part, call.x_t, k);
    warp.read(from + 2 * call.x_part, call.x_t, v);
    float rms[ROWS / 8], s[Warp<ROWS>::COLUMNS];
    warp.prepare(q, call.q_weight, rms);
    warp.prepare(k, call.k_weight, rms);
    sync_warp();
    warp.score(q, k, s);
    warp.softmax(s);
    warp.keep(s, p);
    sync_warp();
    warp.multiply(p, false, v, q);
    sync_warp();
    warp.write(q, to, step);
    sync_warp();
  }
}

template <int ROWS>
__global__ void __launch_bounds__(LANES, RESIDENT) backward(const StAttentionCall call) {
  const Warp<ROWS> warp(call);
  const int size = ROWS * warp.stride, D = call.D;
  float* q = reinterpret_cast<float*>(shared_memory());
  float *k = q + size, *v = k + size, *grad = v + size, *p = grad + size;
  float* ds = p + ROWS * (ROWS + 1);
  const int64_t part = call.H * D, step = call.S * 3 * part;
  float dq_weight[MOST_CHANNELS / LANES] = {}, dk_weight[MOST_CHANNELS / LANES] = {};
  for (int64_t pair = blockIdx.x; pair < call.pairs; pair += gridDim.x) {
    const Place at = place_of(pair, call.S, call.H);
    const float* from =
        static_cast<const float*>(call.x) + at.b * call.x_b + at.s * call.x_s + at.h * call.x_h;
    const float* from_grad = static_cast<const float*>(call.grad) + at.b * call.grad_b +
                             at.s * call.grad_s + at.h * call.grad_h;
    float* to = static_cast<float*>(call.out) + at.b * call.T * step + at.s * 3 * part + at.h * D;
    warp.read(from, call.x_t, q);
    warp.read(from + call.x_part, call.x_t, k);
    warp.read(from + 2 * call.x_part, call.x_t, v);
    warp.read(from_grad, call.grad_t, grad);
    float q_rms[ROWS / 8], k_rms[ROWS / 8], s[Warp<ROWS>::COLUMNS], dp[Warp<ROWS>::COLUMNS];
    warp.prepare(q, call.q_weight, q_rms);
    warp.prepare(k, call.k_weight, k_rms);
    sync_warp();
    warp.score(q, k, s);
    warp.score(grad, v, dp);
    warp.softmax(s);
    // ds = p (dp - sum p dp) scale; padding rows and what is not seen are exactly zero.
    float sum = 0.f;
#pragma unroll
    for (int j = 0; j < Warp<ROWS>::COLUMNS; ++j) {
      if (warp.row >= call.T) s[j] = 0.f;
      if (warp.row >= call.T || !warp.seen(j)) dp[j] = 0.f;
      sum += s[j] * dp[j];
    }
    sum = warp.sum_of_row(sum);
    warp.keep(s, p);
#pragma unroll
    for (int j = 0; j < Warp<ROWS>::COLUMNS; ++j) {
      const bool counts = warp.row < call.T && warp.seen(j);
      dp[j] = counts ? s[j] * (dp[j] - sum) * call.scale : 0.f;
    }
    warp.keep(dp, ds);
    sync_warp();
    warp.multiply(p, true, grad, v);  // dv, in the place of v
    sync_warp();
    warp.write(v, to + 2 * part, step);
    warp.multiply(ds, false, k, grad);  // dq, in the place of the gradient
    sync_warp();
    warp.multiply(ds, true, q, k);  // dk, in the place of k
    sync_warp();
    warp.pull_back(grad, from, call.x_t, call.q_weight, q_rms, v, dq_weight);
    warp.write(grad, to, step);
    warp.pull_back(k, from + call.x_part, call.x_t, call.k_weight, k_rms, v, dk_weight);
    warp.write(k, to + part, step);
    sync_warp();
  }
  float* partial = call.partial + static_cast<int64_t>(blockIdx.x) * 2 * D;
#pragma unroll
  for (int i = 0; i < MOST_CHANNELS / LANES; ++i) {
    const int d = i * LANES + warp.lane;
    if (d < D) {
      partial[d] = dq_weight[i];
      partial[D + d] = dk_weight[i];
    }
  }
}

}  // namespace st_attention_float
}  // namespace cuda
}  // namespace colaworld
