// Reuses the memory of large CPU tensors, as PyTorch's caching allocator does for GPUs.
//
// Each pass of a network asks for the same large blocks. malloc either maps new pages, which the
// system clears each time, or takes them from a heap, in which gradients that stay and activations
// that go leave holes. Here every large block is a separate mapping. A freed block is kept for the
// next request of about its size, as long as blocks in use and kept blocks together are little more
// than the peak in use; beyond that, the blocks that were freed first go back to the system. A
// block may serve a request of two thirds of its size, so the worst case is half of the peak in use
// on top.
#include "shim.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <fstream>
#include <iterator>
#include <list>
#include <map>
#include <mutex>
#include <new>
#include <string>
#include <unordered_map>

#include <sys/mman.h>

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>

namespace {

constexpr size_t PAGE = size_t{1} << 12;
constexpr size_t LARGE_PAGE = size_t{1} << 21;

// malloc serves requests below this.
constexpr size_t SMALLEST_BLOCK = size_t{1} << 20;

// The largest kept block that serves a request.
size_t largest_fit(size_t bytes) { return bytes + bytes / 2; }

// The limit for blocks in use and kept blocks together, if `most_used` is the peak in use.
size_t limit(size_t most_used) { return most_used + most_used / 16; }

uintptr_t round_up(uintptr_t number, size_t unit) { return (number + unit - 1) / unit * unit; }

// Maps a block, or returns null. Only large pages that the block fills are marked as such: any
// other would hold memory that nobody asked for.
void *map(size_t bytes) {
  void *block = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (block == MAP_FAILED)
    return nullptr;
#ifdef MADV_HUGEPAGE
  auto address = reinterpret_cast<uintptr_t>(block);
  auto first = round_up(address, LARGE_PAGE), end = (address + bytes) / LARGE_PAGE * LARGE_PAGE;
  if (first < end)
    madvise(reinterpret_cast<void *>(first), end - first, MADV_HUGEPAGE);
#endif
  return block;
}

// A hint for the case that mappings ran out, not memory: each block is up to three mappings,
// because its large pages have a rest on either side. Empty if there is room.
std::string limit_of_mappings(size_t blocks) {
  size_t allowed = 0;
  if (!(std::ifstream("/proc/sys/vm/max_map_count") >> allowed) || 3 * blocks < allowed)
    return "";
  return "; these are " + std::to_string(blocks) + " blocks, and the system allows a process " +
         std::to_string(allowed) + " mappings (hint: raise it with sysctl vm.max_map_count)";
}

class ReusingAllocator final : public c10::Allocator {
public:
  static ReusingAllocator &instance() {
    static auto *allocator = new ReusingAllocator; // never destroyed: tensors may outlive it
    return *allocator;
  }

  c10::DataPtr allocate(size_t bytes) override {
    if (bytes < SMALLEST_BLOCK)
      return c10::GetDefaultCPUAllocator()->allocate(bytes);
    void *block = take(round_up(bytes, PAGE));
    return {block, block, &release, c10::Device(c10::DeviceType::CPU)};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &release; }

  void copy_data(void *target, const void *source, size_t count) const override {
    default_copy_data(target, source, count);
  }

private:
  struct Used {
    size_t size, requested;
  };
  struct Kept {
    void *block;
    size_t size;
  };
  using ByAge = std::list<Kept>;

  void *take(size_t bytes) {
    std::lock_guard<std::mutex> guard(mutex);
    auto most = std::max(most_requested, requested_bytes + bytes);
    auto [block, size] = take_kept(bytes);
    if (!block) {
      size = bytes;
      while (used_bytes + kept_bytes + bytes > limit(most) && give_back_oldest())
        ;
      block = map(bytes);
      while (!block && give_back_oldest())
        block = map(bytes);
      TORCH_CHECK_WITH(OutOfMemoryError, block, "out of memory: a tensor of ", bytes,
                       " bytes was asked for beside ", used_bytes, " in use",
                       limit_of_mappings(in_use.size() + by_age.size()));
    }
    most_requested = most; // after the block exists: a request that fails must not raise the limit
    in_use.emplace(block, Used{size, bytes});
    used_bytes += size;
    requested_bytes += bytes;
    return block;
  }

  // The smallest kept block that fits, or null.
  Kept take_kept(size_t bytes) {
    auto found = by_size.lower_bound(bytes);
    if (found == by_size.end() || found->first > largest_fit(bytes))
      return {nullptr, 0};
    auto kept = *found->second;
    by_age.erase(found->second);
    by_size.erase(found);
    kept_bytes -= kept.size;
    return kept;
  }

  static void release(void *block) {
    if (!instance().keep(block))
      c10::GetDefaultCPUAllocator()->raw_deallocate(block);
  }

  // False if the block is not one of these.
  bool keep(void *block) {
    std::lock_guard<std::mutex> guard(mutex);
    auto found = in_use.find(block);
    if (found == in_use.end())
      return false;
    auto [size, requested] = found->second;
    in_use.erase(found);
    used_bytes -= size;
    requested_bytes -= requested;
    // Called by the destructor of a tensor: no exception may leave. If the block cannot be
    // recorded, it goes back to the system.
    try {
      by_age.push_back({block, size});
      try {
        by_size.emplace(size, std::prev(by_age.end()));
      } catch (...) {
        by_age.pop_back();
        throw;
      }
      kept_bytes += size;
    } catch (const std::bad_alloc &) {
      munmap(block, size);
    }
    return true;
  }

  // False if there is no kept block, or the system does not take it back: then it stays recorded.
  bool give_back_oldest() {
    if (by_age.empty())
      return false;
    auto oldest = by_age.begin();
    if (munmap(oldest->block, oldest->size) != 0)
      return false;
    auto [first, end] = by_size.equal_range(oldest->size);
    by_size.erase(std::find_if(first, end, [&](auto &entry) { return entry.second == oldest; }));
    kept_bytes -= oldest->size;
    by_age.erase(oldest);
    return true;
  }

  std::mutex mutex; // guards all members below
  std::unordered_map<void *, Used> in_use;
  ByAge by_age; // the kept blocks, oldest first
  std::multimap<size_t, ByAge::iterator> by_size;
  size_t used_bytes = 0, requested_bytes = 0, most_requested = 0, kept_bytes = 0;
};

} // namespace

extern "C" void nn_reuse_memory() { c10::SetCPUAllocator(&ReusingAllocator::instance(), 1); }
