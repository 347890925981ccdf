// Attention for x86, compiled once for each width of vectors. A lane is one token in one head, so that nothing is ever
// summed across lanes: keys and values are broadcast, and each lane keeps its own maximum and sum. Blocks of keys come
// one after the other; what was added up before is scaled where a new maximum is found.

#include "attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "floats.h"

namespace ayaedge {
namespace {

constexpr int vectors = AYAEDGE_BITS == 512 ? 4 : 2, tile = 6;  // of a register tile
constexpr int width = lanes * vectors;   // lanes of a panel
constexpr int even = 2;                  // keys are taken in pairs
constexpr int64_t gap = 16;              // floats between rows: otherwise they would throw one another out of the cache

// What a group of tokens sees of a block of keys.
struct Sight {
  int64_t from = keys_at_once, to = 0;  // no key outside
  bool is_plain = false;                // a whole block to which nothing is added
  bool is_empty() const { return from >= to; }
  void join(const Sight& other) {
    from = std::min(from, other.from);
    to = std::max(to, other.to);
    is_plain = is_plain && other.is_plain;
  }
};

struct Block {
  float* k;  // [keys_at_once][depth + gap], as single precision
  float* v;
  float* scores;  // [keys_at_once][width]
  float* mask;    // [vectors][keys_at_once][lanes]
};

// Queries of `vectors` heads or groups of tokens, and what is known of their results.
struct Panel {
  float* q;      // [depth][width], scaled
  float* sum;    // [depth][width]
  float* most;   // [width]
  float* total;  // [width]
};

struct Task {
  const Attention& a;
  const int64_t kv_head, group, first, groups, pitch;
  Task(const Attention& attention, int64_t head, int64_t from, int64_t many)
      : a(attention), kv_head(head), group(a.heads / a.kv_heads), first(from), groups(many), pitch(a.depth + gap) {}

