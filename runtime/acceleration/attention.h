// One attention of a prefill: queries in single precision over a cache of keys and values in half precision.
#pragma once

#include <cstdint>

namespace ayaedge {

// Heads of queries share those of keys and values in equal groups, side by side. Strides count elements; what belongs to
// one token and head lies side by side.
struct Attention {
  const float* q;
  int64_t q_token, q_head;
  const uint16_t* k;
  int64_t k_key, k_head;
  const uint16_t* v;
  int64_t v_key, v_head;
  const uint16_t* mask;  // added to the scores of a token's keys, for all heads; null for nothing
  int64_t mask_token;
  float* out;  // [tokens][heads][depth]
  int64_t tokens, keys, heads, kv_heads, depth;
  float scale;
};

constexpr int64_t depth_step = 32, deepest = 256;  // of a head that is taken
constexpr int64_t keys_at_once = 64;
constexpr int64_t most_groups = 16;    // of tokens, in a task
constexpr int64_t panels_at_once = 4;  // of a task, about

inline bool fits(const Attention& a) {
  return a.tokens >= 0 && a.keys >= 0 && a.kv_heads > 0 && a.heads > 0 && a.heads % a.kv_heads == 0 && a.depth > 0 &&
         a.depth % depth_step == 0 && a.depth <= deepest;
}

constexpr int64_t few_tokens = 8;  // at most
constexpr int64_t stretch = 256;   // of keys
constexpr int64_t few_floats(int64_t depth) { return depth + 16; }  // of a query and a stretch

struct FewKernel {
  // The queries that share a head of keys, over the stretch from `first` on: parts [tokens * group][few_floats].
  void (*attend)(const Attention&, int64_t kv_head, int64_t first, float* parts);
  // The result of one query, from its head's first part of all stretches, `step` floats apart.
  void (*join)(const Attention&, int64_t head, int64_t token, float* parts, int64_t step, int64_t stretches);
};

struct AttentionKernel {
  int64_t lanes;         // tokens that are computed side by side
  int64_t panel;         // in so many heads or groups of tokens at once
  int64_t (*floats)(const Attention&, int64_t groups);  // of memory that `attend` needs
  // Tokens of so many groups of `lanes`, from group `first` on, in the heads that share a head of keys.
  void (*attend)(const Attention&, int64_t kv_head, int64_t first, int64_t groups, float* memory);
  const FewKernel* few;
};

// Of a kernel for products; null where attention is left to llama.cpp.
const AttentionKernel* attention_kernel(int index);

}  // namespace ayaedge
