// The st_attention kernel, written once and compiled once per instruction set: one (sequence, head)
// at a time, whichever axis the sequence runs along.
//
// A panel of queries meets all keys. Scores stand with the queries in the lanes of a vector,
//
//            queries q0 .. q0 + 15   q0 + 16 .. q0 + 31   ...
//   key 0    score                   score
//   key 1    score                   score
//   ...
//
// so that maximum and sum of a query run down the keys, lane by lane, and no vector is ever
// reduced. Memory is a panel times L; there is no L x L matrix. The backward does all of it again
// and keeps nothing between calls:
//
//   P = softmax(K Q^T)   dP = V dO^T   dS = P * (dP - sum over keys of P * dP)
//   dV += P dO           dK += dS Q    dQ = dS^T K           the scale is in Q
//
// A query's numbers do not depend on the panel, on how many queries there are, or on threads. With
// a causal mask the keys ahead of a query are left out, not multiplied by zero: a NaN there stays
// there. Not here: tensors, threads, memory.

#pragma once

#include <cstdint>
#include <cstring>

#include "simd.h"
#include "st_attention.h"
#include "st_attention_product.h"
#include "st_attention_rows.h"
#include "st_attention_softmax.h"

namespace colaworld {
namespace COLAWORLD_ISA {
namespace st_attention {

// Two panels of scores (P and dP) should leave room in a second-level cache of 512 KB and more.
constexpr int64_t SCORE_BYTES = 256 * 1024;

// Rows lie too far apart for the processor to guess the next ones, so they are named in advance:
// those of the next pair by a pair of at most this size, which leaves room for what is in use,
constexpr int64_t FETCH_BYTES = 32 * 1024;
// and else this many rows of its own, some hundred nanoseconds of work.
constexpr int64_t ROWS_AHEAD = 8;

// A row of scratch: whole vectors, and whole fours for the transpose.
template <typename Acc>
inline int64_t padded(int64_t n) {
  constexpr int64_t unit = simd<Acc>::lanes < 4 ? 4 : simd<Acc>::lanes;
  return (n + unit - 1) / unit * unit;
}

template <typename Acc>
int64_t panel(int64_t L) {
  constexpr int64_t unit = simd<Acc>::lanes < 4 ? 4 : simd<Acc>::lanes;
  const int64_t units = padded<Acc>(L) / unit;
  int64_t most = SCORE_BYTES / static_cast<int64_t>(L * unit * sizeof(Acc));
  most = most > VECTORS ? VECTORS : most < 1 ? 1 : most;
  const int64_t panels = (units + most - 1) / most;
  return (units + panels - 1) / panels * unit;
}

template <typename Acc>
int64_t forward_scratch(int64_t L, int64_t D) {
  const int64_t stride = padded<Acc>(D), width = panel<Acc>(L);
  return (2 * L + 3 * width) * stride + (L + 1) * width;
}

template <typename Acc>
int64_t backward_scratch(int64_t L, int64_t D) {
  const int64_t stride = padded<Acc>(D), width = panel<Acc>(L);
  return (4 * L + 5 * width + 2) * stride + (2 * L + 2) * width + padded<Acc>(L);
}

// Hands out rows of scratch, every one on a vector's border.
template <typename Acc>
struct Pool {
  Acc* next;
  Acc* take(int64_t rows, int64_t stride) {
    Acc* here = next;
    next += rows * stride;
    return here;
  }
};

// A row as it is, widened.
template <typename In>
inline void widen_row(const Row<typename accumulate<In>::type>& row,
                      const In* from,
                      typename accumulate<In>::type* to) {
  for (int64_t i = 0; i < row.vectors; ++i) {
    const int64_t at = row.start(i);
    store<typename accumulate<In>::type>(to + at, row.read(from, at));
  }
}

// What the rows of one (sequence, head) are read with.
template <typename In>
struct Reader {
  using Acc = typename accumulate<In>::type;

  const StAttentionCall<In>& call;
  const In* x;
  const In* next;  // null: no next pair, or too large a one
  Row<Acc> row;
  int64_t stride;
  int64_t bytes;

  Reader(const StAttentionCall<In>& of, const In* at, const In* after)
      : call(of),
        x(at),
        next(after),
        row(of.D),
        stride(padded<Acc>(of.D)),
        bytes(of.D * static_cast<int64_t>(sizeof(In))) {
    if (3 * call.L * bytes > FETCH_BYTES) next = nullptr;
  }

  const Acc* table(const Acc* of, int64_t l) const { return of ? of + l * stride : nullptr; }

  Acc key(int64_t l, Acc* to) const {
    return prepare(row, x + call.x_part + l * call.x_row, call.k_weight, table(call.cos, l),
                   table(call.sin, l), call.eps, Acc(1), to);
  }
  Acc query(int64_t l, Acc* to) const {
    return prepare(row, x + l * call.x_row, call.q_weight, table(call.cos, l), table(call.sin, l),
                   call.eps, call.scale, to);
  }
  void value(int64_t l, Acc* to) const { widen_row(row, x + 2 * call.x_part + l * call.x_row, to); }

