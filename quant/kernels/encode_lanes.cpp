// Q4_K, Q5_K and Q6_K encoders, several sub-blocks at a time, one in each SIMD lane.
//
// Every lane does the float operations of ggml's scalar reference encoder (ggml-quants.c of llama.cpp) in the same
// order, so the bytes are the same; that needs strict IEEE arithmetic without fused multiply-add. Lanes are written
// with the vector extensions of GCC and Clang. CMake compiles this file once for each instruction set, with its number
// of lanes (AYAEDGE_LANES) and another name of the entry point (AYAEDGE_ENCODE).

#include <cstdint>
#include <cstring>

namespace {

constexpr int LANES = AYAEDGE_LANES;
constexpr int GROUP = 16;  // sub-blocks that are worked on together, LANES at a time
constexpr int SUPER_BLOCK = 256;
constexpr float TINY = 1e-15f;  // below this a group counts as zeros

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));

inline Floats all(float value) { return Floats{} + value; }  // which makes +0 of -0
inline Floats load(const float *from) {
    Floats value;
    std::memcpy(&value, from, sizeof value);
    return value;
}
inline void store(float *to, Floats value) { std::memcpy(to, &value, sizeof value); }
inline void store(int32_t *to, Ints value) { std::memcpy(to, &value, sizeof value); }
inline Floats to_float(Ints value) { return __builtin_convertvector(value, Floats); }
inline Floats magnitude(Floats value) { return (Floats)((Ints)value & 0x7fffffff); }

inline Ints clamp(Ints value, int low, int high) {
    value = value < high ? value : high;
    return value > low ? value : low;
}

// Round to the nearest integer, ties to even: adding 1.5 * 2^23 leaves the integer in the mantissa.
inline Ints nearest(Floats value) { return ((Ints)(value + 12582912.f) & 0x007fffff) - 0x00400000; }

inline int nearest(float value) {
    const float shifted = value + 12582912.f;
    int32_t bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    return (bits & 0x007fffff) - 0x00400000;
}

inline Floats root(Floats value) {
    for (int lane = 0; lane < LANES; ++lane) value[lane] = __builtin_sqrtf(value[lane]);
    return value;
}

