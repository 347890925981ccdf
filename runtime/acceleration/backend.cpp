#include "backend.h"

#include <atomic>
#include <cstring>
#include <new>

namespace ayaedge {
namespace {

using ggml::Backend;
using ggml::BufferType;
using ggml::Device;
using ggml::Registration;
using ggml::Tensor;

constexpr int fewest_ops = 80;              // that ggml names, at least
constexpr int64_t fewest_columns = 32;  // fewer are left to llama.cpp: a token of an answer, drafts

ggml::Functions base;
OpenMp openmp;
struct {
  int none, mul_mat, attention, reshape, view, permute, transpose;
} ops;
std::atomic<int64_t> computed{0}, attended{0};
thread_local int chosen = -1;

struct Context {
  const Kernel* kernel;  // null: all is left to llama.cpp
  const AttentionKernel* attention;
  int threads = 1;
  Abort abort{};
  Scratch scratch{};
};

bool is_view(int op) {
  return op == ops.reshape || op == ops.view || op == ops.permute || op == ops.transpose || op == ops.none;
}

bool is_matrix(const Tensor& t) { return t.ne[2] == 1 && t.ne[3] == 1; }

bool is_ours(const Tensor& t) {
  if (t.op != ops.mul_mat || !t.src[0] || !t.src[1]) return false;
  const Tensor &w = *t.src[0], &x = *t.src[1];
  const size_t block = size_t(block_bytes(w.type));
  return block && x.type == ggml::f32 && t.type == ggml::f32 && is_matrix(w) && is_matrix(x) && is_matrix(t) &&
         w.ne[0] % super_block == 0 && w.ne[1] % row_step == 0 && w.ne[0] == x.ne[0] && w.ne[1] == t.ne[0] &&
         x.ne[1] == t.ne[1] && x.ne[1] >= fewest_columns && w.nb[0] == block &&
         w.nb[1] == size_t(w.ne[0] / super_block) * block && x.nb[0] == 4 && x.nb[1] % 4 == 0 && t.nb[0] == 4 &&
         t.nb[1] % 4 == 0;
}

bool is_side_by_side(const Tensor& t, size_t element) {
  return t.nb[0] == element && t.nb[1] % element == 0 && t.nb[2] % element == 0 && t.nb[3] % element == 0;
}

template <typename T>
T* part(const Tensor& t, int64_t stream) {
  return reinterpret_cast<T*>(static_cast<char*>(t.data) + stream * t.nb[3]);
}

// One stream of a FLASH_ATTN_EXT: its result is [streams][tokens][heads][depth], its queries [streams][heads][tokens][depth].
Attention attention_of(const Tensor& t, int64_t stream) {
  const Tensor &q = *t.src[0], &k = *t.src[1], &v = *t.src[2], *mask = t.src[3];
  float scale;
  std::memcpy(&scale, t.op_params, sizeof scale);
  return {part<const float>(q, stream), int64_t(q.nb[1] / 4), int64_t(q.nb[2] / 4),
          part<const uint16_t>(k, stream), int64_t(k.nb[1] / 2), int64_t(k.nb[2] / 2),
          part<const uint16_t>(v, stream), int64_t(v.nb[1] / 2), int64_t(v.nb[2] / 2),
          mask ? part<const uint16_t>(*mask, mask->ne[3] == 1 ? 0 : stream) : nullptr,
          mask ? int64_t(mask->nb[1] / 2) : 0,
          part<float>(t, stream), q.ne[1], k.ne[1], q.ne[2], k.ne[2], q.ne[0], scale};
}

// Attention of many tokens over halves, or of a few, with a mask for all heads at most: no slopes, caps or sinks. Streams
// are attended one after the other, each to the same bits as alone; so a few tokens are taken whatever the number of
// keys, which is that of the longest stream.
bool is_our_attention(const Tensor& t) {
  if (t.op != ops.attention || !t.src[0] || !t.src[1] || !t.src[2] || t.src[4]) return false;
  const Tensor &q = *t.src[0], &k = *t.src[1], &v = *t.src[2], *mask = t.src[3];
  if (q.type != ggml::f32 || k.type != ggml::f16 || v.type != ggml::f16 || t.type != ggml::f32) return false;
  if (t.op_params[1] || t.op_params[2] || k.ne[3] != q.ne[3] || v.ne[3] != q.ne[3]) return false;
  if (!is_side_by_side(q, 4) || !is_side_by_side(k, 2) || !is_side_by_side(v, 2)) return false;
  const bool one_shape = k.ne[0] == q.ne[0] && v.ne[0] == q.ne[0] && v.ne[1] == k.ne[1] && v.ne[2] == k.ne[2];
  const bool is_dense = t.ne[0] == q.ne[0] && t.ne[1] == q.ne[2] && t.ne[2] == q.ne[1] && t.ne[3] == q.ne[3] &&
                        t.nb[0] == 4 && t.nb[1] == size_t(4 * t.ne[0]) && t.nb[2] == t.nb[1] * size_t(t.ne[1]) &&
                        t.nb[3] == t.nb[2] * size_t(t.ne[2]);
  const bool mask_fits = !mask || (mask->type == ggml::f16 && mask->ne[0] == k.ne[1] && mask->ne[1] >= q.ne[1] &&
                                   mask->ne[2] == 1 && (mask->ne[3] == 1 || mask->ne[3] == q.ne[3]) &&
                                   is_side_by_side(*mask, 2));
  const bool is_taken = q.ne[1] <= few_tokens || q.ne[1] >= fewest_columns;
  return one_shape && is_dense && mask_fits && is_taken && fits(attention_of(t, 0));
}

const char* backend_name(Backend*) { return "ayaedge"; }

void free_backend(Backend* backend) {
  delete static_cast<Context*>(backend->context);
  delete backend;
}

ggml::Status status_of(Outcome outcome) { return outcome == stopped ? ggml::aborted : ggml::out_of_memory; }

ggml::Status compute(Backend* backend, ggml::Graph* graph) {
  Context& context = *static_cast<Context*>(backend->context);
  const int nodes = base.graph_n_nodes(graph);
  for (int i = 0; i < nodes; ++i) {
    const Tensor& t = *base.graph_node(graph, i);
    if (is_view(t.op)) continue;
    if (context.attention && is_our_attention(t)) {
      for (int64_t stream = 0; stream < t.ne[3]; ++stream) {
        const Outcome outcome =
            run(*context.attention, attention_of(t, stream), context.threads, openmp, context.abort, context.scratch);
        if (outcome != done) return status_of(outcome);
      }
      attended.fetch_add(1);
      continue;
    }
    if (!context.kernel || !is_ours(t)) return ggml::failed;  // never given to us
    const Tensor &w = *t.src[0], &x = *t.src[1];
    const Product product{w.type, static_cast<const uint8_t*>(w.data), w.ne[1], w.ne[0],
                          static_cast<const float*>(x.data), int64_t(x.nb[1] / 4), x.ne[1],
                          static_cast<float*>(t.data), int64_t(t.nb[1] / 4), nullptr};
    const Outcome outcome = run(*context.kernel, product, context.threads, openmp, context.abort, context.scratch);
    if (outcome != done) return status_of(outcome);
    computed.fetch_add(1);
  }
  return ggml::success;
}

Device devices[kernels];

const char* device_name(Device*) { return "ayaedge"; }
const char* device_description(Device*) { return "products and attention of long batches, by ayaedge's kernels"; }
void device_memory(Device*, size_t* free, size_t* total) { *free = *total = 0; }
int device_type(Device*) { return ggml::accelerator; }
void device_properties(Device* device, ggml::Properties* properties) {
  *properties = {device_name(device), device_description(device), 0, 0, ggml::accelerator, nullptr, {}};
}
Backend* init_backend(Device*, const char*) { return make_backend(chosen); }
BufferType* buffer_type(Device*) { return base.cpu_buffer_type(); }
// A device's context is its kernel; the registered one has none, and takes nothing.
bool supports_op(Device* device, const Tensor* t) {
  if (!device->context) return false;
  return is_view(t->op) || is_ours(*t) || (attention_kernel(int(device - devices)) && is_our_attention(*t));
}
bool supports_buffer_type(Device*, BufferType* type) { return base.buffer_type_is_host(type); }

const char* registered_name(Registration*) { return "ayaedge"; }
size_t device_count(Registration*) { return 1; }
Device* get_device(Registration*, size_t);

void set_threads(Backend* backend, int threads) {
  static_cast<Context*>(backend->context)->threads = threads < 1 ? 1 : threads;
}
void set_abort(Backend* backend, bool (*told)(void*), void* data) {
  static_cast<Context*>(backend->context)->abort = {told, data};
}
void* proc_address(Registration*, const char* name) {
  if (!std::strcmp(name, "ggml_backend_set_n_threads")) return reinterpret_cast<void*>(set_threads);
  if (!std::strcmp(name, "ggml_backend_set_abort_callback")) return reinterpret_cast<void*>(set_abort);
  return nullptr;
}

Registration registration{
    ggml::api_version, {registered_name, device_count, get_device, proc_address}, nullptr};
constexpr ggml::DeviceTable table{
    device_name, device_description, device_memory, device_type, device_properties, init_backend, buffer_type,
    {}, supports_op, supports_buffer_type, nullptr, {}};
Device registered{table, &registration, nullptr};
const uint8_t guid[16] = {0x9a, 0x51, 0x0e, 0xd6, 0x3c, 0x27, 0x4b, 0x8f, 0xa1, 0x64, 0xe2, 0x70, 0x1d, 0xc8, 0x95, 0x3b};

Device* get_device(Registration*, size_t) { return &registered; }

int op_number(const ggml::Functions& f, const char* name) {
  for (int op = 0; op < fewest_ops; ++op)
    if (!std::strcmp(f.op_name(op), name)) return op;
  return -1;
}

}  // namespace

const char* misfit(const ggml::Functions& f, const Tensor* t, const void* data, Device* processor) {
  if (op_number(f, "MUL_MAT") != t->op || op_number(f, "NONE") != 0) return "the numbers of operations";
  const Tensor *w = t->src[0], *x = t->src[1];
  if (!w || !x || t->src[2] || w->type != q4_k || x->type != ggml::f32) return "the sources of a tensor";
  if (w->ne[0] != 512 || w->ne[1] != 64 || x->ne[1] != 48 || t->ne[0] != 64 || t->ne[1] != 48 || !is_matrix(*w))
    return "the shape of a tensor";
  if (w->nb[0] != 144 || w->nb[1] != 288 || x->nb[1] != 2048 || t->nb[1] != 256 || f.tensor_bytes(w) != 64 * 288)
    return "the strides of a tensor";
  if (t->data != data) return "the data of a tensor";
  if (f.type_size(q6_k) != 210 || f.type_size(q4_k) != 144 || f.block_size(q6_k) != 256) return "the sizes of blocks";
  if (processor->registration != f.device_registration(processor) ||
      processor->registration->version != ggml::api_version)
    return "the version of its backends";
  if (processor->table.get_name(processor) != f.device_name(processor) ||
      processor->table.get_type(processor) != ggml::cpu_device || f.device_type(processor) != ggml::cpu_device)
    return "the table of a device";
  return nullptr;
}

void register_device(const ggml::Functions& functions, OpenMp threads) {
  static bool once = false;
  if (once) return;
  once = true;
  base = functions;
  openmp = threads;
  const auto op = [](const char* name) { return op_number(base, name); };
  ops = {op("NONE"), op("MUL_MAT"), op("FLASH_ATTN_EXT"), op("RESHAPE"),
         op("VIEW"), op("PERMUTE"), op("TRANSPOSE")};
  for (int i = 0; i < kernels; ++i) devices[i] = {table, &registration, const_cast<Kernel*>(kernel(i))};
  base.register_backend(&registration);
}

void choose(int index) { chosen = index; }

Backend* make_backend(int index) {
  const Kernel* known = index < 0 ? nullptr : kernel(index);
  Context* context = new (std::nothrow) Context{known, known ? attention_kernel(index) : nullptr};
  if (!context) return nullptr;
  Backend* backend = new (std::nothrow) Backend{&guid, {}, known ? &devices[index] : &registered, context};
  if (!backend) {
    delete context;
    return nullptr;
  }
  backend->table.get_name = backend_name;
  backend->table.free = free_backend;
  backend->table.graph_compute = compute;
  return backend;
}

int64_t products() { return computed; }
int64_t attentions() { return attended; }

}  // namespace ayaedge
