// Operations with kernels of this crate, which join passes over memory that PyTorch's operators
// make separately. On a GPU (kernels.cu) they have gradients; all tensors have one dtype (f32, bf16
// or f16), except that a parameter may be f32, which is rounded to that dtype first. On a CPU
// (normalize.cpp) they compute in f32 or bf16, without gradients.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>

#include <ATen/ATen.h>

// Whether one of the tensors records gradients.
bool records(std::initializer_list<at::Tensor> tensors);

// Whether normalize() and add_biased() accept images of so many channels, with the dtype and device
// of this tensor, and gated_gelu() tensors like this one. The kernels compute eight numbers at a
// time, and must exist for the device and the dtype; the first call compiles them.
bool can_normalize(const at::Tensor &like, int64_t channels, int64_t groups);
bool can_gate(const at::Tensor &value);

// The group normalisation of x + shift + bias, times weight, plus beta; with `silu`, then x ·
// sigmoid(x). Channels last.
at::Tensor normalize(const at::Tensor &x_BCHW, const std::optional<at::Tensor> &shift_BC,
                     const std::optional<at::Tensor> &bias_C, const at::Tensor &weight_C,
                     const at::Tensor &beta_C, int64_t groups, double epsilon, bool silu);

// The same on a CPU, without bias and gradients.
bool can_normalize_on_cpu(const at::Tensor &like);
at::Tensor normalize_on_cpu(const at::Tensor &x_BCHW, const std::optional<at::Tensor> &shift_BC,
                            const at::Tensor &weight_C, const at::Tensor &beta_C, int64_t groups,
                            double epsilon, bool silu);

// value · gelu(gate), of contiguous tensors.
at::Tensor gated_gelu(const at::Tensor &value, const at::Tensor &gate);

// stream + update + bias. Channels last.
at::Tensor add_biased(const at::Tensor &stream_BCHW, const at::Tensor &update_BCHW,
                      const at::Tensor &bias_C);
