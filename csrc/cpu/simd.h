// SIMD vectors on GCC's vector extensions, and the arithmetic that the CPU kernels share.
//
// Included only by the files that compile kernels for one instruction set (baseline.cpp, avx2.cpp,
// avx512.cpp), which define COLAWORLD_ISA, COLAWORLD_VECTOR_BYTES and COLAWORLD_VECTOR_REGISTERS
// first. Everything lives in a namespace named after the variant and nothing from the C++ library
// is instantiated here: an inline function compiled with AVX-512 must never be the copy that the
// linker keeps for everyone.

#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "number.h"

namespace colaworld {
namespace COLAWORLD_ISA {

template <typename Acc>
struct simd {
  typedef Acc vec __attribute__((vector_size(COLAWORLD_VECTOR_BYTES), may_alias));
  using Int = std::conditional_t<sizeof(Acc) == 8, int64_t, int32_t>;
  typedef Int ivec __attribute__((vector_size(COLAWORLD_VECTOR_BYTES), may_alias));
  // The same vector at an address that is a multiple of one element only.
  typedef Acc loose
      __attribute__((vector_size(COLAWORLD_VECTOR_BYTES), may_alias, aligned(alignof(Acc))));
  static constexpr int64_t lanes = COLAWORLD_VECTOR_BYTES / sizeof(Acc);
};

// bfloat16 bits of as many elements as a vector of float has, alone and in the width of float.
typedef uint16_t half_bits __attribute__((vector_size(COLAWORLD_VECTOR_BYTES / 2)));
typedef uint32_t bits __attribute__((vector_size(COLAWORLD_VECTOR_BYTES)));

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(bfloat16 x) {
  const uint32_t word = static_cast<uint32_t>(x.bits) << 16;
  float wide;
  std::memcpy(&wide, &word, sizeof(wide));
  return wide;
}

// To the dtype of storage, by rounding to nearest, ties to even; NaN stays NaN.
template <typename In>
inline In narrow(typename accumulate<In>::type x) {
  if constexpr (std::is_same_v<In, bfloat16>) {
    uint32_t word;
    std::memcpy(&word, &x, sizeof(word));
    if (x != x) return bfloat16{static_cast<uint16_t>((word >> 16) | 0x40)};
    word += 0x7fff + ((word >> 16) & 1);
    return bfloat16{static_cast<uint16_t>(word >> 16)};
  } else {
    return x;
  }
}

// Every lane holds x. Not `vec{} + x`: 0 + -0 is +0, so that would cost a real addition.
template <typename Acc>
inline typename simd<Acc>::vec broadcast(Acc x) {
  return x - typename simd<Acc>::vec{};
}

// `lanes` neighbouring elements, widened; any alignment.
template <typename In>
inline typename simd<typename accumulate<In>::type>::vec load(const In* from) {
  using Acc = typename accumulate<In>::type;
  if constexpr (std::is_same_v<In, bfloat16>) {
    half_bits h;
    std::memcpy(&h, from, sizeof(h));
    const bits wide = __builtin_convertvector(h, bits) << 16;
    typename simd<Acc>::vec out;
    std::memcpy(&out, &wide, sizeof(out));
    return out;
  } else {
    return *reinterpret_cast<const typename simd<Acc>::loose*>(from);
  }
}

// The first n < lanes elements of a row, widened; the other lanes hold zero.
template <typename In>
inline typename simd<typename accumulate<In>::type>::vec load_first(const In* from, int64_t n) {
  using Acc = typename accumulate<In>::type;
  Acc lane[simd<Acc>::lanes] = {};
  for (int64_t i = 0; i < n; ++i) lane[i] = widen(from[i]);
  typename simd<Acc>::vec out;
  std::memcpy(&out, lane, sizeof(out));
  return out;
}

template <typename In>
inline void store(In* to, typename simd<typename accumulate<In>::type>::vec x) {
  using Acc = typename accumulate<In>::type;
  if constexpr (std::is_same_v<In, bfloat16>) {
    bits b;
    std::memcpy(&b, &x, sizeof(b));
    const auto is_nan = x != x;
    bits nan;
    std::memcpy(&nan, &is_nan, sizeof(nan));
    const bits rounded = (b + 0x7fff + ((b >> 16) & 1)) >> 16;
    const bits quiet = (b >> 16) | 0x40;
    const half_bits out = __builtin_convertvector((nan & quiet) | (~nan & rounded), half_bits);
    std::memcpy(to, &out, sizeof(out));
  } else {
    *reinterpret_cast<typename simd<Acc>::loose*>(to) = x;
  }
}

template <typename In>
inline void store_first(In* to, typename simd<typename accumulate<In>::type>::vec x, int64_t n) {
  using Acc = typename accumulate<In>::type;
  Acc lane[simd<Acc>::lanes];
  std::memcpy(lane, &x, sizeof(x));
  for (int64_t i = 0; i < n; ++i) to[i] = narrow<In>(lane[i]);
}

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define COLAWORLD_SHUFFLES
#endif
#endif

template <typename Acc, int64_t n>
struct simd_part {
  typedef Acc vec __attribute__((vector_size(n * sizeof(Acc))));
};

// Sum over n lanes, always in the same order: by halves. Unrolled by hand, since the compiler
// keeps a loop over halves as a loop, in memory.
template <typename Acc, int64_t n>
inline Acc sum_by_halves(typename simd_part<Acc, n>::vec x) {
  if constexpr (n == 2) {
    return x[0] + x[1];
  } else {
    typename simd_part<Acc, n / 2>::vec half[2];
    std::memcpy(half, &x, sizeof(x));
    return sum_by_halves<Acc, n / 2>(half[0] + half[1]);
  }
}

template <typename Acc>
inline Acc sum_of_lanes(typename simd<Acc>::vec x) {
  return sum_by_halves<Acc, simd<Acc>::lanes>(x);
}

// Each lane's own number.
template <typename Acc>
inline typename simd<Acc>::ivec lane_numbers() {
  typename simd<Acc>::ivec lane;
  for (int64_t i = 0; i < simd<Acc>::lanes; ++i) {
    lane[i] = static_cast<typename simd<Acc>::Int>(i);
  }
  return lane;
}

// (x0, x1, x2, x3, ...) -> (x1, x0, x3, x2, ...)
template <typename Acc>
inline typename simd<Acc>::vec swap_pairs(typename simd<Acc>::vec x) {
#if defined(COLAWORLD_SHUFFLES)
  constexpr int64_t L = simd<Acc>::lanes;
  if constexpr (L == 2) {
    return __builtin_shufflevector(x, x, 1, 0);
  } else if constexpr (L == 4) {
    return __builtin_shufflevector(x, x, 1, 0, 3, 2);
  } else if constexpr (L == 8) {
    return __builtin_shufflevector(x, x, 1, 0, 3, 2, 5, 4, 7, 6);
  } else {
    static_assert(L == 16, "a vector has 2, 4, 8 or 16 lanes");
    return __builtin_shufflevector(x, x, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
  }
#else
  return __builtin_shuffle(x, lane_numbers<Acc>() ^ 1);
#endif
}

// to[p * to_stride + q] = from[q * from_stride + p] for p, q < 4.
template <typename Acc>
__attribute__((always_inline)) inline void transpose_four(const Acc* from,
                                                          int64_t from_stride,
                                                          Acc* to,
                                                          int64_t to_stride) {
#if defined(COLAWORLD_SHUFFLES)
  using four = typename simd_part<Acc, 4>::vec;
  four r0, r1, r2, r3;
  std::memcpy(&r0, from, sizeof(four));
  std::memcpy(&r1, from + from_stride, sizeof(four));
  std::memcpy(&r2, from + 2 * from_stride, sizeof(four));
  std::memcpy(&r3, from + 3 * from_stride, sizeof(four));
  const four low01 = __builtin_shufflevector(r0, r1, 0, 4, 1, 5);
  const four low23 = __builtin_shufflevector(r2, r3, 0, 4, 1, 5);
  const four high01 = __builtin_shufflevector(r0, r1, 2, 6, 3, 7);
  const four high23 = __builtin_shufflevector(r2, r3, 2, 6, 3, 7);
  r0 = __builtin_shufflevector(low01, low23, 0, 1, 4, 5);
  r1 = __builtin_shufflevector(low01, low23, 2, 3, 6, 7);
  r2 = __builtin_shufflevector(high01, high23, 0, 1, 4, 5);
  r3 = __builtin_shufflevector(high01, high23, 2, 3, 6, 7);
  std::memcpy(to, &r0, sizeof(four));
  std::memcpy(to + to_stride, &r1, sizeof(four));
  std::memcpy(to + 2 * to_stride, &r2, sizeof(four));
  std::memcpy(to + 3 * to_stride, &r3, sizeof(four));
#else
  for (int64_t p = 0; p < 4; ++p) {
    for (int64_t q = 0; q < 4; ++q) to[p * to_stride + q] = from[q * from_stride + p];
  }
#endif
}

inline float inverse_root(float x) { return 1.0f / __builtin_sqrtf(x); }
inline double inverse_root(double x) { return 1.0 / __builtin_sqrt(x); }

template <typename Acc>
inline typename simd<Acc>::vec maximum(typename simd<Acc>::vec a, typename simd<Acc>::vec b) {
  return a > b ? a : b;
}

// e^x, for x that is not above 88 (float) or 709 (double); very negative x, -inf too, give 0, NaN
// stays NaN. Range reduction by ln 2 in two parts, then the Taylor series of e^r on |r| <= ln 2 /
// 2, whose first dropped term is below half a unit in the last place.
template <typename Acc>
inline typename simd<Acc>::vec exponential(typename simd<Acc>::vec x) {
  using vec = typename simd<Acc>::vec;
  using ivec = typename simd<Acc>::ivec;
  using Int = typename simd<Acc>::Int;
  constexpr bool wide = sizeof(Acc) == 8;
  constexpr Acc lowest = wide ? Acc(-708) : Acc(-87);  // below it the result is called 0
  // Adding 1.5 * 2^mantissa rounds to a whole number and leaves it in the low bits.
  constexpr Acc magic = wide ? Acc(6755399441055744.0) : Acc(12582912.0f);
  constexpr Acc ln2_high = wide ? Acc(6.93147180369123816490e-01) : Acc(0.693359375f);
  constexpr Acc ln2_low = wide ? Acc(1.90821492927058770002e-10) : Acc(-2.12194440e-4f);
  const vec clamped = x < lowest ? broadcast<Acc>(lowest) : x;
  const vec shifted = clamped * Acc(1.44269504088896340736) + magic;
  const vec n = shifted - magic;
  const vec r = (clamped - n * ln2_high) - n * ln2_low;
  vec sum;
  if constexpr (wide) {
    sum = broadcast<Acc>(Acc(1.0 / 6227020800.0));  // 1 / 13!
    sum = sum * r + Acc(1.0 / 479001600.0);
    sum = sum * r + Acc(1.0 / 39916800.0);
    sum = sum * r + Acc(1.0 / 3628800.0);
    sum = sum * r + Acc(1.0 / 362880.0);
    sum = sum * r + Acc(1.0 / 40320.0);
    sum = sum * r + Acc(1.0 / 5040.0);
  } else {
    sum = broadcast<Acc>(Acc(1.0 / 5040.0));
  }
  sum = sum * r + Acc(1.0 / 720.0);
  sum = sum * r + Acc(1.0 / 120.0);
  sum = sum * r + Acc(1.0 / 24.0);
  sum = sum * r + Acc(1.0 / 6.0);
  sum = sum * r + Acc(0.5);
  sum = sum * r + Acc(1);
  sum = sum * r + Acc(1);
  ivec power;
  std::memcpy(&power, &shifted, sizeof(power));
  power = (power + Int(wide ? 1023 : 127)) << (wide ? 52 : 23);
  vec scale;
  std::memcpy(&scale, &power, sizeof(scale));
  return x < lowest ? vec{} : sum * scale;
}

}  // namespace COLAWORLD_ISA
}  // namespace colaworld

#define COLAWORLD_JOIN_(a, b) a##b
#define COLAWORLD_JOIN(a, b) COLAWORLD_JOIN_(a, b)
