// Q4_K, Q5_K and Q6_K encoders of several super-blocks at a time, one in each SIMD lane.
//
// Every lane does the float operations of ggml's scalar reference encoder (ggml-quants.c of llama.cpp) in the same
// order, so the bytes are the same; that needs strict IEEE arithmetic without fused multiply-add. CMake compiles this
// file once for each instruction set.
//
// Values of a sub-block are LANES apart: element i of the sub-blocks in all lanes, then their element i + 1.

#include "blocks.h"
#include "lanes.h"
#include "variants.h"

namespace {

constexpr float TINY = 1e-15f;  // below this a group counts as zeros

struct Line {  // of inverse scales that are tried: (first + step * s + top) / range for s = 0..steps
    float first, step;
    int steps;
};

// What the search found for the sub-block in each lane.
struct Found {
    Floats scale;
    Floats offset;         // subtracted: the sub-block's minimum, negated
    Floats inverse, base;  // the codes are nearest(inverse * (x - base)), clamped
    Floats weight;         // of all values together
};

struct Sums {  // of weight * code, weight * code^2 and weight * code * x
    Floats l, l2, xl;
};

// The codes that `round` makes of inverse * (x - low), and their sums.
template <class Round>
inline Sums sum_codes(const float *x, const float *weights, const Floats inverse, const Floats low, float *codes,
                      const Round round) {
    Floats l = all(0), l2 = all(0), xl = all(0);
    for (int i = 0; i < 32 * LANES; i += LANES) {
        const Floats value = load(x + i), code = round(inverse * (value - low)), weighted = load(weights + i) * code;
        store(codes + i, code);
        l += weighted;
        l2 += weighted * code;
        xl += weighted * value;
    }
    return {l, l2, xl};
}

// The weighted squared error of scale * code + minimum.
inline Floats error_of(const float *x, const float *weights, const float *codes, const Floats &scale,
                       const Floats &minimum) {
    Floats error = all(0);
    for (int i = 0; i < 32 * LANES; i += LANES) {
        const Floats miss = scale * load(codes + i) + minimum - load(x + i);
        error += load(weights + i) * (miss * miss);
    }
    return error;
}

// Affine codes 0..top of sub-blocks of 32: the least weighted squared error over a line of inverse scales, scale and
// minimum of each fitted by weighted least squares. The minimum is never positive.
Found search_affine(const float *x, const float *weights, int top, const Line &line) {
    alignas(64) float codes[32 * LANES];
    Floats lowest = load(x), high = lowest, sum_w = load(weights), sum_x = sum_w * lowest;
    for (int i = LANES; i < 32 * LANES; i += LANES) {
        const Floats value = load(x + i), weight = load(weights + i);
        lowest = smaller(value, lowest);
        high = larger(value, high);
        sum_w += weight;
        sum_x += weight * value;
    }
    Floats low = select(lowest > 0.f, all(0), lowest);
    const Ints flat = high <= low;
    const Range range(0, top);
    const auto sum_up = [&](const Floats &inverse) {
        // what is rounded lies between the first and the last of these
        const Floats first = inverse * (lowest - low), last = inverse * (high - low);
        const Ints ordinary = (low < high) & (first > -ROUNDABLE);
        if (every(flat | (ordinary & (last < (float)top + 0.5f))))
            return sum_codes(x, weights, inverse, low, codes,
                             [range](const Floats &value) { return nearest_from(value, range); });
        if (every(flat | (ordinary & (last < ROUNDABLE))))
            return sum_codes(x, weights, inverse, low, codes,
                             [range](const Floats &value) { return nearest(value, range); });
        return sum_codes(x, weights, inverse, low, codes,
                         [top](const Floats &value) { return to_float(clamp(nearest(value), 0, top)); });
    };

    Found found;
    Floats inverse = all((float)top) / (high - low);
    sum_up(inverse);
    found.inverse = select(flat, all(0), inverse);
    found.base = low;
    found.scale = select(flat, all(0), 1.f / inverse);
    found.weight = sum_w;
    Floats best = select(flat, all(-1), error_of(x, weights, codes, found.scale, low));  // -1 is not undercut
    for (int s = 0; s <= line.steps; ++s) {
        inverse = all(line.first + line.step * (float)s + (float)top) / (high - low);
        const Sums sums = sum_up(inverse);
        const Floats determinant = sum_w * sums.l2 - sums.l * sums.l;
        Floats scale = (sum_w * sums.xl - sum_x * sums.l) / determinant;
        Floats minimum = (sums.l2 * sum_x - sums.l * sums.xl) / determinant;
        const Ints positive = minimum > 0.f;
        minimum = select(positive, all(0), minimum);
        scale = select(positive, sums.xl / sums.l2, scale);
        const Floats error = error_of(x, weights, codes, scale, minimum);
        const Ints better = (determinant > 0.f) & (error < best);
        best = select(better, error, best);
        found.inverse = select(better, inverse, found.inverse);
        found.base = select(better, low, found.base);
        found.scale = select(better, scale, found.scale);
        low = select(better, minimum, low);  // the next step starts from the better minimum
    }
    found.offset = -low;
    return found;
}

struct Factor {  // of eight scales or minima
    Floats value;
    Ints codes[8];
};

// Codes wrap as in the reference, where they are bytes.
Ints byte_of(const Ints &code) { return code & 255; }
Ints at_most(const Ints &code, int top) { return select(code < top, code, top); }

// Eight non-negative values to codes 0..63 with one factor: a line of scales first, then coordinate descent on the
// weighted correlation.
Factor search_factor(const Floats *x, const Floats *weights) {
    constexpr int COUNT = 8, TOP = 63;
    Floats largest = all(0);
    for (int i = 0; i < COUNT; ++i) largest = larger(largest, x[i]);
    const Ints tiny = largest < TINY;
    Floats inverse = all(TOP) / largest, scale = 1.f / inverse, best = all(0);
    for (int i = 0; i < COUNT; ++i) {
        const Floats miss = x[i] - scale * to_float(byte_of(nearest(inverse * x[i])));
        best += weights[i] * miss * miss;
    }
    for (int s = -4; s <= 4; ++s) {
        if (s == 0) continue;
        const Floats other = all(0.1f * (float)s + TOP) / largest;
        scale = 1.f / other;
        Floats error = all(0);
        for (int i = 0; i < COUNT; ++i) {
            const Floats miss = x[i] - scale * to_float(at_most(nearest(other * x[i]), TOP));
            error += weights[i] * miss * miss;
        }
        const Ints better = error < best;
        best = select(better, error, best);
        inverse = select(better, other, inverse);
    }
    Factor found;
    Floats sum_xl = all(0), sum_l2 = all(0);
    for (int i = 0; i < COUNT; ++i) {
        const Ints code = at_most(nearest(inverse * x[i]), TOP);
        found.codes[i] = byte_of(code);
        sum_xl += weights[i] * x[i] * to_float(code);
        sum_l2 += weights[i] * to_float(code) * to_float(code);
    }
    for (int round = 0; round < 5; ++round) {
        Ints changed{};
        for (int i = 0; i < COUNT; ++i) {
            const Floats w = weights[i], old = to_float(found.codes[i]);
            Floats xl = sum_xl - w * x[i] * old, l2 = sum_l2 - w * old * old;
            const Ints code = at_most(nearest(x[i] * l2 / xl), TOP);
            const Ints other = (xl > 0.f) & (l2 > 0.f) & (code != found.codes[i]);
            xl += w * x[i] * to_float(code);
            l2 += w * to_float(code) * to_float(code);
            const Ints better = other & (xl * xl * sum_l2 > sum_xl * sum_xl * l2);
            found.codes[i] = select(better, byte_of(code), found.codes[i]);
            sum_xl = select(better, xl, sum_xl);
            sum_l2 = select(better, l2, sum_l2);
            changed = changed | better;
        }
        if (!any(changed)) break;
    }
    found.value = select(tiny, all(0), select(sum_l2 > 0.f, sum_xl / sum_l2, all(0)));
    for (int i = 0; i < COUNT; ++i) found.codes[i] = select(tiny, Ints{}, found.codes[i]);
    return found;
}

// The same without weights, as the plain encoder does it: the largest value becomes 63.
Factor plain_factor(const Floats *x) {
    Floats largest = all(0);
    for (int i = 0; i < 8; ++i) largest = larger(x[i], largest);
    const Floats inverse = select(largest > 0.f, 63.f / largest, all(0));
    Factor found;
    found.value = largest / 63.f;
    for (int i = 0; i < 8; ++i) found.codes[i] = at_most(byte_of(nearest(inverse * x[i])), 63);
    return found;
}

// Codes of all lanes, one byte each: those of a lane are SUPER_BLOCK apart from those of the next.
void put_lanes(const Ints &code, uint8_t *out, int64_t stride) {
    int32_t lanes[LANES];
    store(lanes, code);
    for (int lane = 0; lane < LANES; ++lane) out[lane * stride] = (uint8_t)lanes[lane];
}

// The same half floats, in each lane its own.
Floats put_halves(const Floats &value, uint8_t *out, int64_t stride) {
    float lanes[LANES];
    store(lanes, value);
    for (int lane = 0; lane < LANES; ++lane) {
        const uint16_t half = to_half(lanes[lane]);
        put_half(out + lane * stride, half);
        lanes[lane] = from_half(half);
    }
    return load(lanes);
}

struct Affine {
    Type type;
    int top;
    Line line;
};
constexpr Affine FOUR_BITS{Q4_K, 15, {-1.f, 0.1f, 20}}, FIVE_BITS{Q5_K, 31, {-0.5f, 0.1f, 15}};
constexpr Line WEIGHTED{-0.9f, 0.05f, 36};  // with importance, for both

// How much the errors of a sub-block's 32 values weigh.
void weigh(const float *x, const float *importance, const Floats &sigma2, float *weights) {
    constexpr int END = 32 * LANES;
    if (importance) {
        for (int i = 0; i < END; i += LANES)
            store(weights + i, load(importance + i) * root(sigma2 + load(x + i) * load(x + i)));
        return;
    }
    Floats squares = all(0);
    for (int i = 0; i < END; i += LANES) squares += load(x + i) * load(x + i);
    const Floats spread = root(squares / 32.f);
    for (int i = 0; i < END; i += LANES) store(weights + i, spread + magnitude(load(x + i)));
}

// See `EncodeLanes`.
void encode_affine(const Affine &kind, const float *x, const float *importance, int count, uint8_t *out, int64_t stride,
                   bool with_codes) {
    Floats sigma2 = all(0);
    if (importance) {
        for (int i = 0; i < SUPER_BLOCK; ++i) sigma2 += load(x + i * LANES) * load(x + i * LANES);
        sigma2 = 2.f * sigma2 / (float)SUPER_BLOCK;
    }
    Found found[8];
    Floats scales[8], offsets[8], sums[8];
    for (int j = 0; j < 8; ++j) {
        const float *group = x + 32 * j * LANES;
        alignas(64) float weights[32 * LANES];
        weigh(group, importance ? importance + 32 * j * LANES : nullptr, sigma2, weights);
        found[j] = search_affine(group, weights, kind.top, importance ? WEIGHTED : kind.line);
        scales[j] = found[j].scale;
        offsets[j] = found[j].offset;
        sums[j] = found[j].weight;
    }
    const Factor scale = importance ? search_factor(scales, sums) : plain_factor(scales);
    const Factor minimum = importance ? search_factor(offsets, sums) : plain_factor(offsets);

    uint8_t headers[LANES][16], scale_codes[LANES][8], minimum_codes[LANES][8];
    const Floats d = put_halves(scale.value, headers[0], 16), dmin = put_halves(minimum.value, headers[0] + 2, 16);
    for (int j = 0; j < 8; ++j) {
        const int top = kind.type == Q5_K ? 63 : 255;
        put_lanes(at_most(scale.codes[j], top), scale_codes[0] + j, 8);
        put_lanes(at_most(minimum.codes[j], top), minimum_codes[0] + j, 8);
    }
    for (int lane = 0; lane < LANES; ++lane) pack_scales(headers[lane] + 4, scale_codes[lane], minimum_codes[lane]);
    for (int lane = 0; lane < count; ++lane) std::memcpy(out + lane * stride, headers[lane], 16);
    if (!with_codes) return;

    uint8_t codes[LANES][SUPER_BLOCK];
    for (int j = 0; j < 8; ++j) {
        float packed_scales[LANES], packed_minima[LANES];
        for (int lane = 0; lane < LANES; ++lane) {  // a negative scale does not survive the packing
            packed_scales[lane] = (float)scale_of(headers[lane] + 4, j);
            packed_minima[lane] = (float)minimum_of(headers[lane] + 4, j);
        }
        const Floats step = d * load(packed_scales), offset = dmin * load(packed_minima);
        for (int i = 32 * j; i < 32 * j + 32; ++i) {
            const Floats value = load(x + i * LANES);
            const Ints fitted = nearest((value + offset) / step);
            const Ints searched = nearest(found[j].inverse * (value - found[j].base));
            put_lanes(clamp(select(step == 0.f, searched, fitted), 0, kind.top), codes[0] + i, SUPER_BLOCK);
        }
    }
    for (int lane = 0; lane < count; ++lane) put_affine_codes(kind.type, codes[lane], out + lane * stride);
}

struct Symmetric {
    Floats scale, inverse;  // the codes are nearest(inverse * x), clamped; both 0 for a sub-block of zeros
};

// Symmetric codes -32..31 of sub-blocks of 16: the scale of the largest weighted correlation over a line of inverse
// scales.
Symmetric search_symmetric(const float *x, const float *importance) {
    constexpr int TOP = 32;
    const Range range(-TOP, TOP - 1);
    alignas(64) float weights[16 * LANES];
    Floats largest = all(0), reach = all(0);  // with its sign, and without
    for (int i = 0; i < 16 * LANES; i += LANES) {
        const Floats value = load(x + i), size = magnitude(value);
        store(weights + i, importance ? load(importance + i) : value * value);
        largest = select(size > reach, value, largest);
        reach = larger(size, reach);
    }
    const auto sum_up = [&](const Floats &inverse, Floats &sum_xl, Floats &sum_l2) {
        sum_xl = sum_l2 = all(0);
        for (int i = 0; i < 16 * LANES; i += LANES) {
            const Floats value = load(x + i), weight = load(weights + i), code = nearest(inverse * value, range);
            sum_xl += weight * value * code;
            sum_l2 += weight * code * code;
        }
    };
    Floats inverse = all(-(float)TOP) / largest, chosen = inverse, sum_xl, sum_l2;
    sum_up(inverse, sum_xl, sum_l2);
    Floats scale = select(sum_l2 != 0.f, sum_xl / sum_l2, all(0)), best = scale * sum_xl;
    for (int s = -9; s <= 9; ++s) {
        if (s == 0) continue;
        inverse = all(-((float)TOP + 0.1f * (float)s)) / largest;
        sum_up(inverse, sum_xl, sum_l2);
        const Ints better = (sum_l2 > 0.f) & (sum_xl * sum_xl > best * sum_l2);
        scale = select(better, sum_xl / sum_l2, scale);
        best = select(better, scale * sum_xl, best);
        chosen = select(better, inverse, chosen);
    }
    const Ints flat = reach < TINY;
    return {select(flat, all(0), scale), select(flat, all(0), chosen)};
}

// See `EncodeLanes`.
void encode_symmetric(const float *x, const float *importance, int count, uint8_t *out, int64_t stride,
                      bool with_codes) {
    constexpr int TOP = 32, BYTES = block_bytes(Q6_K);
    Symmetric found[16];
    Floats top_scale = all(0), top_size = all(0);
    for (int j = 0; j < 16; ++j) {
        const int start = 16 * j * LANES;
        found[j] = search_symmetric(x + start, importance ? importance + start : nullptr);
        const Floats size = magnitude(found[j].scale);
        top_scale = select(size > top_size, found[j].scale, top_scale);
        top_size = larger(size, top_size);
    }
    const Floats factor = -128.f / top_scale;
    uint8_t halves[LANES][2], scales[LANES][16], codes[LANES][SUPER_BLOCK];
    const Floats d = put_halves(1.f / factor, halves[0], 2);
    for (int j = 0; j < 16; ++j) {
        const Ints scale = at_most(nearest(factor * found[j].scale), 127);
        put_lanes(scale, scales[0] + j, 16);
        const Floats step = d * to_float(scale);
        for (int i = 16 * j; with_codes && i < 16 * j + 16; ++i) {
            const Floats value = load(x + i * LANES);
            const Ints fitted = nearest(value / step), searched = nearest(found[j].inverse * value);
            Ints code = clamp(select(step == 0.f, searched, fitted), -TOP, TOP - 1) + TOP;
            code = select((step == 0.f) & (found[j].inverse == 0.f), Ints{}, code);  // a group of zeros
            put_lanes(code, codes[0] + i, SUPER_BLOCK);
        }
    }
    float sizes[LANES];
    store(sizes, top_size);
    for (int lane = 0; lane < count; ++lane) {
        uint8_t *block = out + lane * stride;
        std::memset(block, 0, BYTES);
        if (sizes[lane] < TINY) continue;
        std::memcpy(block + 192, scales[lane], 16);
        std::memcpy(block + 208, halves[lane], 2);
        if (with_codes) put_symmetric_codes(codes[lane], block);
    }
}

// `count` super-blocks, one after the other, side by side.
void take_super_blocks(const float *from, int count, float *to) {
    for (int lane = 0; lane < LANES; ++lane)
        for (int i = 0; i < SUPER_BLOCK; ++i) to[i * LANES + lane] = lane < count ? from[lane * SUPER_BLOCK + i] : 0;
}

}  // namespace

