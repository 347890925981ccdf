// What of ggml's structures a backend must read or fill, by their layout in the versions that `acceleration.py` names.
// `backend.cpp` compares it with what ggml's own functions say before anything is registered.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ggml {

constexpr int api_version = 2;
constexpr int f32 = 0, f16 = 1;         // of its types
constexpr int cpu_device = 0, accelerator = 3;  // of its kinds of devices
enum Status : int { out_of_memory = -2, failed = -1, success = 0, aborted = 1 };

struct Tensor {
  int type;
  void* buffer;
  int64_t ne[4];
  size_t nb[4];
  int op;
  int32_t op_params[16];
  int32_t flags;
  Tensor* src[10];
  Tensor* view_src;
  size_t view_offs;
  void* data;
};
static_assert(sizeof(void*) != 8 || offsetof(Tensor, src) == 152, "ggml's layout of a tensor");
static_assert(sizeof(void*) != 8 || offsetof(Tensor, data) == 248, "ggml's layout of a tensor");

struct Graph;
struct BufferType;
struct Device;
struct Registration;
struct Backend;

using Any = void (*)();  // an entry that is left empty

struct BackendTable {
  const char* (*get_name)(Backend*);
  void (*free)(Backend*);
  Any tensor_access[5];
  Any synchronize;
  Any plans[4];
  Status (*graph_compute)(Backend*, Graph*);
  Any events[2];
  Any graph_optimize;
};

struct Backend {
  const uint8_t (*guid)[16];
  BackendTable table;
  Device* device;
  void* context;
};

struct Properties {
  const char *name, *description;
  size_t memory_free, memory_total;
  int type;
  const char* id;
  bool capabilities[5];
};

struct DeviceTable {
  const char* (*get_name)(Device*);
  const char* (*get_description)(Device*);
  void (*get_memory)(Device*, size_t* free, size_t* total);
  int (*get_type)(Device*);
  void (*get_properties)(Device*, Properties*);
  Backend* (*init_backend)(Device*, const char* parameters);
  BufferType* (*get_buffer_type)(Device*);
  Any host_buffers[2];
  bool (*supports_op)(Device*, const Tensor*);
  bool (*supports_buffer_type)(Device*, BufferType*);
  Any offload_op;
  Any events[3];
};

struct Device {
  DeviceTable table;
  Registration* registration;
  void* context;
};

struct RegistrationTable {
  const char* (*get_name)(Registration*);
  size_t (*get_device_count)(Registration*);
  Device* (*get_device)(Registration*, size_t index);
  void* (*get_proc_address)(Registration*, const char* name);
};

struct Registration {
  int version;
  RegistrationTable table;
  void* context;
};

// Functions of ggml, handed over by address: in this order in `acceleration.py`.
struct Functions {
  void (*register_backend)(Registration*);
  bool (*buffer_type_is_host)(BufferType*);
  BufferType* (*cpu_buffer_type)();
  int (*graph_n_nodes)(Graph*);
  Tensor* (*graph_node)(Graph*, int index);
  const char* (*op_name)(int op);
  const char* (*device_name)(Device*);
  int (*device_type)(Device*);
  Registration* (*device_registration)(Device*);
  size_t (*type_size)(int type);
  int64_t (*block_size)(int type);
  size_t (*tensor_bytes)(const Tensor*);
};

}  // namespace ggml
