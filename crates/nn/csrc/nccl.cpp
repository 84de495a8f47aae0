// Collective operations on GPUs by NCCL (collective.h).
//
// The library is opened by name, as libtorch's own CUDA part does: a build needs no CUDA headers.
// Names and numbers are those of nccl.h 2.28, which have not changed since NCCL 2.10.
#include "collective.h"
#include "group.h"

#include <array>
#include <atomic>
#include <cstring>
#include <exception>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Exception.h>
#include <dlfcn.h>

namespace {

using Handle = void *;
using c10::impl::VirtualGuardImpl;
// ncclUniqueId, which travels by value.
struct UniqueId {
  std::array<char, 128> bytes;
};
constexpr int SUM = 0, SUCCESS = 0, IN_PROGRESS = 7;

// The library: the one that libtorch has loaded, or the one beside it in a Python environment.
Handle open_library() {
  const char *name = "libnccl.so.2";
  if (auto library = dlopen(name, RTLD_LAZY | RTLD_LOCAL))
    return library;
  const std::string reason = dlerror();
  Dl_info info;
  if (dladdr(reinterpret_cast<void *>(&at::globalContext), &info) && info.dli_fname) {
    const std::string torch = info.dli_fname;
    const auto path = torch.substr(0, torch.rfind('/')) + "/../../nvidia/nccl/lib/" + name;
    if (auto library = dlopen(path.c_str(), RTLD_LAZY | RTLD_LOCAL))
      return library;
  }
  TORCH_CHECK(false, reason,
              " (several processes on GPUs need NCCL, which pip installs with torch for CUDA; "
              "elsewhere set LD_LIBRARY_PATH to its folder)");
}

struct Library {
  Handle library = open_library();
  template <typename Function> Function find(const char *name) const {
    auto found = dlsym(library, name);
    TORCH_CHECK(found, "libnccl.so.2 has no ", name);
    return reinterpret_cast<Function>(found);
  }
  int (*unique_id)(UniqueId *) = find<decltype(unique_id)>("ncclGetUniqueId");
  int (*init)(Handle *, int, UniqueId, int) = find<decltype(init)>("ncclCommInitRank");
  int (*all_reduce)(const void *, void *, size_t, int, int, Handle, Handle) =
      find<decltype(all_reduce)>("ncclAllReduce");
  int (*broadcast)(const void *, void *, size_t, int, int, Handle, Handle) =
      find<decltype(broadcast)>("ncclBroadcast");
  int (*reduce_scatter)(const void *, void *, size_t, int, int, Handle, Handle) =
      find<decltype(reduce_scatter)>("ncclReduceScatter");
  int (*all_gather)(const void *, void *, size_t, int, Handle, Handle) =
      find<decltype(all_gather)>("ncclAllGather");
  int (*async_error)(Handle, int *) = find<decltype(async_error)>("ncclCommGetAsyncError");
  int (*abort)(Handle) = find<decltype(abort)>("ncclCommAbort");
  const char *(*text)(int) = find<decltype(text)>("ncclGetErrorString");
  const char *(*last)(Handle) = find<decltype(last)>("ncclGetLastError");

  static const Library &instance() {
    static const Library library;
    return library;
  }

  void check(int code, const char *what, Handle communicator) const {
    if (code == SUCCESS || code == IN_PROGRESS)
      return;
    const char *more = last(communicator);
    TORCH_CHECK(false, what, " failed: ", text(code), more && *more ? ": " : "", more ? more : "");
  }
};

struct Communicator {
  Handle handle = nullptr;
  c10::Device device;
  // Operations run on a stream of their own, beside the backward pass.
  c10::Stream stream;
  std::atomic<bool> is_aborted{false};
};

struct Operation {
  c10::Event over{c10::DeviceType::CUDA};
  c10::Device device;
  // Kept until the operation is over.
  std::vector<at::Tensor> tensors;
};

int type_of(const at::Tensor &tensor) {
  switch (tensor.scalar_type()) {
  case at::kChar:
    return 0;
  case at::kByte:
  case at::kBool:
    return 1;
  case at::kInt:
    return 2;
  case at::kLong:
    return 4;
  case at::kHalf:
    return 6;
  case at::kFloat:
    return 7;
  case at::kDouble:
    return 8;
  case at::kBFloat16:
    return 9;
  default:
    TORCH_CHECK(false, "NCCL has no ", tensor.scalar_type());
  }
}

// Enqueues `call(stream)` behind all that the current stream holds.
template <typename Call>
void *enqueue(void *handle, const char *name, std::vector<at::Tensor> tensors, Call call) {
  auto &communicator = *static_cast<Communicator *>(handle);
  TORCH_CHECK(!communicator.is_aborted, name, " after the communicator was aborted");
  for (const auto &tensor : tensors)
    TORCH_CHECK(tensor.device() == communicator.device, "a tensor is on ", tensor.device(),
                ", not on ", communicator.device);
  c10::DeviceGuard guard(communicator.device);
  VirtualGuardImpl streams(c10::DeviceType::CUDA);
  c10::Event ready{c10::DeviceType::CUDA};
  ready.record(streams.getStream(communicator.device));
  ready.block(communicator.stream);
  auto native = streams.getStreamNativeHandle(communicator.stream);
  Library::instance().check(call(communicator.handle, native), name, communicator.handle);
  auto operation = std::make_unique<Operation>(
      Operation{c10::Event{c10::DeviceType::CUDA}, communicator.device, std::move(tensors)});
  operation->over.record(communicator.stream);
  return operation.release();
}

} // namespace

