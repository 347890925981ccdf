// LANES floats or 32-bit integers side by side, with the operators of single ones; comparisons give -1 or 0 a lane.
//
// Lanes are made of parts, as many at a time as an instruction takes: vectors of GCC's and Clang's extensions. Other
// compilers, and any with AYAEDGE_ARRAYS, get single values, whose loops are left to the compiler. All do the same IEEE
// operations, none fused, so results are the same bits.
//
// All is in an unnamed namespace: each file compiles it for its own instruction set, and a linker that merged these
// functions across files would hand a processor instructions that it does not have.

#pragma once

#include <math.h>

#include <cstdint>
#include <cstring>

#if !defined(__GNUC__) && !defined(__clang__) && !defined(AYAEDGE_ARRAYS)
#define AYAEDGE_ARRAYS
#endif

#if defined(__SSE2__) && !defined(AYAEDGE_ARRAYS)
#include <immintrin.h>
#endif

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(_MSC_VER)
#pragma fp_contract(off)
#endif

namespace {

constexpr int LANES = AYAEDGE_LANES;

#if defined(AYAEDGE_ARRAYS)
constexpr int WIDTH = 1;
using FloatPart = float;
using IntPart = int32_t;
inline int32_t mask_of(bool holds) { return holds ? -1 : 0; }
inline float to_float_part(int32_t value) { return (float)value; }
inline float root_part(float value) { return sqrtf(value); }
inline float round_part(float value) { return value + 12582912.f - 12582912.f; }
inline bool any_of_part(int32_t mask) { return mask != 0; }
#else
constexpr int WIDTH = AYAEDGE_WIDTH;
typedef float FloatPart __attribute__((vector_size(4 * WIDTH)));
typedef int32_t IntPart __attribute__((vector_size(4 * WIDTH)));
inline IntPart mask_of(IntPart holds) { return holds; }
inline FloatPart to_float_part(IntPart value) { return __builtin_convertvector(value, FloatPart); }
inline FloatPart root_part(FloatPart value) {
    for (int i = 0; i < WIDTH; ++i) value[i] = sqrtf(value[i]);
    return value;
}
inline FloatPart round_part(FloatPart value) {
#if defined(__AVX512F__)
    return (FloatPart)_mm512_maskz_roundscale_ps(0xffff, (__m512)value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__AVX2__)
    return (FloatPart)_mm256_round_ps((__m256)value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    return value + 12582912.f - 12582912.f;
#endif
}
inline bool any_of_part(IntPart mask) {
#if defined(__AVX512DQ__)
    return _mm512_movepi32_mask((__m512i)mask) != 0;
#elif defined(__AVX2__)
    return _mm256_movemask_epi8((__m256i)mask) != 0;
#elif defined(__SSE2__)
    return _mm_movemask_epi8((__m128i)mask) != 0;
#else
    int32_t either = 0;
    for (int i = 0; i < WIDTH; ++i) either |= mask[i];
    return either != 0;
#endif
}
#endif

constexpr int PARTS = LANES / WIDTH;

struct Floats {
    FloatPart part[PARTS];
    Floats() = default;
    Floats(float value) {
        for (int i = 0; i < PARTS; ++i) part[i] = value - FloatPart{};
    }
};

struct Ints {
    IntPart part[PARTS];
    Ints() = default;
    Ints(int32_t value) {
        for (int i = 0; i < PARTS; ++i) part[i] = value - IntPart{};
    }
};

// A function of one, two or three `Operand`s whose result is `expression` of their parts x, y and z.
#define AYAEDGE_UNARY(Result, name, Operand, expression)                     \
    inline Result name(const Operand &a) {                                   \
        Result result;                                                       \
        for (int i = 0; i < PARTS; ++i) {                                    \
            const auto x = a.part[i];                                        \
            result.part[i] = expression;                                     \
        }                                                                    \
        return result;                                                       \
    }
#define AYAEDGE_BINARY(Result, name, Operand, expression)                    \
    inline Result name(const Operand &a, const Operand &b) {                 \
        Result result;                                                       \
        for (int i = 0; i < PARTS; ++i) {                                    \
            const auto x = a.part[i], y = b.part[i];                         \
            result.part[i] = expression;                                     \
        }                                                                    \
        return result;                                                       \
    }
#define AYAEDGE_SELECT(Operand)                                              \
    inline Operand select(const Ints &mask, const Operand &a, const Operand &b) { \
        Operand result;                                                      \
        for (int i = 0; i < PARTS; ++i) result.part[i] = mask.part[i] ? a.part[i] : b.part[i]; \
        return result;                                                       \
    }
AYAEDGE_UNARY(Floats, operator-, Floats, -x)
AYAEDGE_UNARY(Floats, root, Floats, root_part(x))
AYAEDGE_UNARY(Floats, rounded, Floats, round_part(x))
AYAEDGE_UNARY(Floats, to_float, Ints, to_float_part(x))
AYAEDGE_BINARY(Floats, operator+, Floats, x + y)
AYAEDGE_BINARY(Floats, operator-, Floats, x - y)
AYAEDGE_BINARY(Floats, operator*, Floats, x * y)
AYAEDGE_BINARY(Floats, operator/, Floats, x / y)
AYAEDGE_BINARY(Floats, smaller, Floats, x < y ? x : y)
AYAEDGE_BINARY(Floats, larger, Floats, x > y ? x : y)
AYAEDGE_BINARY(Ints, operator<, Floats, mask_of(x < y))
AYAEDGE_BINARY(Ints, operator>, Floats, mask_of(x > y))
AYAEDGE_BINARY(Ints, operator<=, Floats, mask_of(x <= y))
AYAEDGE_BINARY(Ints, operator==, Floats, mask_of(x == y))
AYAEDGE_BINARY(Ints, operator!=, Floats, mask_of(x != y))
AYAEDGE_BINARY(Ints, operator+, Ints, x + y)
AYAEDGE_BINARY(Ints, operator-, Ints, x - y)
AYAEDGE_BINARY(Ints, operator&, Ints, x & y)
AYAEDGE_BINARY(Ints, operator|, Ints, x | y)
AYAEDGE_BINARY(Ints, operator<, Ints, mask_of(x < y))
AYAEDGE_BINARY(Ints, operator>, Ints, mask_of(x > y))
AYAEDGE_BINARY(Ints, operator==, Ints, mask_of(x == y))
AYAEDGE_BINARY(Ints, operator!=, Ints, mask_of(x != y))
AYAEDGE_SELECT(Floats)
AYAEDGE_SELECT(Ints)
#undef AYAEDGE_UNARY
#undef AYAEDGE_BINARY
#undef AYAEDGE_SELECT

inline Floats &operator+=(Floats &sum, const Floats &value) { return sum = sum + value; }
inline Floats &operator-=(Floats &difference, const Floats &value) { return difference = difference - value; }

inline FloatPart load_part(const float *from) {
    FloatPart value;
    std::memcpy(&value, from, sizeof value);
    return value;
}
inline void store_part(float *to, const FloatPart &value) { std::memcpy(to, &value, sizeof value); }
inline void store_part(int32_t *to, const IntPart &value) { std::memcpy(to, &value, sizeof value); }

// GCC copies several vectors in smaller pieces if it is not told to copy each.
inline Floats load(const float *from) {
    Floats value;
    for (int i = 0; i < PARTS; ++i) value.part[i] = load_part(from + i * WIDTH);
    return value;
}
inline void store(float *to, const Floats &value) {
    for (int i = 0; i < PARTS; ++i) store_part(to + i * WIDTH, value.part[i]);
}
inline void store(int32_t *to, const Ints &value) {
    for (int i = 0; i < PARTS; ++i) store_part(to + i * WIDTH, value.part[i]);
}

inline Ints bits_of(const Floats &value) {
    Ints bits;
    for (int i = 0; i < PARTS; ++i) std::memcpy(&bits.part[i], &value.part[i], sizeof bits.part[i]);
    return bits;
}
inline Floats of_bits(const Ints &bits) {
    Floats value;
    for (int i = 0; i < PARTS; ++i) std::memcpy(&value.part[i], &bits.part[i], sizeof value.part[i]);
    return value;
}

inline bool any(const Ints &mask) {
    for (int i = 0; i < PARTS; ++i)
        if (any_of_part(mask.part[i])) return true;
    return false;
}
inline bool every(const Ints &mask) { return !any(mask == 0); }

inline Floats all(float value) { return Floats{} + value; }  // which makes +0 of -0
inline Floats magnitude(const Floats &value) { return of_bits(bits_of(value) & 0x7fffffff); }

inline Ints clamp(const Ints &value, int low, int high) {
    const Ints limited = select(value < high, value, high);
    return select(limited > low, limited, low);
}

// Round to the nearest integer, ties to even: adding 1.5 * 2^23 leaves the integer in the mantissa.
inline Ints nearest(const Floats &value) { return (bits_of(value + 12582912.f) & 0x007fffff) - 0x00400000; }

struct Range {  // of codes
    Floats low, high;
    Range(int lowest, int highest) {
        const volatile float zero = 0.f;  // for bounds that it knows GCC does not take the processor's minimum
        low = all(zero + (float)lowest);
        high = all(zero + (float)highest);
    }
};

constexpr float ROUNDABLE = 4194304.f;  // magnitudes below this do not overflow into the exponent

// clamp(nearest(value), lowest, highest) as floats, for ROUNDABLE values; in fewer instructions.
inline Floats nearest(const Floats &value, const Range &range) {
    return rounded(smaller(larger(value, range.low), range.high));
}
// The same for values that round to no more than the highest code.
inline Floats nearest_from(const Floats &value, const Range &range) { return rounded(larger(value, range.low)); }

}  // namespace
