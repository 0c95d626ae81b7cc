// Read before every file of csrc/cuda that handles tensors: what is said of a GPU holds of the CPU.
// Tensors, checks, allocations and strides are the real ones; device, stream and launches are not.

#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

namespace torch {
namespace stable {
namespace accelerator {

struct SameDevice {
  explicit SameDevice(int32_t) {}
};

}  // namespace accelerator
}  // namespace stable
}  // namespace torch

#define is_cuda is_cpu
#define CUDA CPU
#define DeviceGuard SameDevice
