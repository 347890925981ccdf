// The threads that share a product: those of the OpenMP library that llama.cpp uses, or threads of our own.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "product.h"

namespace ayaedge {

// OpenMP's entry points as GCC calls them, from the library that llama.cpp has loaded; null where it has none.
struct OpenMp {
  void (*parallel)(void (*work)(void*), void* data, unsigned threads, unsigned flags);
  void (*barrier)();
};

struct Abort {
  bool (*told)(void* data);
  void* data;
};

struct alignas(64) Line {
  uint8_t bytes[64];
};

struct Scratch {
  std::vector<Line> columns;
  std::unique_ptr<Sums[]> sums;
  int threads = 0;  // that have sums
};

enum Outcome { done, stopped, no_memory };

// All of a product with so many threads; `scratch` grows to what is needed. Stops between pieces of it if told to.
Outcome run(const Kernel& kernel, Product product, int threads, OpenMp openmp, Abort abort, Scratch& scratch) noexcept;

}  // namespace ayaedge
