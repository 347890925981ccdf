// The column sweep with error feedback on PANEL_ROWS rows, a row in each SIMD lane.
//
// Its numpy twin is ayaedge_quant/gptq_sweep.py: each value sees the same float operations in the same order, so the codes
// are the same; that needs strict IEEE arithmetic without fused multiply-add. The order leaves the choice whether an
// error is taken from columns at once or later, together with others. Here columns wait until it is their turn, so that
// their sums stay in registers. CMake compiles this file once for each instruction set.

#include "blocks.h"
#include "lanes.h"
#include "variants.h"

namespace {

// Errors are taken from TILE columns of STRIP parts of the lanes at a time, whose sums fill half of the registers.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int STRIP = 1, TILE = 16, NEAR_TILE = 8;
#else
constexpr int STRIP = PARTS, TILE = WIDTH == 1 ? 8 : 8 / STRIP, NEAR_TILE = TILE;
#endif
#if defined(__GNUC__)
#define AYAEDGE_UNROLL _Pragma("GCC unroll 16")
#else
#define AYAEDGE_UNROLL
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

// Columns that are taken from one row after the other: a cache line of each.
constexpr int LINE = 16;

// LINE columns of one row, to one lane.
void take_line(const Sweep &sweep, const float *from, int64_t start, float *to) {
    if (!from)
        for (int i = 0; i < LINE; ++i) to[i * LANES] = 0;
    else if (sweep.order)
        for (int i = 0; i < LINE; ++i) to[i * LANES] = from[sweep.order[start + i]];
    else
        for (int i = 0; i < LINE; ++i) to[i * LANES] = from[start + i];
}

void take_weights(const Sweep &sweep, const Group &group) {
    for (int64_t start = 0; start < sweep.columns; start += LINE)
        for (int row = 0; row < LANES; ++row) {
            const float *from = nullptr;
            if (row < group.rows) from = sweep.weights + (group.first + row) * sweep.weight_stride;
            take_line(sweep, from, start, group.left + start * LANES + row);
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
        const float factor = get_half(block);
        if (sweep.type == IQ4_XS) {
            for (int j = 0; j < 8; ++j) group.step[j * LANES + row] = factor * (float)uneven_scale_of(block, j);
            continue;
        }
        const float minimum = get_half(block + 2);
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
        else if (sweep.type == IQ4_XS)
            put_uneven_codes(codes, block);
        else
            put_affine_codes(sweep.type, codes, block);
    }
}

// The feedback of LAZY columns from `start` on to as many from `to` on, which may be the same: `tile` columns of all
// rows side by side, but for rows that are rounded after these columns.
void pack_feedback(const Sweep &sweep, int64_t start, int64_t to, int tile, float *packed) {
    for (int row = 0; row < LAZY; ++row) {
        const float *from = sweep.feedback + (start + row) * sweep.feedback_stride + to;
        for (int column = to == start ? row - row % tile : 0; column < LAZY; column += tile)
            std::memcpy(packed + column * LAZY + row * tile, from + column, tile * sizeof(float));
    }
}

struct Codes {  // of a type
    Floats low, high;
    int group;   // columns that share a step
    int stored;  // what is added to a code in a block
    bool uneven;  // whether codes stand for LEVELS
};

Codes codes_of(int32_t type) {
    if (type == Q6_K) return {all(-32), all(31), 16, 32, false};
    return {all(0), all(type == Q5_K ? 31 : 15), 32, 0, type == IQ4_XS};
}

// The nearest of LEVELS, the lower of two, and its code.
Floats nearest_level(const Floats &wanted, Ints &code) {
    Floats level = all((float)LEVELS[0]);
    code = Ints{};
    for (int k = 1; k < 16; ++k) {
        const Ints above = wanted > all((float)(LEVELS[k - 1] + LEVELS[k]) / 2);
        level = select(above, all((float)LEVELS[k]), level);
        code = code + (above & 1);
    }
    return level;
}

// Rounds one column; its error is returned.
Floats round_column(const Codes &codes, const Group &group, int64_t column, const Floats &value) {
    const int within = (int)(column % SUPER_BLOCK), part = within / codes.group;
    const Floats step = load(group.step + part * LANES), offset = load(group.offset + part * LANES);
    const Floats wanted = (value + offset) / step;
    Floats level;
    Ints code;
    if (codes.uneven) {
        level = nearest_level(select(step == 0.f, all(0), wanted), code);
    } else {
        const Floats limited = larger(smaller(wanted, codes.high), codes.low);    // not NaN
        const Floats shifted = select(step == 0.f, all(0), limited) + 12582912.f;  // see `nearest`
        level = shifted - 12582912.f;
        code = bits_of(shifted) + codes.stored;
    }
    int32_t stored[LANES];
    store(stored, code);
    for (int row = 0; row < LANES; ++row) group.codes[row * SUPER_BLOCK + within] = (uint8_t)stored[row];
    return value - (step * level - offset);
}

// `sums` and the products of `count` errors with the feedback to COLUMNS columns, in order.
template <int COLUMNS, bool SUBTRACT>
inline void add_products(const float *errors, const float *feedback, int count, FloatPart (&sums)[COLUMNS][STRIP]) {
    for (int k = 0; k < count; ++k, errors += LANES, feedback += COLUMNS) {
        FloatPart error[STRIP];
        AYAEDGE_UNROLL for (int p = 0; p < STRIP; ++p) error[p] = load_part(errors + p * WIDTH);
        AYAEDGE_UNROLL for (int j = 0; j < COLUMNS; ++j)
            AYAEDGE_UNROLL for (int p = 0; p < STRIP; ++p)
                sums[j][p] = SUBTRACT ? sums[j][p] - error[p] * feedback[j] : sums[j][p] + error[p] * feedback[j];
    }
}

// Takes `count` errors from NEAR_TILE columns, one after the other.
void take_errors(const float *errors, const float *feedback, int count, float *columns) {
    for (int lane = 0; lane < LANES; lane += STRIP * WIDTH) {
        FloatPart tile[NEAR_TILE][STRIP];
        AYAEDGE_UNROLL for (int j = 0; j < NEAR_TILE; ++j)
            AYAEDGE_UNROLL for (int p = 0; p < STRIP; ++p) tile[j][p] = load_part(columns + j * LANES + lane + p * WIDTH);
        add_products<NEAR_TILE, true>(errors + lane, feedback, count, tile);
        AYAEDGE_UNROLL for (int j = 0; j < NEAR_TILE; ++j)
            AYAEDGE_UNROLL for (int p = 0; p < STRIP; ++p) store_part(columns + j * LANES + lane + p * WIDTH, tile[j][p]);
    }
}

// Rounds LAZY columns from `start` on, each after the errors of those before it were taken from it.
void round_columns(const Sweep &sweep, const Group &group, int64_t start, const float *feedback) {
    const Codes codes = codes_of(sweep.type);
    for (int first = 0; first < LAZY; first += NEAR_TILE, feedback += LAZY * NEAR_TILE) {
        float *columns = group.left + (start + first) * LANES;
        take_errors(group.errors, feedback, first, columns);
        Floats tile[NEAR_TILE];
        AYAEDGE_UNROLL for (int j = 0; j < NEAR_TILE; ++j) tile[j] = load(columns + j * LANES);
        AYAEDGE_UNROLL for (int i = 0; i < NEAR_TILE; ++i) {
            const float *row = feedback + (first + i) * NEAR_TILE;
            const Floats error = round_column(codes, group, column_at(sweep, start + first + i), tile[i]);
            store(group.errors + (first + i) * LANES, error);
            AYAEDGE_UNROLL for (int j = i + 1; j < NEAR_TILE; ++j) tile[j] -= error * row[j];
        }
    }
}

// Takes the errors of a lazy block from LAZY columns behind it, their sum at once.
void correct_columns(const Group &group, int64_t to, const float *feedback) {
    for (int first = 0; first < LAZY; first += TILE, feedback += LAZY * TILE)
        for (int lane = 0; lane < LANES; lane += STRIP * WIDTH) {
            FloatPart sums[TILE][STRIP];
            AYAEDGE_UNROLL for (int j = 0; j < TILE; ++j)
                AYAEDGE_UNROLL for (int p = 0; p < STRIP; ++p) sums[j][p] = FloatPart{};
            add_products<TILE, false>(group.errors + lane, feedback, LAZY, sums);
            AYAEDGE_UNROLL for (int j = 0; j < TILE; ++j)
                AYAEDGE_UNROLL for (int p = 0; p < STRIP; ++p) {
                    float *left = group.left + (to + first + j) * LANES + lane + p * WIDTH;
                    store_part(left, load_part(left) - sums[j][p]);
                }
        }
}

}  // namespace

