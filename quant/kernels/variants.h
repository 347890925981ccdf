// The functions that are compiled once for each instruction set, and the choice among them.

#pragma once

#include <cstddef>
#include <cstdint>

// Rows of `columns` weights (a multiple of 256) to blocks; `importance` (columns) or null. Returns the bytes written,
// 0 for a type that is not known here. Types are ggml's numbers.
using Encode = int64_t(int32_t type, const float *x, uint8_t *out, int64_t rows, int64_t columns,
                       const float *importance);

// `count` super-blocks of 256 values, side by side, to blocks `stride` bytes apart: value i of the super-block in each
// lane, then their values i + 1; so is `importance`, unless it is null. `count` is at most the number of lanes. Without
// `with_codes` the blocks have scales alone.
using EncodeLanes = void(int32_t type, const float *x, const float *importance, int count, uint8_t *out, int64_t stride,
                         bool with_codes);

// ggml_quantize_chunk: the same for rows from `start` on.
using StockEncode = size_t(int type, const float *x, void *out, int64_t start, int64_t rows, int64_t columns,
                           const float *importance);

constexpr int LAZY = 128;        // columns after whose rounding those behind them are corrected together
constexpr int PANEL_ROWS = 128;  // rows that share a reading of the feedback; a multiple of the lanes

// What `ayaedge_sweep` was asked for; see there.
struct Sweep {
    int32_t type;
    const float *weights;
    int64_t rows, weight_stride, columns;
    const float *feedback;
    int64_t feedback_stride;
    const float *importance;
    const int32_t *order;
    bool refit;
    StockEncode *stock;
    uint8_t *blocks;
    int64_t block_stride;
};

// What one thread needs for PANEL_ROWS rows. The rows are in groups, one row in each lane of a group.
struct Panel {
    float *left;      // groups x columns in their order x lanes: the weights as corrected so far
    float *errors;    // groups x LAZY x lanes
    float *step;      // groups x up to 16 groups of a super-block x lanes
    float *offset;    // likewise
    float *feedback;  // LAZY x LAZY, as the correction reads it
    uint8_t *codes;   // rows x 256: those of the super-block that is worked on
};

// Sweeps up to PANEL_ROWS rows from `first` on; false if corrected weights are too large for the type.
using SweepPanel = bool(const Sweep &sweep, int64_t first, const Panel &panel);

struct Variant {
    Encode *encode;
    SweepPanel *sweep;
};

// For this processor, at most `widest`: -1 arrays instead of vectors, 0 any processor, 1 AVX2, 2 AVX-512.
const Variant &choose_variant(int32_t widest);

#define AYAEDGE_DECLARE(variant)                  \
    EncodeLanes ayaedge_encode_lanes_##variant; \
    Encode ayaedge_encode_##variant;            \
    SweepPanel ayaedge_sweep_##variant;
extern "C" {
AYAEDGE_DECLARE(arrays)
AYAEDGE_DECLARE(portable)
AYAEDGE_DECLARE(avx2)
AYAEDGE_DECLARE(avx512)
}
#undef AYAEDGE_DECLARE

// The name of a function in the variant that is compiled.
#define AYAEDGE_PASTE(function, variant) ayaedge_##function##_##variant
#define AYAEDGE_EXPAND(function, variant) AYAEDGE_PASTE(function, variant)
#define AYAEDGE_NAME(function) AYAEDGE_EXPAND(function, AYAEDGE_VARIANT)
