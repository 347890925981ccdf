// Which kernels this processor and its operating system can run.

#include "attention.h"
#include "product.h"

#ifdef AYAEDGE_X86
#ifdef _MSC_VER
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#ifdef AYAEDGE_AMX
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(AYAEDGE_NEON_DOTPROD)
#if defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(_WIN32)
#include <windows.h>
#endif
#endif

namespace ayaedge {

extern const Kernel kernel_scalar;

#ifdef AYAEDGE_X86
extern const Kernel kernel_avx2, kernel_avx512_vnni;
extern const AttentionKernel attention_avx2, attention_avx512;
#ifdef AYAEDGE_AVX_VNNI
extern const Kernel kernel_avx_vnni;
constexpr const Kernel* avx_vnni = &kernel_avx_vnni;
#else
constexpr const Kernel* avx_vnni = nullptr;  // the compiler does not know it
#endif
#ifdef AYAEDGE_AMX
extern const Kernel kernel_amx_bf16;
constexpr const Kernel* amx_bf16 = &kernel_amx_bf16;
#else
constexpr const Kernel* amx_bf16 = nullptr;
#endif

namespace {

struct Registers {
  uint32_t a, b, c, d;
};

Registers cpuid(uint32_t leaf, uint32_t part) {
#ifdef _MSC_VER
  int r[4];
  __cpuidex(r, int(leaf), int(part));
  return {uint32_t(r[0]), uint32_t(r[1]), uint32_t(r[2]), uint32_t(r[3])};
#else
  Registers r{};
  __get_cpuid_count(leaf, part, &r.a, &r.b, &r.c, &r.d);
  return r;
#endif
}

// What the operating system keeps when it switches threads.
uint64_t kept_registers() {
#ifdef _MSC_VER
  return _xgetbv(0);
#else
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t(high) << 32 | low;
#endif
}

bool has(uint32_t word, uint32_t bits) { return (word & bits) == bits; }

#if defined(AYAEDGE_EMULATED_TILES)
bool has_tiles(const Registers&) { return true; }
#elif defined(AYAEDGE_AMX)
// Linux lets a process use tiles only after it was asked, since they need eight KiB more for each thread.
bool has_tiles(const Registers& seven) {
  const uint32_t bf16 = 1u << 22, tile = 1u << 24, kept = 1u << 17 | 1u << 18;
  constexpr long ask = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, and the number of what is kept
  return has(seven.d, bf16 | tile) && has(uint32_t(kept_registers()), kept) && !syscall(SYS_arch_prctl, ask, tile_data);
}
#else
bool has_tiles(const Registers&) { return false; }
#endif

int best() {
  const Registers one = cpuid(1, 0);
  const uint32_t fma = 1u << 12, os_saves = 1u << 27, avx = 1u << 28, f16c = 1u << 29;
  if (cpuid(0, 0).a < 7 || !has(one.c, fma | os_saves | avx | f16c) || !has(uint32_t(kept_registers()), 6)) return 0;
  const Registers seven = cpuid(7, 0);
  const uint32_t avx2 = 1u << 5, avx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;  // F, DQ, BW, VL
  if (!has(seven.b, avx2)) return 0;
  int bits = 1 << 1;
  if (seven.a >= 1 && has(cpuid(7, 1).a, 1u << 4)) bits |= 1 << 2;
  if (has(seven.b, avx512) && has(seven.c, 1u << 11) && has(uint32_t(kept_registers()), 0xe6)) bits |= 1 << 3;
  if ((bits >> 3 & 1) && has_tiles(seven)) bits |= 1 << 6;
  return bits;
}

}  // namespace

const Kernel* kernel(int index) {
  static const int usable = best();
  static const Kernel* const all[kernels] = {&kernel_scalar, &kernel_avx2, avx_vnni, &kernel_avx512_vnni,
                                              nullptr,        nullptr,      amx_bf16};
  const bool known = index == 0 || (index > 0 && index < kernels && (usable >> index & 1));
  return known ? all[index] : nullptr;
}

const AttentionKernel* attention_kernel(int index) {
  if (index < 1 || !kernel(index)) return nullptr;
  return index < 3 ? &attention_avx2 : &attention_avx512;
}
#elif defined(AYAEDGE_NEON_DOTPROD)
extern const Kernel kernel_neon_dotprod;
#ifdef AYAEDGE_NEON_I8MM
extern const Kernel kernel_neon_i8mm;
constexpr const Kernel* neon_i8mm = &kernel_neon_i8mm;
#else
constexpr const Kernel* neon_i8mm = nullptr;  // the compiler does not know it
#endif

namespace {

// Numbers that older headers do not name.
#if defined(__linux__)
bool has_dotprod() { return getauxval(AT_HWCAP) >> 20 & 1; }
bool has_i8mm() { return getauxval(AT_HWCAP2) >> 13 & 1; }
#elif defined(__APPLE__)
bool has(const char* feature) {
  int value = 0;
  size_t size = sizeof value;
  return sysctlbyname(feature, &value, &size, nullptr, 0) == 0 && value;
}
bool has_dotprod() { return has("hw.optional.arm.FEAT_DotProd"); }
bool has_i8mm() { return has("hw.optional.arm.FEAT_I8MM"); }
#elif defined(_WIN32)
bool has_dotprod() { return IsProcessorFeaturePresent(43); }
bool has_i8mm() { return IsProcessorFeaturePresent(66); }
#else
bool has_dotprod() { return false; }
bool has_i8mm() { return false; }
#endif

}  // namespace

const Kernel* kernel(int index) {
  static const bool dotprod = has_dotprod(), i8mm = dotprod && has_i8mm();
  switch (index) {
    case 0: return &kernel_scalar;
    case 4: return dotprod ? &kernel_neon_dotprod : nullptr;
    case 5: return i8mm ? neon_i8mm : nullptr;
    default: return nullptr;
  }
}
#else
const Kernel* kernel(int index) { return index == 0 ? &kernel_scalar : nullptr; }
#endif

#ifndef AYAEDGE_X86
const AttentionKernel* attention_kernel(int) { return nullptr; }
#endif

}  // namespace ayaedge
