// The product for x86, compiled once for each instruction set. A panel of rows is unpacked to bytes, four of a row in a
// dword lane; a broadcast of four activations is multiplied with all rows of a vector at once. The register tile is two
// vectors of rows by a few columns.

#include <immintrin.h>
#include <cstddef>

#include "quantize.h"
#include "transposed.h"

#define JOINED_(a, b) a##b
#define JOINED(a, b) JOINED_(a, b)

namespace ayaedge {
namespace {

#if AYAEDGE_BITS == 512
constexpr int lanes = 16, tile_q4 = 6, tile_q6 = 6;
using Ints = __m512i;
using Floats = __m512;
inline Ints load(const int32_t* p) { return _mm512_load_si512(p); }
inline Floats load(const float* p) { return _mm512_load_ps(p); }
inline void store(float* p, Floats v) { _mm512_store_ps(p, v); }
inline Ints same(int32_t v) { return _mm512_set1_epi32(v); }
inline Floats same(float v) { return _mm512_set1_ps(v); }
inline Ints zero() { return _mm512_setzero_si512(); }
inline Floats fused(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline Floats times(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
inline Floats floats(Ints v) { return _mm512_cvtepi32_ps(v); }
inline Ints dot4(Ints sum, Ints w, Ints x) { return _mm512_dpbusd_epi32(sum, w, x); }
inline Ints dot2(Ints sum, Ints a, Ints b) { return _mm512_dpwssd_epi32(sum, a, b); }
#else
constexpr int lanes = 8, tile_q4 = 4, tile_q6 = 3;
using Ints = __m256i;
using Floats = __m256;
inline Ints load(const int32_t* p) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(p)); }
inline Floats load(const float* p) { return _mm256_load_ps(p); }
inline void store(float* p, Floats v) { _mm256_store_ps(p, v); }
inline Ints same(int32_t v) { return _mm256_set1_epi32(v); }
inline Floats same(float v) { return _mm256_set1_ps(v); }
inline Ints zero() { return _mm256_setzero_si256(); }
inline Floats fused(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
inline Floats times(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
inline Floats floats(Ints v) { return _mm256_cvtepi32_ps(v); }
#if AYAEDGE_VNNI
inline Ints dot4(Ints sum, Ints w, Ints x) { return _mm256_dpbusd_avx_epi32(sum, w, x); }
inline Ints dot2(Ints sum, Ints a, Ints b) { return _mm256_dpwssd_avx_epi32(sum, a, b); }
#endif
#endif

constexpr int panel_rows = 2 * lanes;
constexpr int blocks_at_once = 2;  // a panel of 512 weights a row stays in the first-level cache

// 256 weights of each row of a panel.
struct alignas(64) Panel {
  int32_t w[64][panel_rows];      // four weights each, unsigned
  int32_t scale[16][panel_rows];  // one of the forms that the instruction sets want
  float part[16][panel_rows];     // factors of sums: of the minima, or scales
  float d[panel_rows];
};

inline int32_t broadcast(const int8_t* q) {
  int32_t word;
  std::memcpy(&word, q, 4);
  return word;
}

inline void put(int32_t* at, __m256i v) { _mm256_store_si256(reinterpret_cast<__m256i*>(at), v); }

// Byte `b` of eight dwords, zero-extended or sign-extended.
inline __m256i unsigned_byte(__m256i v, int b) {
  return _mm256_and_si256(_mm256_srli_epi32(v, 8 * b), _mm256_set1_epi32(255));
}
inline __m256i signed_byte(__m256i v, int b) {
  return _mm256_srai_epi32(_mm256_slli_epi32(v, 24 - 8 * b), 24);
}

inline __m256i dwords(const uint32_t* p) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(p)); }
inline __m256 floats8(__m256i v) { return _mm256_cvtepi32_ps(v); }

// Rows r to r + 7 of a panel, from block `b` of each; blocks of a row are side by side, rows `step` bytes apart.
void unpack(const BlockQ4K* block, int64_t step, Panel& panel, int r) {
  const uint8_t* bytes = reinterpret_cast<const uint8_t*>(block);
  const __m256i low = _mm256_set1_epi8(15);
  for (int c = 0; c < 4; ++c) {
    __m256i v[8];
    transposed(bytes + offsetof(BlockQ4K, q) + 32 * c, step, v);
    for (int t = 0; t < 8; ++t) {
      put(&panel.w[16 * c + t][r], _mm256_and_si256(v[t], low));
      put(&panel.w[16 * c + 8 + t][r], _mm256_and_si256(_mm256_srli_epi32(v[t], 4), low));
    }
  }
  alignas(32) uint32_t scale[2][8], minimum[2][8];
  alignas(16) uint16_t d[8], dmin[8];
  for (int i = 0; i < 8; ++i) {
    BlockQ4K head;
    std::memcpy(&head, bytes + i * step, offsetof(BlockQ4K, q));
    uint32_t s[2], m[2];
    unpack_scales(head.scales, reinterpret_cast<uint8_t*>(s), reinterpret_cast<uint8_t*>(m));
    for (int w = 0; w < 2; ++w) scale[w][i] = s[w], minimum[w][i] = m[w];
    d[i] = head.d, dmin[i] = head.dmin;
  }
  const __m256 vd = _mm256_cvtph_ps(_mm_load_si128(reinterpret_cast<const __m128i*>(d)));
  const __m256 vmin = _mm256_cvtph_ps(_mm_load_si128(reinterpret_cast<const __m128i*>(dmin)));
  _mm256_store_ps(&panel.d[r], vd);
  for (int j = 0; j < 8; ++j) {
    const __m256i s = unsigned_byte(dwords(scale[j / 4]), j % 4), m = unsigned_byte(dwords(minimum[j / 4]), j % 4);
#if AYAEDGE_VNNI
    put(&panel.scale[j][r], s);  // words (scale, 0)
    const __m256 back = _mm256_mul_ps(vd, floats8(_mm256_slli_epi32(s, 3)));  // sums start at -8 a weight
    _mm256_store_ps(&panel.part[j][r], _mm256_fnmadd_ps(vmin, floats8(m), back));
#else
    put(&panel.scale[j][r], _mm256_or_si256(s, _mm256_slli_epi32(s, 16)));  // words (scale, scale)
    _mm256_store_ps(&panel.part[j][r], _mm256_mul_ps(vmin, floats8(_mm256_sub_epi32(_mm256_setzero_si256(), m))));
#endif
  }
}

void unpack(const BlockQ6K* block, int64_t step, Panel& panel, int r) {
  const uint8_t* bytes = reinterpret_cast<const uint8_t*>(block);
  const __m256i low = _mm256_set1_epi8(15), two = _mm256_set1_epi8(0x30);
  for (int part = 0; part < 2; ++part) {
    __m256i a[8], b[8], h[8];
    transposed(bytes + offsetof(BlockQ6K, low) + 64 * part, step, a);
    transposed(bytes + offsetof(BlockQ6K, low) + 64 * part + 32, step, b);
    transposed(bytes + offsetof(BlockQ6K, high) + 32 * part, step, h);
    for (int t = 0; t < 8; ++t) {
      int32_t* at = &panel.w[32 * part + t][r];
      const auto with = [&](__m256i nibbles, __m256i pairs) {
        return _mm256_or_si256(_mm256_and_si256(nibbles, low), _mm256_and_si256(pairs, two));
      };
      put(at, with(a[t], _mm256_slli_epi32(h[t], 4)));
      put(at + 8 * panel_rows, with(b[t], _mm256_slli_epi32(h[t], 2)));
      put(at + 16 * panel_rows, with(_mm256_srli_epi32(a[t], 4), h[t]));
      put(at + 24 * panel_rows, with(_mm256_srli_epi32(b[t], 4), _mm256_srli_epi32(h[t], 2)));
    }
  }
  alignas(32) uint32_t scale[4][8];
  alignas(16) uint16_t d[8];
  for (int i = 0; i < 8; ++i) {
    uint32_t s[4];
    std::memcpy(s, bytes + i * step + offsetof(BlockQ6K, scales), 16);
    for (int w = 0; w < 4; ++w) scale[w][i] = s[w];
    std::memcpy(&d[i], bytes + i * step + offsetof(BlockQ6K, d), 2);
  }
  const __m256 vd = _mm256_cvtph_ps(_mm_load_si128(reinterpret_cast<const __m128i*>(d)));
  _mm256_store_ps(&panel.d[r], vd);
  for (int j = 0; j < 16; ++j) {
    const __m256i s = signed_byte(dwords(scale[j / 4]), j % 4);
#if AYAEDGE_VNNI
    _mm256_store_ps(&panel.part[j][r], _mm256_mul_ps(vd, floats8(s)));
#else
    const __m256i word = _mm256_and_si256(s, _mm256_set1_epi32(0xffff));
    put(&panel.scale[j][r], _mm256_or_si256(word, _mm256_slli_epi32(s, 16)));  // words (scale, scale)
#endif
  }
}

template <int C>
inline void add_to(float* out, bool first, const Column* columns, Floats (&sum)[2][C]) {
  for (int c = 0; c < C; ++c)
    for (int v = 0; v < 2; ++v) {
      float* at = out + c * panel_rows + v * lanes;
      const Floats d = same(columns[c].d);
      store(at, first ? times(sum[v][c], d) : fused(sum[v][c], d, load(at)));
    }
}

#if defined(__GNUC__)
#define UNROLLED _Pragma("GCC unroll 16")
#define APART __attribute__((noinline))  // registers are given out for a tile alone
#define USED(v) asm volatile("" : : "v"(v))
#define KEPT(v) asm("" : "+v"(v))  // GCC 12 otherwise reorders the sums, and has too few registers for that
#else
#define UNROLLED
#define APART
#define KEPT(v)
#define USED(v)
#endif

// Adds one block's products of a panel with C columns to `out`, or begins with them.
template <int C>
APART void tile(const BlockQ4K*, const Panel& panel, const Column* columns, float* out, bool first) {
  Ints total[2][C];
  UNROLLED for (int c = 0; c < C; ++c) total[0][c] = total[1][c] = zero();
  for (int j = 0; j < 8; ++j) {
    Ints sum[2][C];
#if AYAEDGE_VNNI
    UNROLLED for (int c = 0; c < C; ++c) sum[0][c] = sum[1][c] = same(columns[c].q4.start[j]);
    UNROLLED for (int t = 0; t < 8; ++t) {
      const Ints w0 = load(&panel.w[8 * j + t][0]), w1 = load(&panel.w[8 * j + t][lanes]);
      UNROLLED for (int c = 0; c < C; ++c) {
        const Ints x = same(broadcast(&columns[c].q[32 * j + 4 * t]));
        sum[0][c] = dot4(sum[0][c], w0, x);
        KEPT(sum[0][c]);
        sum[1][c] = dot4(sum[1][c], w1, x);
        KEPT(sum[1][c]);
      }
    }
    // a sum of 32 is at most 32*8*127 = 32512 in magnitude: its low word is all of it
    const Ints s0 = load(&panel.scale[j][0]), s1 = load(&panel.scale[j][lanes]);
    UNROLLED for (int c = 0; c < C; ++c) {
      total[0][c] = dot2(total[0][c], sum[0][c], s0);
      KEPT(total[0][c]);
      total[1][c] = dot2(total[1][c], sum[1][c], s1);
      KEPT(total[1][c]);
    }
#else
    UNROLLED for (int c = 0; c < C; ++c) sum[0][c] = sum[1][c] = zero();
    UNROLLED for (int t = 0; t < 8; ++t) {  // at most 8*2*15*127 = 30480: words do not saturate
      const Ints w0 = load(&panel.w[8 * j + t][0]), w1 = load(&panel.w[8 * j + t][lanes]);
      UNROLLED for (int c = 0; c < C; ++c) {
        const Ints x = same(broadcast(&columns[c].q[32 * j + 4 * t]));
        sum[0][c] = _mm256_add_epi16(sum[0][c], _mm256_maddubs_epi16(w0, x));
        KEPT(sum[0][c]);
        sum[1][c] = _mm256_add_epi16(sum[1][c], _mm256_maddubs_epi16(w1, x));
        KEPT(sum[1][c]);
      }
    }
    const Ints s0 = load(&panel.scale[j][0]), s1 = load(&panel.scale[j][lanes]);
    UNROLLED for (int c = 0; c < C; ++c) {
      total[0][c] = _mm256_add_epi32(total[0][c], _mm256_madd_epi16(sum[0][c], s0));
      KEPT(total[0][c]);
      total[1][c] = _mm256_add_epi32(total[1][c], _mm256_madd_epi16(sum[1][c], s1));
      KEPT(total[1][c]);
    }
#endif
  }
  Floats sum[2][C];
  UNROLLED for (int v = 0; v < 2; ++v) {
    const Floats d = load(&panel.d[v * lanes]);
    UNROLLED for (int c = 0; c < C; ++c) sum[v][c] = times(floats(total[v][c]), d);
    for (int j = 0; j < 8; ++j) {
      const Floats part = load(&panel.part[j][v * lanes]);
      UNROLLED for (int c = 0; c < C; ++c) sum[v][c] = fused(part, same(columns[c].q4.sum[j]), sum[v][c]);
    }
  }
  add_to<C>(out, first, columns, sum);
}

template <int C>
APART void tile(const BlockQ6K*, const Panel& panel, const Column* columns, float* out, bool first) {
  Floats result[2][C];
#if AYAEDGE_VNNI
  UNROLLED for (int c = 0; c < C; ++c) result[0][c] = result[1][c] = floats(zero());
  for (int j = 0; j < 16; ++j) {
    Ints sum[2][C];
    UNROLLED for (int c = 0; c < C; ++c) sum[0][c] = sum[1][c] = same(columns[c].start[j]);
    UNROLLED for (int t = 0; t < 4; ++t) {
      const Ints w0 = load(&panel.w[4 * j + t][0]), w1 = load(&panel.w[4 * j + t][lanes]);
      UNROLLED for (int c = 0; c < C; ++c) {
        const Ints x = same(broadcast(&columns[c].q[16 * j + 4 * t]));
        sum[0][c] = dot4(sum[0][c], w0, x);
        KEPT(sum[0][c]);
        sum[1][c] = dot4(sum[1][c], w1, x);
        KEPT(sum[1][c]);
      }
    }
    const Floats s0 = load(&panel.part[j][0]), s1 = load(&panel.part[j][lanes]);
    UNROLLED for (int c = 0; c < C; ++c) {
      result[0][c] = fused(floats(sum[0][c]), s0, result[0][c]);
      result[1][c] = fused(floats(sum[1][c]), s1, result[1][c]);
    }
  }
#else
  Ints total[2][C];
  UNROLLED for (int c = 0; c < C; ++c) total[0][c] = total[1][c] = zero();
  for (int j = 0; j < 16; ++j) {
    const Ints s0 = load(&panel.scale[j][0]), s1 = load(&panel.scale[j][lanes]);
    UNROLLED for (int t = 0; t < 4; t += 2) {  // two at a time: at most 2*2*63*127 = 32004
      const int k = 4 * j + t;
      const Ints w00 = load(&panel.w[k][0]), w01 = load(&panel.w[k][lanes]);
      const Ints w10 = load(&panel.w[k + 1][0]), w11 = load(&panel.w[k + 1][lanes]);
      UNROLLED for (int c = 0; c < C; ++c) {
        const Ints x0 = same(broadcast(&columns[c].q[4 * k])), x1 = same(broadcast(&columns[c].q[4 * k + 4]));
        const Ints a = _mm256_add_epi16(_mm256_maddubs_epi16(w00, x0), _mm256_maddubs_epi16(w10, x1));
        total[0][c] = _mm256_add_epi32(total[0][c], _mm256_madd_epi16(a, s0));
        KEPT(total[0][c]);
        const Ints b = _mm256_add_epi16(_mm256_maddubs_epi16(w01, x0), _mm256_maddubs_epi16(w11, x1));
        total[1][c] = _mm256_add_epi32(total[1][c], _mm256_madd_epi16(b, s1));
        KEPT(total[1][c]);
      }
    }
  }
  UNROLLED for (int v = 0; v < 2; ++v) {
    Ints back[C];
    UNROLLED for (int c = 0; c < C; ++c) back[c] = zero();
    for (int j = 0; j < 16; j += 2) {  // the two low words of two scales, times two sums
      const Ints pair = _mm256_blend_epi16(load(&panel.scale[j][v * lanes]), load(&panel.scale[j + 1][v * lanes]), 0xaa);
      UNROLLED for (int c = 0; c < C; ++c) {
        const Ints sums = same(broadcast(reinterpret_cast<const int8_t*>(&columns[c].sum16[j])));
        back[c] = _mm256_add_epi32(back[c], _mm256_madd_epi16(pair, sums));
      }
    }
    const Floats d = load(&panel.d[v * lanes]);
    UNROLLED for (int c = 0; c < C; ++c)
      result[v][c] = times(floats(_mm256_sub_epi32(total[v][c], _mm256_slli_epi32(back[c], 5))), d);
  }
#endif
  add_to<C>(out, first, columns, result);
}

template <typename Block, int C>
void tiles(const Panel& panel, const Column* columns, int64_t count, float* out, bool first) {
  int64_t c = 0;
  for (; c + C <= count; c += C) tile<C>(static_cast<const Block*>(nullptr), panel, columns + c, out + c * panel_rows, first);
  if constexpr (C > 1)
    if (c < count) tiles<Block, C - 1>(panel, columns + c, count - c, out + c * panel_rows, first);
}

template <typename Block, int C>
void multiply_rows(const Product& p, int64_t first_row, int64_t end_row, Sums& sums) {
  const int64_t blocks = p.depth / super_block, step = blocks * int64_t(sizeof(Block));
  for (int64_t block = 0; block < blocks; block += blocks_at_once)
    for (int64_t row = first_row; row < end_row; row += panel_rows) {
      float* out = sums.values + (row - first_row) * p.columns;
      const int many = blocks - block < blocks_at_once ? int(blocks - block) : blocks_at_once;
      Panel panels[blocks_at_once];
      for (int b = 0; b < many; ++b)
        for (int r = 0; r < panel_rows; r += 8) {
          const uint8_t* at = p.weights + (row + r) * step + (block + b) * int64_t(sizeof(Block));
          unpack(reinterpret_cast<const Block*>(at), step, panels[b], r);
        }
      for (int b = 0; b < many; ++b)
        tiles<Block, C>(panels[b], p.quantized + (block + b) * p.columns, p.columns, out, block + b == 0);
    }
  hand_over<panel_rows>(p, first_row, end_row, sums);
}

void multiply(const Product& p, int64_t first_row, int64_t end_row, Sums& sums) {
  p.type == q4_k ? multiply_rows<BlockQ4K, tile_q4>(p, first_row, end_row, sums)
                 : multiply_rows<BlockQ6K, tile_q6>(p, first_row, end_row, sums);
}

void quantize(const Product& p, int64_t index) {
  for (int64_t block = 0; block < p.depth / super_block; ++block) {
    Column& column = p.quantized[block * p.columns + index];
    quantize_block(p.x + index * p.x_stride + block * super_block, column);
    int32_t sums[16];
    sums_of_16(column, sums);
    if (p.type == q4_k) {
      for (int j = 0; j < 8; ++j) {
        const int32_t sum = sums[2 * j] + sums[2 * j + 1];
        column.q4.start[j] = -8 * sum;
        column.q4.sum[j] = float(sum);
      }
    } else {
      for (int j = 0; j < 16; ++j)
#if AYAEDGE_VNNI
        column.start[j] = -32 * sums[j];
#else
        column.sum16[j] = int16_t(sums[j]);
#endif
    }
  }
}

int64_t peak(int64_t rounds) {
  constexpr int sums = 12;
  Ints sum[sums], w = same(0x05030201), x = same(0x7f80ff11);
  UNROLLED for (int i = 0; i < sums; ++i) sum[i] = same(i);
  for (int64_t r = 0; r < rounds; ++r)
    UNROLLED for (int i = 0; i < sums; ++i) {
#if AYAEDGE_VNNI
      sum[i] = dot4(sum[i], w, x);
#else
      KEPT(w);  // each product is computed anew
      sum[i] = _mm256_add_epi16(sum[i], _mm256_maddubs_epi16(w, x));
#endif
      KEPT(sum[i]);
    }
  UNROLLED for (int i = 0; i < sums; ++i) USED(sum[i]);
  return rounds * sums * lanes * 8;
}

}  // namespace

extern const Kernel JOINED(kernel_, AYAEDGE_VARIANT);
const Kernel JOINED(kernel_, AYAEDGE_VARIANT){AYAEDGE_NAME, quantize, multiply, peak};

}  // namespace ayaedge