  int64_t panels() const { return (groups * group + vectors - 1) / vectors; }
  // Of a vector of a panel: no group beyond the last means that it is left over.
  int64_t group_of(int64_t panel, int v) const { return (panel * vectors + v) / group; }
  int64_t head_of(int64_t panel, int v) const { return kv_head * group + (panel * vectors + v) % group; }
  int64_t token_of(int64_t group_index) const { return (first + group_index) * lanes; }
  int64_t tokens_of(int64_t group_index) const { return std::min<int64_t>(lanes, a.tokens - token_of(group_index)); }
};

int64_t block_floats(int64_t depth) { return keys_at_once * (2 * (depth + gap) + 2 * width); }
int64_t panel_floats(int64_t depth) { return 2 * (depth + 1) * width; }

int64_t floats(const Attention& a, int64_t groups) {
  return block_floats(a.depth) + Task(a, 0, 0, groups).panels() * panel_floats(a.depth);
}

Block block_at(float* memory, int64_t pitch) {
  const int64_t rows = keys_at_once * pitch, scores = keys_at_once * width;
  return {memory, memory + rows, memory + 2 * rows, memory + 2 * rows + scores};
}

Panel panel_at(float* memory, int64_t depth, int64_t index) {
  float* at = memory + block_floats(depth) + index * panel_floats(depth);
  return {at, at + depth * width, at + 2 * depth * width, at + (2 * depth + 1) * width};
}

void put(float* at, __m256i v, float factor) {
  _mm256_store_ps(at, _mm256_mul_ps(_mm256_castsi256_ps(v), _mm256_set1_ps(factor)));
}

// Eight tokens of one head become eight lanes.
void fill_lanes(const Attention& a, int64_t token, int64_t head, float* q) {
  const float* row = a.q + head * a.q_head;
  int64_t step = a.q_token;
  alignas(32) float copy[8 * deepest];
  if (const int64_t left = std::max<int64_t>(a.tokens - token, 0); left < 8) {
    std::memset(copy, 0, sizeof copy);
    for (int64_t i = 0; i < left; ++i)
      std::memcpy(copy + i * a.depth, row + (token + i) * step, size_t(a.depth) * sizeof(float));
    row = copy;
    step = a.depth;
  } else {
    row += token * step;
  }
  for (int64_t d = 0; d < a.depth; d += 8) {
    __m256i columns[8];
    transposed(reinterpret_cast<const uint8_t*>(row + d), step * int64_t(sizeof(float)), columns);
    for (int i = 0; i < 8; ++i) put(q + (d + i) * width, columns[i], a.scale * to_binary);
  }
}

void begin(const Task& task, int64_t index, const Panel& panel) {
  for (int v = 0; v < vectors; ++v) {
    const int64_t group = task.group_of(index, v);
    const int64_t token = group < task.groups ? task.token_of(group) : task.a.tokens;
    for (int i = 0; i < lanes; i += 8)
      fill_lanes(task.a, token + i, task.head_of(index, v), panel.q + v * lanes + i);
    store(panel.most + v * lanes, same(-INFINITY));
    store(panel.total + v * lanes, same(0.0f));
  }
  std::memset(panel.sum, 0, size_t(task.a.depth * width) * sizeof(float));
}

Sight look(const Task& task, int64_t group, int64_t key) {
  const int64_t count = std::min(keys_at_once, task.a.keys - key);
  if (!task.a.mask) return {0, count, count == keys_at_once};
  const uint16_t* row = task.a.mask + task.token_of(group) * task.a.mask_token + key;
  const int64_t tokens = task.tokens_of(group);
  uint16_t added = 0, seen[keys_at_once] = {};
  for (int64_t t = 0; t < tokens; ++t, row += task.a.mask_token)
    for (int64_t i = 0; i < count; ++i) {
      added |= row[i];
      seen[i] |= row[i] ^ hidden;
    }
  if (!added && count == keys_at_once) return {0, count, true};
  Sight sight;
  while (sight.to < count && !seen[sight.to]) ++sight.to;
  sight.from = sight.to;
  for (int64_t i = sight.from; i < count; ++i)
    if (seen[i]) sight.to = i + 1;
  return sight;
}

void unpack(const uint16_t* rows, int64_t step, const Sight& sight, int64_t keys, int64_t pitch, float* out) {
  for (int64_t key = sight.from / even * even; key < sight.to; ++key)
    for (int64_t d = 0; d < pitch - gap; d += lanes) store(out + key * pitch + d, halves(rows + key * step + d));
  for (int64_t key = sight.to; key < (sight.to + even - 1) / even * even; ++key)
    for (int64_t d = 0; d < pitch - gap; d += lanes)
      store(out + key * pitch + d, key < keys ? halves(rows + key * step + d) : same(0.0f));
}

// A block of the mask with a token in each lane; nothing is seen of keys, and by tokens, that do not exist.
void fill_mask(const Task& task, int64_t group, int64_t key, float* out) {
  const int64_t count = std::min(keys_at_once, task.a.keys - key);
  const int64_t tokens = group < task.groups ? task.tokens_of(group) : 0;
  for (int64_t t = 0; t < lanes; ++t) {
    uint16_t row[keys_at_once] = {};
    if (t < tokens && task.a.mask)
      std::memcpy(row, task.a.mask + (task.token_of(group) + t) * task.a.mask_token + key, size_t(count) * 2);
    alignas(64) float values[keys_at_once];
    for (int64_t i = 0; i < keys_at_once; i += lanes) store(values + i, times(halves(row + i), same(to_binary)));
    for (int64_t i = 0; i < keys_at_once; ++i) out[i * lanes + t] = t < tokens && i < count ? values[i] : -INFINITY;
  }
}

// scores[C][width] = the products of C keys with all queries of a panel.
template <int C>
APART void score_tile(const float* q, const float* k, int64_t pitch, float* scores) {
  Floats sum[vectors][C];
  UNROLLED for (int v = 0; v < vectors; ++v) UNROLLED for (int c = 0; c < C; ++c) sum[v][c] = same(0.0f);
  for (int64_t d = 0; d < pitch - gap; ++d) {
    Floats lane[vectors];
    UNROLLED for (int v = 0; v < vectors; ++v) lane[v] = load(q + d * width + v * lanes);
    UNROLLED for (int c = 0; c < C; ++c) {
      const Floats key = same(k[c * pitch + d]);
      UNROLLED for (int v = 0; v < vectors; ++v) sum[v][c] = fused(lane[v], key, sum[v][c]);
    }
  }
  UNROLLED for (int c = 0; c < C; ++c)
    UNROLLED for (int v = 0; v < vectors; ++v) store(scores + c * width + v * lanes, sum[v][c]);
}

// sums[C][width] = C channels of the values, weighted, in addition to what there is, times a factor.
template <int C>
APART void value_tile(const float* weights, int64_t keys, const float* values, int64_t pitch, const Floats* factor,
                      float* sums) {
  Floats sum[vectors][C];
  UNROLLED for (int c = 0; c < C; ++c)
    UNROLLED for (int v = 0; v < vectors; ++v) sum[v][c] = times(load(sums + c * width + v * lanes), factor[v]);
  for (int64_t key = 0; key < keys; ++key) {
    Floats lane[vectors];
    UNROLLED for (int v = 0; v < vectors; ++v) lane[v] = load(weights + key * width + v * lanes);
    UNROLLED for (int c = 0; c < C; ++c) {
      const Floats value = same(values[key * pitch + c]);
      UNROLLED for (int v = 0; v < vectors; ++v) sum[v][c] = fused(lane[v], value, sum[v][c]);
    }
  }
  UNROLLED for (int c = 0; c < C; ++c)
    UNROLLED for (int v = 0; v < vectors; ++v) store(sums + c * width + v * lanes, sum[v][c]);
}

template <int C>
void score(const float* q, const float* k, int64_t pitch, int64_t keys, float* scores) {
  int64_t key = 0;
  for (; key + C <= keys; key += C) score_tile<C>(q, k + key * pitch, pitch, scores + key * width);
  if constexpr (C > even)
    if (key < keys) score<C - even>(q, k + key * pitch, pitch, keys - key, scores + key * width);
}

template <int C>
void add_values(const float* weights, int64_t keys, const float* values, int64_t pitch, const Floats* factor,
                int64_t depth, float* sums) {
  int64_t d = 0;
  for (; d + C <= depth; d += C) value_tile<C>(weights, keys, values + d, pitch, factor, sums + d * width);
  if constexpr (C > even)
    if (d < depth) add_values<C - even>(weights, keys, values + d, pitch, factor, depth - d, sums + d * width);
}

// Scores become weights, and the panel's maxima and totals are brought up to date: `factor` is what earlier sums are
// worth now.
void weigh(const Panel& panel, float* scores, int64_t keys, const float* const* mask, Floats* factor) {
  for (int v = 0; v < vectors; ++v) {
    float* const at = scores + v * lanes;
    const Floats before = load(panel.most + v * lanes);
    Floats most = before;
    for (int64_t key = 0; key < keys; ++key) {
      Floats score = load(at + key * width);
      if (mask) {
        score = plus(score, load(mask[v] + key * lanes));
        store(at + key * width, score);
      }
      most = larger(most, score);
    }
    store(panel.most + v * lanes, most);
    const Floats base = larger(same(lowest), most);  // a number, where nothing is seen yet
    factor[v] = exp2(minus(before, base));
    Floats total = times(load(panel.total + v * lanes), factor[v]);
    for (int64_t key = 0; key < keys; ++key) {
      const Floats weight = exp2(minus(load(at + key * width), base));
      store(at + key * width, weight);
      total = plus(total, weight);
    }
    store(panel.total + v * lanes, total);
  }
}

void add_block(const Task& task, int64_t index, const Panel& panel, const Block& block, int64_t key,
               const Sight* sights) {
  Sight sight{keys_at_once, 0, true};
  for (int v = 0; v < vectors; ++v)
    if (const int64_t group = task.group_of(index, v); group < task.groups) sight.join(sights[group]);
  if (sight.is_empty()) return;
  const int64_t from = sight.from / even * even, keys = (sight.to + even - 1) / even * even - from;
  const float* mask[vectors];
  for (int v = 0; v < vectors && !sight.is_plain; ++v) {
    const bool is_known = v && task.group_of(index, v) == task.group_of(index, v - 1);
    float* const own = block.mask + v * keys_at_once * lanes;
    if (!is_known) fill_mask(task, task.group_of(index, v), key, own);
    mask[v] = is_known ? mask[v - 1] : own + from * lanes;
  }
  score<tile>(panel.q, block.k + from * task.pitch, task.pitch, keys, block.scores);
  Floats factor[vectors];
  weigh(panel, block.scores, keys, sight.is_plain ? nullptr : mask, factor);
  add_values<tile>(block.scores, keys, block.v + from * task.pitch, task.pitch, factor, task.a.depth, panel.sum);
}

void finish(const Task& task, int64_t index, const Panel& panel) {
  for (int v = 0; v < vectors; ++v) {
    const int64_t group = task.group_of(index, v);
    if (group >= task.groups) return;
    float* const sum = panel.sum + v * lanes;
    const Floats total = load(panel.total + v * lanes);  // at least 1, unless nothing is seen
    const Floats factor = zero_below(same(0.5f), total, quotient(same(1.0f), total));
    for (int64_t d = 0; d < task.a.depth; ++d) store(sum + d * width, times(load(sum + d * width), factor));
    const int64_t tokens = task.tokens_of(group);
    float* const out = task.a.out + (task.token_of(group) * task.a.heads + task.head_of(index, v)) * task.a.depth;
    for (int64_t t = 0; t < tokens; t += 8)
      for (int64_t d = 0; d < task.a.depth; d += 8) {
        __m256i rows[8];
        transposed(reinterpret_cast<const uint8_t*>(sum + d * width + t), width * sizeof(float), rows);
        for (int64_t i = 0; i < std::min<int64_t>(8, tokens - t); ++i)
          _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + (t + i) * task.a.heads * task.a.depth + d), rows[i]);
      }
  }
}

