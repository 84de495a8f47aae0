// What process groups on Gloo and on NCCL have in common.
#pragma once

#include <cstring>
#include <exception>
#include <string>

#include <ATen/ATen.h>
#include <c10/util/Exception.h>

#include "shim.h"

namespace {

// As `guarded` of shim.cpp, with the first line of the message: c10d appends a stack trace.
template <typename Body> auto guarded(char **error, Body body) -> decltype(body()) {
  std::string text;
  try {
    return body();
  } catch (const c10::Error &exception) {
    text = exception.what_without_backtrace();
  } catch (const std::exception &exception) {
    text = exception.what();
  } catch (...) {
    text = "an exception that is not a std::exception";
  }
  *error = strdup(text.substr(0, text.find('\n')).c_str());
  return {};
}

at::Tensor dense(Tensor handle) {
  const auto &tensor = *static_cast<at::Tensor *>(handle);
  TORCH_CHECK(tensor.is_non_overlapping_and_dense(), "a tensor has holes in memory");
  // Work writes into the memory of a leaf, which autograd need not see.
  return tensor.detach();
}

// Ranks agree on the number of values; only their order in memory matters.
at::Tensor flat(Tensor handle) { return dense(handle).view(-1); }

} // namespace
