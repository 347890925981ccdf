// The column sweep with error feedback on PANEL_ROWS rows, a row in each SIMD lane.
//
// Its numpy twin is ayaedge_quant/sweep.py: each value sees the same float operations in the same order, so the codes
// are the same; that needs strict IEEE arithmetic without fused multiply-add. The order leaves the choice whether an
// error is taken from columns at once or later, together with others. Here columns wait until it is their turn, so that
// their sums stay in registers. CMake compiles this file once for each instruction set.

#include "blocks.h"
#include "lanes.h"
#include "variants.h"

namespace {

#if defined(__aarch64__) || defined(__AVX512F__)
constexpr int TILE = 16;  // columns whose sums are in registers
#else
constexpr int TILE = 8;
#endif
static_assert(PANEL_ROWS % LANES == 0 && LAZY % TILE == 0, "groups of rows and tiles of columns are whole");

// LANES rows or, at the end, fewer.
struct Group {
    int64_t first;
    int rows;
    float *left, *errors, *step, *offset;
    uint8_t *codes;
};

Group group_of(const Sweep &sweep, const Panel &panel, int64_t first, int number) {
    const int64_t begin = first + number * LANES, rest = sweep.rows - begin, rows = number * LANES;
    return {begin,
            (int)(rest < LANES ? rest : LANES),
            panel.left + rows * sweep.columns,
            panel.errors + rows * LAZY,
            panel.step + rows * 16,
            panel.offset + rows * 16,
            panel.codes + rows * SUPER_BLOCK};
}

int64_t column_at(const Sweep &sweep, int64_t place) { return sweep.order ? sweep.order[place] : place; }

uint8_t *block_of(const Sweep &sweep, const Group &group, int row, int64_t start) {
    return sweep.blocks + (group.first + row) * sweep.block_stride + start / SUPER_BLOCK * block_bytes(sweep.type);
}

void take_weights(const Sweep &sweep, const Group &group) {
    for (int64_t start = 0; start < sweep.columns; start += SUPER_BLOCK)
        for (int row = 0; row < LANES; ++row) {
            const bool exists = row < group.rows;
            const float *from = sweep.weights + (exists ? (group.first + row) * sweep.weight_stride : 0);
            for (int64_t place = start; place < start + SUPER_BLOCK; ++place)
                group.left[place * LANES + row] = exists ? from[column_at(sweep, place)] : 0;
        }
}

// Whether every weight of the super-block at `start` has a scale that is a half float.
bool is_small_enough(const Sweep &sweep, const Group &group, int64_t start) {
    const Floats largest = all(sweep.type == Q6_K ? 32 * 65504.f : 65504.f);
    Ints fitting = Ints{} - 1;
    for (int i = 0; i < SUPER_BLOCK; ++i)
        fitting = fitting & (magnitude(load(group.left + (start + i) * LANES)) <= largest);
    return every(fitting);
}

// Searches the grid of the super-block at `start` with our encoder.
void search_grid(const Sweep &sweep, const Group &group, int64_t start) {
    alignas(64) float values[SUPER_BLOCK * LANES], weights[SUPER_BLOCK * LANES];
    for (int i = 0; i < SUPER_BLOCK; ++i) {
        const int64_t column = column_at(sweep, start + i) - start;
        store(values + column * LANES, load(group.left + (start + i) * LANES));
        if (sweep.importance) store(weights + i * LANES, all(sweep.importance[start + i]));
    }
    AYAEDGE_NAME(encode_lanes)(sweep.type, values, sweep.importance ? weights : nullptr, group.rows,
                               block_of(sweep, group, 0, start), sweep.block_stride, false);
}

// Searches the grid of the super-block at `start` with the encoder that was given.
void search_stock_grid(const Sweep &sweep, const Group &group, int64_t start) {
    alignas(64) float values[LANES * SUPER_BLOCK];
    uint8_t encoded[LANES * block_bytes(Q6_K)];
    for (int i = 0; i < SUPER_BLOCK; ++i)
        for (int row = 0; row < LANES; ++row)
            values[row * SUPER_BLOCK + column_at(sweep, start + i) - start] = group.left[(start + i) * LANES + row];
    sweep.stock(sweep.type, values, encoded, 0, group.rows, SUPER_BLOCK,
                sweep.importance ? sweep.importance + start : nullptr);
    const int bytes = block_bytes(sweep.type);
    for (int row = 0; row < group.rows; ++row)
        std::memcpy(block_of(sweep, group, row, start), encoded + row * bytes, bytes);
}

void read_grid(const Sweep &sweep, const Group &group, int64_t start) {
    std::memset(group.step, 0, 16 * LANES * sizeof(float));
    std::memset(group.offset, 0, 16 * LANES * sizeof(float));
    for (int row = 0; row < group.rows; ++row) {
        const uint8_t *block = block_of(sweep, group, row, start);
        if (sweep.type == Q6_K) {
            const float factor = get_half(block + 208);
            for (int j = 0; j < 16; ++j) group.step[j * LANES + row] = factor * (float)(int8_t)block[192 + j];
            continue;
        }
        const float factor = get_half(block), minimum = get_half(block + 2);
        for (int j = 0; j < 8; ++j) {
            group.step[j * LANES + row] = factor * (float)scale_of(block + 4, j);
            group.offset[j * LANES + row] = minimum * (float)minimum_of(block + 4, j);
        }
    }
}

void put_codes(const Sweep &sweep, const Group &group, int64_t start) {
    for (int row = 0; row < group.rows; ++row) {
        const uint8_t *codes = group.codes + row * SUPER_BLOCK;
        uint8_t *block = block_of(sweep, group, row, start);
        if (sweep.type == Q6_K)
            put_symmetric_codes(codes, block);
        else
            put_affine_codes(sweep.type, codes, block);
    }
}

// The feedback of LAZY columns from `start` on to as many from `to` on: TILE columns of all rows side by side.
void pack_feedback(const Sweep &sweep, int64_t start, int64_t to, float *packed) {
    for (int row = 0; row < LAZY; ++row) {
        const float *from = sweep.feedback + (start + row) * sweep.feedback_stride + to;
        for (int column = 0; column < LAZY; column += TILE)
            std::memcpy(packed + column * LAZY + row * TILE, from + column, TILE * sizeof(float));
    }
}

struct Codes {  // of a type
    float low, high;
    int group;   // columns that share a step
    int stored;  // what is added to a code in a block
};

constexpr Codes codes_of(int32_t type) {
    return type == Q6_K ? Codes{-32, 31, 16, 32} : Codes{0, type == Q5_K ? 31.f : 15.f, 32, 0};
}

// Rounds one column; its error is returned.
Floats round_column(const Codes &codes, const Group &group, int64_t column, const Floats &value) {
    const int within = (int)(column % SUPER_BLOCK), part = within / codes.group;
    const Floats step = load(group.step + part * LANES), offset = load(group.offset + part * LANES);
    Floats wanted = (value + offset) / step;
    wanted = select(wanted < codes.high, wanted, all(codes.high));
    wanted = select(wanted > codes.low, wanted, all(codes.low));
    const Ints code = nearest(select(step == 0.f, all(0), wanted));
    int32_t stored[LANES];
    store(stored, code + codes.stored);
    for (int row = 0; row < LANES; ++row) group.codes[row * SUPER_BLOCK + within] = (uint8_t)stored[row];
    return value - (step * to_float(code) - offset);
}

// Rounds LAZY columns from `start` on, each after the errors of those before it were taken from it.
void round_columns(const Sweep &sweep, const Group &group, int64_t start, const float *feedback) {
    const Codes codes = codes_of(sweep.type);
    for (int first = 0; first < LAZY; first += TILE) {
        const float *row = feedback + first * LAZY;
        Floats tile[TILE];
        for (int j = 0; j < TILE; ++j) tile[j] = load(group.left + (start + first + j) * LANES);
        for (int k = 0; k < first; ++k, row += TILE) {
            const Floats error = load(group.errors + k * LANES);
            for (int j = 0; j < TILE; ++j) tile[j] -= error * row[j];
        }
        for (int i = 0; i < TILE; ++i, row += TILE) {
            const Floats error = round_column(codes, group, column_at(sweep, start + first + i), tile[i]);
            store(group.errors + (first + i) * LANES, error);
            for (int j = i + 1; j < TILE; ++j) tile[j] -= error * row[j];
        }
    }
}

// Takes the errors of a lazy block from LAZY columns behind it, their sum at once.
void correct_columns(const Group &group, int64_t to, const float *feedback) {
    for (int first = 0; first < LAZY; first += TILE) {
        Floats sums[TILE];
        for (int j = 0; j < TILE; ++j) sums[j] = Floats{};
        for (int k = 0; k < LAZY; ++k, feedback += TILE) {
            const Floats error = load(group.errors + k * LANES);
            for (int j = 0; j < TILE; ++j) sums[j] += error * feedback[j];
        }
        for (int j = 0; j < TILE; ++j) {
            float *left = group.left + (to + first + j) * LANES;
            store(left, load(left) - sums[j]);
        }
    }
}

}  // namespace

