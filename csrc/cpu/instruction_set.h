// Which instruction set the CPU kernels run on: what was compiled, what this processor has, what
// was asked for; and an op's kernels for it. Not here: any kernel.

#pragma once

#include <string>
#include <vector>

// A kernel table is made by one function per instruction set: <name>_baseline, _avx2, _avx512.
#if defined(COLAWORLD_HAS_AVX2) && defined(COLAWORLD_HAS_AVX512)
#define COLAWORLD_KERNELS(name) ::colaworld::kernels_of(name##_baseline, name##_avx2, name##_avx512)
#else
#define COLAWORLD_KERNELS(name) ::colaworld::kernels_of(name##_baseline, nullptr, nullptr)
#endif

namespace colaworld {

// In order: a later one implies that the earlier ones run as well.
enum class InstructionSet { baseline = 0, avx2 = 1, avx512 = 2 };

// "baseline", "avx2", "avx512".
const char* name_of(InstructionSet set);

// What this build holds, baseline first.
std::vector<InstructionSet> compiled_instruction_sets();

// The best compiled set that this processor runs, or the one that COLAWORLD_CPU_ISA names. The
// variable is read once. Throws std::invalid_argument when it names a set that cannot run here.
InstructionSet chosen_instruction_set();

template <typename Table>
Table kernels_of(Table (*baseline)(), Table (*avx2)(), Table (*avx512)()) {
  const InstructionSet chosen = chosen_instruction_set();
  if (chosen == InstructionSet::avx512 && avx512 != nullptr) return avx512();
  if (chosen == InstructionSet::avx2 && avx2 != nullptr) return avx2();
  return baseline();
}

}  // namespace colaworld
