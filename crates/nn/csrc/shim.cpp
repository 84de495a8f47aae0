#include "shim.h"

#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/InferenceMode.h>

namespace {

// Runs `body`; an exception becomes *error and a null result.
template <typename Body> auto guarded(char **error, Body body) -> decltype(body()) {
  try {
    return body();
  } catch (const std::exception &exception) {
    *error = strdup(exception.what());
  } catch (...) {
    *error = strdup("an exception that is not a std::exception");
  }
  return nullptr;
}

const at::Tensor &borrowed(Tensor tensor) { return *static_cast<at::Tensor *>(tensor); }

// Operators that PyTorch registers for its compiler and gives no C++ name: found by name once.
c10::OperatorHandle operator_named(const char *name, const char *overload) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, overload);
}

Tensor call(const c10::OperatorHandle &handle, std::vector<c10::IValue> stack) {
  handle.callBoxed(&stack);
  return new at::Tensor(std::move(stack.at(0)).toTensor());
}

} // namespace

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
    // Numbers some activations take, and a variant of the name: "none" is the exact GELU.
    c10::List<std::optional<at::Scalar>> parameters;
    return call(linear, {borrowed(input), borrowed(weight), borrowed(bias),
                         std::string(activation), std::move(parameters), std::string("none")});
  });
}

} // extern "C"
