// The product for 64-bit Arm, compiled once for dot products of four bytes (dotprod) and once for products of two rows
// of eight bytes with two columns (i8mm). Sums of a block are integers and its floats are multiplied as the scalar
// kernel does, so that its bits come out.

#if !defined(__aarch64__) && !defined(_M_ARM64)
#error "these are instructions of 64-bit Arm"
#endif

#include <arm_neon.h>

#include <algorithm>

#include "quantize.h"

#define JOINED_(a, b) a##b
#define JOINED(a, b) JOINED_(a, b)

#if defined(__GNUC__)
#define UNROLLED _Pragma("GCC unroll 16")
#define APART __attribute__((noinline))  // registers are given out for a tile alone
#define KEPT(v) asm volatile("" : "+w"(v))
#else
#define UNROLLED
#define APART
#define KEPT(v)
#endif

namespace ayaedge {
namespace {

constexpr int strip_rows = 8;
constexpr int strips = row_step / strip_rows;
constexpr int blocks_at_once = 2;  // of 32 rows, they stay in the first-level cache
constexpr int tile_columns = 6;    // of 8 rows, sums and totals take 24 of the 32 registers
constexpr int pieces = 17;         // of 16 weights; the last holds a Q4_K block's eight minima

#if AYAEDGE_I8MM
constexpr int scale_copies = 2;  // a vector of sums has two rows by two columns
#else
constexpr int scale_copies = 1;  // a vector of sums has four rows
#endif

// A block of each of eight rows; the weights in the order in which a tile reads them.
struct alignas(64) Strip {
  int8_t w[pieces][16 * strip_rows];
  int32_t scale[16][scale_copies * strip_rows];
  float d[strip_rows], dmin[strip_rows];
};

// Weights 16i to 16i + 15 of a block.
inline int8x16_t weights(const BlockQ4K& block, int i) {
  const uint8x16_t bytes = vld1q_u8(block.q + 32 * (i / 4) + 16 * (i % 2));
  return vreinterpretq_s8_u8(i / 2 % 2 ? vshrq_n_u8(bytes, 4) : vandq_u8(bytes, vdupq_n_u8(15)));
}

inline int8x16_t weights(const BlockQ6K& block, int i) {
  const int part = i / 8, group = i % 8 / 2, half = i % 2;
  const uint8x16_t low = vld1q_u8(block.low + 64 * part + 32 * (group % 2) + 16 * half);
  const uint8x16_t high = vld1q_u8(block.high + 32 * part + 16 * half);
  const uint8x16_t nibbles = group / 2 ? vshrq_n_u8(low, 4) : vandq_u8(low, vdupq_n_u8(15));
  const uint8x16_t pairs = vandq_u8(vshlq_u8(high, vdupq_n_s8(int8_t(4 - 2 * group))), vdupq_n_u8(0x30));
  return vsubq_s8(vreinterpretq_s8_u8(vorrq_u8(nibbles, pairs)), vdupq_n_s8(32));
}

// 16 weights of rows r to r + 3 to their places in a strip's piece.
inline void place(int8_t* piece, int r, const int8x16_t (&row)[4]) {
#if AYAEDGE_I8MM  // [two eights][four pairs of rows][two rows][eight]
  for (int pair = 0; pair < 2; ++pair) {
    const int64x2_t a = vreinterpretq_s64_s8(row[2 * pair]), b = vreinterpretq_s64_s8(row[2 * pair + 1]);
    int8_t* at = piece + 16 * (r / 2 + pair);
    vst1q_s8(at, vreinterpretq_s8_s64(vzip1q_s64(a, b)));
    vst1q_s8(at + 64, vreinterpretq_s8_s64(vzip2q_s64(a, b)));
  }
#else  // [four fours][eight rows][four]
  int32x4_t v[4], a[4];
  for (int i = 0; i < 4; ++i) v[i] = vreinterpretq_s32_s8(row[i]);
  for (int i = 0; i < 2; ++i) {
    a[2 * i] = vzip1q_s32(v[i], v[i + 2]);  // of rows i and i + 2: fours 0, 0, 1, 1; then 2, 2, 3, 3
    a[2 * i + 1] = vzip2q_s32(v[i], v[i + 2]);
  }
  for (int i = 0; i < 2; ++i) {
    vst1q_s8(piece + 64 * i + 4 * r, vreinterpretq_s8_s32(vzip1q_s32(a[i], a[i + 2])));
    vst1q_s8(piece + 64 * i + 32 + 4 * r, vreinterpretq_s8_s32(vzip2q_s32(a[i], a[i + 2])));
  }
#endif
}

inline void put_scale(Strip& strip, int j, int r, int32_t scale) {
  for (int i = 0; i < scale_copies; ++i) strip.scale[j][scale_copies * r + i] = scale;
}

void unpack_heads(const BlockQ4K* const (&rows)[strip_rows], Strip& strip) {
  int8x16_t minima[strip_rows];
  for (int r = 0; r < strip_rows; ++r) {
    uint8_t scale[8], minimum[8];
    unpack_scales(rows[r]->scales, scale, minimum);
    for (int j = 0; j < 8; ++j) put_scale(strip, j, r, scale[j]);
    minima[r] = vcombine_s8(vreinterpret_s8_u8(vld1_u8(minimum)), vdup_n_s8(0));
    strip.d[r] = half(rows[r]->d);
    strip.dmin[r] = half(rows[r]->dmin);
  }
  for (int r = 0; r < strip_rows; r += 4)
    place(strip.w[16], r, {minima[r], minima[r + 1], minima[r + 2], minima[r + 3]});
}

void unpack_heads(const BlockQ6K* const (&rows)[strip_rows], Strip& strip) {
  for (int r = 0; r < strip_rows; ++r) {
    for (int j = 0; j < 16; ++j) put_scale(strip, j, r, rows[r]->scales[j]);
    strip.d[r] = half(rows[r]->d);
  }
}

// A block of each of a strip's rows, which are `step` blocks apart.
template <typename Block>
void unpack(const Block* block, int64_t step, Strip& strip) {
  const Block* rows[strip_rows];
  for (int r = 0; r < strip_rows; ++r) rows[r] = block + r * step;
  UNROLLED for (int i = 0; i < 16; ++i)
    for (int r = 0; r < strip_rows; r += 4)
      place(strip.w[i], r, {weights(*rows[r], i), weights(*rows[r + 1], i), weights(*rows[r + 2], i),
                            weights(*rows[r + 3], i)});
  unpack_heads(rows, strip);
}

#if AYAEDGE_I8MM
// A block of C columns, two side by side: eight of each in a vector. An odd one is its own neighbour.
template <int C>
struct Activations {
  static constexpr int vectors = 4, across = (C + 1) / 2;  // of sums: pairs of rows, pairs of columns
  int8_t q[across][pieces][32];

