// LANES floats or 32-bit integers side by side, with the operators of single ones; comparisons give -1 or 0 a lane.
//
// GCC and Clang have vector extensions for it. Other compilers, and any with AYAEDGE_ARRAYS, get arrays whose loops are
// left to the compiler. Both do the same IEEE operations, one a lane and none fused, so results are the same bits.
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

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(_MSC_VER)
#pragma fp_contract(off)
#endif

namespace {

constexpr int LANES = AYAEDGE_LANES;

#if defined(AYAEDGE_ARRAYS)

struct Floats {
    float lane[LANES];
    Floats() = default;
    Floats(float value) {
        for (int i = 0; i < LANES; ++i) lane[i] = value;
    }
};

struct Ints {
    int32_t lane[LANES];
    Ints() = default;
    Ints(int32_t value) {
        for (int i = 0; i < LANES; ++i) lane[i] = value;
    }
};

// Result is `expression` of each lane's x = a.lane[i] and y = b.lane[i].
#define AYAEDGE_LANEWISE(Result, name, Operands, expression)     \
    inline Result name(const Operands &a, const Operands &b) {   \
        Result result;                                           \
        for (int i = 0; i < LANES; ++i) {                        \
            const auto x = a.lane[i], y = b.lane[i];             \
            result.lane[i] = expression;                         \
        }                                                        \
        return result;                                           \
    }
AYAEDGE_LANEWISE(Floats, operator+, Floats, x + y)
AYAEDGE_LANEWISE(Floats, operator-, Floats, x - y)
AYAEDGE_LANEWISE(Floats, operator*, Floats, x *y)
AYAEDGE_LANEWISE(Floats, operator/, Floats, x / y)
AYAEDGE_LANEWISE(Floats, smaller, Floats, x < y ? x : y)
AYAEDGE_LANEWISE(Floats, larger, Floats, x > y ? x : y)
AYAEDGE_LANEWISE(Ints, operator<, Floats, x < y ? -1 : 0)
AYAEDGE_LANEWISE(Ints, operator>, Floats, x > y ? -1 : 0)
AYAEDGE_LANEWISE(Ints, operator<=, Floats, x <= y ? -1 : 0)
AYAEDGE_LANEWISE(Ints, operator==, Floats, x == y ? -1 : 0)
AYAEDGE_LANEWISE(Ints, operator!=, Floats, x != y ? -1 : 0)
AYAEDGE_LANEWISE(Ints, operator+, Ints, x + y)
AYAEDGE_LANEWISE(Ints, operator-, Ints, x - y)
AYAEDGE_LANEWISE(Ints, operator&, Ints, x &y)
AYAEDGE_LANEWISE(Ints, operator|, Ints, x | y)
AYAEDGE_LANEWISE(Ints, operator<, Ints, x < y ? -1 : 0)
AYAEDGE_LANEWISE(Ints, operator>, Ints, x > y ? -1 : 0)
AYAEDGE_LANEWISE(Ints, operator!=, Ints, x != y ? -1 : 0)
#undef AYAEDGE_LANEWISE

inline Floats operator-(const Floats &value) {
    Floats result;
    for (int i = 0; i < LANES; ++i) result.lane[i] = -value.lane[i];
    return result;
}
inline Floats &operator+=(Floats &sum, const Floats &value) { return sum = sum + value; }
inline Floats &operator-=(Floats &difference, const Floats &value) { return difference = difference - value; }

template <class Lanes>
inline Lanes select(const Ints &mask, const Lanes &where, const Lanes &otherwise) {
    Lanes result;
    for (int i = 0; i < LANES; ++i) result.lane[i] = mask.lane[i] ? where.lane[i] : otherwise.lane[i];
    return result;
}

inline Floats to_float(const Ints &value) {
    Floats result;
    for (int i = 0; i < LANES; ++i) result.lane[i] = (float)value.lane[i];
    return result;
}

inline Floats root(const Floats &value) {
    Floats result;
    for (int i = 0; i < LANES; ++i) result.lane[i] = sqrtf(value.lane[i]);
    return result;
}

#else

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));

template <class Lanes>
inline Lanes select(Ints mask, Lanes where, Lanes otherwise) {
    return mask ? where : otherwise;
}

inline Floats smaller(Floats a, Floats b) { return a < b ? a : b; }
inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }

inline Floats to_float(Ints value) { return __builtin_convertvector(value, Floats); }

inline Floats root(Floats value) {
    for (int lane = 0; lane < LANES; ++lane) value[lane] = __builtin_sqrtf(value[lane]);
    return value;
}

#endif

template <class Lanes, class Value>
inline Lanes load_lanes(const Value *from) {
    Lanes value;
    std::memcpy(&value, from, sizeof value);
    return value;
}
inline Floats load(const float *from) { return load_lanes<Floats>(from); }
inline void store(float *to, const Floats &value) { std::memcpy(to, &value, sizeof value); }
inline void store(int32_t *to, const Ints &value) { std::memcpy(to, &value, sizeof value); }

inline Ints bits_of(const Floats &value) {
    Ints bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}
inline Floats of_bits(const Ints &bits) {
    Floats value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline bool any(const Ints &mask) {
    int32_t lanes[LANES], either = 0;
    store(lanes, mask);
    for (int i = 0; i < LANES; ++i) either |= lanes[i];
    return either != 0;
}
inline bool every(const Ints &mask) {
    int32_t lanes[LANES], both = -1;
    store(lanes, mask);
    for (int i = 0; i < LANES; ++i) both &= lanes[i];
    return both != 0;
}

inline Floats all(float value) { return Floats{} + value; }  // which makes +0 of -0
inline Floats magnitude(const Floats &value) { return of_bits(bits_of(value) & 0x7fffffff); }

inline Ints clamp(Ints value, int low, int high) {
    value = select(value < high, value, Ints{} + high);
    return select(value > low, value, Ints{} + low);
}

// Round to the nearest integer, ties to even: adding 1.5 * 2^23 leaves the integer in the mantissa.
inline Ints nearest(const Floats &value) { return (bits_of(value + 12582912.f) & 0x007fffff) - 0x00400000; }

struct Range {  // of codes, each with 1.5 * 2^23 added
    Floats low, high;
    Range(int lowest, int highest) : low(all(12582912.f + (float)lowest)), high(all(12582912.f + (float)highest)) {}
};

constexpr float ROUNDABLE = 4194304.f;  // magnitudes below this do not overflow into the exponent

// clamp(nearest(value), lowest, highest) as floats, for ROUNDABLE values; in fewer instructions.
inline Floats nearest(const Floats &value, const Range &range) {
    return smaller(larger(value + 12582912.f, range.low), range.high) - 12582912.f;
}
// The same for values that round to no more than the highest code.
inline Floats nearest_from(const Floats &value, const Range &range) {
    return larger(value + 12582912.f, range.low) - 12582912.f;
}

inline int nearest(float value) {
    const float shifted = value + 12582912.f;
    int32_t bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    return (bits & 0x007fffff) - 0x00400000;
}

}  // namespace
