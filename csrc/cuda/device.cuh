// The few instructions of the GPU that the kernels need, by name, and the stored number types.
// Not here: kernels. No torch header and nothing of the CUDA toolkit's C++ is included.
//
// A kernel written with these names alone is also a program for a C++ compiler, with simt.h
// (tests/csrc) in the place of this file's second half: there the lanes of a warp take turns on the
// CPU and meet where they exchange values. So kernels are tested where there is no GPU.

#pragma once

#include <cstdint>

namespace colaworld {
namespace cuda {

constexpr int LANES = 32;

// Stored numbers as their bits; sums over them run in float.
struct bf16 {
  uint16_t bits;
};
struct fp16 {
  uint16_t bits;
};

}  // namespace cuda
}  // namespace colaworld

#if !defined(__CUDACC__)
#include "simt.h"
#else

namespace colaworld {
namespace cuda {

__device__ __forceinline__ char* shared_memory() {
  extern __shared__ __align__(16) char block_memory[];
  return block_memory;
}
__device__ __forceinline__ void sync_block() { __syncthreads(); }
__device__ __forceinline__ void sync_warp() { __syncwarp(); }

// Among the lanes of a warp, all of which call.
template <typename Value>
__device__ __forceinline__ Value shuffle_xor(Value x, int mask) {
  return __shfl_xor_sync(0xffffffffu, x, mask);
}
template <typename Value>
__device__ __forceinline__ Value shuffle(Value x, int lane) {
  return __shfl_sync(0xffffffffu, x, lane);
}
__device__ __forceinline__ uint32_t ballot(bool x) { return __ballot_sync(0xffffffffu, x); }
__device__ __forceinline__ int count_bits(uint32_t x) { return __popc(x); }

__device__ __forceinline__ int lowest_bit(uint32_t x) { return __ffs(x) - 1; }
__device__ __forceinline__ float exp2_of(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float inverse_of(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float rsqrt_of(float x) { return rsqrtf(x); }
__device__ __forceinline__ float max_of(float x, float y) { return fmaxf(x, y); }
__device__ __forceinline__ float infinity() { return __int_as_float(0x7f800000); }
__device__ __forceinline__ void stop() { __trap(); }

// The same value, and nothing that was made of it before is still in registers: recomputed where it
// is cheaper than to hold.
template <typename Value>
__device__ __forceinline__ Value opaque(Value x) {
  asm volatile("" : "+r"(x));
  return x;
}

// 16 bytes on their way from global to shared memory, both on 16 bytes. They are there for this
// lane once it has waited for the copies that it has closed off since, for its warp once that has
// synced.
__device__ __forceinline__ void copy_16(void* to, const void* from) {
  const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(at), "l"(from) : "memory");
}
__device__ __forceinline__ void close_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Waits until at most OPEN of what was closed off last is still on its way.
template <int OPEN>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(OPEN) : "memory");
}

// Tiles of 8 x 8 16-bit numbers of shared memory, a word a lane, TURNED: transposed. Lane 8 i + r
// names row r of tile i.
template <bool TURNED>
__device__ __forceinline__ void read_tiles(
    const void* row, uint32_t& a, uint32_t& b, uint32_t& c, uint32_t& d) {
  const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  if constexpr (TURNED) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(a), "=r"(b), "=r"(c), "=r"(d)
                 : "r"(at)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(a), "=r"(b), "=r"(c), "=r"(d)
                 : "r"(at)
                 : "memory");
  }
}
template <bool TURNED>
__device__ __forceinline__ void read_tiles(const void* row, uint32_t& a, uint32_t& b) {
  const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  if constexpr (TURNED) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(a), "=r"(b)
                 : "r"(at)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(a), "=r"(b)
                 : "r"(at)
                 : "memory");
  }
}

// 8 bytes of shared memory. Volatile: what is looked up twice is not held in registers in between.
__device__ __forceinline__ float2 look_up(const float2* from) {
  float2 x;
  const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(from));
  asm volatile("ld.volatile.shared.v2.f32 {%0, %1}, [%2];" : "=f"(x.x), "=f"(x.y) : "r"(at));
  return x;
}

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(bf16 x) {
  return __uint_as_float(static_cast<uint32_t>(x.bits) << 16);
}
__device__ __forceinline__ float widen(fp16 x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}

// The 8 x 8 tile of 16-bit numbers that a warp holds, a word a lane, transposed.
__device__ __forceinline__ uint32_t transposed(uint32_t x) {
  uint32_t y;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}

// Words of two 16-bit numbers, the first in the low half, and the tensor core's products of them:
// c [16, 8] += a [16, K] b [K, 8], K = 16 or 8, sums in float.
template <typename E>
struct words;

template <>
struct words<bf16> {
  static constexpr bool WIDE = true;  // as wide a range as float
  static __device__ __forceinline__ float2 unpack(uint32_t x) {
    return make_float2(__uint_as_float(x << 16), __uint_as_float(x & 0xffff0000u));
  }
  static __device__ __forceinline__ uint32_t pack(float first, float second) {
    uint32_t x;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(x) : "f"(second), "f"(first));
    return x;
  }
  static __device__ __forceinline__ void multiply(
      float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  }
  static __device__ __forceinline__ void multiply(float (&c)[4],
                                                  uint32_t a0,
                                                  uint32_t a1,
                                                  uint32_t b0) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(b0));
  }
};

template <>
struct words<fp16> {
  static constexpr bool WIDE = false;
  static __device__ __forceinline__ float2 unpack(uint32_t x) {
    return make_float2(widen(fp16{static_cast<uint16_t>(x)}),
                       widen(fp16{static_cast<uint16_t>(x >> 16)}));
  }
  static __device__ __forceinline__ uint32_t pack(float first, float second) {
    uint32_t x;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(x) : "f"(second), "f"(first));
    return x;
  }
  static __device__ __forceinline__ void multiply(
      float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  }
  static __device__ __forceinline__ void multiply(float (&c)[4],
                                                  uint32_t a0,
                                                  uint32_t a1,
                                                  uint32_t b0) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(b0));
  }
};

}  // namespace cuda
}  // namespace colaworld

#endif