  explicit Activations(const Column* columns) {
    for (int c = 0; c < across; ++c) {
      const Column &left = columns[2 * c], &right = columns[std::min(2 * c + 1, C - 1)];
      for (int i = 0; i < 16; ++i) pair(left.q + 16 * i, right.q + 16 * i, q[c][i]);
      pair(left.parts, right.parts, q[c][16]);
    }
  }

  static void pair(const int8_t* left, const int8_t* right, int8_t* out) {
    const int64x2_t a = vreinterpretq_s64_s8(vld1q_s8(left)), b = vreinterpretq_s64_s8(vld1q_s8(right));
    vst1q_s8(out, vreinterpretq_s8_s64(vzip1q_s64(a, b)));
    vst1q_s8(out + 16, vreinterpretq_s8_s64(vzip2q_s64(a, b)));
  }

  // Adds the products of piece i's weights.
  void add(const Strip& strip, int i, int32x4_t (&sum)[vectors][across]) const {
    UNROLLED for (int eight = 0; eight < 2; ++eight) {
      int8x16_t x[across];
      UNROLLED for (int c = 0; c < across; ++c) x[c] = vld1q_s8(q[c][i] + 16 * eight);
      UNROLLED for (int v = 0; v < vectors; ++v) {
        const int8x16_t w = vld1q_s8(strip.w[i] + 64 * eight + 16 * v);
        UNROLLED for (int c = 0; c < across; ++c) sum[v][c] = vmmlaq_s32(sum[v][c], w, x[c]);
      }
    }
  }

  // Rows 4h to 4h + 3 of column c, out of sums.
  static int32x4_t rows_of(int32x4_t upper, int32x4_t lower, int c) {
    return c % 2 ? vuzp2q_s32(upper, lower) : vuzp1q_s32(upper, lower);
  }
  static int32x4_t rows_of(const int32x4_t (&sum)[vectors][across], int h, int c) {
    return rows_of(sum[2 * h][c / 2], sum[2 * h + 1][c / 2], c);
  }

