// Compiles kernels.cu for a GPU when it is first needed, and runs it on tensors.
//
// A libtorch for CUDA includes the compiler (NVRTC). It and the driver are opened at run time, so
// that a build needs no CUDA headers and a program starts without a GPU. If either is missing,
// can_normalize() and can_gate() return false, and the caller computes the same with PyTorch's
// operators.
#include "kernels.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include <dlfcn.h>

#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Exception.h>
#include <torch/csrc/autograd/custom_function.h>

namespace {

const char *const SOURCE =
#include "kernels.inc"
    ;

// Numbers per thread, as in kernels.cu.
constexpr int64_t PACK = 8;
constexpr int64_t MOST_THREADS = 512;
// A block has at least one thread for each.
constexpr int64_t MOST_GROUPS = 128;

// Of cuda.h and nvrtc.h; zero is success.
using Handle = void *;
enum Attribute { MULTIPROCESSORS = 16, MAJOR = 75, MINOR = 76 };

// A function of a library; throws if it is missing.
template <typename Function> Function symbol(Handle library, const char *name) {
  auto found = dlsym(library, name);
  TORCH_CHECK(found, "no ", name);
  return reinterpret_cast<Function>(found);
}

Handle open_library(const char *name) {
  auto library = dlopen(name, RTLD_LAZY | RTLD_LOCAL);
  TORCH_CHECK(library, dlerror());
  return library;
}

void check(int code, const char *what) { TORCH_CHECK(code == 0, what, " failed with ", code); }

// The CUDA driver.
struct Driver {
  Handle library = open_library("libcuda.so.1");
  int (*device_get)(int *, int) = symbol<decltype(device_get)>(library, "cuDeviceGet");
  int (*attribute)(int *, int, int) =
      symbol<decltype(attribute)>(library, "cuDeviceGetAttribute");
  int (*current)(Handle *) = symbol<decltype(current)>(library, "cuCtxGetCurrent");
  int (*set_current)(Handle) = symbol<decltype(set_current)>(library, "cuCtxSetCurrent");
  int (*retain)(Handle *, int) = symbol<decltype(retain)>(library, "cuDevicePrimaryCtxRetain");
  int (*load)(Handle *, const void *) = symbol<decltype(load)>(library, "cuModuleLoadData");
  int (*function)(Handle *, Handle, const char *) =
      symbol<decltype(function)>(library, "cuModuleGetFunction");
  int (*launch)(Handle, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, Handle,
                void **, void **) = symbol<decltype(launch)>(library, "cuLaunchKernel");

  static const Driver &instance() {
    static const Driver driver;
    return driver;
  }

  int number(int device, Attribute of) const {
    int ordinal = 0, value = 0;
    check(device_get(&ordinal, device), "cuDeviceGet");
    check(attribute(&value, of, ordinal), "cuDeviceGetAttribute");
    return value;
  }

