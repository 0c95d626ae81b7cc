// What qk_norm_rope on the CPU reads for a token: its heads, and its row of the rotation tables.
// Not here: checks and the ops (qk_norm_rope.cpp), and the arithmetic (qk_norm_rope_kernel.h).

#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "buffer.h"
#include "qk_norm_rope.h"

namespace colaworld {
namespace qk_norm_rope_tokens {

using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

// What both ops are told beside q and k.
struct Settings {
  MaybeTensor q_weight;  // [D], or [H * D] when across
  MaybeTensor k_weight;
  MaybeTensor cos;  // [P, D/2]
  MaybeTensor sin;
  MaybeTensor position;  // [L, A] int64
  std::vector<int64_t> sections;  // [A], sum D/2
  double eps;
  bool across;
};

// A [B, L, H, D] tensor whose channels are neighbours, read where it stands.
template <typename Element>
class Heads {
 public:
  explicit Heads(const Tensor& tensor)
      : tensor_(tensor.size(3) == 1 || tensor.stride(3) == 1 ? tensor
                                                             : torch::stable::contiguous(tensor)),
        data_(static_cast<const Element*>(tensor_.const_data_ptr())),
        L_(tensor.size(1)),
        clip_stride_(tensor_.stride(0)),
        token_stride_(tensor_.stride(1)),
        stride_(tensor_.stride(2)) {}
  const Element* token(int64_t token) const {
    return data_ + token / L_ * clip_stride_ + token % L_ * token_stride_;
  }
  int64_t stride() const { return stride_; }

 private:
  Tensor tensor_;
  const Element* data_;
  int64_t L_, clip_stride_, token_stride_, stride_;
};

template <typename Acc>
const Acc* data_of(const MaybeTensor& tensor) {
  return tensor.has_value() ? static_cast<const Acc*>(tensor->const_data_ptr()) : nullptr;
}

// Cosines and sines of one token in the layout that the kernel reads. One per thread.
template <typename Acc>
class Turn {
 public:
  Turn(const Settings& settings, int64_t D)
      : settings_(settings),
        D_(D),
        from_cos_(data_of<Acc>(settings.cos)),
        from_sin_(data_of<Acc>(settings.sin)),
        position_(data_of<int64_t>(settings.position)),
        memory_(2 * D) {}
  void read(int64_t l) {
    if (from_cos_ == nullptr) return;
    if (position_ == nullptr) {
      copy(l, 0, D_ / 2);
      return;
    }
    const int64_t A = static_cast<int64_t>(settings_.sections.size());
    int64_t pair = 0;
    for (int64_t axis = 0; axis < A; ++axis) {
      copy(position_[l * A + axis], pair, pair + settings_.sections[axis]);
      pair += settings_.sections[axis];
    }
  }
  // [D] each; null without a rotation.
  const Acc* cos() const { return from_cos_ == nullptr ? nullptr : memory_.get(); }
  const Acc* sin() const { return from_cos_ == nullptr ? nullptr : memory_.get() + D_; }

 private:
  // Pairs [first, last) from one row of the tables.
  void copy(int64_t row, int64_t first, int64_t last) {
    const Acc* from_cos = from_cos_ + row * (D_ / 2);
    const Acc* from_sin = from_sin_ + row * (D_ / 2);
    Acc* to_cos = memory_.get();
    Acc* to_sin = memory_.get() + D_;
    for (int64_t i = first; i < last; ++i) {
      to_cos[2 * i] = to_cos[2 * i + 1] = from_cos[i];
      to_sin[2 * i] = -from_sin[i];
      to_sin[2 * i + 1] = from_sin[i];
    }
  }

  const Settings& settings_;
  int64_t D_;
  const Acc* from_cos_;
  const Acc* from_sin_;
  const int64_t* position_;
  AlignedBuffer<Acc> memory_;
};

}  // namespace qk_norm_rope_tokens
}  // namespace colaworld
