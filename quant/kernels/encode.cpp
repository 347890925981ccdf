// Chooses the encoder for this processor; the encoders themselves are in encode_lanes.cpp.

#include <cstdint>

#if defined(_WIN32)
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif

using Encode = int64_t(int32_t, const float *, uint8_t *, int64_t, int64_t, const float *);

extern "C" {
Encode ayaedge_encode_portable, ayaedge_encode_avx2, ayaedge_encode_avx512;
}

static Encode *choose(int32_t widest) {
#if defined(AYAEDGE_X86)
    __builtin_cpu_init();
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (widest >= 2 && avx512) return ayaedge_encode_avx512;
    if (widest >= 1 && __builtin_cpu_supports("avx2")) return ayaedge_encode_avx2;
#endif
#if defined(AYAEDGE_ENCODERS)
    return ayaedge_encode_portable;
#else
    return nullptr;
#endif
}

// Weights (rows, columns) to blocks of ggml's type `type`, with the importance (columns) of each column or null.
// `widest` is the widest instruction set to use: 0 portable, 1 AVX2, 2 AVX-512. Returns the bytes written, 0 if there
// is no encoder for this type in this build.
EXPORT int64_t ayaedge_encode(int32_t type, const float *x, uint8_t *out, int64_t rows, int64_t columns,
                              const float *importance, int32_t widest) {
    Encode *const encode = choose(widest);
    if (!encode || columns % 256 || rows < 0) return 0;
    return encode(type, x, out, rows, columns, importance);
}
