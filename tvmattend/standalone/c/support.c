/* SPDX-License-Identifier: Apache-2.0 */
/* What a compiled network needs around its kernels: threads, memory, checks, and error texts.
 *
 * Included by the generated file, which has defined before
 *     INPUTS, OUTPUTS         tables of network_spec
 *     STEPS                   table of struct step; STEP_NAMES beside it
 *     INFO                    the network_info
 * and defines behind it
 *     run_step()              calls the kernel of one step for iterations first..last-1
 *
 * All threads walk the same list of steps and take a fixed part of each: thread t of T gets the
 * t-th of T contiguous shares, so that with four threads each has one column of the network. They
 * meet at a barrier only where a step needs what another thread wrote. A thread that waits spins
 * for as long as a kernel lasts, leaving its core to others now and then, and then sleeps (futex).
 */

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

_Static_assert(sizeof(atomic_uint) == 4, "a futex is a 32-bit word");
_Static_assert(NETWORK_OK == 0, "no header included since the interface's redefines its names");

enum {
  LINE_BYTES = 128,         /* two cache lines: the prefetcher fetches them in pairs */
  STACK_BYTES = 512 * 1024, /* register blocks live there; musl's own default is 128 KB */
#if defined(__x86_64__)
  BREATH = 8, /* of `pause`, about 40 ns each on current cores */
#else
  BREATH = 64, /* of `yield`, a hint and a load of some ns each */
#endif
  SPINS_IN_RUN = 512 * BREATH, /* some 0.2 ms, longer than kernels differ: waking costs more */
  SPINS_IDLE = 64 * BREATH     /* the next inference follows at once, or not for long */
};

struct worker {
  pthread_t thread;
  struct network_instance *net;
  unsigned index;
};

struct network_instance {
  /* Written by the thread that calls run, before it wakes the others. */
  unsigned char *inputs[NETWORK_NUM_INPUTS];
  unsigned char *outputs[NETWORK_NUM_OUTPUTS];
  double *seconds;
  int stop;
  /* Fixed at creation. */
  unsigned threads;
  int spin;
  int process; /* that created it */
  unsigned char *arena;
  unsigned char *scratch;
  struct worker *workers;
  /* Each on its own lines: what spinners read and what others write. */
  _Alignas(LINE_BYTES) atomic_int running; /* by which process; 0 by none */
  _Alignas(LINE_BYTES) atomic_uint generation; /* counts the runs */
  atomic_uint idle;                            /* workers asleep until it changes */
  _Alignas(LINE_BYTES) atomic_uint phase;      /* counts the barriers */
  atomic_uint waiting;                         /* threads asleep until it changes */
  _Alignas(LINE_BYTES) atomic_uint arrived;
};

static void run_step(unsigned number, const network_instance *net, unsigned char *own,
                     int32_t first, int32_t last);

/* Per thread: two threads may fail at the same time. */
static _Thread_local char message[192];

__attribute__((format(printf, 2, 3))) static int fail(int status, const char *format, ...) {
  va_list values;
  va_start(values, format);
  vsnprintf(message, sizeof message, format, values);
  va_end(values);
  return status;
}

/* --- Waiting ---------------------------------------------------------------------------------- */

static void futex(atomic_uint *word, int operation, unsigned value) {
  /* A wait that returns early (EINTR, EAGAIN) is looked at again by its loop; a wake cannot fail. */
  (void)syscall(SYS_futex, (unsigned *)word, operation, value, NULL, NULL, 0);
}

static void relax(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ __volatile__("yield");
#endif
}

