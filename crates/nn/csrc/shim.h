// The C interface of those functions of libtorch that tch does not bind.
//
// Rules, the same for every function:
// - no exception leaves: on failure the function returns null (or false) and sets *error to a
//   message made by strdup, which the caller releases with nn_free_text;
// - `Tensor` is at::Tensor: arguments are borrowed, a returned one belongs to the caller;
// - nothing here keeps global state, but for the allocator of libtorch, which is one.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef void *Tensor;

void nn_free_text(char *text);

// A CPU tensor over memory that somebody else owns. `release(owner)` is called exactly once: when
// the last tensor that shares the memory is gone, or before this returns null.
Tensor nn_tensor_over_memory(void *data, const int64_t *sizes, const int64_t *strides,
                             size_t dimensions, int scalar_type, void (*release)(void *),
                             void *owner, char **error);

// Enters c10::InferenceMode on this thread; nn_inference_leave undoes it. Pairs must nest, and
// both ends run on one thread.
void *nn_inference_enter(char **error);
void nn_inference_leave(void *guard);

// scale · (input [.., in] · weight [out, in] transposed) + bias: the factor costs nothing in the
// product. Any device.
Tensor nn_linear_scaled(Tensor input, Tensor weight, Tensor bias, double scale, char **error);

// oneDNN linear layers with a weight in the layout of its kernels, and with the activation in the
// same pass. CPU only.

// The weight [out, in] in oneDNN's own layout, for inputs of about `rows` rows.
Tensor nn_linear_pack(Tensor weight, int64_t rows, char **error);

// activation(input [.., in] times a packed weight, plus bias), where the activation is one of
// "none", "gelu" (the exact one), "gelu_tanh" and "swish". The bias may be null.
Tensor nn_linear_packed(Tensor input, Tensor weight, Tensor bias, const char *activation,
                        char **error);

// The weight [out, in, k, k] of a convolution in oneDNN's own layout, for inputs of about the
// four sizes given. CPU only.
Tensor nn_conv2d_pack(Tensor weight, int64_t stride, int64_t padding, const int64_t *input_size,
                      char **error);

// The convolution of input [B, in, H, W] with a packed weight, plus bias.
Tensor nn_conv2d_packed(Tensor input, Tensor weight, Tensor bias, int64_t stride, int64_t padding,
                        char **error);

// Layers over bf16 numbers that are computed in f32 and rounded once, for processors without bf16
// instructions; with gradients. The weight and the bias may be f32, and are rounded to bf16 first;
// the gradients of an f32 weight are f32. The bias of the linear layer may be null. CPU only.
Tensor nn_linear_upcast(Tensor input, Tensor weight, Tensor bias, char **error);
Tensor nn_conv2d_upcast(Tensor input, Tensor weight, Tensor bias, int64_t stride, int64_t padding,
                         char **error);

// Operations by kernels of this crate on a GPU, with gradients, and nn_normalize without a bias
// also on a CPU, without gradients (kernels.h says what they compute). `shift` and `bias` may be
// null. The first two say whether the others accept such tensors; if they cannot tell they return
// false and set *error.
bool nn_can_gate(Tensor value, char **error);
bool nn_can_normalize(Tensor like, int64_t channels, int64_t groups, char **error);
Tensor nn_normalize(Tensor image, Tensor shift, Tensor bias, Tensor weight, Tensor beta,
                    int64_t groups, double epsilon, bool silu, char **error);
Tensor nn_gated_gelu(Tensor value, Tensor gate, char **error);
Tensor nn_add_biased(Tensor stream, Tensor update, Tensor bias, char **error);

// The tensor [B, C, H, W] with its channels last in memory (NHWC); itself if they already are. Any
// device.
Tensor nn_channels_last(Tensor tensor, char **error);

// From now on, the memory of large CPU tensors is reused (allocator.cpp). This cannot be undone.
void nn_reuse_memory(void);

