#include "team.h"

#include <algorithm>
#include <atomic>
#include <new>

namespace ayaedge {
namespace {

constexpr int64_t columns_a_time = 4;     // quantized by a thread before it asks for more

struct Work {
  const Kernel& kernel;
  const Product& product;
  const OpenMp openmp;
  const Abort abort;
  const int64_t rows;  // of a task
  Sums* sums;          // for each thread
  std::atomic<int64_t> column{0}, row{0};
  std::atomic<int> thread{0};
  std::atomic<bool> ended{false};

  void quantize() {
    const int64_t step = std::max(columns_a_time, kernel.group);
    for (int64_t c; (c = column.fetch_add(step)) < product.columns;)
      for (int64_t i = c; i < std::min(c + step, product.columns); i += kernel.group) kernel.quantize(product, i);
  }

  void multiply() {
    Sums& mine = sums[thread.fetch_add(1)];
    for (int64_t r; (r = row.fetch_add(rows)) < product.rows;) {
      if (ended.load() || (abort.told && abort.told(abort.data))) {
        ended.store(true);
        return;
      }
      kernel.multiply(product, r, std::min(r + rows, product.rows), mine);
    }
  }
};

void openmp_work(void* data) {
  Work& work = *static_cast<Work*>(data);
  work.quantize();
  work.openmp.barrier();
  work.multiply();
}

int64_t rows_of_task(const Kernel& kernel, int64_t rows, int threads) {
  const int64_t share = rows / (4 * threads) / row_step * row_step;
  return std::min(kernel.most_rows, std::max<int64_t>(share, row_step));
}

// Of the quantized activations of a product, with whole groups of columns.
size_t lines(const Kernel& kernel, int64_t blocks, int64_t columns) {
  const int64_t whole = (columns + kernel.group - 1) / kernel.group * kernel.group;
  return size_t((blocks * whole * kernel.column_bytes + int64_t(sizeof(Line)) - 1) / int64_t(sizeof(Line)));
}

}  // namespace

Outcome run(const Kernel& kernel, Product product, int threads, OpenMp openmp, Abort abort, Scratch& scratch) noexcept {
  const int64_t columns = product.columns, blocks = product.depth / super_block;
  try {
    const size_t needed = lines(kernel, blocks, std::min(columns, columns_at_once));
    if (scratch.columns.size() < needed) {
      scratch.columns.clear();
      scratch.columns.resize(needed);
    }
    if (scratch.threads < threads) {
      scratch.sums.reset();
      scratch.sums.reset(new Sums[size_t(threads)]);
      scratch.threads = threads;
    }
    product.quantized = reinterpret_cast<Column*>(scratch.columns.data());
    product.pairs = reinterpret_cast<uint16_t*>(scratch.columns.data());
    for (int64_t from = 0; from < columns; from += columns_at_once) {
      Product part = product;
      part.columns = std::min(columns - from, columns_at_once);
      part.x += from * product.x_stride;
      part.out += from * product.out_stride;
      Work work{kernel, part, openmp, abort, rows_of_task(kernel, part.rows, threads), scratch.sums.get()};
      if (openmp.parallel && openmp.barrier) {
        openmp.parallel(openmp_work, &work, unsigned(threads), 0);
      } else {
        with_threads(work, threads, &Work::quantize);
        with_threads(work, threads, &Work::multiply);
      }
      if (work.ended) return stopped;
    }
  } catch (const std::bad_alloc&) {
    return no_memory;
  }
  return done;
}

}  // namespace ayaedge
