// How adaln on the CPU cuts a clip into tasks, reads its tables, and adds up their gradients.
// Not here: checks and the ops (adaln.cpp), and the arithmetic on rows (adaln_kernel.h).

#pragma once

#include <cstdint>
#include <cstring>
#include <optional>

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include "buffer.h"
#include "number.h"

namespace colaworld {
namespace adaln_frames {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

// Rows of one task. A task's sums over rows cost 3 rows of traffic, about a hundredth of its work;
// the number does not depend on the threads, so neither does any sum.
constexpr int64_t BLOCK_ROWS = 64;
// An element takes about a nanosecond; a thread should be worth some 30 microseconds.
constexpr int64_t ELEMENTS_PER_TASK = 1 << 15;

// How a clip is cut into tasks: neighbouring rows of one frame.
struct Tasks {
  int64_t T, S, C, frames, blocks;
  explicit Tasks(const Tensor& x)
      : T(x.size(1)),
        S(x.size(2)),
        C(x.size(3)),
        frames(x.size(0) * x.size(1)),
        blocks((x.size(2) + BLOCK_ROWS - 1) / BLOCK_ROWS) {}
  int64_t count() const { return frames * blocks; }
  int64_t grain() const { return 1 + ELEMENTS_PER_TASK / (C * (S < BLOCK_ROWS ? S : BLOCK_ROWS)); }
  int64_t first_row(int64_t task) const { return task % blocks * BLOCK_ROWS; }
  int64_t rows(int64_t task) const {
    const int64_t left = S - first_row(task);
    return left < BLOCK_ROWS ? left : BLOCK_ROWS;
  }
};

// A [B, T, S, C] tensor whose columns are neighbours, read where it stands.
template <typename Element>
class Clip {
 public:
  Clip(const Tensor& tensor, const Tasks& tasks)
      : tensor_(tasks.C == 1 || tensor.stride(3) == 1 ? tensor : torch::stable::contiguous(tensor)),
        data_(static_cast<const Element*>(tensor_.const_data_ptr())),
        tasks_(tasks) {}
  const Element* rows(int64_t task) const {
    const int64_t frame = task / tasks_.blocks;
    return data_ + frame / tasks_.T * tensor_.stride(0) + frame % tasks_.T * tensor_.stride(1) +
           tasks_.first_row(task) * tensor_.stride(2);
  }
  int64_t stride() const { return tensor_.stride(2); }

 private:
  Tensor tensor_;
  const Element* data_;
  const Tasks& tasks_;
};

// Gate, shift or scale, a row [C] for each frame. Read in place with any strides and any of the
// three dtypes, one row at a time.
class Table {
 public:
  explicit Table(const Tensor& tensor)  // [B, T, C]
      : data_(tensor.const_data_ptr()), type_(tensor.scalar_type()), T_(tensor.size(1)) {
    for (int64_t i = 0; i < 3; ++i) stride_[i] = tensor.stride(i);
  }
  // to[c] = plus + row[c]
  template <typename Acc>
  void read(int64_t frame, int64_t C, Acc plus, Acc* to) const {
    const int64_t start = frame / T_ * stride_[0] + frame % T_ * stride_[1];
    const int64_t step = stride_[2];
    switch (type_) {
      case ScalarType::Float:
        return copy(static_cast<const float*>(data_) + start, step, C, plus, to);
      case ScalarType::Double:
        return copy(static_cast<const double*>(data_) + start, step, C, plus, to);
      default:
        return copy(static_cast<const bfloat16*>(data_) + start, step, C, plus, to);
    }
  }

 private:
  template <typename Element, typename Acc>
  static void copy(const Element* from, int64_t step, int64_t C, Acc plus, Acc* to) {
    for (int64_t c = 0; c < C; ++c) to[c] = static_cast<Acc>(value(from[c * step])) + plus;
  }
  static float value(float x) { return x; }
  static double value(double x) { return x; }
  static float value(bfloat16 x) {
    const uint32_t word = static_cast<uint32_t>(x.bits) << 16;
    float wide;
    std::memcpy(&wide, &word, sizeof(wide));
    return wide;
  }

  const void* data_;
  ScalarType type_;
  int64_t T_;
  int64_t stride_[3];
};

inline std::optional<Table> table_of(const MaybeTensor& tensor) {
  if (!tensor.has_value()) return std::nullopt;
  return Table(*tensor);
}

// The modulation of one frame in the width of sums: gate, 1 + scale, shift. One per thread.
template <typename Acc>
class FrameRows {
 public:
  explicit FrameRows(int64_t C) : C_(C), memory_(3 * C) {}
  void read(int64_t frame,
            const std::optional<Table>& gate,
            const Table& scale,
            const Table* shift) {
    if (frame == frame_) return;
    frame_ = frame;
    if (gate.has_value()) {
      gate->read(frame, C_, Acc(0), memory_.get());
    } else {
      for (int64_t c = 0; c < C_; ++c) memory_.get()[c] = Acc(1);
    }
    scale.read(frame, C_, Acc(1), memory_.get() + C_);
    if (shift != nullptr) shift->read(frame, C_, Acc(0), memory_.get() + 2 * C_);
  }
  const Acc* gate() const { return memory_.get(); }
  const Acc* factor() const { return memory_.get() + C_; }
  const Acc* shift() const { return memory_.get() + 2 * C_; }

 private:
  int64_t C_, frame_ = -1;
  AlignedBuffer<Acc> memory_;
};

// Sums over the rows of each task, and from them the gradients of the three tables.
template <typename Acc>
class TableSums {
 public:
  explicit TableSums(const Tasks& tasks) : tasks_(tasks), memory_(3 * tasks.count() * tasks.C) {}
  // [C] of one table and task.
  Acc* row(int64_t table, int64_t task) const {
    return memory_.get() + (table * tasks_.count() + task) * tasks_.C;
  }
  void clear(int64_t task) const {
    for (int64_t table = 0; table < 3; ++table) {
      std::memset(row(table, task), 0, tasks_.C * sizeof(Acc));
    }
  }
  // The tasks of a frame are added in their order.
  void add_up(int64_t table, const Tensor& to) const {  // [B, T, C]
    const int64_t C = tasks_.C, blocks = tasks_.blocks;
    Acc* sums = static_cast<Acc*>(to.mutable_data_ptr());
    std::memset(sums, 0, to.numel() * sizeof(Acc));
    // Columns are shared out, so that no two threads meet in a row.
    const int64_t grain = 1 + ELEMENTS_PER_TASK / tasks_.count();
    torch::stable::parallel_for(0, C, grain, [&](int64_t first, int64_t last) {
      for (int64_t task = 0; task < tasks_.count(); ++task) {
        const Acc* from = row(table, task);
        Acc* sum = sums + task / blocks * C;
        for (int64_t c = first; c < last; ++c) sum[c] += from[c];
      }
    });
  }

 private:
  const Tasks& tasks_;
  AlignedBuffer<Acc> memory_;
};

}  // namespace adaln_frames
}  // namespace colaworld
