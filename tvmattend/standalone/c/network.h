/* SPDX-License-Identifier: Apache-2.0 */
/* One compiled network behind a C interface: no interpreter, no runtime, nothing to install.
 *
 *     network_instance *net;
 *     if (network_create(0, &net) != NETWORK_OK) { puts(network_last_error()); ... }
 *     network_buffer in = {pixels, NETWORK_INPUT_0_BYTES}, out = {scores, NETWORK_OUTPUT_0_BYTES};
 *     if (network_run(net, &in, 1, &out, 1) != NETWORK_OK) ...
 *     network_destroy(net);
 *
 * Buffers start at multiples of NETWORK_ALIGNMENT bytes (aligned_alloc) and are used in place.
 * Weights are read-only data, shared by all instances and processes. Instances share nothing else:
 * any thread may use any instance, one at a time. network_run allocates nothing; kernels keep blocks
 * of registers on the stack, for which a thread that calls it should have 128 KB.
 */
#ifndef NETWORK_H_
#define NETWORK_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define NETWORK_API __attribute__((visibility("default")))
#else
#define NETWORK_API
#endif

/* Of this interface; a library and a header of different numbers do not fit. */
#define NETWORK_ABI 1

#define NETWORK_ALIGNMENT 64
#define NETWORK_MAX_RANK 8
#define NETWORK_MAX_THREADS 64

/* @constants@ */

enum network_status {
  NETWORK_OK = 0,
  NETWORK_NULL_POINTER = 1,    /* an argument, or the data of a buffer, is null */
  NETWORK_WRONG_COUNT = 2,     /* another number of buffers than the network has */
  NETWORK_WRONG_SIZE = 3,      /* a buffer of another size than the tensor's */
  NETWORK_MISALIGNED = 4,      /* a buffer that does not start at a multiple of 64 bytes */
  NETWORK_OVERLAP = 5,         /* an output that shares bytes with another buffer */
  NETWORK_WRONG_THREADS = 6,   /* more threads than NETWORK_MAX_THREADS */
  NETWORK_OUT_OF_MEMORY = 7,
  NETWORK_NO_THREAD = 8,       /* the system refused to start one */
  NETWORK_BUSY = 9,            /* another thread is inside network_run with this instance */
  NETWORK_FORKED = 10          /* created before a fork: its threads stayed in the parent */
};

typedef struct network_instance network_instance;

/* An input or an output, C-contiguous. */
typedef struct network_spec {
  const char *name;
  const char *dtype;  /* numpy's name: "float32" */
  const char *layout; /* "NCHW", or "" where unknown */
  size_t rank;
  int64_t shape[NETWORK_MAX_RANK];
  size_t bytes;
} network_spec;

typedef struct network_info {
  uint32_t abi;              /* NETWORK_ABI of the library */
  uint32_t threads;          /* that the kernels were scheduled for */
  uint32_t num_inputs;
  uint32_t num_outputs;
  uint32_t num_steps;        /* kernel calls in one inference */
  size_t weight_bytes;       /* read-only, shared */
  size_t arena_bytes;        /* of each instance */
  size_t thread_bytes;       /* of each of its threads, on top */
  const char *model;
  const char *version;       /* of the compiler, tvmattend */
  const char *target;        /* LLVM triple and core */
  const char *weights_sha256;
} network_info;

typedef struct network_buffer {
  void *data;
  size_t bytes;
} network_buffer;

NETWORK_API const network_info *network_get_info(void);

/* NULL if there is no such input or output. */
NETWORK_API const network_spec *network_input(size_t index);
NETWORK_API const network_spec *network_output(size_t index);

/* `threads`: how many compute, the caller of network_run among them; 0 for as many as the network
 * was compiled for, or as this process has CPUs, or NETWORK_MAX_THREADS, if those are fewer. */
NETWORK_API int network_create(unsigned threads, network_instance **instance);

/* Waits for the instance's threads. NULL is fine; an instance that is running is not. */
NETWORK_API void network_destroy(network_instance *instance);

NETWORK_API unsigned network_threads(const network_instance *instance);

/* Inputs are only read. Outputs are undefined unless the result is NETWORK_OK. */
NETWORK_API int network_run(network_instance *instance, const network_buffer *inputs,
                            size_t num_inputs, const network_buffer *outputs, size_t num_outputs);

/* As network_run, and notes the seconds from the start of each step to that of the next, which may
 * wait for the threads of the one before: `seconds` has room for `num_steps` numbers. */
NETWORK_API int network_profile(network_instance *instance, const network_buffer *inputs,
                                size_t num_inputs, const network_buffer *outputs,
                                size_t num_outputs, double *seconds, size_t num_seconds);

/* The kernel of a step; NULL if there is no such step. */
NETWORK_API const char *network_step_name(size_t step);

/* What went wrong in this thread's last call that failed; "" if none did. */
NETWORK_API const char *network_last_error(void);

#ifdef __cplusplus
}
#endif

#endif /* NETWORK_H_ */