/* Wait until `word` is no longer `old`. */
static void await(atomic_uint *word, unsigned old, atomic_uint *sleepers, unsigned spins) {
  for (unsigned spin = 1; spin <= spins; ++spin) {
    if (atomic_load_explicit(word, memory_order_acquire) != old) return;
    relax();
    /* On a busy machine, who is waited for may be waiting for this very core. */
    if (spin % BREATH == 0) sched_yield();
  }
  /* Sequentially consistent, as in `change`: either the word is seen to have changed here, or the
   * sleeper is seen there. */
  atomic_fetch_add(sleepers, 1);
  while (atomic_load(word) == old) futex(word, FUTEX_WAIT_PRIVATE, old);
  atomic_fetch_sub(sleepers, 1);
}

static void change(atomic_uint *word, atomic_uint *sleepers) {
  atomic_fetch_add(word, 1);
  if (atomic_load(sleepers) != 0) futex(word, FUTEX_WAKE_PRIVATE, INT_MAX);
}

/* The model of the machine (machine/estimate.py) knows it by this name. */
static void tvmattend_barrier(network_instance *net) {
  const unsigned phase = atomic_load_explicit(&net->phase, memory_order_relaxed);
  if (atomic_fetch_add_explicit(&net->arrived, 1, memory_order_acq_rel) + 1 == net->threads) {
    atomic_store_explicit(&net->arrived, 0, memory_order_relaxed);
    change(&net->phase, &net->waiting);
  } else {
    await(&net->phase, phase, &net->waiting, net->spin ? SPINS_IN_RUN : 0);
  }
}

/* --- An inference ----------------------------------------------------------------------------- */

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* Step `next` begins: the one before took until now, waiting for its other threads included. */
static double lap(double *seconds, unsigned next, double begun) {
  const double time = now();
  if (next > 0) seconds[next - 1] = time - begun;
  return time;
}

/* One thread's share of all steps. */
static void execute(network_instance *net, unsigned thread) {
  unsigned char *const own = net->scratch + (size_t)thread * NETWORK_THREAD_BYTES;
  const int32_t threads = (int32_t)net->threads, me = (int32_t)thread;
  double *const seconds = thread == 0 ? net->seconds : NULL;
  double begun = 0.0;
  for (unsigned number = 0; number < NETWORK_NUM_STEPS; ++number) {
    const struct step *const step = &STEPS[number];
    if (step->sync && threads > 1) tvmattend_barrier(net);
    int32_t first = 0, last = me == 0;
    if (step->parts > 0) {
      const int32_t share = step->parts / threads, rest = step->parts % threads;
      first = me * share + (me < rest ? me : rest);
      last = first + share + (me < rest);
    }
    if (seconds) begun = lap(seconds, number, begun);
    if (first < last) run_step(number, net, own, first, last);
  }
  if (threads > 1) tvmattend_barrier(net);
  if (seconds) lap(seconds, NETWORK_NUM_STEPS, begun);
}

static void *work(void *argument) {
  struct worker *const self = argument;
  network_instance *const net = self->net;
  for (unsigned seen = 0;; ++seen) {
    await(&net->generation, seen, &net->idle, net->spin ? SPINS_IDLE : 0);
    if (net->stop) return NULL;
    execute(net, self->index);
  }
}

static int check_buffers(const char *kind, const network_buffer *buffers, size_t count,
                         const network_spec *specs, size_t wanted) {
  if (!buffers) return fail(NETWORK_NULL_POINTER, "the array of %ss is null", kind);
  if (count != wanted)
    return fail(NETWORK_WRONG_COUNT, "%zu %ss given, the network has %zu", count, kind, wanted);
  for (size_t i = 0; i < count; ++i) {
    if (!buffers[i].data) return fail(NETWORK_NULL_POINTER, "%s `%s` is null", kind, specs[i].name);
    if (buffers[i].bytes != specs[i].bytes)
      return fail(NETWORK_WRONG_SIZE, "%s `%s` has %zu bytes, not %zu", kind, specs[i].name,
                  buffers[i].bytes, specs[i].bytes);
    if ((uintptr_t)buffers[i].data % NETWORK_ALIGNMENT != 0)
      return fail(NETWORK_MISALIGNED, "%s `%s` does not start at a multiple of %d bytes", kind,
                  specs[i].name, NETWORK_ALIGNMENT);
  }
  return NETWORK_OK;
}

