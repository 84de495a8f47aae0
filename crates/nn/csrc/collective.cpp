#include "collective.h"
#include "group.h"

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <string>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <c10/util/Logging.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

namespace {

using c10d::ProcessGroupGloo;
using std::chrono::milliseconds;
using Store = c10::intrusive_ptr<c10d::TCPStore>;
using Group = c10::intrusive_ptr<ProcessGroupGloo>;
using Work = c10::intrusive_ptr<c10d::Work>;

// The caller of nn_work_wait keeps the time. Gloo counts in int, so this is 20 days.
constexpr milliseconds NO_LIMIT{std::chrono::hours(24 * 20)};

c10d::TCPStore &store_of(void *handle) { return **static_cast<Store *>(handle); }

ProcessGroupGloo &group_of(void *handle) { return **static_cast<Group *>(handle); }

void *started(Work work) { return new Work(std::move(work)); }

} // namespace

extern "C" {

void *nn_store_open(const char *host, uint16_t port, bool serve, int64_t limit_ms, char **error) {
  // c10d would warn, with a stack trace, of each connection that another process closes. Our errors
  // say which rank has gone. The variable is PyTorch's own for its level.
  if (std::getenv("TORCH_CPP_LOG_LEVEL") == nullptr)
    FLAGS_caffe2_log_level = c10::GLOG_ERROR;
  return guarded(error, [&]() -> void * {
    // c10d logs a warning with a stack trace where a store is gone, beside the error that it
    // throws, which names it.
    if (!std::getenv("TORCH_CPP_LOG_LEVEL"))
      FLAGS_caffe2_log_level = 2; // errors
    c10d::TCPStoreOptions options;
    options.port = port;
    options.isServer = serve;
    options.waitWorkers = false;
    options.timeout = milliseconds(limit_ms);
    return new Store(c10::make_intrusive<c10d::TCPStore>(host, options));
  });
}

void nn_store_close(void *store) { delete static_cast<Store *>(store); }

bool nn_store_add(void *store, const char *key, int64_t amount, int64_t *sum, char **error) {
  return guarded(error, [&] {
    *sum = store_of(store).add(key, amount);
    return true;
  });
}

bool nn_store_set(void *store, const char *key, const uint8_t *value, size_t size, char **error) {
  return guarded(error, [&] {
    store_of(store).set(key, std::vector<uint8_t>(value, value + size));
    return true;
  });
}

bool nn_store_check(void *store, const char *const *keys, size_t count, bool *found, char **error) {
  return guarded(error, [&] {
    *found = store_of(store).check(std::vector<std::string>(keys, keys + count));
    return true;
  });
}

uint8_t *nn_store_get(void *store, const char *key, size_t *size, char **error) {
  return guarded(error, [&] {
    const auto value = store_of(store).get(key);
    auto *copy = static_cast<uint8_t *>(std::malloc(value.size() + 1));
    TORCH_CHECK(copy, "no memory");
    std::memcpy(copy, value.data(), value.size());
    copy[value.size()] = 0;
    *size = value.size();
    return copy;
  });
}

void *nn_gloo_open(void *store, const char *prefix, int rank, int world, const char *interface,
                   const char *host, int64_t limit_ms, char **error) {
  return guarded(error, [&]() -> void * {
    auto options = ProcessGroupGloo::Options::create(milliseconds(limit_ms));
    options->devices.push_back(*interface ? ProcessGroupGloo::createDeviceForInterface(interface)
                               : *host    ? ProcessGroupGloo::createDeviceForHostname(host)
                                          : ProcessGroupGloo::createDefaultDevice());
    options->threads = 2;
    auto keys = c10::make_intrusive<c10d::PrefixStore>(prefix, store_of(store).clone());
    return new Group(c10::make_intrusive<ProcessGroupGloo>(keys, rank, world, options));
  });
}

void nn_gloo_close(void *group) { delete static_cast<Group *>(group); }

void *nn_gloo_all_reduce(void *group, Tensor tensor, char **error) {
  return guarded(error, [&]() -> void * {
    std::vector<at::Tensor> tensors{dense(tensor)};
    c10d::AllreduceOptions options;
    options.timeout = NO_LIMIT;
    return started(group_of(group).allreduce(tensors, options));
  });
}

void *nn_gloo_broadcast(void *group, Tensor tensor, int from, char **error) {
  return guarded(error, [&]() -> void * {
    std::vector<at::Tensor> tensors{dense(tensor)};
    c10d::BroadcastOptions options;
    options.rootRank = from;
    options.timeout = NO_LIMIT;
    return started(group_of(group).broadcast(tensors, options));
  });
}

void *nn_gloo_all_gather(void *group, Tensor into, Tensor from, char **error) {
  return guarded(error, [&]() -> void * {
    auto target = flat(into), source = flat(from);
    c10d::AllgatherOptions options;
    options.timeout = NO_LIMIT;
    return started(group_of(group)._allgather_base(target, source, options));
  });
}

void *nn_gloo_reduce_scatter(void *group, Tensor into, Tensor from, char **error) {
  return guarded(error, [&]() -> void * {
    auto target = flat(into), source = flat(from);
    c10d::ReduceScatterOptions options;
    options.timeout = NO_LIMIT;
    return started(group_of(group)._reduce_scatter_base(target, source, options));
  });
}

bool nn_work_wait(void *handle, int64_t limit_ms, bool *done, char **error) {
  return guarded(error, [&] {
    auto &work = **static_cast<Work *>(handle);
    *done = false;
    try {
      work.wait(milliseconds(limit_ms));
    } catch (...) {
      if (!work.isCompleted())
        return true;
      throw;
    }
    *done = true;
    return true;
  });
}

void nn_work_close(void *work) { delete static_cast<Work *>(work); }

} // extern "C"
