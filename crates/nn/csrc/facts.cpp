// What nn::doctor asks of libtorch, the CUDA driver and NCCL, as lines of `key=value`.
//
// The driver and NCCL are opened by name: a build for the CPU has neither, and a machine without a
// driver has no libcuda. A fact that cannot be had has no line.
#include "shim.h"

#include <cstring>
#include <exception>
#include <sstream>
#include <string>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <dlfcn.h>
#include <torch/headeronly/version.h>

namespace {

// A function of a shared library that was opened by name, or null.
template <typename Function> Function *symbol(void *library, const char *name) {
  return library ? reinterpret_cast<Function *>(dlsym(library, name)) : nullptr;
}

// One line. A value may come from a driver: whatever ends a line in it becomes a space.
void line(std::ostringstream &out, const std::string &key, std::string value) {
  for (char &letter : value)
    if (letter == '\n' || letter == '\r')
      letter = ' ';
  out << key << '=' << value << '\n';
}

// A library stays open: libtorch may use the same one.
void *driver() {
  static void *library = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
  return library;
}

// The version that libtorch has at run time; the header's is that of the build.
std::string loaded_version() {
  const std::string config = at::show_config(), key = "TORCH_VERSION=";
  const auto start = config.find(key);
  if (start == std::string::npos)
    return TORCH_VERSION;
  const auto end = config.find_first_of(", \n", start);
  return config.substr(start + key.size(), end - start - key.size());
}

// The first sentence of what libtorch throws; the rest is a stack trace.
std::string first_line(const std::exception &exception) {
  const std::string text = exception.what();
  return text.substr(0, text.find('\n'));
}

// Name, compute capability and memory of one GPU, and whether it computes.
void gpu(std::ostringstream &out, int index) {
  const std::string key = "gpu." + std::to_string(index) + ".";
  int device = 0, major = 0, minor = 0;
  auto *get = symbol<int(int *, int)>(driver(), "cuDeviceGet");
  if (get && get(&device, index) == 0) {
    char name[256] = "";
    if (auto *ask = symbol<int(char *, int, int)>(driver(), "cuDeviceGetName"))
      if (ask(name, sizeof name - 1, device) == 0)
        line(out, key + "name", name);
    // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of cuda.h.
    if (auto *ask = symbol<int(int *, int, int)>(driver(), "cuDeviceGetAttribute"))
      if (ask(&major, 75, device) == 0 && ask(&minor, 76, device) == 0)
        line(out, key + "capability", std::to_string(major) + "." + std::to_string(minor));
  }
  try {
    // A driver that lists a GPU may still refuse it: another process may hold it alone, or libtorch
    // may have no code for it. Only a product tells.
    at::Device place(at::kCUDA, static_cast<c10::DeviceIndex>(index));
    auto ones = at::ones({16, 16}, at::TensorOptions(place).dtype(at::kFloat));
    TORCH_CHECK(ones.mm(ones).sum().item<float>() == 4096.0f, "a product of ones is wrong");
    auto [free, total] =
        at::getDeviceAllocator(at::kCUDA)->getMemoryInfo(static_cast<c10::DeviceIndex>(index));
    line(out, key + "free", std::to_string(free));
    line(out, key + "total", std::to_string(total));
  } catch (const std::exception &exception) {
    line(out, key + "error", first_line(exception));
  }
}

std::string facts(bool all) {
  std::ostringstream out;
  line(out, "built_for", TORCH_VERSION);
  const auto &hooks = at::detail::getCUDAHooks();
  if (hooks.hasCUDART())
    line(out, "cuda_runtime", std::to_string(hooks.versionCUDART()));
  if (!all)
    return out.str();
  // This already looks for GPUs.
  line(out, "version", loaded_version());
  Dl_info info;
  if (dladdr(reinterpret_cast<void *>(&at::show_config), &info) && info.dli_fname)
    line(out, "path", info.dli_fname);
  line(out, "cpu_capability", at::get_cpu_capability());
  line(out, "threads", std::to_string(at::get_num_threads()));
  int version = 0;
  if (auto *ask = symbol<int(int *)>(driver(), "cuDriverGetVersion"))
    if (ask(&version) == 0)
      line(out, "cuda_driver", std::to_string(version));
  if (hooks.hasCUDART()) {
    if (hooks.compiledWithCuDNN())
      line(out, "cudnn", std::to_string(hooks.versionRuntimeCuDNN()));
    const int count = hooks.getNumGPUs();
    for (int index = 0; index < count; ++index)
      gpu(out, index);
  }
  void *nccl = dlopen("libnccl.so.2", RTLD_LAZY | RTLD_LOCAL);
  if (auto *ask = symbol<int(int *)>(nccl, "ncclGetVersion"))
    if (ask(&version) == 0)
      line(out, "nccl", std::to_string(version));
  return out.str();
}

} // namespace

extern "C" char *nn_facts(bool all, char **error) {
  try {
    return strdup(facts(all).c_str());
  } catch (const std::exception &exception) {
    *error = strdup(exception.what());
  } catch (...) {
    *error = strdup("an exception that is not a std::exception");
  }
  return nullptr;
}
