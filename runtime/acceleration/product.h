// One matrix product of a prefill: quantized weights times columns of float activations, and the kernels that do it.
#pragma once

#include <cstdint>
#include <cstring>

namespace ayaedge {

constexpr int super_block = 256;
constexpr int row_step = 32;  // rows of a product are a multiple of it: the panel of the widest kernel

enum Type : int32_t { q4_k = 12, q6_k = 14 };  // ggml's numbers

// As the GGUF format stores 256 weights of a row. A Q4_K weight is d*scale*q - dmin*minimum, with 6-bit scale and
// minimum for each 32; a Q6_K weight is d*scale*(q - 32), with an 8-bit scale for each 16. Halves are bits.
struct BlockQ4K {
  uint16_t d, dmin;
  uint8_t scales[12];
  uint8_t q[128];
};
struct BlockQ6K {
  uint8_t low[128];
  uint8_t high[64];
  int8_t scales[16];
  uint16_t d;
};
static_assert(sizeof(BlockQ4K) == 144 && alignof(BlockQ4K) == 2, "the layout of Q4_K in GGUF");
static_assert(sizeof(BlockQ6K) == 210 && alignof(BlockQ6K) == 2, "the layout of Q6_K in GGUF");

constexpr int64_t block_bytes(int32_t type) { return type == q4_k ? 144 : type == q6_k ? 210 : 0; }

struct SumsOf32 {
  int32_t start[8];  // -8 times the sum of each 32
  float sum[8];
};

// 256 activations of one column as d*q, with what a kernel wants to know of their sums.
struct Column {
  int8_t q[super_block];
  float d;  // NaN where one of them is not finite
  union {
    SumsOf32 q4;
    int32_t start[16];  // -32 times the sum of each 16
    int16_t sum16[16];
    int8_t parts[16];  // of the eight sums of each 32: their s - 128h, then their h
  };
};

struct Product {
  int32_t type;
  const uint8_t* weights;  // rows of depth/256 blocks, one behind the other
  int64_t rows, depth;
  const float* x;  // columns of `depth` values, x_stride values apart
  int64_t x_stride, columns;
  float* out;  // columns of `rows` values, out_stride values apart
  int64_t out_stride;
  Column* quantized;  // [depth/256][columns]
  uint16_t* pairs = nullptr;  // or of bf16, for AMX: [depth/256][columns/16][128][16][2]
};

constexpr int64_t columns_at_once = 512;  // of two blocks, they stay in the second-level cache
constexpr int64_t most_rows = 128;        // of a task
constexpr int64_t amx_rows = 256;         // of a task of the kernel for AMX
constexpr int64_t amx_weights = amx_rows * 4 * super_block;

// What a task has added up so far, [rows/panel][columns][panel]: side by side, where the columns of the result may be
// a power of two apart, and throw one another out of the caches. Memory that no kernel touches costs none.
struct alignas(64) Sums {
  float values[amx_rows * columns_at_once];
  uint16_t weights[amx_weights];  // as bf16, for AMX
};

// Copies the finished sums of a task, in panels of so many rows, to where they belong.
template <int panel>
void hand_over(const Product& p, int64_t first_row, int64_t end_row, const Sums& sums) {
  for (int64_t c = 0; c < p.columns; ++c)
    for (int64_t row = first_row; row < end_row; row += panel) {
      const float* from = sums.values + (row - first_row) * p.columns + c * panel;
      std::memcpy(p.out + c * p.out_stride + row, from, panel * sizeof(float));
    }
}

struct Kernel {
  const char* name;
  void (*quantize)(const Product&, int64_t column);  // and those behind it in its group
  void (*multiply)(const Product&, int64_t first_row, int64_t end_row, Sums& sums);  // at most most_rows
  int64_t (*peak)(int64_t rounds);  // operations of a loop without memory: what the instructions could do at best
  int64_t group = 1;                      // columns that are quantized together
  int64_t column_bytes = sizeof(Column);  // of 256 activations
  int64_t most_rows = ayaedge::most_rows;
};

constexpr int kernels = 7;
// 0 scalar, 1 AVX2, 2 AVX-VNNI, 3 AVX-512 VNNI, 4 Arm dotprod, 5 Arm i8mm, 6 AMX bf16; null if not compiled or not
// known here.
const Kernel* kernel(int index);

inline float half(uint16_t bits) {
  const uint32_t sign = uint32_t(bits & 0x8000) << 16, magnitude = bits & 0x7fff;
  float value;
  if (magnitude < 0x400) {  // zero and denormals
    value = float(magnitude) * 5.9604644775390625e-8f;
    uint32_t word;
    std::memcpy(&word, &value, 4);
    word |= sign;
    std::memcpy(&value, &word, 4);
    return value;
  }
  const uint32_t word = sign | (magnitude >= 0x7c00 ? 0x7f800000 | (magnitude & 0x3ff) << 13
                                                    : (magnitude << 13) + 0x38000000);
  std::memcpy(&value, &word, 4);
  return value;
}

// Scale (0..63) and minimum (0..63) of each 32 weights, from Q4_K's 12 bytes.
inline void unpack_scales(const uint8_t* packed, uint8_t* scale, uint8_t* minimum) {
  uint32_t a, b, c;
  std::memcpy(&a, packed, 4);
  std::memcpy(&b, packed + 4, 4);
  std::memcpy(&c, packed + 8, 4);
  const uint32_t six = 0x3f3f3f3f, four = 0x0f0f0f0f, two = 0x30303030;
  const uint32_t words[4] = {a & six, (c & four) | ((a >> 2) & two), b & six, ((c >> 4) & four) | ((b >> 2) & two)};
  std::memcpy(scale, words, 8);
  std::memcpy(minimum, words + 2, 8);
}

}  // namespace ayaedge
