// A warp on the CPU: the instructions of csrc/cuda/device.cuh for a C++ compiler.
//
// Every thread of a block is a context of its own (ucontext). One runs until it exchanges values
// with its warp, or waits for its block; then the next one runs. So the kernels that the GPU runs
// are run here line by line: which lane holds what, which row is read and written, what meets what.
// A lane that takes part in an exchange that others do not reach is found out and ends the program.
//
// Not here: speed, races through memory between two meetings, and rounding inside a tensor core.

#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <type_traits>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }

namespace simt {

struct Index {
  unsigned x;
};
constexpr int LANES = 32;
constexpr size_t STACK = 1 << 17;

struct Message {
  uint32_t word[8];
};

// The lanes of a warp, or the threads of a block, that meet again and again. Two sets of messages:
// a lane may write to the next meeting while others still read those of the last.
struct Meeting {
  int members = 0;
  uint64_t arrivals = 0;
  const char* what[2] = {nullptr, nullptr};
  Message messages[2][LANES];
};

// 16 bytes that a lane has asked for.
struct Copy {
  void* to;
  const void* from;
};

struct Thread {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  Index index;
  bool done = false;
  uint64_t with_warp = 0, with_block = 0;  // meetings so far
  std::vector<std::vector<Copy>> copies;  // closed off, and last those that are still open
};

inline Index thread_index, block_index, block_size, grid_size;
inline std::vector<Thread> threads;
inline std::vector<Meeting> warps;
inline Meeting block;
inline std::vector<char> memory;
inline ucontext_t scheduler;
inline Thread* current = nullptr;
inline uint64_t progress = 0;
inline const std::function<void()>* body = nullptr;

[[noreturn]] inline void fail(const char* what, const char* other) {
  std::fprintf(stderr, "simt: block %u thread %u: %s%s\n", block_index.x, thread_index.x, what,
               other);
  std::abort();
}

inline void meet(
    Meeting& meeting, uint64_t& count, const char* what, int member, const Message* message) {
  const uint64_t n = count++;
  if (meeting.arrivals % meeting.members == 0) meeting.what[n % 2] = what;
  if (std::strcmp(meeting.what[n % 2], what) != 0) fail(what, ": others are elsewhere");
  if (message != nullptr) meeting.messages[n % 2][member] = *message;
  ++meeting.arrivals;
  ++progress;
  Thread* self = current;
  while (meeting.arrivals < count * meeting.members) swapcontext(&self->context, &scheduler);
}

// What the lanes of this warp have sent; the sender's own number is its lane.
inline const Message* exchange(const char* what, const Message& message) {
  Thread& self = *current;
  Meeting& warp = warps[self.index.x / LANES];
  meet(warp, self.with_warp, what, self.index.x % LANES, &message);
  return warp.messages[(self.with_warp - 1) % 2];
}

inline void start() {
  (*body)();
  current->done = true;
  ++progress;
  swapcontext(&current->context, &scheduler);
}

// Runs `kernel` for every block, one after the other. Shared memory starts as NaN.
inline void launch(unsigned grid,
                   unsigned block_threads,
                   size_t bytes,
                   const std::function<void()>& kernel) {
  body = &kernel;
  grid_size = {grid};
  block_size = {block_threads};
  threads.resize(block_threads);
  for (unsigned b = 0; b < grid; ++b) {
    block_index = {b};
    memory.assign(bytes + 16, static_cast<char>(0xff));
    warps.assign((block_threads + LANES - 1) / LANES, Meeting{});
    for (auto& warp : warps) warp.members = LANES;
    block = Meeting{};
    block.members = static_cast<int>(block_threads);
    for (unsigned t = 0; t < block_threads; ++t) {
      Thread& thread = threads[t];
      if (thread.stack == nullptr) thread.stack.reset(new char[STACK]);
      thread.index = {t};
      thread.done = false;
      thread.with_warp = thread.with_block = 0;
      thread.copies.assign(1, {});
      getcontext(&thread.context);
      thread.context.uc_stack.ss_sp = thread.stack.get();
      thread.context.uc_stack.ss_size = STACK;
      thread.context.uc_link = nullptr;
      makecontext(&thread.context, reinterpret_cast<void (*)()>(start), 0);
    }
    unsigned left = block_threads;
    while (left > 0) {
      const uint64_t before = progress;
      for (Thread& thread : threads) {
        if (thread.done) continue;
        current = &thread;
        thread_index = thread.index;
        swapcontext(&scheduler, &thread.context);
        if (thread.done) --left;
      }
      if (left > 0 && progress == before) fail("nobody can go on", "");
    }
  }
}

}  // namespace simt

