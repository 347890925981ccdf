// The product for x86 with AMX: weights and activations as bf16, multiplied by tiles of 16 rows. Weights are rows of
// the first tile as they stand in the file; activations are pairs of the second, turned once for all rows. Sums are
// single precision and stay in tiles of the result until the end, where they are turned into columns.

#include <immintrin.h>

#include <atomic>
#include <limits>

#include "product.h"
#ifdef AYAEDGE_EMULATED_TILES
#include "emulated_tiles.h"
#endif

namespace ayaedge {
namespace {

constexpr int tile_rows = 16, tile_depth = 32;    // of weights: 64 bytes a row
constexpr int tile_columns = 16;                  // of activations: 16 pairs of 32, 64 bytes a pair
constexpr int steps = super_block / tile_depth;   // of tiles in a block
constexpr int tile_words = tile_rows * tile_depth;
constexpr int64_t line = 64;                      // bytes
constexpr int blocks_at_once = 4;                 // whose weights are unpacked together

constexpr int64_t block_words = super_block * tile_columns;  // of 16 rows, or 16 columns: [step][16][32]
static_assert(amx_rows * blocks_at_once * super_block == amx_weights, "a task's weights fit their scratch");
static_assert(amx_rows % row_step == 0 && row_step == 2 * tile_rows, "rows are two tiles at a time");

// All tiles have 16 rows of 64 bytes. Constant, since GCC takes ldtilecfg to read eight bytes and would leave out others.
struct alignas(64) Configuration {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {line, line, line, line, line, line, line, line};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(Configuration) == 64, "what ldtilecfg reads");
constexpr Configuration configuration{};

// GCC does not know what tileload reads: what was stored before must be in memory.
inline void stored() { std::atomic_signal_fence(std::memory_order_seq_cst); }

// The nearest bf16 of finite numbers, ties to even, in the upper halves; an infinity or NaN without low bits stays.
inline __m512i rounded(__m512i bits) {
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  return _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
}

// The upper halves of 16 dwords and 16 more.
inline __m512i upper_halves(__m512i first, __m512i second) {
  const __m512i numbers = _mm512_set_epi32(  // two words each
      0x3f003d, 0x3b0039, 0x370035, 0x330031, 0x2f002d, 0x2b0029, 0x270025, 0x230021, 0x1f001d, 0x1b0019, 0x170015,
      0x130011, 0x0f000d, 0x0b0009, 0x070005, 0x030001);
  return _mm512_permutex2var_epi16(first, numbers, second);
}

inline __m512i narrow(__m512 first, __m512 second) {
  return upper_halves(rounded(_mm512_castps_si512(first)), rounded(_mm512_castps_si512(second)));
}

// As `narrow`, but what is not finite is NaN, so that all products with it are.
inline __m512i narrow_any(const float* x) {
  __m512i halves[2];
  for (int i = 0; i < 2; ++i) {
    const __m512i bits = _mm512_loadu_si512(x + 16 * i);
    const __m512i magnitude = _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff));
    const __mmask16 odd = _mm512_cmpge_epi32_mask(magnitude, _mm512_set1_epi32(0x7f800000));
    halves[i] = _mm512_mask_mov_epi32(rounded(bits), odd, _mm512_set1_epi32(0x7fc00000));
  }
  return upper_halves(halves[0], halves[1]);
}

// 16 vectors of 16 dwords: rows become columns.
inline void transpose(__m512i (&r)[16]) {
  __m512i a[16];
  for (int i = 0; i < 16; i += 4) {
    const __m512i low0 = _mm512_unpacklo_epi32(r[i], r[i + 1]), low1 = _mm512_unpacklo_epi32(r[i + 2], r[i + 3]);
    const __m512i high0 = _mm512_unpackhi_epi32(r[i], r[i + 1]), high1 = _mm512_unpackhi_epi32(r[i + 2], r[i + 3]);
    a[i] = _mm512_unpacklo_epi64(low0, low1);  // dword 0 of each four, of four rows
    a[i + 1] = _mm512_unpackhi_epi64(low0, low1);
    a[i + 2] = _mm512_unpacklo_epi64(high0, high1);
    a[i + 3] = _mm512_unpackhi_epi64(high0, high1);
  }
  for (int i = 0; i < 4; ++i) {
    const __m512i even0 = _mm512_shuffle_i32x4(a[i], a[i + 4], 0x88), odd0 = _mm512_shuffle_i32x4(a[i], a[i + 4], 0xdd);
    const __m512i even1 = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0x88);
    const __m512i odd1 = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0xdd);
    r[i] = _mm512_shuffle_i32x4(even0, even1, 0x88);
    r[i + 4] = _mm512_shuffle_i32x4(odd0, odd1, 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(even0, even1, 0xdd);
    r[i + 12] = _mm512_shuffle_i32x4(odd0, odd1, 0xdd);
  }
}

