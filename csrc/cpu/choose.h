// Picks an op's kernels for the instruction set of this process.

#pragma once

#include "instruction_set.h"

// A kernel table is made by one function per instruction set: <name>_baseline, _avx2, _avx512.
#if defined(COLAWORLD_HAS_AVX2) && defined(COLAWORLD_HAS_AVX512)
#define COLAWORLD_KERNELS(name) ::colaworld::kernels_of(name##_baseline, name##_avx2, name##_avx512)
#else
#define COLAWORLD_KERNELS(name) ::colaworld::kernels_of(name##_baseline, nullptr, nullptr)
#endif

namespace colaworld {

template <typename Table>
Table kernels_of(Table (*baseline)(), Table (*avx2)(), Table (*avx512)()) {
  const InstructionSet chosen = chosen_instruction_set();
  if (chosen == InstructionSet::avx512 && avx512 != nullptr) return avx512();
  if (chosen == InstructionSet::avx2 && avx2 != nullptr) return avx2();
  return baseline();
}

}  // namespace colaworld
