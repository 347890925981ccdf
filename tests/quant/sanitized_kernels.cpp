// Calls every kernel with odd sizes and values, on buffers that end where the arguments say, so that sanitizers see
// each step outside them. Prints a line and exits with 0 unless a kernel returns something unexpected.

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

extern "C" {
int ayaedge_divergence(const float *, const float *, int64_t, int64_t, int32_t, double *, uint8_t *);
int64_t ayaedge_encode(int32_t, const float *, uint8_t *, int64_t, int64_t, const float *, int32_t);
int32_t ayaedge_sweep(int32_t, const float *, int64_t, int64_t, int64_t, const float *, int64_t, const float *,
                      const int32_t *, int32_t, void *, uint8_t *, int64_t, int32_t, int32_t);
}

namespace {

constexpr int TYPES[] = {12, 13, 14, 23}, BYTES[] = {144, 176, 210, 136};  // the last is only swept
constexpr float INFINITE = std::numeric_limits<float>::infinity(), NOTHING = std::numeric_limits<float>::quiet_NaN();
constexpr float ODD[] = {0.f,  -0.f, 1e-41f, 1e-20f, 1e4f,     -6e4f,   65504.f,
                         1e6f, 1e20f, 3e38f, -3e38f, INFINITE, NOTHING};

std::mt19937 generator;

void check(bool fine, const char *what) {
    if (fine) return;
    std::printf("unexpected: %s\n", what);
    std::exit(1);
}

// The first `odd` of ODD are strewn among ordinary values.
std::vector<float> numbers(int64_t count, int odd, float size) {
    std::normal_distribution<float> ordinary(0.f, size);
    std::vector<float> values(count);
    for (float &value : values) value = odd && generator() % 40 == 0 ? ODD[generator() % odd] : ordinary(generator);
    return values;
}

std::vector<int32_t> shuffled(int64_t columns) {
    std::vector<int32_t> order(columns);
    std::iota(order.begin(), order.end(), 0);
    for (int64_t start = 0; start < columns; start += 256)
        for (int i = 255; i > 0; --i) std::swap(order[start + i], order[start + generator() % (i + 1)]);
    return order;
}

void divergences() {
    for (int64_t rows : {0, 1, 3, 7})
        for (int64_t columns : {1, 5, 1000}) {
            const auto p = numbers(rows * columns, 4, 5.f), q = numbers(rows * columns, 4, 5.f);
            std::vector<double> divergence(rows + 1);
            std::vector<uint8_t> same(rows + 1);
            const float nothing = 0;
            check(ayaedge_divergence(rows ? p.data() : &nothing, rows ? q.data() : &nothing, rows, columns, 3,
                                     divergence.data(), same.data()) == 0, "divergence");
        }
}

void encodings(int kind, int odd, int32_t widest) {
    for (int64_t rows : {0, 1, 3, 17})
        for (int64_t columns : {256, 768}) {
            const auto x = numbers(rows * columns, odd, 0.02f);
            auto importance = numbers(columns, 0, 1.f);
            for (float &value : importance) value *= value;
            const int64_t bytes = rows * columns / 256 * BYTES[kind];
            std::vector<uint8_t> blocks(bytes);
            check(ayaedge_encode(TYPES[kind], x.data(), blocks.data(), rows, columns, nullptr, widest) == bytes, "encode");
            check(ayaedge_encode(TYPES[kind], x.data(), blocks.data(), rows, columns, importance.data(), widest) == bytes,
                  "encode with importance");
        }
    check(ayaedge_encode(2, nullptr, nullptr, 1, 256, nullptr, widest) == 0, "encode of another type");
}

void sweeps(int kind, int odd, float strength, int32_t widest) {
    for (int64_t rows : {1, 5, 37, 130})
        for (int64_t columns : {256, 768}) {
            const int64_t stride = columns + 3, bytes = columns / 256 * BYTES[kind], block_stride = bytes + 5;
            const auto x = numbers((rows - 1) * stride + columns, odd, 0.02f);
            const auto feedback = numbers((columns - 1) * (columns + 1) + columns, odd > 8 ? odd : 0, strength);
            auto importance = numbers(columns, 0, 1.f);
            for (float &value : importance) value *= value;
            const auto order = shuffled(columns);
            std::vector<uint8_t> blocks((rows - 1) * block_stride + bytes);
            for (uint8_t &byte : blocks) byte = (uint8_t)generator();  // grids with every kind of half float
            for (int refit = 0; refit < (TYPES[kind] == 23 ? 1 : 2); ++refit)  // for which ggml must search
                for (int options = 0; options < 4; ++options) {
                    const int32_t status = ayaedge_sweep(
                        TYPES[kind], x.data(), rows, stride, columns, feedback.data(), columns + 1,
                        options & 1 ? importance.data() : nullptr, options & 2 ? order.data() : nullptr, refit, nullptr,
                        blocks.data(), block_stride, 3, widest);
                    check(status == 0 || (refit && status == 4), "sweep");
                    check(status == 0 || odd > 6 || strength > 0.1f, "sweep of ordinary values");
                }
        }
}

void refusals() {
    const std::vector<float> x(256), feedback(256 * 256);
    std::vector<uint8_t> blocks(144);
    auto order = shuffled(256);
    const auto status = [&](int32_t type, int64_t rows, int64_t columns, int32_t threads) {
        return ayaedge_sweep(type, x.data(), rows, 256, columns, feedback.data(), 256, nullptr, order.data(), 1, nullptr,
                             blocks.data(), 144, threads, 2);
    };
    check(status(12, 1, 256, 1) == 0, "a sweep of zeros");
    check(status(12, 0, 256, 1) == 0, "a sweep of no rows");
    check(status(12, 1, 0, 1) == 0, "a sweep of no columns");
    check(status(2, 1, 256, 1) == 1, "a sweep of another type");
    check(status(23, 1, 256, 1) == 1, "a search without an encoder");
    check(status(12, -1, 256, 1) == 1, "a sweep of fewer than no rows");
    check(status(12, 1, 255, 1) == 1, "a sweep of no whole block");
    check(status(12, 1, 256, 0) == 1, "a sweep without threads");
    for (int32_t wrong : {order[1], 256, -1, std::numeric_limits<int32_t>::min()}) {
        order[0] = wrong;
        check(status(12, 1, 256, 1) == 2, "a sweep in no order");
    }
}

}  // namespace

int main() {
    divergences();
    refusals();
    for (int32_t widest = -1; widest <= 2; ++widest)
        for (int kind = 0; kind < 4; ++kind)
            for (int odd : {0, 6, 13}) {
                if (TYPES[kind] != 23) encodings(kind, odd, widest);
                for (float strength : {0.01f, 0.5f}) sweeps(kind, odd, strength, widest);
            }
    std::puts("no complaints");
}
