// What one compiled variant of the st_attention kernel offers to its caller.
// Not here: tensors, threads, memory. The caller owns every buffer.

#pragma once

#include <cstdint>

#include "number.h"

namespace colaworld {

// What is the same for every (sequence, head) of a call. L positions, D channels; a row of scratch
// or of a table holds `stride` numbers: D, and zeros up to whole vectors.
template <typename In>
struct StAttentionCall {
  using Acc = typename accumulate<In>::type;

  int64_t L;
  int64_t D;
  int64_t x_row;  // from one position to the next in qkv, in elements
  int64_t x_part;  // from queries to keys, from keys to values
  int64_t out_row;  // from one position to the next in the output, in elements
  int64_t grad_row;  // the same in its gradient
  int64_t dx_row;  // the same in the gradient of qkv
  int64_t dx_part;
  const Acc* q_weight;  // [stride] or null: no norm
  const Acc* k_weight;  // [stride] or null
  const Acc* cos;  // [L, stride], each angle twice; null: no rotation
  const Acc* sin;  // [L, stride], -sin then +sin of each angle
  bool causal;
  Acc eps;
  Acc scale;
};

template <typename In>
struct StAttentionKernel {
  using Acc = typename accumulate<In>::type;

  int64_t (*padded)(int64_t D);  // numbers in a row of scratch or of a table
  int64_t (*panel)(int64_t L);  // queries that are worked on at a time

  // Numbers of scratch that one (sequence, head) needs.
  int64_t (*forward_scratch)(int64_t L, int64_t D);
  int64_t (*backward_scratch)(int64_t L, int64_t D);

  // Queries [first, last) of one (sequence, head); first is a multiple of panel(L).
  void (*forward)(const StAttentionCall<In>& call,
                  const In* x,  // the queries of position 0
                  const In* next,  // those of the pair that comes next, or null
                  int64_t first,
                  int64_t last,
                  Acc* scratch,  // 64-byte aligned
                  In* out);  // position 0

  void (*backward)(const StAttentionCall<In>& call,
                   const In* x,  // the queries of position 0
                   const In* next,  // those of the pair that comes next, or null
                   const In* grad,  // of the output at position 0
                   const In* next_grad,  // that of the pair that comes next
                   Acc* scratch,  // 64-byte aligned
                   In* dx,  // the queries of position 0
                   double* dq_weight,  // [D], added to
                   double* dk_weight);  // [D], added to
};

struct StAttentionKernels {
  StAttentionKernel<float> f32;
  StAttentionKernel<double> f64;
  StAttentionKernel<bfloat16> bf16;
};

// One per translation unit.
StAttentionKernels st_attention_baseline();
StAttentionKernels st_attention_avx2();
StAttentionKernels st_attention_avx512();

}  // namespace colaworld