extern "C" void AYAEDGE_NAME(encode_lanes)(int32_t type, const float *x, const float *importance, int count,
                                           uint8_t *out, int64_t stride, bool with_codes) {
    if (type == Q6_K)
        encode_symmetric(x, importance, count, out, stride, with_codes);
    else
        encode_affine(type == Q4_K ? FOUR_BITS : FIVE_BITS, x, importance, count, out, stride, with_codes);
}

extern "C" int64_t AYAEDGE_NAME(encode)(int32_t type, const float *x, uint8_t *out, int64_t rows, int64_t columns,
                                        const float *importance) {
    const int64_t per_row = columns / SUPER_BLOCK, blocks = rows * per_row, bytes = block_bytes(type);
    if (type != Q4_K && type != Q5_K && type != Q6_K) return 0;
    alignas(64) float values[SUPER_BLOCK * LANES], weights[SUPER_BLOCK * LANES];
    for (int64_t b = 0; b < blocks; b += LANES) {
        const int count = b + LANES < blocks ? LANES : (int)(blocks - b);
        take_super_blocks(x + b * SUPER_BLOCK, count, values);
        for (int lane = 0; importance && lane < LANES; ++lane) {
            const float *columns_of = importance + (b + lane) % per_row * SUPER_BLOCK;
            for (int i = 0; i < SUPER_BLOCK; ++i) weights[i * LANES + lane] = columns_of[i];
        }
        AYAEDGE_NAME(encode_lanes)(type, values, importance ? weights : nullptr, count, out + b * bytes, bytes, true);
    }
    return blocks * bytes;
}