static int overlap(const network_buffer *one, const network_buffer *other) {
  const uintptr_t a = (uintptr_t)one->data, b = (uintptr_t)other->data;
  return a < b + other->bytes && b < a + one->bytes;
}

static int check_overlap(const network_buffer *inputs, const network_buffer *outputs) {
  for (size_t o = 0; o < NETWORK_NUM_OUTPUTS; ++o) {
    for (size_t i = 0; i < NETWORK_NUM_INPUTS; ++i)
      if (overlap(&outputs[o], &inputs[i]))
        return fail(NETWORK_OVERLAP, "output `%s` overlaps input `%s`", OUTPUTS[o].name,
                    INPUTS[i].name);
    for (size_t other = 0; other < o; ++other)
      if (overlap(&outputs[o], &outputs[other]))
        return fail(NETWORK_OVERLAP, "output `%s` overlaps output `%s`", OUTPUTS[o].name,
                    OUTPUTS[other].name);
  }
  return NETWORK_OK;
}

static int run(network_instance *net, const network_buffer *inputs, size_t num_inputs,
               const network_buffer *outputs, size_t num_outputs, double *seconds) {
  if (!net) return fail(NETWORK_NULL_POINTER, "the instance is null");
  int status = check_buffers("input", inputs, num_inputs, INPUTS, NETWORK_NUM_INPUTS);
  if (status == NETWORK_OK)
    status = check_buffers("output", outputs, num_outputs, OUTPUTS, NETWORK_NUM_OUTPUTS);
  if (status == NETWORK_OK) status = check_overlap(inputs, outputs);
  if (status != NETWORK_OK) return status;
  const int process = (int)getpid();
  if (net->threads > 1 && net->process != process)
    return fail(NETWORK_FORKED, "the instance was created before a fork; create one in the child");
  /* Another process that was running it is the parent, whose instance is another since the fork. */
  int runner = atomic_load_explicit(&net->running, memory_order_relaxed);
  if (runner == process ||
      !atomic_compare_exchange_strong_explicit(&net->running, &runner, process, memory_order_acquire,
                                               memory_order_relaxed))
    return fail(NETWORK_BUSY, "another thread is running this instance");

  for (size_t i = 0; i < NETWORK_NUM_INPUTS; ++i) net->inputs[i] = inputs[i].data;
  for (size_t i = 0; i < NETWORK_NUM_OUTPUTS; ++i) net->outputs[i] = outputs[i].data;
  net->seconds = seconds;
  if (net->threads > 1) change(&net->generation, &net->idle);
  execute(net, 0);
  atomic_store_explicit(&net->running, 0, memory_order_release);
  return NETWORK_OK;
}

/* --- Instances -------------------------------------------------------------------------------- */

static unsigned available_cpus(void) {
  cpu_set_t cpus;
  if (sched_getaffinity(0, sizeof cpus, &cpus) == 0) return (unsigned)CPU_COUNT(&cpus);
  const long online = sysconf(_SC_NPROCESSORS_ONLN); /* more CPUs than a cpu_set_t has bits */
  return online > 0 ? (unsigned)online : 1;
}

static size_t up(size_t size) { return (size + LINE_BYTES - 1) / LINE_BYTES * LINE_BYTES; }

