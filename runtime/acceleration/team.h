// The threads that share a product: those of the OpenMP library that llama.cpp uses, or threads of our own.
#pragma once

#include <cstddef>
#include <memory>
#include <system_error>
#include <thread>
#include <vector>

#include "attention.h"
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
  std::vector<Line> attention;
};

// A part of the work, by threads of our own.
template <typename Work>
void with_threads(Work& work, int threads, void (Work::*part)()) {
  std::vector<std::thread> others;
  try {
    others.reserve(size_t(threads));
    while (int(others.size()) < threads - 1) others.emplace_back(part, &work);
  } catch (const std::system_error&) {  // fewer, then
  }
  (work.*part)();
  for (std::thread& other : others) other.join();
}

enum Outcome { done, stopped, no_memory };

// All of a product with so many threads; `scratch` grows to what is needed. Stops between pieces of it if told to.
Outcome run(const Kernel& kernel, Product product, int threads, OpenMp openmp, Abort abort, Scratch& scratch) noexcept;

// The same for an attention.
Outcome run(const AttentionKernel& kernel, const Attention& attention, int threads, OpenMp openmp, Abort abort,
            Scratch& scratch) noexcept;

}  // namespace ayaedge
