// The code_statistics kernel, written once and compiled once per instruction set.
//
//   to[k, :d] = sum of the rows z_n whose index is k        to[k, d] = how many there are
//
// One part of the rows after the other into its own table, then the tables in their order: what is
// added to what depends on the parts alone, which the caller cuts by the sizes and never by the
// number of threads.

#pragma once

#include <cstdint>

#include "code_statistics.h"
#include "simd.h"

namespace colaworld {
namespace COLAWORLD_ISA {

template <typename In>
int64_t add_rows(const In* z,
                 const int64_t* indices,
                 int64_t first,
                 int64_t last,
                 int64_t K,
                 int64_t d,
                 int64_t width,
                 typename accumulate<In>::type* to) {
  using Acc = typename accumulate<In>::type;
  const bool counts = width > d;
  for (int64_t n = first; n < last; ++n) {
    const int64_t k = indices[n];
    if (k < 0 || k >= K) return n;
    const In* __restrict__ from = z + n * d;
    Acc* __restrict__ entry = to + k * width;
    for (int64_t j = 0; j < d; ++j) entry[j] += widen(from[j]);
    if (counts) entry[d] += 1;
  }
  return last;
}

template <typename Acc>
void merge_parts(const Acc* parts,
                 int64_t count,
                 int64_t size,
                 int64_t first,
                 int64_t last,
                 Acc* __restrict__ to) {
  for (int64_t part = 0; part < count; ++part) {
    const Acc* __restrict__ from = parts + part * size;
    for (int64_t i = first; i < last; ++i) to[i] += from[i];
  }
}

template <typename In>
CodeStatisticsKernel<In> statistics_kernel() {
  return {&add_rows<In>, &merge_parts<typename accumulate<In>::type>};
}

}  // namespace COLAWORLD_ISA

CodeStatisticsKernels COLAWORLD_JOIN(code_statistics_, COLAWORLD_ISA)() {
  return {COLAWORLD_ISA::statistics_kernel<float>(), COLAWORLD_ISA::statistics_kernel<double>(),
          COLAWORLD_ISA::statistics_kernel<bfloat16>()};
}

}  // namespace colaworld
