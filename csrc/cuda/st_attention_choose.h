// Which kernel of st_attention runs for a call, and with how much shared memory. The same on the
// host, where every one of them is tested. Not here: launches (st_attention.cu).

#pragma once

#include "st_attention_backward_kernel.cuh"
#include "st_attention_float_kernel.cuh"

namespace colaworld {
namespace cuda {

namespace st_attention {

template <typename E, int D, int R, typename Launch>
auto with(bool back, Launch&& launch) {
  using Forward = Memory<D, R, false>;
  using Backward = Memory<D, R, true>;
  if (back) return launch(backward<E, D, R>, Backward::WARPS, Backward::BYTES);
  return launch(forward<E, D, R>, Forward::WARPS, Forward::BYTES);
}

template <typename E, typename Launch>
auto choose(int T, int D, bool back, Launch&& launch) {
  if (T <= 16) {
    if (D == 64) return with<E, 64, 2>(back, launch);
    if (D == 72) return with<E, 72, 2>(back, launch);
    if (D == 96) return with<E, 96, 2>(back, launch);
    return with<E, 128, 2>(back, launch);
  }
  if (D == 64) return with<E, 64, 4>(back, launch);
  if (D == 72) return with<E, 72, 4>(back, launch);
  if (D == 96) return with<E, 96, 4>(back, launch);
  return with<E, 128, 4>(back, launch);
}

}  // namespace st_attention

// launch(kernel, warps of a thread block = pairs that it works on at a time, bytes)
template <typename Launch>
auto st_attention_choose(Element element, int T, int D, bool back, Launch&& launch) {
  namespace wide = st_attention_float;
  if (element == Element::bfloat16) return st_attention::choose<bf16>(T, D, back, launch);
  if (element == Element::float16) return st_attention::choose<fp16>(T, D, back, launch);
  const int rows = T <= 16 ? 16 : 32, bytes = wide::bytes(rows, D, back);
  if (back) return launch(rows == 16 ? wide::backward<16> : wide::backward<32>, 1, bytes);
  return launch(rows == 16 ? wide::forward<16> : wide::forward<32>, 1, bytes);
}

}  // namespace cuda
}  // namespace colaworld
