// The kernel for AMX over emulated tiles, for processors without them.

#define AYAEDGE_EMULATED_TILES
#include "../../../runtime/acceleration/amx.cpp"
#include "../../../runtime/acceleration/team.cpp"

using namespace ayaedge;

// out [columns][rows] = x [columns][depth] times the weights [rows][depth]; 0, or what `run` says.
extern "C" int32_t product(int32_t type, const uint8_t* weights, int64_t rows, int64_t depth, const float* x,
                           int64_t columns, float* out, int32_t threads) {
  Scratch scratch;
  const Product p{type, weights, rows, depth, x, depth, columns, out, rows, nullptr};
  const Outcome outcome = run(kernel_amx_bf16, p, threads, {}, {}, scratch);
  emulated::fine(!emulated::tiles.configured, "tiles that were not released");
  return outcome;
}

// What a processor would not have done, so far; null if there is nothing.
extern "C" const char* fault() { return emulated::fault.exchange(nullptr); }

extern "C" int64_t peak(int64_t rounds) { return kernel_amx_bf16.peak(rounds); }

// One after the other of what a processor does not do; false behind the last.
extern "C" bool misuse(int32_t which) {
  alignas(64) uint8_t bytes[2048] = {};
  Configuration odd;
  switch (which) {
    case 0: emulated::release(); _tile_zero(0); return true;
    case 1: odd.palette = 2; break;
    case 2: odd.row_bytes[3] = 65; break;
    case 3: odd.rows[3] = 17; break;
    case 4: odd.rows[3] = 0; break;
    case 5: odd.row_bytes[8] = 64; break;
    case 6: odd.reserved[5] = 1; break;
    case 7: odd.rows[7] = 0, odd.row_bytes[7] = 0; break;
    case 8: odd.rows[6] = 15; break;
    case 9: odd.row_bytes[4] = 60; break;
    case 10: odd.rows[4] = 15; break;
    case 11: odd.row_bytes[6] = 32; break;
    case 12: case 13: case 14: break;
    default: return false;
  }
  _tile_loadconfig(&odd);
  if (which < 7) return true;
  if (which == 7) _tile_zero(7);
  else if (which < 12) _tile_dpbf16ps(0, 4, 6);
  else if (which == 12) _tile_dpbf16ps(0, 4, 4);
  else if (which == 13) _tile_loadd(0, bytes + 4, 64);
  else _tile_stored(0, bytes, 68);
  return true;
}
