// Which instruction sets this processor has, and the system saves.

#include "variants.h"

#if defined(AYAEDGE_X86) && defined(_MSC_VER)
#include <immintrin.h>
#include <intrin.h>
#endif

namespace {

#if defined(AYAEDGE_X86) && defined(_MSC_VER)

bool bit(int word, int number) { return word >> number & 1; }

// Instruction set extensions (leaf 7) and the registers that the system saves; zeros where there is neither.
struct Processor {
    int extensions = 0;
    unsigned long long saved = 0;
    Processor() {
        int words[4];
        __cpuid(words, 0);
        const int leaves = words[0];
        __cpuid(words, 1);
        if (leaves < 7 || !bit(words[2], 27)) return;
        saved = _xgetbv(0);
        __cpuidex(words, 7, 0);
        extensions = words[1];
    }
    bool avx2() const { return (saved & 0x06) == 0x06 && bit(extensions, 5); }
    bool avx512() const {  // F, DQ, BW and VL
        return (saved & 0xe6) == 0xe6 && bit(extensions, 16) && bit(extensions, 17) && bit(extensions, 30) &&
               bit(extensions, 31);
    }
};

#elif defined(AYAEDGE_X86)

struct Processor {
    Processor() { __builtin_cpu_init(); }
    bool avx2() const { return __builtin_cpu_supports("avx2"); }
    bool avx512() const {
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    }
};

#endif

}  // namespace

const Variant &choose_variant(int32_t widest) {
    static const Variant arrays{ayaedge_encode_arrays, ayaedge_sweep_arrays};
    static const Variant portable{ayaedge_encode_portable, ayaedge_sweep_portable};
#if defined(AYAEDGE_X86)
    static const Variant avx2{ayaedge_encode_avx2, ayaedge_sweep_avx2};
    static const Variant avx512{ayaedge_encode_avx512, ayaedge_sweep_avx512};
    static const Processor processor;
    if (widest >= 2 && processor.avx512()) return avx512;
    if (widest >= 1 && processor.avx2()) return avx2;
#endif
    return widest < 0 ? arrays : portable;
}
