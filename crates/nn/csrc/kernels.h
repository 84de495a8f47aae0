// Operations by kernels of our own: passes over memory that PyTorch's operators make apart from each
// other. On a GPU (kernels.cu) with gradients; every tensor is of one number format (f32, bf16 or f16),
// or as a parameter f32, which is rounded to that format first. On a CPU (normalize.cpp) in f32 or bf16
// without gradients.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>

#include <ATen/ATen.h>

// Whether something here records gradients.
bool records(std::initializer_list<at::Tensor> tensors);

// Whether normalize() and add_biased() take images of so many channels, of the format and on the device
// of this tensor, and gated_gelu() tensors like this one: numbers are computed eight at a time, and there
// must be kernels for the device and the format, which are compiled at the first call.
bool can_normalize(const at::Tensor &like, int64_t channels, int64_t groups);
bool can_gate(const at::Tensor &value);

// The group normalisation of x + shift + bias, times weight, plus beta; with `silu` what x · sigmoid(x)
// makes of it. Channels last.
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