  // Of the same rows and column: the minima times the sums of each 32.
  int32x4_t minima(const Strip& strip, int h, int c) const {
    int32x4_t sum[2];
    for (int v = 0; v < 2; ++v) {
      const int8x16_t w = vld1q_s8(strip.w[16] + 16 * (2 * h + v));
      const int32x4_t high = vmmlaq_s32(vdupq_n_s32(0), w, vld1q_s8(q[c / 2][16] + 16));
      sum[v] = vmmlaq_s32(vshlq_n_s32(high, 7), w, vld1q_s8(q[c / 2][16]));
    }
    return rows_of(sum[0], sum[1], c);
  }
};
#else
// A block of C columns.
template <int C>
struct Activations {
  static constexpr int vectors = 2, across = C;  // of sums: four rows each, columns
  const Column* columns;

  explicit Activations(const Column* first) : columns(first) {}

  // Adds the products of piece i's weights.
  void add(const Strip& strip, int i, int32x4_t (&sum)[vectors][across]) const {
    int8x16_t x[C];
    UNROLLED for (int c = 0; c < C; ++c) x[c] = vld1q_s8(columns[c].q + 16 * i);
    add_four<0>(strip.w[i], x, sum);
    add_four<1>(strip.w[i], x, sum);
    add_four<2>(strip.w[i], x, sum);
    add_four<3>(strip.w[i], x, sum);
  }

  template <int Four>
  static void add_four(const int8_t* piece, const int8x16_t (&x)[C], int32x4_t (&sum)[vectors][across]) {
    const int8x16_t w0 = vld1q_s8(piece + 32 * Four), w1 = vld1q_s8(piece + 32 * Four + 16);
    UNROLLED for (int c = 0; c < C; ++c) {
      sum[0][c] = vdotq_laneq_s32(sum[0][c], w0, x[c], Four);
      sum[1][c] = vdotq_laneq_s32(sum[1][c], w1, x[c], Four);
    }
  }

  // Rows 4h to 4h + 3 of column c, out of sums.
  static int32x4_t rows_of(const int32x4_t (&sum)[vectors][across], int h, int c) { return sum[h][c]; }