uint16_t to_half(float value) {
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

float from_half(uint16_t half) {
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

void put_half(uint8_t *out, uint16_t half) { std::memcpy(out, &half, sizeof half); }

struct Line {  // of inverse scales that are tried: (first + step * s + top) / range for s = 0..steps
    float first, step;
    int steps;
};

// What the search found for the sub-block in each lane.
struct Found {
    Floats scale;
    Floats offset;         // subtracted: the sub-block's minimum, negated
    Floats inverse, base;  // the codes are nearest(inverse * (x - base)), clamped
};

// Affine codes 0..top of sub-blocks of 32: the least weighted squared error over a line of inverse scales, scale and
// minimum of each fitted by weighted least squares. The minimum is never positive.
Found search_affine(const Floats *x, const Floats *weights, int top, const Line &line) {
    Floats low = x[0], high = x[0], sum_w = weights[0], sum_x = sum_w * x[0];
    for (int i = 1; i < 32; ++i) {
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
        sum_w += weights[i];
        sum_x += weights[i] * x[i];
    }
    low = low > 0.f ? all(0) : low;
    const Ints flat = high <= low;
    const Floats most = all((float)top);

    Found found;
    Floats inverse = most / (high - low);
    found.inverse = flat ? all(0) : inverse;
    found.base = low;
    found.scale = flat ? all(0) : 1.f / inverse;
    Floats best = all(0);
    for (int i = 0; i < 32; ++i) {
        const Floats code = to_float(clamp(nearest(inverse * (x[i] - low)), 0, top));
        const Floats miss = found.scale * code + low - x[i];
        best += weights[i] * (miss * miss);
    }
    best = flat ? all(-1) : best;  // which no error undercuts

    Floats codes[32];
    for (int s = 0; s <= line.steps; ++s) {
        inverse = all(line.first + line.step * (float)s + (float)top) / (high - low);
        Floats sum_l = all(0), sum_l2 = all(0), sum_xl = all(0);
        for (int i = 0; i < 32; ++i) {
            const Floats code = to_float(clamp(nearest(inverse * (x[i] - low)), 0, top));
            const Floats weighted = weights[i] * code;
            codes[i] = code;
            sum_l += weighted;
            sum_l2 += weighted * code;
            sum_xl += weighted * x[i];
        }
        const Floats determinant = sum_w * sum_l2 - sum_l * sum_l;
        Floats scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
        Floats minimum = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
        const Ints positive = minimum > 0.f;
        minimum = positive ? all(0) : minimum;
        scale = positive ? sum_xl / sum_l2 : scale;
        Floats error = all(0);
        for (int i = 0; i < 32; ++i) {
            const Floats miss = scale * codes[i] + minimum - x[i];
            error += weights[i] * (miss * miss);
        }
        const Ints better = (determinant > 0.f) & (error < best);
        best = better ? error : best;
        found.inverse = better ? inverse : found.inverse;
        found.base = better ? low : found.base;
        found.scale = better ? scale : found.scale;
        low = better ? minimum : low;  // the next step starts from the better minimum
    }
    found.offset = -low;
    return found;
}

// Eight non-negative values to codes 0..63 with one factor, which is returned: a line of scales first, then
// coordinate descent on the weighted correlation.
float search_factor(const float *x, uint8_t *codes, const float *weights) {
    constexpr int COUNT = 8, TOP = 63;
    float largest = 0;
    for (int i = 0; i < COUNT; ++i) largest = largest > x[i] ? largest : x[i];
    std::memset(codes, 0, COUNT);
    if (largest < TINY) return 0;
    float inverse = TOP / largest;
    float scale = 1 / inverse, best = 0;
    for (int i = 0; i < COUNT; ++i) {
        const float miss = x[i] - scale * (uint8_t)nearest(inverse * x[i]);
        best += weights[i] * miss * miss;
    }
    for (int s = -4; s <= 4; ++s) {
        if (s == 0) continue;
        const float other = (0.1f * s + TOP) / largest;
        scale = 1 / other;
        float error = 0;
        for (int i = 0; i < COUNT; ++i) {
            const int code = nearest(other * x[i]);
            const float miss = x[i] - scale * (code < TOP ? code : TOP);
            error += weights[i] * miss * miss;
        }
        if (error < best) {
            best = error;
            inverse = other;
        }
    }
    float sum_xl = 0, sum_l2 = 0;
    for (int i = 0; i < COUNT; ++i) {
        const int code = nearest(inverse * x[i]), clipped = code < TOP ? code : TOP;
        codes[i] = (uint8_t)clipped;
        sum_xl += weights[i] * x[i] * clipped;
        sum_l2 += weights[i] * clipped * clipped;
    }
    for (int round = 0; round < 5; ++round) {
        bool changed = false;
        for (int i = 0; i < COUNT; ++i) {
            const float w = weights[i];
            float xl = sum_xl - w * x[i] * codes[i], l2 = sum_l2 - w * codes[i] * codes[i];
            if (!(xl > 0 && l2 > 0)) continue;
            const int free = nearest(x[i] * l2 / xl), code = free < TOP ? free : TOP;
            if (code == codes[i]) continue;
            xl += w * x[i] * code;
            l2 += w * code * code;
            if (xl * xl * sum_l2 > sum_xl * sum_xl * l2) {
                codes[i] = (uint8_t)code;
                sum_xl = xl;
                sum_l2 = l2;
                changed = true;
            }
        }
        if (!changed) break;
    }
    return sum_l2 > 0 ? sum_xl / sum_l2 : 0;
}

// The same without weights, as the plain encoder does it: the largest value becomes 63.
float plain_factor(const float *x, uint8_t *codes) {
    float largest = 0;
    for (int i = 0; i < 8; ++i) largest = x[i] > largest ? x[i] : largest;
    const float inverse = largest > 0 ? 63.f / largest : 0.f;
    for (int i = 0; i < 8; ++i) {
        const uint8_t code = (uint8_t)nearest(inverse * x[i]);
        codes[i] = code < 63 ? code : 63;
    }
    return largest / 63.f;
}

// Eight 6-bit scales and eight 6-bit minima in twelve bytes.
void pack_scales(uint8_t *out, const uint8_t *scales, const uint8_t *minima) {
    for (int j = 0; j < 4; ++j) {
        out[j] = scales[j] | (uint8_t)(scales[j + 4] >> 4 << 6);
        out[j + 4] = minima[j] | (uint8_t)(minima[j + 4] >> 4 << 6);
        out[j + 8] = (scales[j + 4] & 15) | (uint8_t)((minima[j + 4] & 15) << 4);
    }
}

int scale_of(const uint8_t *packed, int j) {
    return j < 4 ? packed[j] & 63 : (packed[j + 4] & 15) | packed[j - 4] >> 6 << 4;
}

int minimum_of(const uint8_t *packed, int j) {
    return j < 4 ? packed[j + 4] & 63 : packed[j + 4] >> 4 | packed[j] >> 6 << 4;
}

struct Affine {
    int top;
    Line line;
    int bytes;
};
constexpr Affine Q4{15, {-1.f, 0.1f, 20}, 144}, Q5{31, {-0.5f, 0.1f, 15}, 176};
constexpr Line WEIGHTED{-0.9f, 0.05f, 36};  // with importance, for both

// Two super-blocks x (512 values) to `blocks` (one or two) blocks at `out`; importance of each one's 256 columns.
void encode_affine(const Affine &kind, const float *x, int blocks, const float *const *importance, uint8_t *out) {
    // element i of all sub-blocks side by side; then what was found for each sub-block
    alignas(64) float values[32][GROUP], columns[32][GROUP], sigma2[GROUP];
    alignas(64) float scale[GROUP], offset[GROUP], inverse[GROUP], base[GROUP], sums[GROUP];
    for (int j = 0; j < GROUP; ++j)
        for (int i = 0; i < 32; ++i) values[i][j] = x[32 * j + i];
    for (int b = 0; importance && b < 2; ++b) {
        float squares = 0;
        for (int i = 0; i < SUPER_BLOCK; ++i) squares += x[SUPER_BLOCK * b + i] * x[SUPER_BLOCK * b + i];
        for (int j = 8 * b; j < 8 * b + 8; ++j) {
            sigma2[j] = 2 * squares / SUPER_BLOCK;
            for (int i = 0; i < 32; ++i) columns[i][j] = importance[b][32 * (j % 8) + i];
        }
    }

    for (int j = 0; j < GROUP; j += LANES) {
        Floats group[32], weights[32], sum_w = all(0), squares = all(0);
        for (int i = 0; i < 32; ++i) {
            group[i] = load(values[i] + j);
            squares += group[i] * group[i];
        }
        const Floats spread = root(squares / 32.f);
        for (int i = 0; i < 32; ++i) {
            weights[i] = importance ? load(columns[i] + j) * root(load(sigma2 + j) + group[i] * group[i])
                                    : spread + magnitude(group[i]);
            sum_w += weights[i];
        }
        const Found found = search_affine(group, weights, kind.top, importance ? WEIGHTED : kind.line);
        store(scale + j, found.scale);
        store(offset + j, found.offset);
        store(inverse + j, found.inverse);
        store(base + j, found.base);
        store(sums + j, sum_w);
    }

    alignas(64) float d[GROUP], dmin[GROUP];
    for (int b = 0; b < 2; ++b) {
        uint8_t scales[8], minima[8], header[16];
        const int first = 8 * b;
        const uint16_t factor = to_half(importance ? search_factor(scale + first, scales, sums + first)
                                                   : plain_factor(scale + first, scales));
        const uint16_t minimum = to_half(importance ? search_factor(offset + first, minima, sums + first)
                                                    : plain_factor(offset + first, minima));
        for (int j = 0; kind.top == Q5.top && j < 8; ++j) {
            scales[j] = scales[j] < 63 ? scales[j] : 63;
            minima[j] = minima[j] < 63 ? minima[j] : 63;
        }
        put_half(header, factor);
        put_half(header + 2, minimum);
        pack_scales(header + 4, scales, minima);
        for (int j = 0; j < 8; ++j) {  // a negative scale does not survive the packing
            d[first + j] = from_half(factor) * scale_of(header + 4, j);
            dmin[first + j] = from_half(minimum) * minimum_of(header + 4, j);
        }
        if (b < blocks) std::memcpy(out + b * kind.bytes, header, sizeof header);
    }

    uint8_t codes[GROUP * 32];
    for (int j = 0; j < GROUP; j += LANES)
        for (int i = 0; i < 32; ++i) {
            const Floats value = load(values[i] + j), factor = load(d + j);
            const Ints fitted = nearest((value + load(dmin + j)) / factor);
            const Ints searched = nearest(load(inverse + j) * (value - load(base + j)));
            int32_t code[LANES];
            store(code, clamp(factor == 0.f ? searched : fitted, 0, kind.top));
            for (int lane = 0; lane < LANES; ++lane) codes[32 * (j + lane) + i] = (uint8_t)code[lane];
        }
    for (int b = 0; b < blocks; ++b) {
        uint8_t *low = out + b * kind.bytes + 16;
        const uint8_t *from = codes + SUPER_BLOCK * b;
        if (kind.top == Q5.top) {  // the fifth bits first, a bit of each byte for one sub-block
            for (int i = 0; i < 32; ++i) {
                uint8_t high = 0;
                for (int j = 0; j < 8; ++j) high |= (uint8_t)((from[32 * j + i] >> 4) << j);
                low[i] = high;
            }
            low += 32;
        }
        for (int pair = 0; pair < 4; ++pair)
            for (int i = 0; i < 32; ++i)
                low[32 * pair + i] = (from[64 * pair + i] & 15) | (uint8_t)((from[64 * pair + 32 + i] & 15) << 4);
    }
}

// One super-block of 16 sub-blocks of 16 to Q6_K: symmetric codes -32..31, the scale of the largest weighted
// correlation over a line of inverse scales.
void encode_symmetric(const float *x, const float *importance, uint8_t *out) {
    constexpr int TOP = 32, BYTES = 210;
    alignas(64) float values[16][GROUP], columns[16][GROUP], found[GROUP], inverses[GROUP], d[GROUP];
    for (int j = 0; j < GROUP; ++j)
        for (int i = 0; i < 16; ++i) {
            values[i][j] = x[16 * j + i];
            if (importance) columns[i][j] = importance[16 * j + i];
        }
    for (int j = 0; j < GROUP; j += LANES) {
        Floats group[16], weights[16], largest = all(0), reach = all(0);  // with its sign, and without
        for (int i = 0; i < 16; ++i) {
            group[i] = load(values[i] + j);
            weights[i] = importance ? load(columns[i] + j) : group[i] * group[i];
            const Floats size = magnitude(group[i]);
            const Ints larger = size > reach;
            largest = larger ? group[i] : largest;
            reach = larger ? size : reach;
        }
        Floats inverse = all(-(float)TOP) / largest, chosen = inverse, sum_xl = all(0), sum_l2 = all(0);
        for (int i = 0; i < 16; ++i) {
            const Floats code = to_float(clamp(nearest(inverse * group[i]), -TOP, TOP - 1));
            sum_xl += weights[i] * group[i] * code;
            sum_l2 += weights[i] * code * code;
        }
        Floats scale = sum_l2 != 0.f ? sum_xl / sum_l2 : all(0), best = scale * sum_xl;
        for (int s = -9; s <= 9; ++s) {
            if (s == 0) continue;
            inverse = all(-((float)TOP + 0.1f * (float)s)) / largest;
            sum_xl = sum_l2 = all(0);
            for (int i = 0; i < 16; ++i) {
                const Floats code = to_float(clamp(nearest(inverse * group[i]), -TOP, TOP - 1));
                sum_xl += weights[i] * group[i] * code;
                sum_l2 += weights[i] * code * code;
            }
            const Ints better = (sum_l2 > 0.f) & (sum_xl * sum_xl > best * sum_l2);
            scale = better ? sum_xl / sum_l2 : scale;
            best = better ? scale * sum_xl : best;
            chosen = better ? inverse : chosen;
        }
        const Ints flat = reach < TINY;
        store(found + j, flat ? all(0) : scale);
        store(inverses + j, flat ? all(0) : chosen);
    }

    float top_scale = 0, top_size = 0;
    for (int j = 0; j < GROUP; ++j) {
        const float size = __builtin_fabsf(found[j]);
        if (size > top_size) {
            top_size = size;
            top_scale = found[j];
        }
    }
    std::memset(out, 0, BYTES);
    if (top_size < TINY) return;
    const float factor = -128.f / top_scale;
    const uint16_t half = to_half(1 / factor);
    put_half(out + 208, half);
    for (int j = 0; j < GROUP; ++j) {
        const int code = nearest(factor * found[j]);
        const int8_t stored = (int8_t)(code < 127 ? code : 127);
        std::memcpy(out + 192 + j, &stored, 1);
        d[j] = from_half(half) * stored;
    }
    uint8_t codes[SUPER_BLOCK];
    for (int j = 0; j < GROUP; j += LANES)
        for (int i = 0; i < 16; ++i) {
            const Floats value = load(values[i] + j), step = load(d + j), inverse = load(inverses + j);
            const Ints fitted = nearest(value / step), searched = nearest(inverse * value);
            Ints code = clamp(step == 0.f ? searched : fitted, -TOP, TOP - 1) + TOP;
            code = ((step == 0.f) & (inverse == 0.f)) ? Ints{} : code;  // a group of zeros
            int32_t lanes[LANES];
            store(lanes, code);
            for (int lane = 0; lane < LANES; ++lane) codes[16 * (j + lane) + i] = (uint8_t)lanes[lane];
        }
    for (int half_block = 0; half_block < 2; ++half_block) {
        const uint8_t *from = codes + 128 * half_block;
        uint8_t *low = out + 64 * half_block, *high = out + 128 + 32 * half_block;
        for (int i = 0; i < 32; ++i) {
            low[i] = (from[i] & 15) | (uint8_t)((from[i + 64] & 15) << 4);
            low[i + 32] = (from[i + 32] & 15) | (uint8_t)((from[i + 96] & 15) << 4);
            high[i] = (uint8_t)(from[i] >> 4 | from[i + 32] >> 4 << 2 | from[i + 64] >> 4 << 4 | from[i + 96] >> 4 << 6);
        }
    }
}

}  // namespace

// Rows of `columns` weights (a multiple of 256) to blocks; `importance` (columns) or null. Returns the bytes written,
// 0 for a type that is not known here. Types are ggml's numbers.
extern "C" int64_t AYAEDGE_ENCODE(
    int32_t type, const float *x, uint8_t *out, int64_t rows, int64_t columns, const float *importance) {
    const int64_t per_row = columns / SUPER_BLOCK, blocks = rows * per_row;
    if (type == 14) {
        for (int64_t b = 0; b < blocks; ++b)
            encode_symmetric(x + b * SUPER_BLOCK, importance ? importance + b % per_row * SUPER_BLOCK : nullptr, out + b * 210);
        return blocks * 210;
    }
    if (type != 12 && type != 13) return 0;
    const Affine &kind = type == 12 ? Q4 : Q5;
    for (int64_t b = 0; b < blocks; b += 2) {
        const int count = b + 1 < blocks ? 2 : 1;
        const float *source = x + b * SUPER_BLOCK;
        float padded[2 * SUPER_BLOCK];
        if (count == 1) {  // the second half of the lanes works on a copy
            std::memcpy(padded, source, SUPER_BLOCK * sizeof(float));
            std::memcpy(padded + SUPER_BLOCK, source, SUPER_BLOCK * sizeof(float));
            source = padded;
        }
        const float *columns_of[2] = {importance, importance};
        for (int64_t second = 0; importance && second < 2; ++second)
            columns_of[second] += (b + (second ? count - 1 : 0)) % per_row * SUPER_BLOCK;
        encode_affine(kind, source, count, importance ? columns_of : nullptr, out + b * kind.bytes);
    }
    return blocks * kind.bytes;
}
