// The column sweep's entry: arguments, memory and threads; the sweep itself is in sweep_lanes.cpp.

#include <algorithm>
#include <atomic>
#include <memory>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include "api.h"
#include "blocks.h"
#include "variants.h"

namespace {

enum Status : int32_t { DONE = 0, BAD_ARGUMENTS = 1, BAD_ORDER = 2, NO_MEMORY = 3, TOO_LARGE = 4 };

bool is_permutation(const int32_t *order, int64_t start) {
    bool seen[SUPER_BLOCK] = {};
    for (int i = 0; i < SUPER_BLOCK; ++i) {
        const int64_t place = order[start + i] - start;
        if (place < 0 || place >= SUPER_BLOCK || seen[place]) return false;
        seen[place] = true;
    }
    return true;
}

class PanelMemory {
  public:
    explicit PanelMemory(int64_t columns)
        : floats_(new float[PANEL_ROWS * (columns + LAZY + 2 * GROUPS) + LAZY * LAZY + ALIGNMENT]),
          codes_(new uint8_t[PANEL_ROWS * SUPER_BLOCK]) {
        size_t space = ALIGNMENT * sizeof(float) + 1;
        void *aligned = floats_.get();
        float *next = static_cast<float *>(std::align(ALIGNMENT * sizeof(float), 1, aligned, space));
        const auto take = [&next](int64_t count) { return (next += count) - count; };
        panel.left = take(PANEL_ROWS * columns);
        panel.errors = take(PANEL_ROWS * LAZY);
        panel.step = take(PANEL_ROWS * GROUPS);
        panel.offset = take(PANEL_ROWS * GROUPS);
        panel.feedback = take(LAZY * LAZY);
        panel.codes = codes_.get();
    }
    Panel panel;

  private:
    static constexpr int GROUPS = 16, ALIGNMENT = 16;  // floats of a cache line
    std::unique_ptr<float[]> floats_;
    std::unique_ptr<uint8_t[]> codes_;
};

int32_t run(const Sweep &sweep, SweepPanel *sweep_panel, int32_t threads) {
    const int64_t panels = (sweep.rows + PANEL_ROWS - 1) / PANEL_ROWS;
    std::atomic<int64_t> next{0};
    std::atomic<bool> fits{true};
    const auto work = [&](const Panel &panel) {
        for (int64_t p = next++; p < panels && fits; p = next++)
            if (!sweep_panel(sweep, p * PANEL_ROWS, panel)) fits = false;
    };
    std::vector<PanelMemory> memory;
    std::vector<std::thread> pool;
    const int64_t workers = std::min<int64_t>(threads, panels);
    memory.reserve(workers);
    pool.reserve(workers);
    for (int64_t t = 0; t < workers; ++t) memory.emplace_back(sweep.columns);
    try {
        for (int64_t t = 1; t < workers; ++t) pool.emplace_back(work, memory[t].panel);
    } catch (const std::system_error &) {  // as many threads as there may be
    }
    if (workers) work(memory[0].panel);
    for (auto &thread : pool) thread.join();
    return fits ? DONE : TOO_LARGE;
}

}  // namespace

// Rounds weights (rows, columns) with error feedback onto the grid of blocks of ggml's type `type`, Q4_K, Q5_K, Q6_K or
// IQ4_XS; ayaedge_quant/gptq_sweep.py describes it. Rows of weights, feedback and blocks are `..._stride` apart, in floats
// and bytes.
//
// `feedback` (columns, columns) is read above the diagonal. `order` (columns) or null permutes the columns of each
// super-block. With `refit` the grid is searched by our encoder, which IQ4_XS does not have, or by `stock` if it is not
// null, with `importance` (columns) or null; without, it is that of the blocks. `widest` as for `ayaedge_encode`, which gives the same bytes.
//
// Returns 0; 1 if an argument makes no sense, 2 if `order` leaves a super-block or is no permutation, 3 if there is no
// memory, 4 if a corrected weight is not finite or too large for the grid that is searched.
AYAEDGE_API int32_t ayaedge_sweep(int32_t type, const float *weights, int64_t rows, int64_t weight_stride,
                                  int64_t columns, const float *feedback, int64_t feedback_stride,
                                  const float *importance, const int32_t *order, int32_t refit, StockEncode *stock,
                                  uint8_t *blocks, int64_t block_stride, int32_t threads, int32_t widest) {
    if (!weights || !feedback || !blocks || rows < 0 || columns < 0 || threads < 1) return BAD_ARGUMENTS;
    if (!block_bytes(type) || columns % SUPER_BLOCK) return BAD_ARGUMENTS;
    if (type == IQ4_XS && refit && !stock) return BAD_ARGUMENTS;
    for (int64_t start = 0; order && start < columns; start += SUPER_BLOCK)
        if (!is_permutation(order, start)) return BAD_ORDER;
    const Sweep sweep{type,       weights, rows,       weight_stride, columns, feedback,    feedback_stride,
                      importance, order,   refit != 0, stock,         blocks,  block_stride};
    try {
        return run(sweep, choose_variant(widest).sweep, threads);
    } catch (const std::bad_alloc &) {
        return NO_MEMORY;
    }
}
