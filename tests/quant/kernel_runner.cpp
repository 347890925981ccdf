// `kernel_runner CASES BLOCKS`: encodes and sweeps the cases of one file, and writes their blocks to another one, so that
// test_kernels_elsewhere.py can compare other compilers and processors with the oracle. Everything is little-endian.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

extern "C" {
int64_t ayaedge_encode(int32_t, const float *, uint8_t *, int64_t, int64_t, const float *, int32_t);
int32_t ayaedge_sweep(int32_t, const float *, int64_t, int64_t, int64_t, const float *, int64_t, const float *,
                      const int32_t *, int32_t, void *, uint8_t *, int64_t, int32_t, int32_t);
}

namespace {

struct Case {  // what stands in front of its arrays
    int32_t sweeps, refit, type, row_bytes, rows, columns, widest;
};

void check(bool fine, const char *what) {
    if (fine) return;
    std::fprintf(stderr, "%s\n", what);
    std::exit(1);
}

template <typename Value>
std::vector<Value> take(std::FILE *from, int64_t count) {
    std::vector<Value> values(count);
    check((int64_t)std::fread(values.data(), sizeof(Value), count, from) == count, "a case ends early");
    return values;
}

void run(const Case &one, std::FILE *from, std::FILE *to) {
    const auto weights = take<float>(from, (int64_t)one.rows * one.columns);
    const auto importance = take<float>(from, one.columns);
    std::vector<uint8_t> blocks((int64_t)one.rows * one.row_bytes);
    if (one.sweeps) {
        const auto feedback = take<float>(from, (int64_t)one.columns * one.columns);
        const auto order = take<int32_t>(from, one.columns);
        if (!one.refit) blocks = take<uint8_t>(from, (int64_t)blocks.size());
        check(ayaedge_sweep(one.type, weights.data(), one.rows, one.columns, one.columns, feedback.data(), one.columns,
                            importance.data(), order.data(), one.refit, nullptr, blocks.data(), one.row_bytes, 2,
                            one.widest) == 0, "a sweep failed");
    } else {
        check(ayaedge_encode(one.type, weights.data(), blocks.data(), one.rows, one.columns, importance.data(),
                             one.widest) == (int64_t)blocks.size(), "an encoding failed");
    }
    check(std::fwrite(blocks.data(), 1, blocks.size(), to) == blocks.size(), "the blocks could not be written");
}

}  // namespace

int main(int count, char **arguments) {
    check(count == 3, "kernel_runner CASES BLOCKS");
    std::FILE *from = std::fopen(arguments[1], "rb"), *to = std::fopen(arguments[2], "wb");
    check(from && to, "a file cannot be opened");
    Case one;
    while (std::fread(&one, sizeof one, 1, from) == 1) run(one, from, to);
    check(std::fclose(to) == 0, "the blocks could not be written");
}