extern "C" bool AYAEDGE_NAME(sweep)(const Sweep &sweep, int64_t first, const Panel &panel) {
    const int64_t rest = sweep.rows - first, rows = rest < PANEL_ROWS ? rest : PANEL_ROWS;
    const int groups = (int)((rows + LANES - 1) / LANES);
    for (int g = 0; g < groups; ++g) take_weights(sweep, group_of(sweep, panel, first, g));
    for (int64_t start = 0; start < sweep.columns; start += LAZY) {
        const int64_t super = start - start % SUPER_BLOCK;
        pack_feedback(sweep, start, start, panel.feedback);
        for (int g = 0; g < groups; ++g) {
            const Group group = group_of(sweep, panel, first, g);
            if (start == super) {
                if (sweep.refit && !is_small_enough(sweep, group, start)) return false;
                if (sweep.refit) (sweep.stock ? search_stock_grid : search_grid)(sweep, group, start);
                read_grid(sweep, group, start);
            }
            round_columns(sweep, group, start, panel.feedback);
            if (start != super) put_codes(sweep, group, super);
        }
        for (int64_t to = start + LAZY; to < sweep.columns; to += LAZY) {
            pack_feedback(sweep, start, to, panel.feedback);
            for (int g = 0; g < groups; ++g) correct_columns(group_of(sweep, panel, first, g), to, panel.feedback);
        }
    }
    return true;
}