  // Sets the context of this thread to the one that libtorch's CUDA runtime uses.
  void enter(int device) const {
    Handle context = nullptr;
    check(current(&context), "cuCtxGetCurrent");
    if (context)
      return;
    int ordinal = 0;
    check(device_get(&ordinal, device), "cuDeviceGet");
    check(retain(&context, ordinal), "cuDevicePrimaryCtxRetain");
    check(set_current(context), "cuCtxSetCurrent");
  }
};

// kernels.cu in machine code, for one dtype.
std::string compile(int format, int major, int minor) {
  // A library of libtorch that depends on NVRTC and has its path.
  auto library = open_library("libcaffe2_nvrtc.so");
  using Program = Handle;
  auto create = symbol<int (*)(Program *, const char *, const char *, int, const char *const *,
                               const char *const *)>(library, "nvrtcCreateProgram");
  auto build = symbol<int (*)(Program, int, const char *const *)>(library, "nvrtcCompileProgram");
  auto log_size = symbol<int (*)(Program, size_t *)>(library, "nvrtcGetProgramLogSize");
  auto log = symbol<int (*)(Program, char *)>(library, "nvrtcGetProgramLog");
  auto code_size = symbol<int (*)(Program, size_t *)>(library, "nvrtcGetCUBINSize");
  auto code = symbol<int (*)(Program, char *)>(library, "nvrtcGetCUBIN");
  auto destroy = symbol<int (*)(Program *)>(library, "nvrtcDestroyProgram");

  Program program = nullptr;
  check(create(&program, SOURCE, "kernels.cu", 0, nullptr, nullptr), "nvrtcCreateProgram");
  std::unique_ptr<Program, int (*)(Program *)> owner(&program, destroy);
  auto architecture =
      "--gpu-architecture=sm_" + std::to_string(major) + std::to_string(minor);
  auto definition = "-DFORMAT=" + std::to_string(format);
  const char *options[] = {architecture.c_str(), definition.c_str(), "--std=c++17"};
  auto result = build(program, 3, options);
  size_t size = 0;
  if (result != 0) {
    check(log_size(program, &size), "nvrtcGetProgramLogSize");
    std::string text(size, '\0');
    check(log(program, text.data()), "nvrtcGetProgramLog");
    TORCH_CHECK(false, "kernels.cu: ", text);
  }
  check(code_size(program, &size), "nvrtcGetCUBINSize");
  std::string text(size, '\0');
  check(code(program, text.data()), "nvrtcGetCUBIN");
  return text;
}

// The kernels for one dtype on one GPU.
class Kernels {
public:
  Kernels(int device, int format)
      : driver(Driver::instance()), device(device),
        multiprocessors(driver.number(device, MULTIPROCESSORS)) {
    auto code = compile(format, driver.number(device, MAJOR), driver.number(device, MINOR));
    driver.enter(device);
    check(driver.load(&module, code.data()), "cuModuleLoadData");
    for (auto [name, kernel] : {std::pair{"moments", &moments},
                                {"normalize", &normalize},
                                {"gradient_sums", &gradient_sums},
                                {"gradient_totals", &gradient_totals},
                                {"gradient", &gradient},
                                {"gated_gelu", &gated_gelu},
                                {"gated_gelu_gradient", &gated_gelu_gradient},
                                {"add_biased", &add_biased}})
      check(driver.function(kernel, module, name), name);
  }

  template <typename... Arguments>
  void launch(Handle kernel, unsigned columns, unsigned rows, unsigned threads, unsigned shared,
              Arguments... arguments) const {
    if (columns == 0 || rows == 0)
      return;
    driver.enter(device);
    void *places[] = {&arguments...};
    check(driver.launch(kernel, columns, rows, 1, threads, 1, 1, shared, stream(), places, nullptr),
          "cuLaunchKernel");
  }

private:
  const Driver &driver;
  int device;
  Handle module = nullptr;

  // The current stream of libtorch: a CUstream, null for the default one.
  Handle stream() const {
    c10::impl::VirtualGuardImpl guard(at::kCUDA);
    auto current = guard.getStream(at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(device)));
    return static_cast<Handle>(guard.getStreamNativeHandle(current));
  }

public:
  int multiprocessors;
  Handle moments, normalize, gradient_sums, gradient_totals, gradient;
  Handle gated_gelu, gated_gelu_gradient, add_biased;
};

int format_of(at::ScalarType type) {
  switch (type) {
  case at::kFloat:
    return 0;
  case at::kBFloat16:
    return 1;
  case at::kHalf:
    return 2;
  default:
    return -1;
  }
}

// The kernels for tensors like this one, compiled at the first call; null if there are no kernels.
const Kernels *kernels_for(const at::Tensor &tensor) {
  static std::mutex mutex;
  static std::map<std::pair<int, int>, std::unique_ptr<Kernels>> all;
  auto format = format_of(tensor.scalar_type());
  if (!tensor.is_cuda() || format < 0)
    return nullptr;
  std::lock_guard lock(mutex);
  auto [place, is_new] = all.try_emplace({tensor.get_device(), format});
  if (is_new) {
    try {
      c10::DeviceGuard guard(tensor.device());
      place->second = std::make_unique<Kernels>(tensor.get_device(), format);
    } catch (const std::exception &error) {
      TORCH_WARN("the GPU kernels of this program are not used, PyTorch's own are slower: ",
                 error.what());
    }
  }
  return place->second.get();
}

const Kernels &required(const at::Tensor &tensor) {
  auto found = kernels_for(tensor);
  TORCH_CHECK(found, "no GPU kernels for this tensor");
  return *found;
}

// Has the same layout in kernels.cu.
struct Sizes {
  int pixels, channels, groups, splits, columns, lanes, parameters_are_f32, silu;
  float epsilon;
};

const void *data(const at::Tensor &tensor) {
  return tensor.defined() ? tensor.const_data_ptr() : nullptr;
}

unsigned blocks(int64_t numbers, int64_t of) {
  return static_cast<unsigned>((numbers + of - 1) / of);
}

