#include "shim.h"

#include "kernels.h"

#include <array>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

namespace {

// Runs `body`; an exception becomes *error and a null or false result.
template <typename Body> auto guarded(char **error, Body body) -> decltype(body()) {
  try {
    return body();
  } catch (const std::exception &exception) {
    *error = strdup(exception.what());
  } catch (...) {
    *error = strdup("an exception that is not a std::exception");
  }
  return {};
}

const at::Tensor &borrowed(Tensor tensor) { return *static_cast<at::Tensor *>(tensor); }

std::optional<at::Tensor> optional(Tensor tensor) {
  return tensor ? std::optional(borrowed(tensor)) : std::nullopt;
}

std::vector<at::Tensor> borrowed_list(const Tensor *tensors, size_t count) {
  std::vector<at::Tensor> list;
  list.reserve(count);
  for (size_t index = 0; index < count; ++index)
    list.push_back(borrowed(tensors[index]));
  return list;
}

// Operators that PyTorch registers for its compiler without a C++ function: looked up by name once.
c10::OperatorHandle operator_named(const char *name, const char *overload) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, overload);
}

Tensor call(const c10::OperatorHandle &handle, std::vector<c10::IValue> stack) {
  handle.callBoxed(&stack);
  return new at::Tensor(std::move(stack.at(0)).toTensor());
}

// A function of the caller, and the object that it owns.
struct Segment : torch::CustomClassHolder {
  using Run = Tensor (*)(void *, const Tensor *, size_t, char **);

  Segment(Run run, void (*release)(void *), void *owner)
      : run(run), release(release), owner(owner) {}
  ~Segment() override { release(owner); }

  at::Tensor operator()(const std::vector<at::Tensor> &inputs) const {
    std::vector<Tensor> borrowed_inputs;
    borrowed_inputs.reserve(inputs.size());
    for (const auto &input : inputs)
      borrowed_inputs.push_back(const_cast<at::Tensor *>(&input));
    char *message = nullptr;
    std::unique_ptr<at::Tensor> output(static_cast<at::Tensor *>(
        run(owner, borrowed_inputs.data(), borrowed_inputs.size(), &message)));
    if (!output) {
      std::string text = message ? message : "a checkpointed segment failed";
      free(message);
      throw std::runtime_error(text);
    }
    return *output;
  }

  Run run;
  void (*release)(void *);
  void *owner;
};

// Gradient checkpointing: runs a segment without a graph, keeps its inputs, and recomputes it for
// the gradients.
struct Checkpoint : torch::autograd::Function<Checkpoint> {
  static at::Tensor forward(torch::autograd::AutogradContext *context, at::TensorList inputs,
                            c10::intrusive_ptr<Segment> segment) {
    context->saved_data["segment"] = c10::IValue::make_capsule(segment);
    auto kept = inputs.vec();
    context->save_for_backward(kept);
    return (*segment)(kept);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext *context,
                                                 torch::autograd::variable_list gradients) {
    auto segment =
        c10::static_intrusive_pointer_cast<Segment>(context->saved_data["segment"].toCapsule());
    std::vector<at::Tensor> inputs;
    for (const auto &saved : context->get_saved_variables()) {
      auto input = saved.detach();
      input.set_requires_grad(saved.requires_grad());
      inputs.push_back(input);
    }
    {
      at::AutoGradMode recording(true);
      auto output = (*segment)(inputs);
      torch::autograd::backward({output}, {gradients.at(0)});
    }
    torch::autograd::variable_list results;
    for (const auto &input : inputs)
      results.push_back(input.requires_grad() ? input.grad() : at::Tensor());
    results.emplace_back(); // the segment
    return results;
  }
};

// Products of bf16 numbers by f32 kernels, rounded once at the end. An f32 weight in training is
// rounded to bf16 first, as with autocast. The backward pass needs only the input in bf16 and the
// weight itself, so no copy of the weight is kept.
at::Tensor upcast(const at::Tensor &tensor) { return tensor.to(at::kFloat); }

at::Tensor upcast_weight(const at::Tensor &weight) {
  return weight.to(at::kBFloat16).to(at::kFloat);
}

at::Tensor narrowed(const at::Tensor &tensor) { return tensor.to(at::kBFloat16); }

std::optional<at::Tensor> upcast_bias(const std::optional<at::Tensor> &bias) {
  return bias ? std::optional(upcast_weight(*bias)) : std::nullopt;
}