// The CPU tensor on a GPU. The copy reads pinned memory, so that nothing waits for it.
Tensor nn_upload(Tensor tensor, int device, char **error);

// The peaks of GPU memory that tensors held, and that the driver gave for them, in bytes; zero if
// nothing is on the GPU yet.
bool nn_peak_device_bytes(int device, uint64_t *allocated, uint64_t *reserved, char **error);

// A CPU tensor of these sizes, filled from `count` rows of `length` numbers each; with `pinned`, in
// memory that a GPU reads directly.
Tensor nn_from_rows(const float *const *rows, size_t count, size_t length, const int64_t *sizes,
                    size_t dimensions, bool pinned, char **error);

// Whether a GPU multiplies bf16 itself, as all since Ampere do (compute capability 8.0). True if
// libtorch has no CUDA.
bool nn_has_bf16(int device, bool *answer, char **error);

// Whether f32 products on GPUs may round their inputs to TF32, which has 10 bits of mantissa: both
// matrix products and cuDNN's convolutions, from now on in the whole process.
bool nn_set_tf32(bool allowed, char **error);
// The same as libtorch has it now: of matrix products and of convolutions.
bool nn_tf32(bool *products, bool *convolutions, char **error);

// Standard normal noise: torch.randn(sizes, generator=torch.Generator("cpu").manual_seed(seed)).
Tensor nn_normal(uint64_t seed, const int64_t *sizes, size_t dimensions, char **error);

// Gradient checkpointing. `run(owner, inputs, error)` computes one fresh tensor from borrowed
// inputs, or returns null with *error set by strdup. It is called once without a graph now, and
// once more in the backward pass, which may be on another thread; gradients then flow to the inputs
// and to every leaf that it uses. `release(owner)` is called exactly once.
Tensor nn_checkpoint(const Tensor *inputs, size_t count,
                     Tensor (*run)(void *owner, const Tensor *inputs, size_t count, char **error),
                     void (*release)(void *owner), void *owner, char **error);

// One step of AdamW by PyTorch's fused kernel, in place on weights, moments and step counts (one
// f32 number per weight), to which it first adds one. All lists are `count` long; f32.
bool nn_fused_adamw(const Tensor *parameters, const Tensor *gradients, const Tensor *first_moments,
                    const Tensor *second_moments, const Tensor *steps, size_t count,
                    double learning_rate, double beta1, double beta2, double weight_decay,
                    double epsilon, char **error);

// The gradient norm, the 2-norm of all gradients together, as torch.nn.utils.clip_grad_norm_
// computes it: 0-dim and on their device. If it exceeds a finite max_norm, the gradients are scaled
// in place. Nothing waits for the device. `count` is at least one.
Tensor nn_clip_gradients(const Tensor *gradients, size_t count, double max_norm, char **error);

// Drops the gradients of the parameters, as zero_grad(set_to_none=True) does.
bool nn_drop_gradients(const Tensor *parameters, size_t count, char **error);

// Makes each gradient that of the parameter at its place. Both lists are `count` long; a gradient has
// the sizes and the dtype of its parameter.
bool nn_set_gradients(const Tensor *parameters, const Tensor *gradients, size_t count,
                      char **error);

// From now on the backward pass adds the gradient of `copy`, a leaf in half precision, to the gradient
// of the f32 leaf `weight`, and leaves none at `copy`.
bool nn_route_gradient(Tensor copy, Tensor weight, char **error);

// Copies each source into the target at its place, rounded to its dtype. Both lists are `count` long.
bool nn_copy_all(const Tensor *targets, const Tensor *sources, size_t count, char **error);

// target += factor * addend, in place and with a single rounding if the processor can.
bool nn_add_scaled(Tensor target, Tensor addend, double factor, char **error);

// What nn::doctor reports of libtorch, the CUDA driver and NCCL, as lines of `key=value`. Without
// `all` only the versions of the build, which takes no time. nn_free_text releases the text.
char *nn_facts(bool all, char **error);

#ifdef __cplusplus
}
#endif