void attend(const Attention& a, int64_t kv_head, int64_t first, int64_t groups, float* memory) {
  const Task task(a, kv_head, first, groups);
  const Block block = block_at(memory, task.pitch);
  const int64_t panels = task.panels();
  for (int64_t p = 0; p < panels; ++p) begin(task, p, panel_at(memory, a.depth, p));
  for (int64_t key = 0; key < a.keys; key += keys_at_once) {
    Sight sights[most_groups], all{keys_at_once, 0, true};
    for (int64_t g = 0; g < groups; ++g) all.join(sights[g] = look(task, g, key));
    if (all.is_empty()) continue;
    unpack(a.k + kv_head * a.k_head + key * a.k_key, a.k_key, all, a.keys - key, task.pitch, block.k);
    unpack(a.v + kv_head * a.v_head + key * a.v_key, a.v_key, all, a.keys - key, task.pitch, block.v);
    for (int64_t p = 0; p < panels; ++p) add_block(task, p, panel_at(memory, a.depth, p), block, key, sights);
  }
  for (int64_t p = 0; p < panels; ++p) finish(task, p, panel_at(memory, a.depth, p));
}

}  // namespace

extern const FewKernel JOINED(few_, AYAEDGE_VARIANT);
extern const AttentionKernel JOINED(attention_, AYAEDGE_VARIANT);
const AttentionKernel JOINED(attention_, AYAEDGE_VARIANT){lanes, vectors, floats, attend, &JOINED(few_, AYAEDGE_VARIANT)};

}  // namespace ayaedge
