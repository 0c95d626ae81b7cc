// Rows of queries and keys for the st_attention kernel: norm and rotation, forward and backward,
// and the transpose of a block of rows. Not here: scores, softmax, products.
//
//   x --RMSNorm, rounded--> n --* weight, rounded--> y --rotation, rounded--> z
//
// A row of D numbers is read in vectors; the last one ends with the row and may overlap the one
// before it, so that nothing beyond the row is touched and no number is handled alone.

#pragma once

#include <cstdint>
#include <cstring>

#include "simd.h"

namespace colaworld {
namespace COLAWORLD_ISA {
namespace st_attention {

// Rounded as if it had been stored.
template <typename In>
inline typename simd<typename accumulate<In>::type>::vec rounded(
    typename simd<typename accumulate<In>::type>::vec x) {
  if constexpr (sizeof(In) == sizeof(typename accumulate<In>::type)) {
    return x;
  } else {
    In stored[simd<float>::lanes];
    store<In>(stored, x);
    return load(stored);
  }
}

// Where the vectors of a row of D numbers start.
template <typename Acc>
struct Row {
  using vec = typename simd<Acc>::vec;
  using ivec = typename simd<Acc>::ivec;
  static constexpr int64_t L = simd<Acc>::lanes;

  int64_t D;
  int64_t vectors;
  ivec fresh;  // lanes of the last vector that the one before it does not hold

  explicit Row(int64_t channels) : D(channels), vectors((channels + L - 1) / L) {
    const int64_t seen = D < L ? 0 : vectors * L - D;
    for (int64_t lane = 0; lane < L; ++lane) fresh[lane] = lane >= seen ? -1 : 0;
  }

  int64_t start(int64_t i) const { return i * L + L <= D || D < L ? i * L : D - L; }

  template <typename In>
  vec read(const In* from, int64_t at) const {
    return D < L ? load_first(from, D) : load(from + at);
  }
  template <typename In>
  void write(In* to, int64_t at, vec x) const {
    if (D < L) {
      store_first<In>(to, x, D);
    } else {
      store<In>(to + at, x);
    }
  }
  // Zero in the lanes of vector i that vector i - 1 holds as well.
  vec once(int64_t i, vec x) const { return i + 1 < vectors ? x : (fresh != 0 ? x : vec{}); }
};

// Asks for the bytes that will soon be read (written). Always inline, as is every function that
// does nothing else: GCC takes a call of one for pure and drops it.
__attribute__((always_inline)) inline void fetch(const void* from, int64_t bytes) {
  const char* line = static_cast<const char*>(from);
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(line + i, 0, 2);
  __builtin_prefetch(line + bytes - 1, 0, 2);
}
__attribute__((always_inline)) inline void fetch_to_write(const void* to, int64_t bytes) {
  const char* line = static_cast<const char*>(to);
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(line + i, 1, 2);
  __builtin_prefetch(line + bytes - 1, 1, 2);
}

// z * factor of one row; returns 1 / root mean square, or 1 without a norm.
template <typename In>
inline typename accumulate<In>::type prepare(
    const Row<typename accumulate<In>::type>& row,
    const In* x,  // [D]
    const typename accumulate<In>::type* weight,  // or null
    const typename accumulate<In>::type* cos,  // or null
    const typename accumulate<In>::type* sin,
    typename accumulate<In>::type eps,
    typename accumulate<In>::type factor,
    typename accumulate<In>::type* z) {  // [stride]
  using Acc = typename accumulate<In>::type;
  using vec = typename simd<Acc>::vec;
  Acc rms = 1;
  if (weight != nullptr) {
    vec squares{};
    for (int64_t i = 0; i < row.vectors; ++i) {
      const vec v = row.once(i, row.read(x, row.start(i)));
      squares += v * v;
    }
    rms = inverse_root(sum_of_lanes<Acc>(squares) / static_cast<Acc>(row.D) + eps);
  }
  for (int64_t i = 0; i < row.vectors; ++i) {
    const int64_t at = row.start(i);
    vec v = row.read(x, at);
    if (weight != nullptr) v = rounded<In>(rounded<In>(v * rms) * load(weight + at));
    if (cos != nullptr) v = rounded<In>(v * load(cos + at) + swap_pairs<Acc>(v) * load(sin + at));
    store<Acc>(z + at, v * factor);
  }
  return rms;
}

// The gradient of x from that of z * factor; adds to the gradient of the weight.
template <typename In>
inline void pull_back(const Row<typename accumulate<In>::type>& row,
                      const In* x,  // [D]
                      const typename accumulate<In>::type* dz,  // [stride]
                      const typename accumulate<In>::type* weight,  // or null
                      const typename accumulate<In>::type* cos,  // or null
                      const typename accumulate<In>::type* sin,
                      typename accumulate<In>::type rms,
                      typename accumulate<In>::type factor,
                      typename accumulate<In>::type* held,  // [stride]
                      In* dx,  // [D]
                      typename accumulate<In>::type* dweight) {  // [stride]
  using Acc = typename accumulate<In>::type;
  using vec = typename simd<Acc>::vec;
  vec along{};  // sum of dn * x / rms(x)
  for (int64_t i = 0; i < row.vectors; ++i) {
    const int64_t at = row.start(i);
    vec dy = load(dz + at) * factor;
    if (cos != nullptr) dy = dy * load(cos + at) - swap_pairs<Acc>(dy) * load(sin + at);
    if (weight == nullptr) {
      row.write(dx, at, dy);
      continue;
    }
    const vec normed = row.read(x, at) * rms;
    const vec dn = dy * load(weight + at);
    store<Acc>(held + at, dn);
    along += row.once(i, dn * normed);
    store<Acc>(dweight + at, load(dweight + at) + row.once(i, dy * rounded<In>(normed)));
  }
  if (weight == nullptr) return;
  const Acc mean = sum_of_lanes<Acc>(along) / static_cast<Acc>(row.D);
  for (int64_t i = 0; i < row.vectors; ++i) {
    const int64_t at = row.start(i);
    const vec normed = row.read(x, at) * rms;
    row.write(dx, at, (load(held + at) - normed * mean) * rms);
  }
}

// to[j, i] = from[i, j] for i < rows and j < columns, both rounded up to fours; zeros for i up to
// `width`, a multiple of four.
template <typename Acc>
inline void transpose(const Acc* from,  // [rows, stride]
                      int64_t rows,
                      int64_t columns,
                      int64_t stride,
                      int64_t width,
                      Acc* to) {  // [columns, width]
  using four = typename simd_part<Acc, 4>::vec;
  int64_t i = 0;
  for (; i < rows; i += 4) {
    for (int64_t j = 0; j < columns; j += 4) {
      transpose_four(from + i * stride + j, stride, to + j * width + i, width);
    }
  }
  const four zero{};
  for (int64_t j = 0; j < columns && i < width; ++j) {
    for (int64_t k = i; k < width; k += 4) std::memcpy(to + j * width + k, &zero, sizeof(four));
  }
}

}  // namespace st_attention
}  // namespace COLAWORLD_ISA
}  // namespace colaworld