struct UpcastLinear : torch::autograd::Function<UpcastLinear> {
  static at::Tensor forward(torch::autograd::AutogradContext *context, const at::Tensor &input,
                            const at::Tensor &weight, const std::optional<at::Tensor> &bias) {
    // A frozen weight has no gradient, so the input is not needed.
    context->save_for_backward({weight.requires_grad() ? input : at::Tensor(), weight});
    context->saved_data["sizes"] = input.sizes().vec();
    context->saved_data["has_bias"] = bias.has_value();
    return compute(input, weight, bias);
  }

  static at::Tensor compute(const at::Tensor &input, const at::Tensor &weight,
                            const std::optional<at::Tensor> &bias) {
    return narrowed(at::linear(upcast(input), upcast_weight(weight), upcast_bias(bias)));
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext *context,
                                                 torch::autograd::variable_list gradients) {
    auto saved = context->get_saved_variables();
    const auto &input = saved.at(0), &weight = saved.at(1);
    auto gradient = upcast(gradients.at(0)).reshape({-1, weight.size(0)});
    torch::autograd::variable_list results(3);
    if (context->needs_input_grad(0))
      results[0] = narrowed(at::mm(gradient, upcast_weight(weight)))
                       .view(context->saved_data["sizes"].toIntVector());
    if (context->needs_input_grad(1))
      results[1] = at::mm(gradient.t(), upcast(input).reshape({-1, weight.size(1)}));
    if (context->saved_data["has_bias"].toBool() && context->needs_input_grad(2))
      results[2] = gradient.sum(0);
    return results;
  }
};

struct UpcastConvolution : torch::autograd::Function<UpcastConvolution> {
  static at::Tensor forward(torch::autograd::AutogradContext *context, const at::Tensor &input,
                            const at::Tensor &weight, const at::Tensor &bias, int64_t stride,
                            int64_t padding) {
    context->save_for_backward({input, weight});
    context->saved_data["stride"] = stride;
    context->saved_data["padding"] = padding;
    return compute(input, weight, bias, stride, padding);
  }

  static at::Tensor compute(const at::Tensor &input, const at::Tensor &weight,
                            const at::Tensor &bias, int64_t stride, int64_t padding) {
    using Pair = std::vector<int64_t>;
    return narrowed(at::mkldnn_convolution(upcast(input), upcast_weight(weight),
                                           upcast_weight(bias), Pair(2, padding),
                                           Pair(2, stride), Pair(2, 1), /*groups=*/1));
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext *context,
                                                 torch::autograd::variable_list gradients) {
    using Pair = std::vector<int64_t>;
    auto saved = context->get_saved_variables();
    const auto &input = saved.at(0), &weight = saved.at(1);
    std::array<bool, 3> wanted;
    for (size_t index = 0; index < wanted.size(); ++index)
      wanted[index] = context->needs_input_grad(index);
    Pair bias_sizes{weight.size(0)};
    auto [input_gradient, weight_gradient, bias_gradient] = at::convolution_backward(
        upcast(gradients.at(0)), upcast(input), upcast_weight(weight), bias_sizes,
        Pair(2, context->saved_data["stride"].toInt()),
        Pair(2, context->saved_data["padding"].toInt()), Pair(2, 1), /*transposed=*/false,
        Pair(2, 0), /*groups=*/1, wanted);
    if (input_gradient.defined())
      input_gradient = narrowed(input_gradient);
    return {input_gradient, weight_gradient, bias_gradient, at::Tensor(), at::Tensor()};
  }
};

// Moves the gradient of a weight's copy in half precision to the weight itself.
struct GradientRoute : torch::autograd::PostAccumulateGradHook {
  explicit GradientRoute(at::Tensor weight) : weight(std::move(weight)) {}

  void operator()(const torch::autograd::Variable &copy) override {
    at::NoGradGuard no_grad;
    auto &gradient = copy.mutable_grad();
    auto &sum = weight.mutable_grad();
    if (sum.defined())
      sum.add_(gradient); // in f32
    else
      sum = gradient.to(weight.scalar_type());
    gradient.reset();
  }

  at::Tensor weight;
};

} // namespace

// Without recording, the functions above are not needed, and inference mode would reject them.
bool records(std::initializer_list<at::Tensor> tensors) {
  if (!at::GradMode::is_enabled())
    return false;
  for (const auto &tensor : tensors)
    if (tensor.requires_grad())
      return true;
  return false;
}

