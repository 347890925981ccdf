// Vectors of single precision for attention, as wide as AYAEDGE_BITS.
#pragma once

#include "transposed.h"

#define JOINED_(a, b) a##b
#define JOINED(a, b) JOINED_(a, b)

#if defined(__GNUC__)
#define UNROLLED _Pragma("GCC unroll 16")
#define APART __attribute__((noinline))  // registers are given out for a tile alone
#else
#define UNROLLED
#define APART
#endif

namespace ayaedge {
namespace {

#if AYAEDGE_BITS == 512
constexpr int lanes = 16;
using Floats = __m512;
inline Floats load(const float* p) { return _mm512_load_ps(p); }
inline void store(float* p, Floats v) { _mm512_store_ps(p, v); }
inline Floats same(float v) { return _mm512_set1_ps(v); }
inline Floats fused(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline Floats times(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
inline Floats plus(Floats a, Floats b) { return _mm512_add_ps(a, b); }
inline Floats minus(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
inline Floats quotient(Floats a, Floats b) { return _mm512_div_ps(a, b); }
inline Floats larger(Floats a, Floats b) { return _mm512_max_ps(a, b); }  // b if one is no number
inline Floats halves(const uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline Floats zero_below(Floats limit, Floats v, Floats result) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(v, limit, _CMP_NLT_UQ), result);
}
inline Floats power_of_two(Floats shifted) {  // of a whole number to which 1.5 * 2^23 was added
  return _mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_add_epi32(_mm512_castps_si512(shifted), _mm512_set1_epi32(127)), 23));
}
inline __m128 quarter(__m256 v) { return _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1)); }
inline __m128 quarter(Floats v) {  // four sums that together are that of all lanes
  return quarter(_mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1)));
}
#else
constexpr int lanes = 8;
using Floats = __m256;
inline Floats load(const float* p) { return _mm256_load_ps(p); }
inline void store(float* p, Floats v) { _mm256_store_ps(p, v); }
inline Floats same(float v) { return _mm256_set1_ps(v); }
inline Floats fused(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
inline Floats times(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
inline Floats plus(Floats a, Floats b) { return _mm256_add_ps(a, b); }
inline Floats minus(Floats a, Floats b) { return _mm256_sub_ps(a, b); }
inline Floats quotient(Floats a, Floats b) { return _mm256_div_ps(a, b); }
inline Floats larger(Floats a, Floats b) { return _mm256_max_ps(a, b); }  // b if one is no number
inline Floats halves(const uint16_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline Floats zero_below(Floats limit, Floats v, Floats result) {
  return _mm256_and_ps(_mm256_cmp_ps(v, limit, _CMP_NLT_UQ), result);
}
inline Floats power_of_two(Floats shifted) {  // of a whole number to which 1.5 * 2^23 was added
  return _mm256_castsi256_ps(
      _mm256_slli_epi32(_mm256_add_epi32(_mm256_castps_si256(shifted), _mm256_set1_epi32(127)), 23));
}
inline __m128 quarter(Floats v) { return _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1)); }
#endif

constexpr float to_binary = 1.44269504f;  // scores are exponents of two
constexpr float lowest = -3.40282347e38f;
constexpr uint16_t hidden = 0xfc00;  // minus infinity, in a mask

// 2^x for x up to 0, with a relative error of 8e-8; 0 where it is smaller than 2^-125.
inline Floats exp2(Floats x) {
  const Floats rounding = same(12582912.0f);  // 1.5 * 2^23: added, the last bits are the nearest whole number
  const Floats shifted = plus(x, rounding), r = minus(x, minus(shifted, rounding));
  Floats p = fused(same(0.00132764666f), r, same(0.00967554189f));
  p = fused(p, r, same(0.0555071346f));
  p = fused(p, r, same(0.240221202f));
  p = fused(p, r, same(0.693146944f));
  p = fused(p, r, same(1.00000012f));
  return zero_below(same(-125.0f), x, times(p, power_of_two(shifted)));
}

}  // namespace
}  // namespace ayaedge
