// Activations as 8-bit integers, 256 at a time; the same bits from every kernel, so compiled without fused operations.
#pragma once

#include "product.h"

namespace ayaedge {
namespace {

constexpr float to_integer = 12582912.0f;  // 1.5 * 2^23: added, a float's last bits are its nearest integer, ties to even
constexpr uint32_t infinity = 0x7f800000;

// Fills q and d of one column's block.
inline void quantize_block(const float* x, Column& column) {
  uint32_t words[super_block];
  std::memcpy(words, x, sizeof words);
  uint32_t largest = 0;
  for (int i = 0; i < super_block; ++i) {
    const uint32_t magnitude = words[i] & 0x7fffffff;
    largest = largest > magnitude ? largest : magnitude;
  }
  float most;
  std::memcpy(&most, &largest, 4);
  float inverse = 127.0f / (largest == 0 ? 1.0f : most);
  column.d = most / 127.0f;
  if (largest >= infinity) {  // one is infinite or no number: so is every result of this column
    const uint32_t no_number = 0x7fc00000;
    std::memcpy(&column.d, &no_number, 4);
    inverse = 0;
  } else if (inverse > 3.4e38f || largest == 0) {  // smaller than 2^-120: nothing
    column.d = inverse = 0;
  }
  if (inverse == 0) {
    std::memset(column.q, 0, sizeof column.q);
    return;
  }
  for (int i = 0; i < super_block; ++i) {
    const float shifted = x[i] * inverse + to_integer;
    int32_t bits;
    std::memcpy(&bits, &shifted, 4);
    column.q[i] = int8_t(bits - 0x4b400000);
  }
}

inline void sums_of_16(const Column& column, int32_t* sums) {
  for (int j = 0; j < 16; ++j) {
    int32_t sum = 0;
    for (int i = 0; i < 16; ++i) sum += column.q[16 * j + i];
    sums[j] = sum;
  }
}

}  // namespace
}  // namespace ayaedge