// Checks what the kernels assume.
void check_parameter(const at::Tensor &values, const at::Tensor &x, int64_t size) {
  TORCH_CHECK(values.numel() == size && values.is_contiguous() && values.device() == x.device() &&
                  (values.scalar_type() == at::kFloat || values.scalar_type() == x.scalar_type()),
              "expected ", size, " contiguous parameters beside the tensor");
}

struct Geometry {
  Sizes sizes;
  unsigned images, threads;

  Geometry(const Kernels &kernels, const at::Tensor &x_BCHW, int64_t groups, double epsilon,
           bool silu, bool parameters_are_f32) {
    auto batch = x_BCHW.size(0), channels = x_BCHW.size(1);
    auto pixels = x_BCHW.size(2) * x_BCHW.size(3);
    auto columns = channels / PACK, lanes = std::max<int64_t>(1, MOST_THREADS / columns);
    // Enough blocks to fill the GPU twice, with a few rows for each lane.
    auto wanted = (2 * kernels.multiprocessors + batch - 1) / batch;
    auto splits = std::clamp<int64_t>(wanted, 1, std::max<int64_t>(1, pixels / (2 * lanes)));
    // Only as many that none is empty if all have the same number of rows.
    auto rows = (pixels + splits - 1) / splits;
    splits = (pixels + rows - 1) / rows;
    sizes = {static_cast<int>(pixels),  static_cast<int>(channels),
             static_cast<int>(groups),  static_cast<int>(splits),
             static_cast<int>(columns), static_cast<int>(lanes),
             parameters_are_f32,        silu,
             static_cast<float>(epsilon)};
    images = static_cast<unsigned>(batch);
    threads = static_cast<unsigned>(columns * lanes);
  }

  unsigned splits() const { return static_cast<unsigned>(sizes.splits); }
};

struct Normalization : torch::autograd::Function<Normalization> {
  struct Result {
    at::Tensor y_BCHW, statistics_BG2;
  };

  static Result compute(const at::Tensor &x_BCHW, const at::Tensor &shift_BC,
                        const at::Tensor &bias_C, const at::Tensor &weight_C,
                        const at::Tensor &beta_C, int64_t groups, double epsilon, bool silu) {
    const auto &kernels = required(x_BCHW);
    c10::DeviceGuard guard(x_BCHW.device());
    auto channels = x_BCHW.size(1);
    auto is_f32 = weight_C.scalar_type() == at::kFloat;
    for (const auto &parameter : {bias_C, weight_C, beta_C})
      if (parameter.defined()) {
        check_parameter(parameter, x_BCHW, channels);
        TORCH_CHECK(parameter.scalar_type() == weight_C.scalar_type());
      }
    if (shift_BC.defined()) {
      check_parameter(shift_BC, x_BCHW, x_BCHW.size(0) * channels);
      TORCH_CHECK(shift_BC.scalar_type() == x_BCHW.scalar_type());
    }
    Geometry geometry(kernels, x_BCHW, groups, epsilon, silu, is_f32);
    auto numbers = x_BCHW.options().dtype(at::kFloat);
    auto moments = at::empty({x_BCHW.size(0), geometry.sizes.splits, groups, 2},
                             numbers.memory_format(at::MemoryFormat::Contiguous));
    auto statistics = at::empty({x_BCHW.size(0), groups, 2}, numbers);
    auto y = at::empty_like(x_BCHW, at::MemoryFormat::ChannelsLast);
    kernels.launch(kernels.moments, geometry.splits(), geometry.images, geometry.threads,
                   2 * channels * sizeof(float), data(x_BCHW), data(shift_BC), data(bias_C),
                   moments.mutable_data_ptr(), geometry.sizes);
    kernels.launch(kernels.normalize, geometry.splits(), geometry.images, geometry.threads,
                   (2 * groups + geometry.threads) * sizeof(float), data(x_BCHW), data(shift_BC),
                   data(bias_C), data(weight_C), data(beta_C), data(moments),
                   statistics.mutable_data_ptr(), y.mutable_data_ptr(), geometry.sizes);
    return {y, statistics};
  }

