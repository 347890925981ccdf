// Calls every prefill kernel with any bytes as weights and odd activations, on buffers that end where the arguments
// say, so that sanitizers see each step outside them. Prints a line and exits with 0 unless something is unexpected.

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <vector>

extern "C" {
const char *ayaedge_prefill_kernel(int32_t);
int32_t ayaedge_prefill_quantize(int32_t, const float *, int64_t, int64_t, int8_t *, float *);
int32_t ayaedge_prefill_product(int32_t, int32_t, const uint8_t *, int64_t, int64_t, const float *, int64_t, float *,
                                int32_t);
int32_t ayaedge_prefill_has_attention(int32_t);
int32_t ayaedge_prefill_attention(int32_t, const void *, int32_t);
int64_t ayaedge_prefill_peak(int32_t, int64_t);
}

namespace {

constexpr int32_t AMX = 6, MOST_KERNELS = 64;
constexpr float INFINITE = std::numeric_limits<float>::infinity(), NOTHING = std::numeric_limits<float>::quiet_NaN();
constexpr float ODD[] = {0.f, -0.f, 1e-41f, 1e-38f, 1e4f, 3e38f, -3e38f, INFINITE, -INFINITE, NOTHING};

std::mt19937 generator;

void check(bool fine, const char *what) {
    if (fine) return;
    std::printf("unexpected: %s\n", what);
    std::exit(1);
}

std::vector<float> numbers(int64_t count, bool odd) {
    std::normal_distribution<float> ordinary;
    std::vector<float> values(count);
    for (float &value : values) value = odd && generator() % 40 == 0 ? ODD[generator() % 10] : ordinary(generator);
    return values;
}

void products(int32_t kernel, int32_t type, int64_t block, bool odd) {
    for (int64_t rows : {0, 32, 96})
        for (int64_t depth : {256, 768})
            for (int64_t columns : {0, 1, 5, 6, 7, 41, 515}) {
                if (kernel == 0 && columns > 41) continue;
                const auto x = numbers(columns * depth, odd);
                std::vector<uint8_t> weights(rows * (depth / 256) * block);
                for (uint8_t &byte : weights) byte = (uint8_t)generator();  // every kind of half float too
                std::vector<float> out(columns * rows, 7.f);
                std::vector<int8_t> q(columns * depth);
                std::vector<float> d(columns * (depth / 256));
                const bool of_bytes = kernel != AMX;
                check(ayaedge_prefill_quantize(kernel, x.data(), depth, columns, q.data(), d.data()) == !of_bytes,
                      "quantize");
                check(ayaedge_prefill_product(kernel, type, weights.data(), rows, depth, x.data(), columns, out.data(),
                                              3) == 0, "product");
            }
}

struct Attention {  // of attention.h
    const float *q;
    int64_t q_token, q_head;
    const uint16_t *k;
    int64_t k_key, k_head;
    const uint16_t *v;
    int64_t v_key, v_head;
    const uint16_t *mask;
    int64_t mask_token;
    float *out;
    int64_t tokens, keys, heads, kv_heads, depth;
    float scale;
};

std::vector<uint16_t> halves(int64_t count, bool odd) {
    std::vector<uint16_t> values(count);
    for (uint16_t &value : values) value = (uint16_t)(odd ? generator() : generator() & 0x3fff);
    return values;
}

void attentions(int32_t kernel, bool odd) {
    for (int64_t depth : {32, 96, 256})
        for (int64_t group : {1, 3, 17})
            for (int64_t tokens : {0, 1, 8, 9, 70})
                for (int64_t keys : {0, 1, 64, 131, 300}) {
                    const int64_t kv_heads = 2, heads = kv_heads * group;
                    const auto q = numbers(tokens * heads * depth, odd);
                    const auto k = halves(keys * kv_heads * depth, odd), v = halves(keys * kv_heads * depth, odd);
                    auto mask = halves(tokens * keys, odd);
                    for (uint16_t &value : mask) value = generator() % 2 ? 0xfc00 : value;
                    std::vector<float> out(tokens * heads * depth, 7.f);
                    const int64_t row = kv_heads * depth;
                    const Attention a{q.data(), heads * depth, depth, k.data(), row, depth, v.data(), row, depth,
                                      mask.data(), keys, out.data(), tokens, keys, heads, kv_heads, depth, .1f};
                    check(ayaedge_prefill_attention(kernel, &a, 3) == 0, "attention");
                }
}

void refusals() {
    const std::vector<float> x(256);
    const std::vector<uint8_t> weights(32 * 144);
    std::vector<float> out(32);
    const auto status = [&](int32_t kernel, int32_t type, int64_t rows, int64_t depth, int32_t threads) {
        return ayaedge_prefill_product(kernel, type, weights.data(), rows, depth, x.data(), 1, out.data(), threads);
    };
    check(status(0, 12, 32, 256, 1) == 0, "a product of zeros");
    check(status(MOST_KERNELS, 12, 32, 256, 1) == 1, "a product by no kernel");
    check(status(-1, 12, 32, 256, 1) == 1, "a product by less than no kernel");
    check(status(0, 13, 32, 256, 1) == 1, "a product of another type");
    check(status(0, 12, 31, 256, 1) == 1, "a product of no whole panel");
    check(status(0, 12, 32, 255, 1) == 1, "a product of no whole block");
    check(status(0, 12, 32, 0, 1) == 1, "a product of nothing");
    check(status(0, 12, 32, 256, 0) == 1, "a product without threads");
}

}  // namespace

int main() {
    refusals();
    for (int32_t kernel = 0; kernel < MOST_KERNELS; ++kernel) {
        if (!ayaedge_prefill_kernel(kernel)) continue;
        check(ayaedge_prefill_peak(kernel, 3) >= 0, "peak");
        for (bool odd : {false, true}) {
            products(kernel, 12, 144, odd);
            products(kernel, 14, 210, odd);
            if (ayaedge_prefill_has_attention(kernel)) attentions(kernel, odd);
        }
    }
    std::puts("no complaints");
}
