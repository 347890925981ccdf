// The tile instructions of AMX in plain C++, for tests on processors without them. As Intel's manual has them, but where
// a processor would end the process, or be slow, the first fault is kept and told.
#pragma once

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace ayaedge {
namespace emulated {

struct Tile {
  int rows, bytes;  // of a row; both 0: it cannot be used
  alignas(64) uint8_t data[16][64];
};

struct Tiles {
  bool configured;
  Tile of[8];
};

inline thread_local Tiles tiles{};
inline std::atomic<const char*> fault{nullptr};

inline bool fine(bool is_fine, const char* otherwise) {
  const char* none = nullptr;
  if (!is_fine) fault.compare_exchange_strong(none, otherwise);
  return is_fine;
}

inline void configure(const void* from) {
  uint8_t bytes[64];
  std::memcpy(bytes, from, sizeof bytes);
  Tiles next{};
  next.configured = true;
  bool is_fine = bytes[0] == 1 && bytes[1] == 0;
  for (int i = 2; i < 16; ++i) is_fine &= bytes[i] == 0;
  for (int t = 0; t < 16; ++t) {
    const int row_bytes = bytes[16 + 2 * t] | bytes[17 + 2 * t] << 8, rows = bytes[48 + t];
    is_fine &= (rows == 0) == (row_bytes == 0) && rows <= 16 && row_bytes <= 64 && (t < 8 || rows == 0);
    if (is_fine && t < 8) next.of[t].rows = rows, next.of[t].bytes = row_bytes;
  }
  if (fine(is_fine, "a configuration that does not exist")) tiles = next;
}

inline bool usable(int t) {
  return fine(tiles.configured, "a tile before it was configured") && fine(tiles.of[t].rows, "a tile without rows");
}

inline bool whole_lines(const void* at, int64_t stride) {
  return fine(reinterpret_cast<uintptr_t>(at) % 64 == 0 && stride % 64 == 0, "a row in two lines of the cache");
}

inline void zero(int t) {
  if (usable(t)) std::memset(tiles.of[t].data, 0, sizeof tiles.of[t].data);
}

inline void load(int t, const void* from, int64_t stride) {
  if (!usable(t) || !whole_lines(from, stride)) return;
  Tile& tile = tiles.of[t];
  std::memset(tile.data, 0, sizeof tile.data);
  for (int r = 0; r < tile.rows; ++r)
    std::memcpy(tile.data[r], static_cast<const uint8_t*>(from) + r * stride, size_t(tile.bytes));
}

inline void store(int t, void* to, int64_t stride) {
  if (!usable(t) || !whole_lines(to, stride)) return;
  const Tile& tile = tiles.of[t];
  for (int r = 0; r < tile.rows; ++r)
    std::memcpy(static_cast<uint8_t*>(to) + r * stride, tile.data[r], size_t(tile.bytes));
}

inline float flushed(float value) { return std::fabs(value) < 1.17549435e-38f ? std::copysign(0.f, value) : value; }

// Number i of a row; numbers that are too small for 8 bits of precision are zero.
inline float bf16(const uint8_t* row, int i) {
  uint16_t half;
  std::memcpy(&half, row + 2 * i, 2);
  const uint32_t bits = uint32_t(half) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return flushed(value);
}

// Sums of even and of odd numbers, each in order, then one behind the other: what the hardware does.
inline void multiply(int to, int first, int second) {
  if (!usable(to) || !usable(first) || !usable(second)) return;
  Tile &c = tiles.of[to], &a = tiles.of[first], &b = tiles.of[second];
  const bool apart = to != first && to != second && first != second;
  const bool fits = c.bytes % 4 == 0 && a.bytes % 4 == 0 && c.rows == a.rows && a.bytes / 4 == b.rows && c.bytes == b.bytes;
  if (!fine(apart, "a product of a tile with itself") || !fine(fits, "a product of tiles that do not fit")) return;
  const int pairs = a.bytes / 4, columns = c.bytes / 4;
  float numbers[2][16][16];  // of the second tile
  for (int k = 0; k < pairs; ++k)
    for (int n = 0; n < columns; ++n)
      for (int i = 0; i < 2; ++i) numbers[i][k][n] = bf16(b.data[k], 2 * n + i);
  for (int m = 0; m < c.rows; ++m) {
    float sums[2][16] = {}, total[16];
    for (int k = 0; k < pairs; ++k)
      for (int i = 0; i < 2; ++i) {
        const float number = bf16(a.data[m], 2 * k + i);
        for (int n = 0; n < columns; ++n) sums[i][n] = flushed(std::fma(number, numbers[i][k][n], sums[i][n]));
      }
    std::memcpy(total, c.data[m], sizeof total);
    for (int n = 0; n < columns; ++n) total[n] = flushed(flushed(total[n]) + flushed(sums[0][n] + sums[1][n]));
    std::memcpy(c.data[m], total, size_t(c.bytes));
  }
}

inline void release() { tiles = {}; }

}  // namespace emulated
}  // namespace ayaedge

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_loadconfig ayaedge::emulated::configure
#define _tile_release ayaedge::emulated::release
#define _tile_zero ayaedge::emulated::zero
#define _tile_loadd ayaedge::emulated::load
#define _tile_stored ayaedge::emulated::store
#define _tile_dpbf16ps ayaedge::emulated::multiply
