// Chooses the table of kernels for this machine: SSD_CPU_ISA names one, otherwise it is the best that the CPU can run.

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "simd/kernels.h"

namespace ssd {

namespace portable {
extern const Kernels table;
}

#if defined(__x86_64__)
namespace avx2 {
extern const Kernels table;
}
namespace avx512bf16 {
extern const Kernels table;
}

namespace {

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool has_avx512bf16() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bf16");
}

}  // namespace
#endif

namespace {

const Kernels& pick() {
  const char* asked = std::getenv("SSD_CPU_ISA");
  const std::string name = asked != nullptr ? asked : "";
#if defined(__x86_64__)
  if (has_avx512bf16() && (name.empty() || name == avx512bf16::table.name)) return avx512bf16::table;
  if (has_avx2() && (name.empty() || name == avx2::table.name)) return avx2::table;
#endif
  if (name.empty() || name == portable::table.name) return portable::table;
  throw std::runtime_error("SSD_CPU_ISA=" + name +
                           " is not available here; use portable, avx2 or avx512bf16, as far as this CPU has them.");
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = pick();
  return chosen;
}

}  // namespace ssd