  __attribute__((always_inline)) void fetch_for_key(int64_t l) const {
    if (next != nullptr) {
      for (int64_t part = 0; part < 3; ++part) {
        fetch(next + l * call.x_row + part * call.x_part, bytes);
      }
    } else if (l + ROWS_AHEAD < call.L) {
      fetch(x + (l + ROWS_AHEAD) * call.x_row + call.x_part, bytes);
      fetch(x + (l + ROWS_AHEAD) * call.x_row + 2 * call.x_part, bytes);
    }
  }
  __attribute__((always_inline)) void fetch_for_query(int64_t l) const {
    if (next == nullptr && l + ROWS_AHEAD < call.L) {
      fetch(x + (l + ROWS_AHEAD) * call.x_row, bytes);
    }
  }
};

// Zeros in the rows up to the next multiple of four, which the transpose reads.
template <typename Acc>
inline void clear_to_four(Acc* rows, int64_t n, int64_t stride) {
  for (; n % 4 != 0; ++n) std::memset(rows + n * stride, 0, stride * sizeof(Acc));
}

template <typename In>
void forward(const StAttentionCall<In>& call,
             const In* x,
             const In* next,
             int64_t first,
             int64_t last,
             typename accumulate<In>::type* scratch,
             In* out) {
  using Acc = typename accumulate<In>::type;
  const Reader<In> reader(call, x, next);
  const Row<Acc>& row = reader.row;
  const int64_t D = call.D, stride = reader.stride, most = panel<Acc>(call.L);
  const int64_t all_keys = call.causal ? last : call.L;
  Pool<Acc> pool{scratch};
  Acc* keys = pool.take(call.L, stride);
  Acc* values = pool.take(call.L, stride);
  Acc* queries = pool.take(most, stride);
  Acc* turned = pool.take(most, stride);  // [stride, width]
  Acc* results = pool.take(most, stride);
  Acc* scores = pool.take(call.L, most);
  Acc* inverse = pool.take(1, most);

  for (int64_t l = 0; l < all_keys; ++l) {
    reader.fetch_for_key(l);
    reader.key(l, keys + l * stride);
    reader.value(l, values + l * stride);
  }
  for (int64_t q0 = first; q0 < last; q0 += most) {
    const int64_t n = last - q0 < most ? last - q0 : most;
    const int64_t width = padded<Acc>(n), span = call.causal ? q0 + n : call.L;
    for (int64_t l = 0; l < n; ++l) {
      reader.fetch_for_query(q0 + l);
      fetch_to_write(out + (q0 + l) * call.out_row, reader.bytes);
      reader.query(q0 + l, queries + l * stride);
    }
    clear_to_four(queries, n, stride);
    transpose(queries, n, D, stride, width, turned);
    multiply<Acc, false, Terms::all>(
        {keys, stride, turned, width, span, D, 0, scores, width, false}, width / simd<Acc>::lanes);
    softmax(scores, span, width, q0, call.causal ? q0 + 1 : span, inverse);
    if (call.causal) {
      multiply<Acc, true, Terms::up_to_row>(
          {scores, width, values, stride, n, span, q0, results, stride, false}, row.vectors);
    } else {
      multiply<Acc, true, Terms::all>(
          {scores, width, values, stride, n, span, 0, results, stride, false}, row.vectors);
    }
    for (int64_t l = 0; l < n; ++l) {
      In* to = out + (q0 + l) * call.out_row;
      for (int64_t i = 0; i < row.vectors; ++i) {
        const int64_t at = row.start(i);
        row.write(to, at, load(results + l * stride + at) * inverse[l]);
      }
    }
  }
}

// Adds what a few rows summed to the double sums, and starts again.
template <typename Acc>
inline void hand_over(Acc* sums, int64_t D, double* to) {
  for (int64_t d = 0; d < D; ++d) {
    to[d] += static_cast<double>(sums[d]);
    sums[d] = 0;
  }
}

template <typename In>
void backward(const StAttentionCall<In>& call,
              const In* x,
              const In* next,
              const In* grad,
              const In* next_grad,
              typename accumulate<In>::type* scratch,
              In* dx,
              double* dq_weight,
              double* dk_weight) {
  using Acc = typename accumulate<In>::type;
  constexpr int64_t lanes = simd<Acc>::lanes;
  const Reader<In> reader(call, x, next);
  const Row<Acc>& row = reader.row;
  const int64_t L = call.L, D = call.D, stride = reader.stride, most = panel<Acc>(L);
  Pool<Acc> pool{scratch};
  Acc* keys = pool.take(L, stride);
  Acc* values = pool.take(L, stride);
  Acc* dkeys = pool.take(L, stride);
  Acc* dvalues = pool.take(L, stride);
  Acc* queries = pool.take(most, stride);
  Acc* grads = pool.take(most, stride);
  Acc* dqueries = pool.take(most, stride);
  Acc* turned_queries = pool.take(most, stride);  // [stride, width]
  Acc* turned_grads = pool.take(most, stride);  // [stride, width]
  Acc* held = pool.take(1, stride);
  Acc* sums = pool.take(1, stride);
  Acc* p = pool.take(L, most);
  Acc* dp = pool.take(L, most);
  Acc* inverse = pool.take(1, most);
  Acc* q_rms = pool.take(1, most);
  Acc* k_rms = pool.take(1, padded<Acc>(L));
  std::memset(sums, 0, stride * sizeof(Acc));

  for (int64_t l = 0; l < L; ++l) {
    reader.fetch_for_key(l);
    if (reader.next != nullptr) fetch(next_grad + l * call.grad_row, reader.bytes);
    k_rms[l] = reader.key(l, keys + l * stride);
    reader.value(l, values + l * stride);
  }

  for (int64_t q0 = 0; q0 < L; q0 += most) {
    const int64_t n = L - q0 < most ? L - q0 : most;
    const int64_t width = padded<Acc>(n), span = call.causal ? q0 + n : L;
    for (int64_t l = 0; l < n; ++l) {
      reader.fetch_for_query(q0 + l);
      for (int64_t part = 0; part < 3; ++part) {
        fetch_to_write(dx + (q0 + l) * call.dx_row + part * call.dx_part, reader.bytes);
      }
      q_rms[l] = reader.query(q0 + l, queries + l * stride);
      widen_row(row, grad + (q0 + l) * call.grad_row, grads + l * stride);
    }
    clear_to_four(queries, n, stride);
    clear_to_four(grads, n, stride);
    transpose(queries, n, D, stride, width, turned_queries);
    transpose(grads, n, D, stride, width, turned_grads);
    multiply<Acc, false, Terms::all>(
        {keys, stride, turned_queries, width, span, D, 0, p, width, false}, width / lanes);
    multiply<Acc, false, Terms::all>(
        {values, stride, turned_grads, width, span, D, 0, dp, width, false}, width / lanes);
    const int64_t masked = call.causal ? q0 + 1 : span;
    softmax(p, span, width, q0, masked, inverse);
    softmax_backward(p, dp, span, width, q0, masked, inverse);
    // Keys before the panel are seen by all of its queries. A causal key meets its first queries in
    // its own panel, so that panel starts the key's sum; else the first panel does.
    const int64_t before = call.causal ? q0 : L;
    const bool add = q0 > 0;
    multiply<Acc, false, Terms::all>({p, width, grads, stride, before, n, 0, dvalues, stride, add},
                                     row.vectors);
    multiply<Acc, false, Terms::all>({dp, width, queries, stride, before, n, 0, dkeys, stride, add},
                                     row.vectors);
    if (call.causal) {
      multiply<Acc, false, Terms::from_row>(
          {p + q0 * width, width, grads, stride, n, n, 0, dvalues + q0 * stride, stride, false},
          row.vectors);
      multiply<Acc, false, Terms::from_row>(
          {dp + q0 * width, width, queries, stride, n, n, 0, dkeys + q0 * stride, stride, false},
          row.vectors);
      multiply<Acc, true, Terms::up_to_row>(
          {dp, width, keys, stride, n, span, q0, dqueries, stride, false}, row.vectors);
    } else {
      multiply<Acc, true, Terms::all>(
          {dp, width, keys, stride, n, span, 0, dqueries, stride, false}, row.vectors);
    }
    for (int64_t l = 0; l < n; ++l) {
      pull_back(row, x + (q0 + l) * call.x_row, dqueries + l * stride, call.q_weight,
                reader.table(call.cos, q0 + l), reader.table(call.sin, q0 + l), q_rms[l],
                call.scale, held, dx + (q0 + l) * call.dx_row, sums);
    }
    hand_over(sums, D, dq_weight);
  }
  for (int64_t l = 0; l < L; ++l) {
    pull_back(row, x + call.x_part + l * call.x_row, dkeys + l * stride, call.k_weight,
              reader.table(call.cos, l), reader.table(call.sin, l), k_rms[l], Acc(1), held,
              dx + call.dx_part + l * call.dx_row, sums);
    for (int64_t i = 0; i < row.vectors; ++i) {
      const int64_t at = row.start(i);
      row.write(dx + 2 * call.dx_part + l * call.dx_row, at, load(dvalues + l * stride + at));
    }
    if ((l + 1) % most == 0 || l + 1 == L) hand_over(sums, D, dk_weight);
  }
}

template <typename In>
StAttentionKernel<In> kernel() {
  using Acc = typename accumulate<In>::type;
  return {&padded<Acc>,           &panel<Acc>,  &forward_scratch<Acc>,
          &backward_scratch<Acc>, &forward<In>, &backward<In>};
}

}  // namespace st_attention
}  // namespace COLAWORLD_ISA

StAttentionKernels COLAWORLD_JOIN(st_attention_, COLAWORLD_ISA)() {
  namespace st_attention = COLAWORLD_ISA::st_attention;
  return {st_attention::kernel<float>(), st_attention::kernel<double>(),
          st_attention::kernel<bfloat16>()};
}

}  // namespace colaworld
