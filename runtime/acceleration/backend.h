// A device for ggml's scheduler that takes the products of long batches from its processor device.
#pragma once

#include "ggml_interface.h"
#include "team.h"

namespace ayaedge {

// What is wrong with the structures of this ggml, or null: `product` is a MUL_MAT of a Q4_K matrix of 512 x 64 with
// 48 columns, made by ggml's functions, with data at `data`; `processor` is its own processor's device.
const char* misfit(const ggml::Functions&, const ggml::Tensor* product, const void* data, ggml::Device* processor);

// Make the device known to ggml, once for a process; contexts that are made afterwards have a backend of it.
void register_device(const ggml::Functions&, OpenMp);

// What contexts that this thread makes from now on compute with: a kernel's number, or -1 to leave all to llama.cpp.
void choose(int index);

// A backend with a kernel, for a trial; freed by ggml.
ggml::Backend* make_backend(int index);

// Products that were computed in this process.
int64_t products();
int64_t attentions();

}  // namespace ayaedge