  static at::Tensor forward(torch::autograd::AutogradContext *context, const at::Tensor &x_BCHW,
                            const std::optional<at::Tensor> &shift_BC,
                            const std::optional<at::Tensor> &bias_C, const at::Tensor &weight_C,
                            const at::Tensor &beta_C, int64_t groups, double epsilon, bool silu) {
    auto shift = shift_BC.value_or(at::Tensor()), bias = bias_C.value_or(at::Tensor());
    auto result = compute(x_BCHW, shift, bias, weight_C, beta_C, groups, epsilon, silu);
    context->save_for_backward({x_BCHW, shift, bias, weight_C, beta_C, result.statistics_BG2});
    context->saved_data["groups"] = groups;
    context->saved_data["epsilon"] = epsilon;
    context->saved_data["silu"] = silu;
    return result.y_BCHW;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext *context,
                                                 torch::autograd::variable_list gradients) {
    auto saved = context->get_saved_variables();
    const auto &x = saved.at(0), &shift = saved.at(1), &bias = saved.at(2), &weight = saved.at(3),
               &beta = saved.at(4), &statistics = saved.at(5);
    const auto &kernels = required(x);
    c10::DeviceGuard guard(x.device());
    auto dy = gradients.at(0).contiguous(at::MemoryFormat::ChannelsLast);
    Geometry geometry(kernels, x, context->saved_data["groups"].toInt(),
                      context->saved_data["epsilon"].toDouble(),
                      context->saved_data["silu"].toBool(), weight.scalar_type() == at::kFloat);
    auto batch = x.size(0), channels = x.size(1);
    auto numbers = x.options().dtype(at::kFloat).memory_format(at::MemoryFormat::Contiguous);
    auto sums = at::empty({batch, geometry.sizes.splits, 3, channels}, numbers);
    auto totals = at::empty({batch, 3, channels}, numbers);
    auto dx = at::empty_like(x, at::MemoryFormat::ChannelsLast);
    auto offset_gradient =
        shift.defined() || bias.defined() ? at::empty({batch, channels}, numbers) : at::Tensor();
    constexpr unsigned THREADS = 128;
    kernels.launch(kernels.gradient_sums, geometry.splits(), geometry.images, geometry.threads,
                   3 * channels * sizeof(float), data(x), data(shift), data(bias), data(weight),
                   data(beta), data(statistics), data(dy), sums.mutable_data_ptr(),
                   geometry.sizes);
    kernels.launch(kernels.gradient_totals, blocks(3 * channels, THREADS), geometry.images,
                   THREADS, 0, data(sums), totals.mutable_data_ptr(), geometry.sizes);
    kernels.launch(kernels.gradient, geometry.splits(), geometry.images, geometry.threads,
                   2 * geometry.sizes.groups * sizeof(float), data(x), data(shift), data(bias),
                   data(weight), data(beta), data(statistics), data(dy), data(totals),
                   dx.mutable_data_ptr(), const_cast<void *>(data(offset_gradient)),
                   geometry.sizes);
    torch::autograd::variable_list results(8);
    results[0] = dx;
    if (shift.defined())
      results[1] = offset_gradient.to(shift.scalar_type()).view_as(shift);
    if (bias.defined())
      results[2] = offset_gradient.sum(0).to(bias.scalar_type());
    auto of_channels = totals.sum(0);
    results[3] = of_channels.select(0, 1).to(weight.scalar_type());
    results[4] = of_channels.select(0, 0).to(beta.scalar_type());
    return results;
  }
};

struct GatedGelu : torch::autograd::Function<GatedGelu> {
  static constexpr unsigned THREADS = 256;

  static int64_t packs(const at::Tensor &value, const at::Tensor &gate) {
    TORCH_CHECK(value.is_contiguous() && gate.is_contiguous() && value.sizes() == gate.sizes() &&
                    value.scalar_type() == gate.scalar_type() && value.numel() % PACK == 0,
                "expected two contiguous tensors of one shape");
    return value.numel() / PACK;
  }

  static at::Tensor compute(const at::Tensor &value, const at::Tensor &gate) {
    const auto &kernels = required(value);
    c10::DeviceGuard guard(value.device());
    auto count = packs(value, gate);
    auto result = at::empty_like(value);
    kernels.launch(kernels.gated_gelu, blocks(count, THREADS), 1, THREADS, 0, data(value),
                   data(gate), result.mutable_data_ptr(), static_cast<long long>(count));
    return result;
  }