extern "C" bool AYAEDGE_NAME(sweep)(const Sweep &sweep, int64_t first, const Panel &panel) {
    const int64_t rest = sweep.rows - first, rows = rest < PANEL_ROWS ? rest : PANEL_ROWS;
    const int groups = (int)((rows + LANES - 1) / LANES);
    for (int64_t start = 0; start < sweep.columns; start += LAZY) {
        const int64_t super = start - start % SUPER_BLOCK;
        pack_feedback(sweep, start, start, NEAR_TILE, panel.feedback);
        for (int g = 0; g < groups; ++g) {
            const Group group = group_of(sweep, panel, first, g);
            if (start == 0) take_weights(sweep, group);
            if (start == super) {
                if (sweep.refit && !is_small_enough(sweep, group, start)) return false;
                if (sweep.refit) (sweep.stock ? search_stock_grid : search_grid)(sweep, group, start);
                read_grid(sweep, group, start);
            }
            round_columns(sweep, group, start, panel.feedback);
            if (start != super) put_codes(sweep, group, super);
        }
        for (int64_t to = start + LAZY; to < sweep.columns; to += LAZY) {
            pack_feedback(sweep, start, to, TILE, panel.feedback);
            for (int g = 0; g < groups; ++g) correct_columns(group_of(sweep, panel, first, g), to, panel.feedback);
        }
    }
    return true;
}
