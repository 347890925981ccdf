// The encoders' entry; they themselves are in encode_lanes.cpp.

#include "api.h"
#include "variants.h"

// Weights (rows, columns) to blocks of ggml's type `type`, with the importance (columns) of each column or null.
// `widest` is the widest instruction set to use: 0 portable, 1 AVX2, 2 AVX-512; -1 is portable without vectors.
// Returns the bytes written, 0 if there is no encoder for this type.
AYAEDGE_API int64_t ayaedge_encode(int32_t type, const float *x, uint8_t *out, int64_t rows, int64_t columns,
                                   const float *importance, int32_t widest) {
    if (columns % 256 || rows < 0) return 0;
    return choose_variant(widest).encode(type, x, out, rows, columns, importance);
}