#define threadIdx (::simt::current->index)
#define blockIdx (::simt::block_index)
#define blockDim (::simt::block_size)
#define gridDim (::simt::grid_size)

namespace colaworld {
namespace cuda {

inline char* shared_memory() {
  const auto at = reinterpret_cast<uintptr_t>(simt::memory.data());
  return reinterpret_cast<char*>((at + 15) / 16 * 16);
}
inline void sync_block() {
  simt::meet(simt::block, simt::current->with_block, "sync_block", 0, nullptr);
}
inline void sync_warp() { simt::exchange("sync_warp", {}); }

template <typename Value>
Value shuffle_xor(Value x, int mask) {
  simt::Message message{};
  std::memcpy(&message, &x, sizeof(Value));
  const simt::Message* all = simt::exchange("shuffle_xor", message);
  std::memcpy(&x, &all[(threadIdx.x % LANES) ^ mask], sizeof(Value));
  return x;
}
template <typename Value>
Value shuffle(Value x, int lane) {
  simt::Message message{};
  std::memcpy(&message, &x, sizeof(Value));
  const simt::Message* all = simt::exchange("shuffle", message);
  std::memcpy(&x, &all[lane % LANES], sizeof(Value));
  return x;
}
inline uint32_t ballot(bool x) {
  const simt::Message* all = simt::exchange("ballot", {{x ? 1u : 0u}});
  uint32_t bits = 0;
  for (int lane = 0; lane < LANES; ++lane) bits |= all[lane].word[0] << lane;
  return bits;
}
inline int count_bits(uint32_t x) { return __builtin_popcount(x); }

inline int lowest_bit(uint32_t x) { return x == 0 ? -1 : __builtin_ctz(x); }
inline float exp2_of(float x) { return std::exp2(x); }
inline float inverse_of(float x) { return 1.f / x; }
inline float rsqrt_of(float x) { return 1.f / std::sqrt(x); }
inline float max_of(float x, float y) { return std::fmax(x, y); }
inline float infinity() { return INFINITY; }
inline void stop() { simt::fail("stop", ""); }

template <typename Value>
Value opaque(Value x) {
  return x;
}

inline const void* on_16_bytes(const void* at, const char* what) {
  if (reinterpret_cast<uintptr_t>(at) % 16 != 0) simt::fail(what, ": not on 16 bytes");
  return at;
}
// Copies are made as late as they may be: when they are waited for.
inline void copy_16(void* to, const void* from) {
  on_16_bytes(to, "copy_16");
  simt::current->copies.back().push_back({to, on_16_bytes(from, "copy_16")});
}
inline void close_copies() { simt::current->copies.emplace_back(); }
template <int OPEN>
void wait_for_copies() {
  auto& copies = simt::current->copies;
  while (copies.size() > OPEN + 1) {
    for (const simt::Copy& copy : copies.front()) std::memcpy(copy.to, copy.from, 16);
    copies.erase(copies.begin());
  }
}

// A lane's word of tile i: the lanes from 8 i on have named its rows.
inline uint32_t word_of_tile(const simt::Message* all, int i, bool turned) {
  const int lane = threadIdx.x % LANES, row = lane / 4, column = lane % 4 * 2;
  const auto number = [&](int r, int c) {
    const char* at;
    uint16_t bits;
    std::memcpy(&at, all[8 * i + r].word, sizeof(at));
    std::memcpy(&bits, at + 2 * c, 2);
    return static_cast<uint32_t>(bits);
  };
  if (turned) return number(column, row) | number(column + 1, row) << 16;
  return number(row, column) | number(row, column + 1) << 16;
}
inline const simt::Message* rows_of_tiles(const char* what, const void* row, int tiles) {
  simt::Message message{};
  if (static_cast<int>(threadIdx.x % LANES) < 8 * tiles) on_16_bytes(row, what);
  std::memcpy(message.word, &row, sizeof(row));
  return simt::exchange(what, message);
}
template <bool TURNED>
void read_tiles(const void* row, uint32_t& a, uint32_t& b, uint32_t& c, uint32_t& d) {
  const simt::Message* all = rows_of_tiles("read_tiles 4", row, 4);
  a = word_of_tile(all, 0, TURNED);
  b = word_of_tile(all, 1, TURNED);
  c = word_of_tile(all, 2, TURNED);
  d = word_of_tile(all, 3, TURNED);
}
template <bool TURNED>
void read_tiles(const void* row, uint32_t& a, uint32_t& b) {
  const simt::Message* all = rows_of_tiles("read_tiles 2", row, 2);
  a = word_of_tile(all, 0, TURNED);
  b = word_of_tile(all, 1, TURNED);
}

inline float2 look_up(const float2* from) { return *from; }

inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline float of_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

inline float widen(float x) { return x; }
inline float widen(bf16 x) { return of_bits(static_cast<uint32_t>(x.bits) << 16); }
inline float widen(fp16 x) {
  const uint32_t sign = (x.bits & 0x8000u) << 16, exponent = x.bits >> 10 & 31,
                 fraction = x.bits & 1023;
  if (exponent == 31) return of_bits(sign | 0x7f800000u | fraction << 13);
  const float size = exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                                   : std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
  return sign != 0 ? -size : size;
}

// To the nearest, ties to even.
template <typename E>
uint32_t narrow(float x);
template <>
inline uint32_t narrow<bf16>(float x) {
  const uint32_t bits = bits_of(x);
  if (std::isnan(x)) return 0x7fff;
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
template <>
inline uint32_t narrow<fp16>(float x) {
  const uint32_t sign = bits_of(x) >> 16 & 0x8000;
  const float size = std::fabs(x);
  if (std::isnan(x)) return 0x7fff;
  if (size >= 65520.f) return sign | 0x7c00;
  int exponent;
  std::frexp(size, &exponent);  // size = f 2^exponent, f in [0.5, 1)
  const int unit = exponent - 11 < -24 ? -24 : exponent - 11;  // of the last place
  const auto count = static_cast<uint32_t>(std::nearbyint(std::ldexp(size, -unit)));
  if (count < 1024) return sign | count;  // subnormal, or zero
  return sign | (static_cast<uint32_t>(unit + 24) * 1024 + count);
}

inline uint32_t transposed(uint32_t x) {
  const simt::Message* all = simt::exchange("transposed", {{x}});
  const int lane = threadIdx.x % LANES, row = lane / 4, column = lane % 4 * 2;
  uint32_t y = 0;
  for (int e = 0; e < 2; ++e) {  // ours at [row, column + e] was at [column + e, row]
    const uint32_t word = all[(column + e) * 4 + row / 2].word[0];
    y |= (row % 2 != 0 ? word >> 16 : word & 0xffff) << 16 * e;
  }
  return y;
}

template <typename E>
struct words {
  static constexpr bool WIDE = std::is_same<E, bf16>::value;
  static float2 unpack(uint32_t x) {
    return {widen(E{static_cast<uint16_t>(x)}), widen(E{static_cast<uint16_t>(x >> 16)})};
  }
  static uint32_t pack(float first, float second) {
    return narrow<E>(first) | narrow<E>(second) << 16;
  }

  // The fragments of mma.sync.m16n8kK as the PTX manual draws them.
  static void product(float (&c)[4], const simt::Message* all, int K, int b_at) {
    const int lane = threadIdx.x % LANES, row = lane / 4, column = lane % 4 * 2;
    const auto number = [&](int of, int word, int half) {
      return widen(E{static_cast<uint16_t>(all[of].word[word] >> 16 * half)});
    };
    for (int n = 0; n < 4; ++n) {
      double sum = c[n];
      for (int k = 0; k < K; ++k) {
        const int across = k % 8;
        const float a = number(row * 4 + across / 2, n / 2 + k / 8 * 2, k % 2);
        const float b = number((column + n % 2) * 4 + across / 2, b_at + k / 8, k % 2);
        sum += static_cast<double>(a) * b;
      }
      c[n] = static_cast<float>(sum);
    }
  }
  static void multiply(
      float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
    product(c, simt::exchange("multiply 16", {{a0, a1, a2, a3, b0, b1}}), 16, 4);
  }
  static void multiply(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t b0) {
    product(c, simt::exchange("multiply 8", {{a0, a1, b0}}), 8, 2);
  }
};

}  // namespace cuda
}  // namespace colaworld
