// c10d of libtorch: the TCP store, and process groups on Gloo. The rules of shim.h hold.
//
// A handle belongs to the caller, who closes it once. Functions of a store may be called from any
// thread, one at a time; those of a group too.
#pragma once

#include "shim.h"

#ifdef __cplusplus
extern "C" {
#endif

// A client of the store at host:port, which this process serves if `serve` is set. Fails if no
// store answers within the limit.
void *nn_store_open(const char *host, uint16_t port, bool serve, int64_t limit_ms, char **error);
void nn_store_close(void *store);
bool nn_store_add(void *store, const char *key, int64_t amount, int64_t *sum, char **error);
bool nn_store_set(void *store, const char *key, const uint8_t *value, size_t size, char **error);
// Whether all keys are there.
bool nn_store_check(void *store, const char *const *keys, size_t count, bool *found, char **error);
// The value, which must be there; nn_free_text releases it.
uint8_t *nn_store_get(void *store, const char *key, size_t *size, char **error);

// A process group on Gloo, whose ranks find each other by keys with this prefix. `interface` is the
// name of a network interface, or empty; then `host` is an address of this machine to listen at, or
// empty for the address of its name.
void *nn_gloo_open(void *store, const char *prefix, int rank, int world, const char *interface,
                   const char *host, int64_t limit_ms, char **error);
void nn_gloo_close(void *group);

// Operations begin here and return a handle of the work. Tensors are on the CPU, dense, and must not
// be touched before the work is over. `into` of a gather holds those of all ranks one after another,
// and so does `from` of a reduce-scatter; both are contiguous.
void *nn_gloo_all_reduce(void *group, Tensor tensor, char **error);
void *nn_gloo_broadcast(void *group, Tensor tensor, int from, char **error);
void *nn_gloo_all_gather(void *group, Tensor into, Tensor from, char **error);
void *nn_gloo_reduce_scatter(void *group, Tensor into, Tensor from, char **error);

// Waits for the work, at most so long; *done says whether it is over. False if it failed.
bool nn_work_wait(void *work, int64_t limit_ms, bool *done, char **error);
void nn_work_close(void *work);

#ifdef __cplusplus
}
#endif