extern "C" {

void nn_free_text(char *text) { free(text); }

Tensor nn_tensor_over_memory(void *data, const int64_t *sizes, const int64_t *strides,
                             size_t dimensions, int scalar_type, void (*release)(void *),
                             void *owner, char **error) {
  return guarded(error, [&]() -> Tensor {
    // The shared_ptr releases the owner whatever happens next: also when from_blob throws.
    std::shared_ptr<void> holder(owner, release);
    auto options = at::TensorOptions()
                       .dtype(static_cast<at::ScalarType>(scalar_type))
                       .device(at::kCPU)
                       .requires_grad(false);
    return new at::Tensor(at::from_blob(
        data, at::IntArrayRef(sizes, dimensions), at::IntArrayRef(strides, dimensions),
        [holder](void *) mutable { holder.reset(); }, options));
  });
}

void *nn_inference_enter(char **error) {
  return guarded(error, []() -> void * { return new c10::InferenceMode(true); });
}

// The destructor only restores flags of the thread: it is noexcept.
void nn_inference_leave(void *guard) { delete static_cast<c10::InferenceMode *>(guard); }

Tensor nn_linear_scaled(Tensor input, Tensor weight, Tensor bias, double scale, char **error) {
  return guarded(error, [&]() -> Tensor {
    const auto &rows = borrowed(input);
    auto sizes = rows.sizes().vec();
    auto flat = at::addmm(borrowed(bias), rows.reshape({-1, rows.size(-1)}),
                          borrowed(weight).t(), /*beta=*/1, /*alpha=*/scale);
    sizes.back() = flat.size(-1);
    return new at::Tensor(flat.view(sizes));
  });
}

Tensor nn_linear_pack(Tensor weight, int64_t rows, char **error) {
  return guarded(error, [&]() -> Tensor {
    static const auto pack = operator_named("mkldnn::_reorder_linear_weight", "");
    return call(pack, {borrowed(weight), rows});
  });
}

Tensor nn_linear_packed(Tensor input, Tensor weight, Tensor bias, const char *activation,
                        char **error) {
  return guarded(error, [&]() -> Tensor {
    static const auto linear = operator_named("mkldnn::_linear_pointwise", "");
    // Parameters of some activations, and the variant of the activation: "none" is the exact GELU.
    c10::List<std::optional<at::Scalar>> parameters;
    std::string name = activation, variant = "none";
    if (name == "gelu_tanh") {
      name = "gelu";
      variant = "tanh";
    }
    auto addend = bias ? c10::IValue(borrowed(bias)) : c10::IValue();
    return call(linear, {borrowed(input), borrowed(weight), addend, name, std::move(parameters),
                         variant});
  });
}

Tensor nn_conv2d_pack(Tensor weight, int64_t stride, int64_t padding, const int64_t *input_size,
                      char **error) {
  return guarded(error, [&]() -> Tensor {
    static const auto pack = operator_named("mkldnn::_reorder_convolution_weight", "");
    using Pair = std::vector<int64_t>;
    return call(pack, {borrowed(weight), Pair(2, padding), Pair(2, stride), Pair(2, 1),
                       int64_t{1}, Pair(input_size, input_size + 4)});
  });
}

Tensor nn_conv2d_packed(Tensor input, Tensor weight, Tensor bias, int64_t stride, int64_t padding,
                        char **error) {
  return guarded(error, [&]() -> Tensor {
    static const auto convolution = operator_named("mkldnn::_convolution_pointwise", "");
    using Pair = std::vector<int64_t>;
    c10::List<std::optional<at::Scalar>> parameters;
    return call(convolution,
                {borrowed(input), borrowed(weight), borrowed(bias), Pair(2, padding),
                 Pair(2, stride), Pair(2, 1), int64_t{1}, std::string("none"),
                 std::move(parameters), std::string("none")});
  });
}

Tensor nn_linear_upcast(Tensor input, Tensor weight, Tensor bias, char **error) {
  return guarded(error, [&]() -> Tensor {
    const auto &x = borrowed(input), &factors = borrowed(weight);
    auto addend = optional(bias);
    return new at::Tensor(records({x, factors, addend.value_or(at::Tensor())})
                              ? UpcastLinear::apply(x, factors, addend)
                              : UpcastLinear::compute(x, factors, addend));
  });
}

Tensor nn_conv2d_upcast(Tensor input, Tensor weight, Tensor bias, int64_t stride, int64_t padding,
                         char **error) {
  return guarded(error, [&]() -> Tensor {
    const auto &x = borrowed(input), &factors = borrowed(weight), &addend = borrowed(bias);
    return new at::Tensor(
        records({x, factors, addend})
            ? UpcastConvolution::apply(x, factors, addend, stride, padding)
            : UpcastConvolution::compute(x, factors, addend, stride, padding));
  });
}

bool nn_can_gate(Tensor value, char **error) {
  return guarded(error, [&]() -> bool { return can_gate(borrowed(value)); });
}

bool nn_can_normalize(Tensor like, int64_t channels, int64_t groups, char **error) {
  return guarded(error, [&]() -> bool {
    const auto &x = borrowed(like);
    return x.is_cpu() ? can_normalize_on_cpu(x) : can_normalize(x, channels, groups);
  });
}

Tensor nn_normalize(Tensor image, Tensor shift, Tensor bias, Tensor weight, Tensor beta,
                    int64_t groups, double epsilon, bool silu, char **error) {
  return guarded(error, [&]() -> Tensor {
    const auto &x = borrowed(image), &factors = borrowed(weight), &addends = borrowed(beta);
    if (!x.is_cpu())
      return new at::Tensor(normalize(x, optional(shift), optional(bias), factors, addends, groups,
                                      epsilon, silu));
    TORCH_CHECK(!bias, "no bias is added on a CPU");
    return new at::Tensor(
        normalize_on_cpu(x, optional(shift), factors, addends, groups, epsilon, silu));
  });
}

Tensor nn_gated_gelu(Tensor value, Tensor gate, char **error) {
  return guarded(
      error, [&]() -> Tensor { return new at::Tensor(gated_gelu(borrowed(value), borrowed(gate))); });
}

Tensor nn_add_biased(Tensor stream, Tensor update, Tensor bias, char **error) {
  return guarded(error, [&]() -> Tensor {
    return new at::Tensor(add_biased(borrowed(stream), borrowed(update), borrowed(bias)));
  });
}

Tensor nn_channels_last(Tensor tensor, char **error) {
  return guarded(error, [&]() -> Tensor {
    return new at::Tensor(borrowed(tensor).contiguous(at::MemoryFormat::ChannelsLast));
  });
}

Tensor nn_upload(Tensor tensor, int device, char **error) {
  return guarded(error, [&]() -> Tensor {
    at::Device gpu(at::kCUDA, static_cast<c10::DeviceIndex>(device));
    const auto &here = borrowed(tensor);
    // A pinned copy keeps the strides, so the source must not overlap itself or have holes.
    auto dense = here.is_non_overlapping_and_dense() ? here : here.contiguous();
    return new at::Tensor(dense.pin_memory().to(gpu, /*non_blocking=*/true));
  });
}

bool nn_peak_device_bytes(int device, uint64_t *allocated, uint64_t *reserved, char **error) {
  return guarded(error, [&]() -> bool {
    *allocated = *reserved = 0;
    auto *allocator = at::getDeviceAllocator(at::kCUDA);
    if (!allocator->initialized())
      return true;
    auto statistics = allocator->getDeviceStats(static_cast<c10::DeviceIndex>(device));
    constexpr auto all = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    *allocated = static_cast<uint64_t>(statistics.allocated_bytes[all].peak);
    *reserved = static_cast<uint64_t>(statistics.reserved_bytes[all].peak);
    return true;
  });
}

Tensor nn_from_rows(const float *const *rows, size_t count, size_t length, const int64_t *sizes,
                    size_t dimensions, bool pinned, char **error) {
  return guarded(error, [&]() -> Tensor {
    auto options = at::TensorOptions().dtype(at::kFloat).pinned_memory(pinned);
    auto filled = at::empty(at::IntArrayRef(sizes, dimensions), options);
    TORCH_CHECK(static_cast<size_t>(filled.numel()) == count * length, "rows do not fill a tensor");
    float *start = filled.data_ptr<float>();
    for (size_t row = 0; row < count; ++row)
      std::memcpy(start + row * length, rows[row], length * sizeof(float));
    return new at::Tensor(filled);
  });
}

bool nn_set_tf32(bool allowed, char **error) {
  return guarded(error, [&]() -> bool {
    at::globalContext().setAllowTF32CuBLAS(allowed);
    at::globalContext().setAllowTF32CuDNN(allowed);
    return true;
  });
}

bool nn_tf32(bool *products, bool *convolutions, char **error) {
  return guarded(error, [&]() -> bool {
    *products = at::globalContext().allowTF32CuBLAS();
    *convolutions = at::globalContext().allowTF32CuDNN(at::Float32Op::CONV);
    return true;
  });
}

bool nn_has_bf16(int device, bool *answer, char **error) {
  return guarded(error, [&]() -> bool {
    *answer = true;
    const auto &hooks = at::detail::getCUDAHooks();
    if (!hooks.hasCUDA() || device >= hooks.getNumGPUs())
      return true;
    c10::DeviceGuard guard({c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(device)});
    // Despite its name, this function checks the compute capability only.
    *answer = hooks.supportsBFloat16ConvolutionWithCuDNNv8();
    return true;
  });
}

Tensor nn_normal(uint64_t seed, const int64_t *sizes, size_t dimensions, char **error) {
  return guarded(error, [&]() -> Tensor {
    auto generator = at::make_generator<at::CPUGeneratorImpl>(seed);
    return new at::Tensor(
        at::randn(at::IntArrayRef(sizes, dimensions), generator, at::TensorOptions(at::kFloat)));
  });
}

Tensor nn_checkpoint(const Tensor *inputs, size_t count,
                     Tensor (*run)(void *, const Tensor *, size_t, char **),
                     void (*release)(void *), void *owner, char **error) {
  return guarded(error, [&]() -> Tensor {
    auto segment = c10::make_intrusive<Segment>(run, release, owner);
    auto tensors = borrowed_list(inputs, count);
    return new at::Tensor(Checkpoint::apply(at::TensorList(tensors), segment));
  });
}

bool nn_fused_adamw(const Tensor *parameters, const Tensor *gradients, const Tensor *first_moments,
                    const Tensor *second_moments, const Tensor *steps, size_t count,
                    double learning_rate, double beta1, double beta2, double weight_decay,
                    double epsilon, char **error) {
  return guarded(error, [&]() -> bool {
    at::NoGradGuard no_grad;
    auto step_list = borrowed_list(steps, count);
    at::_foreach_add_(step_list, 1);
    at::_fused_adamw_(borrowed_list(parameters, count), borrowed_list(gradients, count),
                      borrowed_list(first_moments, count), borrowed_list(second_moments, count),
                      /*max_exp_avg_sqs=*/{}, step_list, learning_rate, beta1, beta2, weight_decay,
                      epsilon, /*amsgrad=*/false, /*maximize=*/false, /*grad_scale=*/{},
                      /*found_inf=*/{});
    return true;
  });
}

Tensor nn_clip_gradients(const Tensor *gradients, size_t count, double max_norm, char **error) {
  return guarded(error, [&]() -> Tensor {
    at::NoGradGuard no_grad;
    auto list = borrowed_list(gradients, count);
    auto total = at::linalg_vector_norm(at::stack(at::_foreach_norm(list, 2)), 2);
    if (std::isfinite(max_norm)) {
      // In the order of Python's PyTorch, where number / tensor is the reciprocal times the number.
      auto factor = (total + 1e-6).reciprocal() * max_norm;
      at::_foreach_mul_(list, factor.clamp_max(1.0));
    }
    return new at::Tensor(total);
  });
}

bool nn_drop_gradients(const Tensor *parameters, size_t count, char **error) {
  return guarded(error, [&]() -> bool {
    for (auto &parameter : borrowed_list(parameters, count))
      parameter.mutable_grad() = at::Tensor();
    return true;
  });
}

bool nn_set_gradients(const Tensor *parameters, const Tensor *gradients, size_t count,
                      char **error) {
  return guarded(error, [&]() -> bool {
    auto list = borrowed_list(parameters, count);
    for (size_t index = 0; index < count; ++index)
      list[index].mutable_grad() = borrowed(gradients[index]);
    return true;
  });
}

bool nn_route_gradient(Tensor copy, Tensor weight, char **error) {
  return guarded(error, [&]() -> bool {
    torch::autograd::impl::set_post_acc_grad_hooks(
        borrowed(copy), std::make_unique<GradientRoute>(borrowed(weight)));
    return true;
  });
}

bool nn_copy_all(const Tensor *targets, const Tensor *sources, size_t count, char **error) {
  return guarded(error, [&]() -> bool {
    at::NoGradGuard no_grad;
    at::_foreach_copy_(borrowed_list(targets, count), borrowed_list(sources, count));
    return true;
  });
}

bool nn_add_scaled(Tensor target, Tensor addend, double factor, char **error) {
  return guarded(error, [&]() -> bool {
    borrowed(target).add_(borrowed(addend), factor);
    return true;
  });
}

} // extern "C"
