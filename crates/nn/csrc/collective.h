// c10d of libtorch: the TCP store, and process groups on Gloo; and NCCL. The rules of shim.h hold.
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

// A communicator of NCCL on a GPU. Rank 0 makes the id of 128 bytes; all ranks open with it at once.
// Functions may be called from any thread, those that begin operations one at a time. nn_nccl_check
// fails if NCCL has found an error since. nn_nccl_abort ends operations that hang.
bool nn_nccl_unique_id(uint8_t *id, char **error);
void *nn_nccl_open(int device, int rank, int world, const uint8_t *id, char **error);
bool nn_nccl_check(void *group, char **error);
void nn_nccl_abort(void *group);
void nn_nccl_close(void *group);

// As those of Gloo, for tensors on the communicator's GPU. Each begins when all that the current
// stream holds is done. nn_nccl_work_wait lets the current stream wait, not the host, and
// nn_nccl_work_query asks whether the operation is over.
void *nn_nccl_all_reduce(void *group, Tensor tensor, char **error);
void *nn_nccl_broadcast(void *group, Tensor tensor, int from, char **error);
void *nn_nccl_all_gather(void *group, Tensor into, Tensor from, char **error);
void *nn_nccl_reduce_scatter(void *group, Tensor into, Tensor from, char **error);
bool nn_nccl_work_wait(void *work, char **error);
bool nn_nccl_work_query(void *work, bool *over, char **error);
void nn_nccl_work_close(void *work);

#ifdef __cplusplus
}
#endif
