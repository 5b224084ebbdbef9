/* SPDX-License-Identifier: Apache-2.0 */
/* The door for TVM's RPC server, by which `run`, `validate` and `profile --rpc` come in.
 *
 * One function in the calling convention of tvm-ffi, which is data layout only: nothing of TVM is
 * included, linked or needed, and nobody else calls it. It is in the shared library alone.
 */
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "network.h"

/* tvm/ffi/c_api.h: TVMFFIAny and its type indices. */
struct any {
  int32_t type;
  uint32_t zero;
  union {
    int64_t integer;
    void *pointer;
  } value;
};

enum { NONE = 0, INTEGER = 1, DLTENSOR = 7, TENSOR = 70, TENSOR_HEADER = 24 };

/* dlpack.h: DLTensor. */
struct dltensor {
  void *data;
  int32_t device, device_id;
  int32_t rank;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t *shape, *strides;
  uint64_t byte_offset;
};

enum { CPU = 1, MALFORMED = 100 };

static int buffer(const struct any *argument, network_buffer *result) {
  const unsigned char *at = argument->value.pointer;
  if (!at || (argument->type != DLTENSOR && argument->type != TENSOR)) return MALFORMED;
  const struct dltensor *const tensor =
      (const void *)(argument->type == TENSOR ? at + TENSOR_HEADER : at);
  if (tensor->device != CPU) return MALFORMED;
  size_t size = (size_t)tensor->bits * tensor->lanes / 8;
  for (int32_t axis = 0; axis < tensor->rank; ++axis) size *= (size_t)tensor->shape[axis];
  result->data = (unsigned char *)tensor->data + tensor->byte_offset;
  result->bytes = size;
  return NETWORK_OK;
}

/* The session's instance. A session is a process with one thread that calls. */
static network_instance *instance;
static unsigned threads_of_instance;
static atomic_flag taken = ATOMIC_FLAG_INIT;

enum { BUFFERS = NETWORK_NUM_INPUTS + NETWORK_NUM_OUTPUTS };

/* Run again, with the caches as an inference leaves them, and write a line for each step into
 * `report`: its name, and its nanoseconds. A NUL ends them. */
static int profile(const network_buffer *buffers, const network_buffer *report) {
  double seconds[NETWORK_NUM_STEPS];
  const int status =
      network_profile(instance, buffers, NETWORK_NUM_INPUTS, buffers + NETWORK_NUM_INPUTS,
                      NETWORK_NUM_OUTPUTS, seconds, NETWORK_NUM_STEPS);
  size_t used = 0;
  for (size_t step = 0; status == NETWORK_OK && step < NETWORK_NUM_STEPS; ++step) {
    const size_t room = report->bytes - used;
    const int size = snprintf((char *)report->data + used, room, "%s %lld\n",
                              network_step_name(step), (long long)(1e9 * seconds[step]));
    if (size < 0 || (size_t)size >= room) return MALFORMED;
    used += (size_t)size;
  }
  return status;
}

static int call(const struct any *arguments, int32_t count) {
  network_buffer buffers[BUFFERS + 1];
  if (count != 1 + BUFFERS && count != 1 + BUFFERS + 1) return NETWORK_WRONG_COUNT;
  if (arguments[0].type != INTEGER || arguments[0].value.integer < 1) return MALFORMED;
  for (int32_t i = 1; i < count; ++i) {
    const int status = buffer(&arguments[i], &buffers[i - 1]);
    if (status != NETWORK_OK) return status;
  }
  const unsigned threads = (unsigned)arguments[0].value.integer;
  if (!instance || threads != threads_of_instance) {
    network_destroy(instance);
    const int status = network_create(threads, &instance);
    if (status != NETWORK_OK) return status;
    threads_of_instance = threads;
  }
  const int status = network_run(instance, buffers, NETWORK_NUM_INPUTS,
                                 buffers + NETWORK_NUM_INPUTS, NETWORK_NUM_OUTPUTS);
  const int wanted = count > 1 + BUFFERS && status == NETWORK_OK;
  return wanted ? profile(buffers, &buffers[BUFFERS]) : status;
}

/* (threads, inputs..., outputs..., report of bytes or nothing) -> network_status */
NETWORK_API int __tvm_ffi_network_rpc(void *self, const struct any *arguments, int32_t count,
                                      struct any *result);

int __tvm_ffi_network_rpc(void *self, const struct any *arguments, int32_t count,
                          struct any *result) {
  (void)self;
  int status = NETWORK_BUSY;
  if (!atomic_flag_test_and_set(&taken)) {
    status = call(arguments, count);
    atomic_flag_clear(&taken);
  }
  result->type = INTEGER;
  result->zero = 0;
  result->value.integer = status;
  return 0;
}
