// Attention of a few tokens, as those of an answer come: bound by the memory that keys and values come from, so that each
// is read once for several queries that share it. Keys come in stretches, whose results are joined at the end.

#include "attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "floats.h"

namespace ayaedge {
namespace {

constexpr int queries = AYAEDGE_BITS == 512 ? 4 : 2;  // at once
constexpr float unseen = -INFINITY;  // a maximum of nothing

// What a query has found so far, in `few_floats(depth)` floats.
struct Found {
  float* sum;  // [depth]
  float *most, *total;
};

Found found_at(float* parts, int64_t depth, int64_t row) {
  float* const at = parts + row * few_floats(depth);
  return {at, at + depth, at + depth + 1};
}

float largest_of(Floats v) {
  alignas(64) float parts[lanes];
  store(parts, v);
  float largest = parts[0];
  for (int i = 1; i < lanes; ++i) largest = parts[i] > largest || parts[i] != parts[i] ? parts[i] : largest;
  return largest;
}

float sum_of(Floats v) {
  alignas(64) float parts[lanes];
  store(parts, v);
  for (int step = lanes / 2; step; step /= 2)
    for (int i = 0; i < step; ++i) parts[i] += parts[i + step];
  return parts[0];
}

float exp2_of(float x) {
  alignas(64) float parts[lanes];
  store(parts, exp2(same(x)));
  return parts[0];
}

float base_of(float most) { return most == unseen ? 0.0f : most; }

// The mask of a token's keys, minus infinity for those that do not exist; whether anything is seen.
bool fill_mask(const Attention& a, int64_t token, int64_t key, int64_t keys, float* out) {
  const uint16_t* const mask = a.mask ? a.mask + token * a.mask_token + key : nullptr;
  uint16_t row[keys_at_once] = {}, differs = 0;
  if (mask) std::memcpy(row, mask, size_t(keys) * sizeof(uint16_t));
  for (int64_t i = 0; i < keys; ++i) differs |= row[i] ^ hidden;
  for (int64_t i = keys; i < keys_at_once; ++i) row[i] = hidden;
  for (int64_t i = 0; i < keys_at_once; i += lanes) store(out + i, times(halves(row + i), same(to_binary)));
  return differs;
}

// The sums of four vectors, side by side.
inline __m128 sums_of(Floats a, Floats b, Floats c, Floats d) {
  return _mm_hadd_ps(_mm_hadd_ps(quarter(a), quarter(b)), _mm_hadd_ps(quarter(c), quarter(d)));
}

// scores[R][keys_at_once] += the products of queries [R][depth] with four keys.
template <int R>
APART void score_four(const float* q, int64_t depth, const uint16_t* k, int64_t step, float* scores) {
  Floats sum[R][4];
  UNROLLED for (int r = 0; r < R; ++r) UNROLLED for (int i = 0; i < 4; ++i) sum[r][i] = same(0.0f);
  for (int64_t d = 0; d < depth; d += lanes) {
    Floats key[4];
    UNROLLED for (int i = 0; i < 4; ++i) key[i] = halves(k + i * step + d);
    UNROLLED for (int r = 0; r < R; ++r) {
      const Floats query = load(q + r * depth + d);
      UNROLLED for (int i = 0; i < 4; ++i) sum[r][i] = fused(query, key[i], sum[r][i]);
    }
  }
  UNROLLED for (int r = 0; r < R; ++r) {
    float* const at = scores + r * keys_at_once;
    _mm_store_ps(at, _mm_add_ps(_mm_load_ps(at), sums_of(sum[r][0], sum[r][1], sum[r][2], sum[r][3])));
  }
}

template <int R>
void score(const float* q, int64_t depth, const uint16_t* k, int64_t step, int64_t keys, float* scores) {
  for (int64_t i = 0; i + 4 <= keys; i += 4) score_four<R>(q, depth, k + i * step, step, scores + i);
  if (const int64_t done = keys / 4 * 4; done < keys) {  // the last keys, and zeros, whose scores stay hidden
    uint16_t rest[4 * deepest] = {};
    for (int64_t i = 0; done + i < keys; ++i)
      std::memcpy(rest + i * depth, k + (done + i) * step, size_t(depth) * sizeof(uint16_t));
    score_four<R>(q, depth, rest, depth, scores + done);
  }
}

// Scores become weights; what earlier sums are worth now.
float weigh(const Found& found, float* scores) {
  Floats most = same(*found.most);
  for (int64_t i = 0; i < keys_at_once; i += lanes) most = larger(most, load(scores + i));
  const float largest = largest_of(most), base = base_of(largest), factor = exp2_of(*found.most - base);
  Floats total = same(0.0f);
  for (int64_t i = 0; i < keys_at_once; i += lanes) {
    const Floats weight = exp2(minus(load(scores + i), same(base)));
    store(scores + i, weight);
    total = plus(total, weight);
  }
  *found.most = largest;
  *found.total = *found.total * factor + sum_of(total);
  return factor;
}

template <int R>
APART void add_values(const float* weights, const uint16_t* v, int64_t step, int64_t keys, int64_t depth,
                      const float* factor, const Found* found) {
  constexpr int columns = 2;  // heads are a multiple of so many vectors deep
  for (int64_t d = 0; d < depth; d += columns * lanes) {
    Floats sum[R][columns];
    UNROLLED for (int r = 0; r < R; ++r)
      UNROLLED for (int c = 0; c < columns; ++c)
        sum[r][c] = times(load(found[r].sum + d + c * lanes), same(factor[r]));
    for (int64_t i = 0; i < keys; ++i) {
      const uint16_t* const at = v + i * step + d;
      Floats value[columns];
      UNROLLED for (int c = 0; c < columns; ++c) value[c] = halves(at + c * lanes);
      UNROLLED for (int r = 0; r < R; ++r) {
        const Floats weight = same(weights[r * keys_at_once + i]);
        UNROLLED for (int c = 0; c < columns; ++c) sum[r][c] = fused(weight, value[c], sum[r][c]);
      }
    }
    UNROLLED for (int r = 0; r < R; ++r)
      UNROLLED for (int c = 0; c < columns; ++c) store(found[r].sum + d + c * lanes, sum[r][c]);
  }
}

// Queries from `row` on, of the tokens and heads that share a head of keys, over one stretch.
template <int R>
void attend_rows(const Attention& a, int64_t kv_head, int64_t first, int64_t end, int64_t row, float* parts) {
  const int64_t group = a.heads / a.kv_heads;
  alignas(64) float q[R * deepest], scores[R * keys_at_once];
  Found found[R];
  for (int r = 0; r < R; ++r) {
    const float* const from = a.q + (row + r) / group * a.q_token + (kv_head * group + (row + r) % group) * a.q_head;
    for (int64_t d = 0; d < a.depth; ++d) q[r * a.depth + d] = from[d] * (a.scale * to_binary);
    found[r] = found_at(parts, a.depth, row + r);
    std::fill_n(found[r].sum, a.depth, 0.0f);
    *found[r].most = unseen;
    *found[r].total = 0;
  }
  for (int64_t key = first; key < end; key += keys_at_once) {
    const int64_t keys = std::min(keys_at_once, end - key);
    bool is_seen = false;
    for (int r = 0; r < R; ++r) {
      float* const mask = scores + r * keys_at_once;
      if (r && (row + r) / group == (row + r - 1) / group) {
        std::memcpy(mask, mask - keys_at_once, keys_at_once * sizeof(float));
      } else {
        is_seen |= fill_mask(a, (row + r) / group, key, keys, mask);
      }
    }
    if (!is_seen) continue;
    score<R>(q, a.depth, a.k + kv_head * a.k_head + key * a.k_key, a.k_key, keys, scores);
    float factor[R];
    for (int r = 0; r < R; ++r) factor[r] = weigh(found[r], scores + r * keys_at_once);
    add_values<R>(scores, a.v + kv_head * a.v_head + key * a.v_key, a.v_key, keys, a.depth, factor, found);
  }
}

void attend(const Attention& a, int64_t kv_head, int64_t first, float* parts) {
  const int64_t rows = a.tokens * (a.heads / a.kv_heads), end = std::min(first + stretch, a.keys);
  int64_t row = 0;
  for (; row + queries <= rows; row += queries) attend_rows<queries>(a, kv_head, first, end, row, parts);
  for (; row < rows; ++row) attend_rows<1>(a, kv_head, first, end, row, parts);
}

void join(const Attention& a, int64_t head, int64_t token, float* parts, int64_t step, int64_t stretches) {
  const int64_t row = token * (a.heads / a.kv_heads) + head % (a.heads / a.kv_heads);
  float most = unseen, total = 0;
  for (int64_t s = 0; s < stretches; ++s) {
    const float other = *found_at(parts + s * step, a.depth, row).most;
    most = other > most || other != other ? other : most;
  }
  float* const out = a.out + (token * a.heads + head) * a.depth;
  std::fill_n(out, a.depth, 0.0f);
  for (int64_t s = 0; s < stretches; ++s) {
    const Found found = found_at(parts + s * step, a.depth, row);
    const float factor = exp2_of(*found.most - base_of(most));
    total += *found.total * factor;
    for (int64_t d = 0; d < a.depth; ++d) out[d] += found.sum[d] * factor;
  }
  if (total != 0)
    for (int64_t d = 0; d < a.depth; ++d) out[d] /= total;
}

}  // namespace

extern const FewKernel JOINED(few_, AYAEDGE_VARIANT);
const FewKernel JOINED(few_, AYAEDGE_VARIANT){attend, join};

}  // namespace ayaedge