int64_t groups(const Product& p) { return (p.columns + tile_columns - 1) / tile_columns; }

// 16 columns, or as many as there are, and zeros: [block][group] of a tile for each step.
void turn_columns(const Product& p, int64_t first) {
  const int64_t count = p.columns - first < tile_columns ? p.columns - first : tile_columns;
  for (int64_t block = 0; block < p.depth / super_block; ++block) {
    uint16_t* out = p.pairs + (block * groups(p) + first / tile_columns) * block_words;
    for (int step = 0; step < steps; ++step, out += tile_words) {
      __m512i pairs[tile_columns];
      for (int c = 0; c < tile_columns; ++c)
        pairs[c] = c < count ? narrow_any(p.x + (first + c) * p.x_stride + block * super_block + step * tile_depth)
                             : _mm512_setzero_si512();
      transpose(pairs);
      for (int i = 0; i < tile_columns; ++i) _mm512_store_si512(out + i * tile_depth, pairs[i]);
    }
  }
}

// A half of the file; a NaN is one without low bits, which would carry over its sign when it is rounded.
inline float clean_half(uint16_t bits) {
  const float value = _cvtsh_ss(bits);
  return value == value ? value : std::numeric_limits<float>::quiet_NaN();
}

inline __m256i bytes32(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }

// A row's 256 weights, as a row of one tile after the other. The 16 weights that 4 bits can mean are looked up.
inline void unpack(const BlockQ4K& block, uint16_t* out) {
  uint8_t scale[8], minimum[8];
  unpack_scales(block.scales, scale, minimum);
  const auto floats = [](const uint8_t* bytes, float factor) {
    const __m256i dwords = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes)));
    return _mm256_mul_ps(_mm256_cvtepi32_ps(dwords), _mm256_set1_ps(factor));
  };
  alignas(32) float factor[8], start[8];
  _mm256_store_ps(factor, floats(scale, clean_half(block.d)));
  _mm256_store_ps(start, floats(minimum, -clean_half(block.dmin)));
  const __m512 codes = _mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  for (int j = 0; j < 8; j += 2) {
    const __m512i table = narrow(_mm512_fmadd_ps(_mm512_set1_ps(factor[j]), codes, _mm512_set1_ps(start[j])),
                                 _mm512_fmadd_ps(_mm512_set1_ps(factor[j + 1]), codes, _mm512_set1_ps(start[j + 1])));
    const __m512i q = _mm512_cvtepu8_epi16(bytes32(block.q + 16 * j));
    const __m512i low = _mm512_and_si512(q, _mm512_set1_epi16(15));
    const __m512i high = _mm512_or_si512(_mm512_srli_epi16(q, 4), _mm512_set1_epi16(16));
    _mm512_store_si512(out + j * tile_words, _mm512_permutexvar_epi16(low, table));
    _mm512_store_si512(out + (j + 1) * tile_words, _mm512_permutexvar_epi16(high, table));
  }
}

inline void unpack(const BlockQ6K& block, uint16_t* out) {
  alignas(64) float scale[16];
  const __m512i scales = _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(block.scales)));
  _mm512_store_ps(scale, _mm512_mul_ps(_mm512_cvtepi32_ps(scales), _mm512_set1_ps(clean_half(block.d))));
  const __m256i four = _mm256_set1_epi8(15), two = _mm256_set1_epi8(0x30);
  for (int part = 0; part < 2; ++part) {
    const __m256i a = bytes32(block.low + 64 * part), b = bytes32(block.low + 64 * part + 32);
    const __m256i h = bytes32(block.high + 32 * part);
    const __m256i nibbles[4] = {a, b, _mm256_srli_epi16(a, 4), _mm256_srli_epi16(b, 4)};
    const __m256i pairs[4] = {_mm256_slli_epi16(h, 4), _mm256_slli_epi16(h, 2), h, _mm256_srli_epi16(h, 2)};
    for (int group = 0; group < 4; ++group) {
      const __m256i q = _mm256_or_si256(_mm256_and_si256(nibbles[group], four), _mm256_and_si256(pairs[group], two));
      const __m256i codes = _mm256_sub_epi8(q, _mm256_set1_epi8(32));
      const auto floats = [&](__m128i bytes, int j) {
        return _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)), _mm512_set1_ps(scale[j]));
      };
      const int step = 4 * part + group;
      _mm512_store_si512(out + step * tile_words, narrow(floats(_mm256_castsi256_si128(codes), 2 * step),
                                                         floats(_mm256_extracti128_si256(codes, 1), 2 * step + 1)));
    }
  }
}