  static at::Tensor forward(torch::autograd::AutogradContext *context, const at::Tensor &value,
                            const at::Tensor &gate) {
    context->save_for_backward({value, gate});
    return compute(value, gate);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext *context,
                                                 torch::autograd::variable_list gradients) {
    auto saved = context->get_saved_variables();
    const auto &value = saved.at(0), &gate = saved.at(1);
    const auto &kernels = required(value);
    c10::DeviceGuard guard(value.device());
    auto count = packs(value, gate);
    auto gradient = gradients.at(0).contiguous();
    auto of_value = at::empty_like(value), of_gate = at::empty_like(gate);
    kernels.launch(kernels.gated_gelu_gradient, blocks(count, THREADS), 1, THREADS, 0, data(value),
                   data(gate), data(gradient), of_value.mutable_data_ptr(),
                   of_gate.mutable_data_ptr(), static_cast<long long>(count));
    return {of_value, of_gate};
  }
};

struct AddBiased : torch::autograd::Function<AddBiased> {
  static at::Tensor compute(const at::Tensor &stream_BCHW, const at::Tensor &update_BCHW,
                            const at::Tensor &bias_C) {
    constexpr unsigned THREADS = 256;
    const auto &kernels = required(stream_BCHW);
    c10::DeviceGuard guard(stream_BCHW.device());
    auto channels = stream_BCHW.size(1);
    check_parameter(bias_C, stream_BCHW, channels);
    TORCH_CHECK(channels % PACK == 0 && stream_BCHW.sizes() == update_BCHW.sizes() &&
                    stream_BCHW.scalar_type() == update_BCHW.scalar_type() &&
                    update_BCHW.is_contiguous(at::MemoryFormat::ChannelsLast),
                "expected two images of one shape, channels last");
    auto result = at::empty_like(stream_BCHW, at::MemoryFormat::ChannelsLast);
    auto count = stream_BCHW.numel() / PACK;
    kernels.launch(kernels.add_biased, blocks(count, THREADS), 1, THREADS, 0, data(stream_BCHW),
                   data(update_BCHW), data(bias_C),
                   static_cast<int>(bias_C.scalar_type() == at::kFloat), result.mutable_data_ptr(),
                   static_cast<int>(channels), static_cast<long long>(count));
    return result;
  }

  static at::Tensor forward(torch::autograd::AutogradContext *context,
                            const at::Tensor &stream_BCHW, const at::Tensor &update_BCHW,
                            const at::Tensor &bias_C) {
    context->saved_data["bias_is_f32"] = bias_C.scalar_type() == at::kFloat;
    return compute(stream_BCHW, update_BCHW, bias_C);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext *context,
                                                 torch::autograd::variable_list gradients) {
    const auto &dy = gradients.at(0);
    auto type = context->saved_data["bias_is_f32"].toBool() ? at::kFloat : dy.scalar_type();
    return {dy, dy, dy.sum({0, 2, 3}, /*keepdim=*/false, type)};
  }
};

at::Tensor channels_last(const at::Tensor &tensor) {
  return tensor.contiguous(at::MemoryFormat::ChannelsLast);
}

} // namespace

bool can_gate(const at::Tensor &value) { return value.numel() % PACK == 0 && kernels_for(value); }

bool can_normalize(const at::Tensor &like, int64_t channels, int64_t groups) {
  return groups > 0 && groups <= MOST_GROUPS && channels > 0 && channels % groups == 0 &&
         channels % PACK == 0 && channels <= PACK * MOST_THREADS && kernels_for(like);
}

at::Tensor normalize(const at::Tensor &x_BCHW, const std::optional<at::Tensor> &shift_BC,
                     const std::optional<at::Tensor> &bias_C, const at::Tensor &weight_C,
                     const at::Tensor &beta_C, int64_t groups, double epsilon, bool silu) {
  auto x = channels_last(x_BCHW);
  TORCH_CHECK(x.numel() > 0, "expected an image, found none");
  auto shift = shift_BC.value_or(at::Tensor()), bias = bias_C.value_or(at::Tensor());
  if (records({x, shift, bias, weight_C, beta_C}))
    return Normalization::apply(x, shift_BC, bias_C, weight_C, beta_C, groups, epsilon, silu);
  return Normalization::compute(x, shift, bias, weight_C, beta_C, groups, epsilon, silu).y_BCHW;
}

at::Tensor gated_gelu(const at::Tensor &value, const at::Tensor &gate) {
  return records({value, gate}) ? GatedGelu::apply(value, gate) : GatedGelu::compute(value, gate);
}

at::Tensor add_biased(const at::Tensor &stream_BCHW, const at::Tensor &update_BCHW,
                      const at::Tensor &bias_C) {
  auto stream = channels_last(stream_BCHW), update = channels_last(update_BCHW);
  return records({stream, update, bias_C}) ? AddBiased::apply(stream, update, bias_C)
                                           : AddBiased::compute(stream, update, bias_C);
}
