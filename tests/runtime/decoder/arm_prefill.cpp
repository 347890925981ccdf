// Prints the kernels that this processor is offered, a line each, and compares the bits of all their results with the
// scalar kernel's: any bytes as weights, odd activations, every remainder of tiles. Exits with 1 at the first difference.

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

extern "C" {
const char *ayaedge_prefill_kernel(int32_t);
int32_t ayaedge_prefill_quantize(int32_t, const float *, int64_t, int64_t, int8_t *, float *);
int32_t ayaedge_prefill_product(int32_t, int32_t, const uint8_t *, int64_t, int64_t, const float *, int64_t, float *,
                                int32_t);
int64_t ayaedge_prefill_peak(int32_t, int64_t);
}

namespace {

constexpr int32_t SCALAR = 0, MOST_KERNELS = 64, Q4_K = 12, Q6_K = 14;
constexpr float INFINITE = std::numeric_limits<float>::infinity(), NOTHING = std::numeric_limits<float>::quiet_NaN();
constexpr float ODD[] = {0.f, -0.f, 1e-41f, 1e-38f, 1e4f, 3e37f, -3e37f, INFINITE, -INFINITE, NOTHING};

std::mt19937 generator;

struct Shape {
    int32_t type;
    int64_t rows, depth, columns;
};

void check(bool fine, const char *what, int32_t kernel, const Shape &s) {
    if (fine) return;
    std::printf("%s: %s of type %d, %d x %d, %d columns\n", ayaedge_prefill_kernel(kernel), what, int(s.type), int(s.rows),
                int(s.depth), int(s.columns));
    std::exit(1);
}

bool same(const std::vector<float> &a, const std::vector<float> &b) {
    for (size_t i = 0; i < a.size(); ++i)
        if (std::memcmp(&a[i], &b[i], 4) && !(std::isnan(a[i]) && std::isnan(b[i]))) return false;
    return true;
}

std::vector<float> numbers(int64_t count, bool odd) {
    std::normal_distribution<float> ordinary;
    std::vector<float> values(count);
    for (float &value : values) value = odd && generator() % 400 == 0 ? ODD[generator() % 10] : ordinary(generator);
    return values;
}

void compare(int32_t kernel, const Shape &s, const std::vector<uint8_t> &weights, const std::vector<float> &x,
             int32_t threads) {
    std::vector<int8_t> q[2];
    std::vector<float> d[2], out[2];
    for (int i = 0; i < 2; ++i) {
        q[i].resize(s.columns * s.depth);
        d[i].resize(s.columns * (s.depth / 256));
        out[i].resize(s.columns * s.rows, float(i));
        const int32_t k = i ? kernel : SCALAR;
        check(ayaedge_prefill_quantize(k, x.data(), s.depth, s.columns, q[i].data(), d[i].data()) == 0, "refusal", k, s);
        check(ayaedge_prefill_product(k, s.type, weights.data(), s.rows, s.depth, x.data(), s.columns, out[i].data(),
                                      threads) == 0, "refusal", k, s);
    }
    check(q[0] == q[1] && same(d[0], d[1]), "activations", kernel, s);
    check(same(out[0], out[1]), "product", kernel, s);
}

std::vector<uint8_t> any_weights(const Shape &s) {
    std::vector<uint8_t> weights(s.rows * (s.depth / 256) * (s.type == Q4_K ? 144 : 210));
    for (uint8_t &byte : weights) byte = (uint8_t)generator();
    return weights;
}

// The largest codes and scales: of Q4_K with d = 1 and no minima, of Q6_K with scales of -128.
std::vector<uint8_t> largest_weights(const Shape &s) {
    const size_t block = s.type == Q4_K ? 144 : 210;
    std::vector<uint8_t> weights(s.rows * (s.depth / 256) * block, 255);
    for (size_t i = 0; i < weights.size(); i += block) {
        uint8_t *d = &weights[i + (s.type == Q4_K ? 0 : 208)];
        d[0] = 0, d[1] = 0x3c;
        if (s.type == Q4_K) d[2] = d[3] = 0;
        if (s.type == Q6_K) std::memset(&weights[i + 192], 128, 16);
    }
    return weights;
}

void products(int32_t kernel, int32_t type) {
    for (int64_t rows : {32, 96, 160})
        for (int64_t depth : {256, 512, 768})
            for (int64_t columns : {1, 2, 3, 4, 5, 6, 7, 11, 32}) {
                const Shape s{type, rows, depth, columns};
                for (bool odd : {false, true}) compare(kernel, s, any_weights(s), numbers(columns * depth, odd), 3);
            }
    const Shape many{type, 32, 256, 515};  // more than are computed at once
    compare(kernel, many, any_weights(many), numbers(515 * 256, true), 2);
}

void largest_sums(int32_t kernel, int32_t type) {
    const Shape s{type, 32, 512, 7};
    for (float sign : {1.f, -1.f})
        for (const auto &weights : {largest_weights(s), any_weights(s)})
            compare(kernel, s, weights, std::vector<float>(s.columns * s.depth, sign), 1);
}

}  // namespace

int main() {
    for (int32_t kernel = SCALAR; kernel < MOST_KERNELS; ++kernel) {
        if (!ayaedge_prefill_kernel(kernel)) continue;
        for (int32_t type : {Q4_K, Q6_K}) {
            largest_sums(kernel, type);
            if (kernel != SCALAR) products(kernel, type);
        }
        check(kernel == SCALAR || ayaedge_prefill_peak(kernel, 3) > 0, "peak", kernel, {});
        std::puts(ayaedge_prefill_kernel(kernel));
    }
}
