// KL divergence and top-1 agreement of pairs of logits rows; the numpy twin is ayaedge_quant/kl_divergence.py.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <thread>
#include <vector>

#include "api.h"

namespace {

struct RowSummary {
    double log_partition;  // log of the sum of exp(logit)
    int64_t top;           // first index of the largest logit
};

RowSummary summarize(const float* row, int64_t columns) {
    const int64_t top = std::max_element(row, row + columns) - row;
    const double largest = row[top];
    double sum = 0.0;
    for (int64_t i = 0; i < columns; ++i) sum += std::exp(static_cast<double>(row[i]) - largest);
    return {largest + std::log(sum), top};
}

double divergence_of_row(const float* p, const float* q, const RowSummary& ps, const RowSummary& qs, int64_t columns) {
    double sum = 0.0;
    for (int64_t i = 0; i < columns; ++i) {
        const double log_p = p[i] - ps.log_partition;
        const double weight = std::exp(log_p);
        if (weight > 0.0) sum += weight * (log_p - (q[i] - qs.log_partition));
    }
    return sum;
}

}  // namespace

// KL(softmax(reference) || softmax(candidate)) in nats and whether both rows have the same largest logit, for each
// of `rows` rows of `columns` floats. Returns 0, or 1 if an argument makes no sense.
AYAEDGE_API int ayaedge_divergence(const float* reference, const float* candidate, int64_t rows, int64_t columns,
                                   int32_t threads, double* divergence, uint8_t* same_top) {
    if (!reference || !candidate || !divergence || !same_top || rows < 0 || columns < 1 || threads < 1) return 1;
    std::atomic<int64_t> next{0};
    const auto work = [&] {
        for (int64_t r = next++; r < rows; r = next++) {
            const float* p = reference + r * columns;
            const float* q = candidate + r * columns;
            const RowSummary ps = summarize(p, columns);
            const RowSummary qs = summarize(q, columns);
            divergence[r] = divergence_of_row(p, q, ps, qs, columns);
            same_top[r] = ps.top == qs.top;
        }
    };
    std::vector<std::thread> pool;
    for (int64_t t = 1; t < std::min<int64_t>(threads, rows); ++t) pool.emplace_back(work);
    work();
    for (auto& thread : pool) thread.join();
    return 0;
}