extern "C" {

bool nn_nccl_unique_id(uint8_t *id, char **error) {
  return guarded(error, [&] {
    UniqueId unique;
    const auto &nccl = Library::instance();
    nccl.check(nccl.unique_id(&unique), "ncclGetUniqueId", nullptr);
    std::memcpy(id, unique.bytes.data(), unique.bytes.size());
    return true;
  });
}

void *nn_nccl_open(int device, int rank, int world, const uint8_t *id, char **error) {
  return guarded(error, [&]() -> void * {
    const auto &nccl = Library::instance();
    c10::Device place(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(device));
    // Makes the context of the GPU, which NCCL expects.
    at::zeros({1}, at::TensorOptions(place));
    c10::DeviceGuard guard(place);
    UniqueId unique;
    std::memcpy(unique.bytes.data(), id, unique.bytes.size());
    auto stream =
        VirtualGuardImpl(c10::DeviceType::CUDA).getStreamFromGlobalPool(place, /*high*/ true);
    std::unique_ptr<Communicator> communicator(new Communicator{nullptr, place, stream});
    nccl.check(nccl.init(&communicator->handle, world, unique, rank), "ncclCommInitRank", nullptr);
    return communicator.release();
  });
}

bool nn_nccl_check(void *handle, char **error) {
  return guarded(error, [&] {
    auto &communicator = *static_cast<Communicator *>(handle);
    if (communicator.is_aborted)
      return true;
    const auto &nccl = Library::instance();
    int code = SUCCESS;
    nccl.check(nccl.async_error(communicator.handle, &code), "ncclCommGetAsyncError", nullptr);
    nccl.check(code, "NCCL", communicator.handle);
    return true;
  });
}

void nn_nccl_abort(void *handle) {
  auto &communicator = *static_cast<Communicator *>(handle);
  if (!communicator.is_aborted.exchange(true)) {
    char *error = nullptr;
    guarded(&error, [&] {
      c10::DeviceGuard guard(communicator.device);
      return Library::instance().abort(communicator.handle);
    });
    free(error);
  }
}

void nn_nccl_close(void *handle) {
  nn_nccl_abort(handle);
  delete static_cast<Communicator *>(handle);
}

void *nn_nccl_all_reduce(void *handle, Tensor tensor, char **error) {
  return guarded(error, [&]() -> void * {
    auto data = dense(tensor);
    return enqueue(handle, "ncclAllReduce", {data}, [&](Handle communicator, Handle stream) {
      auto memory = data.data_ptr();
      return Library::instance().all_reduce(memory, memory, data.numel(), type_of(data), SUM,
                                            communicator, stream);
    });
  });
}

void *nn_nccl_broadcast(void *handle, Tensor tensor, int from, char **error) {
  return guarded(error, [&]() -> void * {
    auto data = dense(tensor);
    return enqueue(handle, "ncclBroadcast", {data}, [&](Handle communicator, Handle stream) {
      auto memory = data.data_ptr();
      return Library::instance().broadcast(memory, memory, data.numel(), type_of(data), from,
                                           communicator, stream);
    });
  });
}

void *nn_nccl_all_gather(void *handle, Tensor into, Tensor from, char **error) {
  return guarded(error, [&]() -> void * {
    auto target = flat(into), source = flat(from);
    return enqueue(handle, "ncclAllGather", {target, source},
                   [&](Handle communicator, Handle stream) {
                     return Library::instance().all_gather(source.data_ptr(), target.data_ptr(),
                                                           source.numel(), type_of(source),
                                                           communicator, stream);
                   });
  });
}

void *nn_nccl_reduce_scatter(void *handle, Tensor into, Tensor from, char **error) {
  return guarded(error, [&]() -> void * {
    auto target = flat(into), source = flat(from);
    return enqueue(handle, "ncclReduceScatter", {target, source},
                   [&](Handle communicator, Handle stream) {
                     return Library::instance().reduce_scatter(
                         source.data_ptr(), target.data_ptr(), target.numel(), type_of(target),
                         SUM, communicator, stream);
                   });
  });
}

bool nn_nccl_work_wait(void *handle, char **error) {
  return guarded(error, [&] {
    auto &operation = *static_cast<Operation *>(handle);
    c10::DeviceGuard guard(operation.device);
    operation.over.block(VirtualGuardImpl(c10::DeviceType::CUDA).getStream(operation.device));
    return true;
  });
}

bool nn_nccl_work_query(void *handle, bool *over, char **error) {
  return guarded(error, [&] {
    auto &operation = *static_cast<Operation *>(handle);
    c10::DeviceGuard guard(operation.device);
    *over = operation.over.query();
    return true;
  });
}

void nn_nccl_work_close(void *handle) { delete static_cast<Operation *>(handle); }

} // extern "C"