  // Of the same rows and column: the minima times the sums of each 32.
  int32x4_t minima(const Strip& strip, int h, int c) const {
    const int8x16_t parts = vld1q_s8(columns[c].parts);
    const int8x16_t w0 = vld1q_s8(strip.w[16] + 16 * h), w1 = vld1q_s8(strip.w[16] + 32 + 16 * h);
    int32x4_t sum = vdotq_laneq_s32(vdotq_laneq_s32(vdupq_n_s32(0), w0, parts, 2), w1, parts, 3);
    sum = vshlq_n_s32(sum, 7);
    return vdotq_laneq_s32(vdotq_laneq_s32(sum, w0, parts, 0), w1, parts, 1);
  }
};
#endif

// Adds a block's products of a strip with C columns to `out`, or begins with them.
template <typename Block, int C>
APART void tile(const Strip& strip, const Activations<C>& x, const Column* columns, float* out, bool first) {
  constexpr bool has_minima = sizeof(Block) == sizeof(BlockQ4K);
  constexpr int groups = has_minima ? 8 : 16, vectors = Activations<C>::vectors, across = Activations<C>::across;
  int32x4_t total[vectors][across];
  UNROLLED for (int v = 0; v < vectors; ++v)
    UNROLLED for (int c = 0; c < across; ++c) total[v][c] = vdupq_n_s32(0);
  for (int j = 0; j < groups; ++j) {
    int32x4_t sum[vectors][across];
    UNROLLED for (int v = 0; v < vectors; ++v)
      UNROLLED for (int c = 0; c < across; ++c) sum[v][c] = vdupq_n_s32(0);
    UNROLLED for (int i = 0; i < 16 / groups; ++i) x.add(strip, 16 / groups * j + i, sum);
    UNROLLED for (int v = 0; v < vectors; ++v) {
      const int32x4_t scale = vld1q_s32(strip.scale[j] + 4 * v);
      UNROLLED for (int c = 0; c < across; ++c) total[v][c] = vmlaq_s32(total[v][c], sum[v][c], scale);
    }
  }
  UNROLLED for (int h = 0; h < 2; ++h) {
    const float32x4_t d = vld1q_f32(strip.d + 4 * h);
    UNROLLED for (int c = 0; c < C; ++c) {
      float32x4_t value = vmulq_f32(d, vcvtq_f32_s32(x.rows_of(total, h, c)));
      if constexpr (has_minima) {
        const float32x4_t dmin = vld1q_f32(strip.dmin + 4 * h);
        value = vsubq_f32(value, vmulq_f32(dmin, vcvtq_f32_s32(x.minima(strip, h, c))));
      }
      float* at = out + c * row_step + 4 * h;
      const float32x4_t before = first ? vdupq_n_f32(0) : vld1q_f32(at);
      vst1q_f32(at, vaddq_f32(before, vmulq_f32(vdupq_n_f32(columns[c].d), value)));
    }
  }
}

template <typename Block, int C>
void tiles(const Strip* panel, const Column* columns, int64_t count, float* out, bool first) {
  int64_t c = 0;
  for (; c + C <= count; c += C) {
    const Activations<C> x(columns + c);
    for (int s = 0; s < strips; ++s)
      tile<Block, C>(panel[s], x, columns + c, out + c * row_step + s * strip_rows, first);
  }
  if constexpr (C > 1)
    if (c < count) tiles<Block, C - 1>(panel, columns + c, count - c, out + c * row_step, first);
}

template <typename Block>
void multiply_rows(const Product& p, int64_t first_row, int64_t end_row, Sums& sums) {
  const int64_t blocks = p.depth / super_block;
  const Block* weights = reinterpret_cast<const Block*>(p.weights);
  for (int64_t block = 0; block < blocks; block += blocks_at_once)
    for (int64_t row = first_row; row < end_row; row += row_step) {
      float* out = sums.values + (row - first_row) * p.columns;
      const int many = int(std::min<int64_t>(blocks - block, blocks_at_once));
      Strip panel[blocks_at_once][strips];
      for (int b = 0; b < many; ++b)
        for (int s = 0; s < strips; ++s)
          unpack(weights + (row + s * strip_rows) * blocks + block + b, blocks, panel[b][s]);
      for (int b = 0; b < many; ++b)
        tiles<Block, tile_columns>(panel[b], p.quantized + (block + b) * p.columns, p.columns, out, block + b == 0);
    }
  hand_over<row_step>(p, first_row, end_row, sums);
}

void multiply(const Product& p, int64_t first_row, int64_t end_row, Sums& sums) {
  p.type == q4_k ? multiply_rows<BlockQ4K>(p, first_row, end_row, sums)
                 : multiply_rows<BlockQ6K>(p, first_row, end_row, sums);
}

void quantize(const Product& p, int64_t index) {
  for (int64_t block = 0; block < p.depth / super_block; ++block) {
    Column& column = p.quantized[block * p.columns + index];
    quantize_block(p.x + index * p.x_stride + block * super_block, column);
    int32_t sums[16];
    sums_of_16(column, sums);
    for (int j = 0; j < 8; ++j) {
      const int32_t sum = sums[2 * j] + sums[2 * j + 1], high = (sum + 64) >> 7;  // at most 32 in magnitude
      column.parts[j] = int8_t(sum - 128 * high);
      column.parts[8 + j] = int8_t(high);
    }
  }
}

int64_t peak(int64_t rounds) {
  constexpr int sums = 16;
  int32x4_t sum[sums];
  int8x16_t w = vreinterpretq_s8_s32(vdupq_n_s32(0x05030201)), x = vreinterpretq_s8_s32(vdupq_n_s32(0x7f80ff11));
  UNROLLED for (int i = 0; i < sums; ++i) sum[i] = vdupq_n_s32(i);
  for (int64_t r = 0; r < rounds; ++r)
    UNROLLED for (int i = 0; i < sums; ++i) {
#if AYAEDGE_I8MM
      sum[i] = vmmlaq_s32(sum[i], w, x);
#else
      sum[i] = vdotq_laneq_s32(sum[i], w, x, 0);
#endif
      KEPT(sum[i]);
    }
  return rounds * sums * (AYAEDGE_I8MM ? 64 : 32);
}

}  // namespace

extern const Kernel JOINED(kernel_, AYAEDGE_VARIANT);
const Kernel JOINED(kernel_, AYAEDGE_VARIANT){AYAEDGE_NAME, quantize, multiply, peak};

}  // namespace ayaedge
