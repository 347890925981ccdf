// The C functions that `decoder/acceleration.py` calls.

#include "backend.h"

#if defined(_WIN32)
#define AYAEDGE_API extern "C" __declspec(dllexport)
#else
#define AYAEDGE_API extern "C" __attribute__((visibility("default")))
#endif

using namespace ayaedge;

// The name of a kernel that this processor can run; null for others.
AYAEDGE_API const char* ayaedge_prefill_kernel(int32_t index) {
  const Kernel* found = kernel(index);
  return found ? found->name : nullptr;
}

// x as bytes q [columns][depth] with factors d [depth/256][columns], by a kernel that takes bytes; 0, or 1 for arguments
// that do not fit.
AYAEDGE_API int32_t ayaedge_prefill_quantize(
    int32_t index, const float* x, int64_t depth, int64_t columns, int8_t* q, float* d) {
  const Kernel* k = kernel(index);
  if (!k || k->group > 1 || depth <= 0 || depth % super_block || columns < 0) return 1;
  const int64_t blocks = depth / super_block;
  std::vector<Column> scratch(size_t(blocks * columns));
  const Product p{q4_k, nullptr, 0, depth, x, depth, columns, nullptr, 0, scratch.data()};
  for (int64_t c = 0; c < columns; ++c) {
    k->quantize(p, c);
    for (int64_t b = 0; b < blocks; ++b) {
      const Column& column = scratch[size_t(b * columns + c)];
      std::memcpy(q + c * depth + b * super_block, column.q, super_block);
      d[b * columns + c] = column.d;
    }
  }
  return 0;
}

// out [columns][rows] = x [columns][depth] times the weights [rows][depth], on threads of our own; 0, 1 for arguments
// that do not fit, 2 without memory.
AYAEDGE_API int32_t ayaedge_prefill_product(
    int32_t index, int32_t type, const uint8_t* weights, int64_t rows, int64_t depth, const float* x, int64_t columns,
    float* out, int32_t threads) {
  const Kernel* k = kernel(index);
  const bool fits = k && block_bytes(type) && rows >= 0 && rows % row_step == 0 && depth > 0 &&
                    depth % super_block == 0 && columns >= 0 && threads > 0;
  if (!fits) return 1;
  Scratch scratch;
  const Product p{type, weights, rows, depth, x, depth, columns, out, rows, nullptr};
  return run(*k, p, threads, {}, {}, scratch) == done ? 0 : 2;
}

AYAEDGE_API int32_t ayaedge_prefill_has_attention(int32_t index) { return attention_kernel(index) != nullptr; }

// Attention on threads of our own; 0, 1 for arguments that do not fit, 2 without memory.
AYAEDGE_API int32_t ayaedge_prefill_attention(int32_t index, const Attention* attention, int32_t threads) {
  const AttentionKernel* k = attention_kernel(index);
  if (!k || !fits(*attention) || threads < 1) return 1;
  Scratch scratch;
  return run(*k, *attention, threads, {}, {}, scratch) == done ? 0 : 2;
}

// Operations that a loop of so many rounds computes with a kernel's instructions alone, for a benchmark to time.
AYAEDGE_API int64_t ayaedge_prefill_peak(int32_t index, int64_t rounds) {
  const Kernel* k = kernel(index);
  return k ? k->peak(rounds) : 0;
}

AYAEDGE_API const char* ayaedge_prefill_misfit(
    const ggml::Functions* functions, const ggml::Tensor* product, const void* data, ggml::Device* processor) {
  return misfit(*functions, product, data, processor);
}

AYAEDGE_API void ayaedge_prefill_register(const ggml::Functions* functions, const OpenMp* openmp) {
  register_device(*functions, *openmp);
}

AYAEDGE_API void ayaedge_prefill_choose(int32_t index) { choose(index); }

AYAEDGE_API ggml::Backend* ayaedge_prefill_backend(int32_t index) { return make_backend(index); }

AYAEDGE_API int64_t ayaedge_prefill_products() { return products(); }

AYAEDGE_API int64_t ayaedge_prefill_attentions() { return attentions(); }