// Adds a block's products of two tiles of rows with one or two groups of columns to `sums`, or begins with them.
template <bool two>
inline void tiles(const uint16_t* rows, const uint16_t* columns, float* sums, bool first) {
  constexpr int tile = tile_rows * tile_columns;
  if (first) {
    _tile_zero(0);
    _tile_zero(1);
    if (two) {
      _tile_zero(2);
      _tile_zero(3);
    }
  } else {
    _tile_loadd(0, sums, line);
    _tile_loadd(1, sums + tile, line);
    if (two) {
      _tile_loadd(2, sums + 2 * tile, line);
      _tile_loadd(3, sums + 3 * tile, line);
    }
  }
  for (int step = 0; step < steps; ++step) {
    _tile_loadd(4, rows + step * tile_words, line);
    _tile_loadd(6, columns + step * tile_words, line);
    _tile_loadd(5, rows + block_words + step * tile_words, line);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 5, 6);
    if (two) {
      _tile_loadd(7, columns + block_words + step * tile_words, line);
      _tile_dpbf16ps(2, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, sums, line);
  _tile_stored(1, sums + tile, line);
  if (two) {
    _tile_stored(2, sums + 2 * tile, line);
    _tile_stored(3, sums + 3 * tile, line);
  }
}

// Weights: [two tiles of rows][block][tile][step]; sums: [two tiles of rows][group][tile].
template <typename Block>
void multiply_rows(const Product& p, int64_t first_row, int64_t end_row, Sums& sums) {
  const int64_t blocks = p.depth / super_block, strips = (end_row - first_row) / row_step;
  const int64_t sums_of_strip = row_step * tile_columns * groups(p);
  const Block* weights = reinterpret_cast<const Block*>(p.weights);
  for (int64_t block = 0; block < blocks; block += blocks_at_once) {
    const int64_t many = blocks - block < blocks_at_once ? blocks - block : blocks_at_once;
    for (int64_t row = 0; row < end_row - first_row; ++row)
      for (int64_t b = 0; b < many; ++b) {
        const int64_t at = (row / row_step * many + b) * 2 + row % row_step / tile_rows;
        unpack(weights[(first_row + row) * blocks + block + b],
               sums.weights + at * block_words + row % tile_rows * tile_depth);
      }
    stored();
    for (int64_t b = 0; b < many; ++b)
      for (int64_t strip = 0; strip < strips; ++strip) {
        const uint16_t* rows = sums.weights + (strip * many + b) * 2 * block_words;
        const uint16_t* columns = p.pairs + (block + b) * groups(p) * block_words;
        float* out = sums.values + strip * sums_of_strip;
        int64_t group = 0;
        for (; group + 2 <= groups(p); group += 2, columns += 2 * block_words, out += 2 * row_step * tile_columns)
          tiles<true>(rows, columns, out, block + b == 0);
        if (group < groups(p)) tiles<false>(rows, columns, out, block + b == 0);
      }
  }
}

// Tiles of [row][column] to columns of the result.
void turn_sums(const Product& p, int64_t first_row, int64_t end_row, const Sums& sums) {
  const float* from = sums.values;
  for (int64_t strip = first_row; strip < end_row; strip += row_step)
    for (int64_t column = 0; column < p.columns; column += tile_columns)
      for (int64_t row = strip; row < strip + row_step; row += tile_rows, from += tile_rows * tile_columns) {
        __m512i r[16];
        for (int i = 0; i < 16; ++i) r[i] = _mm512_load_si512(from + 16 * i);
        transpose(r);
        for (int i = 0; i < 16 && column + i < p.columns; ++i)
          _mm512_storeu_si512(p.out + (column + i) * p.out_stride + row, r[i]);
      }
}

void multiply(const Product& p, int64_t first_row, int64_t end_row, Sums& sums) {
  _tile_loadconfig(&configuration);
  p.type == q4_k ? multiply_rows<BlockQ4K>(p, first_row, end_row, sums)
                 : multiply_rows<BlockQ6K>(p, first_row, end_row, sums);
  _tile_release();
  turn_sums(p, first_row, end_row, sums);
}

int64_t peak(int64_t rounds) {
  alignas(64) uint16_t numbers[2 * tile_words];
  uint32_t state = 1;
  for (uint16_t& number : numbers) number = uint16_t(0x3f00 | (state = state * 1664525 + 1013904223) >> 24);  // 0.5 to 2
  _tile_loadconfig(&configuration);
  stored();
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_loadd(4, numbers, line);
  _tile_loadd(5, numbers + tile_words, line);
  for (int64_t r = 0; r < rounds; ++r) {
    _tile_dpbf16ps(0, 4, 5);
    _tile_dpbf16ps(1, 4, 5);
    _tile_dpbf16ps(2, 4, 5);
    _tile_dpbf16ps(3, 4, 5);
  }
  _tile_release();
  return rounds * 4 * 2 * tile_rows * tile_columns * tile_depth;
}

}  // namespace

extern const Kernel kernel_amx_bf16;
const Kernel kernel_amx_bf16{"amx-bf16", turn_columns, multiply, peak, tile_columns, 2 * super_block, amx_rows};

}  // namespace ayaedge