/* Start worker `index`; the error number, or 0. */
static int start(network_instance *net, unsigned index) {
  struct worker *const worker = &net->workers[index - 1];
  worker->net = net;
  worker->index = index;
  pthread_attr_t attributes;
  int error = pthread_attr_init(&attributes);
  if (error) return error;
  error = pthread_attr_setstacksize(&attributes, STACK_BYTES);
  if (!error) {
    /* The application's signals are for the application's threads. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    error = pthread_create(&worker->thread, &attributes, work, worker);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
  }
  pthread_attr_destroy(&attributes);
  return error;
}

static void stop(network_instance *net, unsigned started) {
  net->stop = 1;
  change(&net->generation, &net->idle);
  for (unsigned i = 0; i < started; ++i) pthread_join(net->workers[i].thread, NULL);
}

int network_create(unsigned threads, network_instance **instance) {
  if (!instance) return fail(NETWORK_NULL_POINTER, "the place for the instance is null");
  *instance = NULL;
  const unsigned cpus = available_cpus();
  if (threads == 0) {
    threads = INFO.threads < cpus ? INFO.threads : cpus;
    if (threads > NETWORK_MAX_THREADS) threads = NETWORK_MAX_THREADS;
  }
  if (threads > NETWORK_MAX_THREADS)
    return fail(NETWORK_WRONG_THREADS, "%u threads asked for, %d are possible", threads,
                NETWORK_MAX_THREADS);

  /* One block: the instance, its workers, the arena, each thread's scratch. */
  const size_t head = up(sizeof(network_instance));
  const size_t team = up((threads - 1) * sizeof(struct worker));
  const size_t shared = up(NETWORK_ARENA_BYTES);
  const size_t size = up(head + team + shared + (size_t)threads * NETWORK_THREAD_BYTES);
  unsigned char *const block = aligned_alloc(LINE_BYTES, size);
  if (!block) return fail(NETWORK_OUT_OF_MEMORY, "%zu bytes could not be allocated", size);
  network_instance *const net = (network_instance *)block;
  memset(net, 0, sizeof *net);
  net->threads = threads;
  /* Spinning helps only who has a CPU to spin on. */
  net->spin = threads <= cpus;
  net->process = (int)getpid();
  net->workers = (struct worker *)(block + head);
  net->arena = block + head + team;
  net->scratch = net->arena + shared;
  for (unsigned index = 1; index < threads; ++index) {
    const int error = start(net, index);
    if (error) {
      stop(net, index - 1);
      free(block);
      return fail(NETWORK_NO_THREAD, "thread %u of %u did not start: %s", index + 1, threads,
                  strerror(error));
    }
  }
  *instance = net;
  return NETWORK_OK;
}

void network_destroy(network_instance *instance) {
  if (!instance) return;
  /* After a fork there is nobody to wait for. */
  if (instance->process == (int)getpid()) stop(instance, instance->threads - 1);
  free(instance);
}

/* --- The rest of the interface ---------------------------------------------------------------- */

int network_run(network_instance *instance, const network_buffer *inputs, size_t num_inputs,
                const network_buffer *outputs, size_t num_outputs) {
  return run(instance, inputs, num_inputs, outputs, num_outputs, NULL);
}

int network_profile(network_instance *instance, const network_buffer *inputs, size_t num_inputs,
                    const network_buffer *outputs, size_t num_outputs, double *seconds,
                    size_t num_seconds) {
  if (!seconds) return fail(NETWORK_NULL_POINTER, "the place for the seconds is null");
  if (num_seconds != NETWORK_NUM_STEPS)
    return fail(NETWORK_WRONG_COUNT, "room for %zu steps, the network has %d", num_seconds,
                NETWORK_NUM_STEPS);
  return run(instance, inputs, num_inputs, outputs, num_outputs, seconds);
}

unsigned network_threads(const network_instance *instance) {
  return instance ? instance->threads : 0;
}

const network_info *network_get_info(void) { return &INFO; }

const network_spec *network_input(size_t index) {
  return index < NETWORK_NUM_INPUTS ? &INPUTS[index] : NULL;
}

const network_spec *network_output(size_t index) {
  return index < NETWORK_NUM_OUTPUTS ? &OUTPUTS[index] : NULL;
}

const char *network_step_name(size_t step) {
  return step < NETWORK_NUM_STEPS ? STEP_NAMES[step] : NULL;
}

const char *network_last_error(void) { return message; }
