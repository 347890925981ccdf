#include <algorithm>
#include <atomic>
#include <new>

#include "team.h"

namespace ayaedge {
namespace {

constexpr int64_t floats_of_line = sizeof(Line) / sizeof(float);
constexpr int tasks_of_thread = 4;  // at least, where there are so many

struct Attending {
  const AttentionKernel& kernel;
  const Attention& attention;
  const Abort abort;
  const int64_t groups, group_step;  // in all, and of a task
  float* memory;
  const int64_t floats;  // of a thread
  std::atomic<int64_t> task{0};
  std::atomic<int> thread{0};
  std::atomic<bool> ended{false};

  // The last tokens, which see most, come first.
  void attend() {
    float* const mine = memory + floats * thread.fetch_add(1);
    const int64_t tasks = (groups + group_step - 1) / group_step * attention.kv_heads;
    for (int64_t t; (t = task.fetch_add(1)) < tasks;) {
      if (ended.load() || (abort.told && abort.told(abort.data))) {
        ended.store(true);
        return;
      }
      const int64_t end = groups - t / attention.kv_heads * group_step, first = std::max<int64_t>(end - group_step, 0);
      kernel.attend(attention, t % attention.kv_heads, first, end - first, mine);
    }
  }
};

struct AttendingFew {
  const FewKernel& kernel;
  const Attention& attention;
  const Abort abort;
  const int64_t stretches, step;  // floats from one stretch of a head to the next
  float* parts;
  std::atomic<int64_t> task{0};
  std::atomic<bool> ended{false};

  void attend() {
    for (int64_t t; (t = task.fetch_add(1)) < stretches * attention.kv_heads;) {
      if (ended.load() || (abort.told && abort.told(abort.data))) {
        ended.store(true);
        return;
      }
      kernel.attend(attention, t / stretches, t % stretches * stretch, parts + t * step);
    }
  }

  void join() {
    for (int64_t head = 0; head < attention.heads; ++head)
      for (int64_t token = 0; token < attention.tokens; ++token)
        kernel.join(attention, head, token, parts + head / (attention.heads / attention.kv_heads) * stretches * step,
                    step, stretches);
  }
};

template <typename Work>
void with_team(Work& work, int threads, OpenMp openmp) {
  if (openmp.parallel) {
    openmp.parallel([](void* data) { static_cast<Work*>(data)->attend(); }, &work, unsigned(threads), 0);
  } else {
    with_threads(work, threads, &Work::attend);
  }
}

float* room(Scratch& scratch, size_t lines) {
  if (scratch.attention.size() < lines) {
    scratch.attention.clear();
    scratch.attention.resize(lines);
  }
  return reinterpret_cast<float*>(scratch.attention.data());
}

// Groups of tokens of a task: a few panels, so that keys that were unpacked are used often.
int64_t groups_of_task(const AttentionKernel& kernel, const Attention& a, int64_t groups, int threads) {
  int64_t step = std::min(most_groups, std::max<int64_t>(panels_at_once * kernel.panel * a.kv_heads / a.heads, 1));
  while (step > 1 && groups / step * a.kv_heads < tasks_of_thread * threads) step /= 2;
  return step;
}

Outcome run_few(const FewKernel& kernel, const Attention& a, int threads, OpenMp openmp, Abort abort, Scratch& scratch) {
  const int64_t stretches = (a.keys + stretch - 1) / stretch, step = a.tokens * a.heads / a.kv_heads * few_floats(a.depth);
  float* const parts = room(scratch, size_t(stretches * a.kv_heads * step / floats_of_line));
  AttendingFew work{kernel, a, abort, stretches, step, parts};
  with_team(work, threads, openmp);
  if (work.ended) return stopped;
  work.join();
  return done;
}

Outcome run_many(
    const AttentionKernel& kernel, const Attention& a, int threads, OpenMp openmp, Abort abort, Scratch& scratch) {
  const int64_t groups = (a.tokens + kernel.lanes - 1) / kernel.lanes, step = groups_of_task(kernel, a, groups, threads);
  const int64_t floats = kernel.floats(a, step);
  float* const memory = room(scratch, size_t(floats * threads / floats_of_line));
  Attending work{kernel, a, abort, groups, step, memory, floats};
  with_team(work, threads, openmp);
  return work.ended ? stopped : done;
}

}  // namespace

Outcome run(const AttentionKernel& kernel, const Attention& attention, int threads, OpenMp openmp, Abort abort,
            Scratch& scratch) noexcept {
  try {
    return attention.tokens <= few_tokens ? run_few(*kernel.few, attention, threads, openmp, abort, scratch)
                                          : run_many(kernel, attention, threads, openmp, abort, scratch);
  } catch (const std::bad_alloc&) {
    return no_memory;
  }
}

}  // namespace ayaedge
