// Parts of ggml's K-quant blocks: half floats, packed scales, packed codes. Layouts are those of ggml-common.h in
// llama.cpp; ayaedge_quant/blocks.py is the same in numpy. In an unnamed namespace for the reason given in lanes.h.

#pragma once

#include <cstdint>
#include <cstring>

namespace {

constexpr int SUPER_BLOCK = 256;

enum Type : int32_t { Q4_K = 12, Q5_K = 13, Q6_K = 14, IQ4_XS = 23 };  // ggml's numbers

constexpr int block_bytes(int32_t type) {
    return type == Q4_K ? 144 : type == Q5_K ? 176 : type == Q6_K ? 210 : type == IQ4_XS ? 136 : 0;
}

// What IQ4_XS's codes stand for, times a step: kvalues_iq4nl.
constexpr int LEVELS[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

inline uint16_t to_half(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const uint16_t sign = (bits >> 16) & 0x8000;
    bits &= 0x7fffffff;
    if (bits >= 0x47800000) return sign | (bits > 0x7f800000 ? 0x7e00 : 0x7c00);
    if (bits < 0x38800000) {  // below the smallest normal: let float addition round to multiples of 2^-24
        float scaled;
        std::memcpy(&scaled, &bits, sizeof scaled);
        scaled += 0.5f;
        std::memcpy(&bits, &scaled, sizeof bits);
        return sign | (uint16_t)(bits - 0x3f000000);
    }
    bits += 0xc8000fff + ((bits >> 13) & 1);  // rebias the exponent and round to even
    return sign | (uint16_t)(bits >> 13);
}

inline float from_half(uint16_t half) {
    const uint32_t sign = (uint32_t)(half & 0x8000) << 16, rest = half & 0x7fff;
    uint32_t bits;
    float value;
    if (rest >= 0x7c00) {
        bits = 0x7f800000 | (rest & 0x3ff) << 13;
    } else if (rest >= 0x400) {
        bits = (rest << 13) + 0x38000000;
    } else {
        value = (float)rest * (1.f / 16777216.f);
        std::memcpy(&bits, &value, sizeof bits);
    }
    bits |= sign;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline void put_half(uint8_t *out, uint16_t half) { std::memcpy(out, &half, sizeof half); }

inline float get_half(const uint8_t *from) {
    uint16_t half;
    std::memcpy(&half, from, sizeof half);
    return from_half(half);
}

// Eight 6-bit scales and eight 6-bit minima in twelve bytes.
inline void pack_scales(uint8_t *out, const uint8_t *scales, const uint8_t *minima) {
    for (int j = 0; j < 4; ++j) {
        out[j] = scales[j] | (uint8_t)(scales[j + 4] >> 4 << 6);
        out[j + 4] = minima[j] | (uint8_t)(minima[j + 4] >> 4 << 6);
        out[j + 8] = (scales[j + 4] & 15) | (uint8_t)((minima[j + 4] & 15) << 4);
    }
}

inline int scale_of(const uint8_t *packed, int j) {
    return j < 4 ? packed[j] & 63 : (packed[j + 4] & 15) | packed[j - 4] >> 6 << 4;
}

inline int minimum_of(const uint8_t *packed, int j) {
    return j < 4 ? packed[j + 4] & 63 : packed[j + 4] >> 4 | packed[j] >> 6 << 4;
}

// The 256 codes of a super-block, 0..15 or 0..31, or for Q6_K 0..63, to their places in its block.
inline void put_affine_codes(int32_t type, const uint8_t *codes, uint8_t *block) {
    uint8_t *low = block + 16;
    if (type == Q5_K) {  // the fifth bits first, a bit of each byte for one sub-block
        for (int i = 0; i < 32; ++i) {
            uint8_t high = 0;
            for (int j = 0; j < 8; ++j) high |= (uint8_t)((codes[32 * j + i] >> 4) << j);
            low[i] = high;
        }
        low += 32;
    }
    for (int pair = 0; pair < 4; ++pair)
        for (int i = 0; i < 32; ++i)
            low[32 * pair + i] = (codes[64 * pair + i] & 15) | (uint8_t)((codes[64 * pair + 32 + i] & 15) << 4);
}

inline void put_symmetric_codes(const uint8_t *codes, uint8_t *block) {
    for (int half = 0; half < 2; ++half) {
        const uint8_t *from = codes + 128 * half;
        uint8_t *low = block + 64 * half, *high = block + 128 + 32 * half;
        for (int i = 0; i < 32; ++i) {
            low[i] = (from[i] & 15) | (uint8_t)((from[i + 64] & 15) << 4);
            low[i + 32] = (from[i + 32] & 15) | (uint8_t)((from[i + 96] & 15) << 4);
            high[i] = (uint8_t)(from[i] >> 4 | from[i + 32] >> 4 << 2 | from[i + 64] >> 4 << 4 | from[i + 96] >> 4 << 6);
        }
    }
}

// The j-th of IQ4_XS's eight 6-bit scales, of which 32 is zero.
inline int uneven_scale_of(const uint8_t *block, int j) {
    const int low = block[4 + j / 2] >> (4 * (j % 2)) & 15, high = block[2 + j / 4] >> (2 * (j % 4)) & 3;
    return (low | high << 4) - 32;
}

inline void put_uneven_codes(const uint8_t *codes, uint8_t *block) {
    for (int group = 0; group < 8; ++group)
        for (int i = 0; i < 16; ++i)
            block[8 + 16 * group + i] = codes[32 * group + i] | (uint8_t)(codes[32 * group + 16 + i] << 4);
}

}  // namespace
