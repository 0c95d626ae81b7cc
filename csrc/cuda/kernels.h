// The CUDA kernels as their ops launch them, for whoever asks what a launch takes. In C:
// bindings.cpp is compiled apart from the library. Not here: launches.

#pragma once

#include <cstddef>

extern "C" {

struct ColaworldKernel {
  const char* name;  // "st_attention forward, bfloat16, D 72, T <= 16"
  int threads;  // of a block
  int dynamic_shared;  // bytes of a block, that the launch asks for
  // What the driver says on the current device; -1 where it was not asked.
  int registers;  // of a thread
  int local;  // bytes of a thread: its stack, and what was spilled
  int static_shared;  // bytes of a block, beside those asked for
  int blocks;  // that a multiprocessor works on at a time
};

typedef void (*ColaworldVisit)(void* context, const ColaworldKernel* kernel, std::size_t size);

// Calls visit(context, kernel, sizeof(ColaworldKernel)) for each. Null, or the CUDA runtime's words
// for why the driver gave no answer.
const char* colaworld_cuda_kernels(int ask_driver, ColaworldVisit visit, void* context);

}  // extern "C"
