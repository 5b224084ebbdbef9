/* SPDX-License-Identifier: Apache-2.0 */
/* A program on top of a network called `network`: what C users do, and what they should not do. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "network.h"

enum { IN = NETWORK_INPUT_0_BYTES, OUT = NETWORK_OUTPUT_0_BYTES, TEAM = 8, ROUNDS = 10 };

#define CHECK(condition)                                                            \
  do {                                                                              \
    if (!(condition)) {                                                             \
      fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #condition,            \
              network_last_error());                                                \
      exit(1);                                                                      \
    }                                                                               \
  } while (0)

/* --- Memory, counted: linked with --wrap, or not at all --------------------------------------- */

static int counting;
static long allocations;

void *__real_malloc(size_t size);
void *__real_aligned_alloc(size_t alignment, size_t size);
void *__real_calloc(size_t count, size_t size);

#ifdef COUNT_ALLOCATIONS
void *__wrap_malloc(size_t size) {
  allocations += counting;
  return __real_malloc(size);
}

void *__wrap_aligned_alloc(size_t alignment, size_t size) {
  allocations += counting;
  return __real_aligned_alloc(alignment, size);
}

void *__wrap_calloc(size_t count, size_t size) {
  allocations += counting;
  return __real_calloc(count, size);
}
#endif

static void *room(size_t size) {
  void *memory = aligned_alloc(NETWORK_ALIGNMENT, (size + 63) / 64 * 64 + 64);
  CHECK(memory);
  return memory;
}

static void *read_input(const char *path) {
  unsigned char *memory = room(IN);
  FILE *file = fopen(path, "rb");
  CHECK(file && fread(memory, 1, IN, file) == IN);
  fclose(file);
  return memory;
}

static int run(network_instance *net, void *in, void *out) {
  const network_buffer x = {in, IN}, y = {out, OUT};
  return network_run(net, &x, 1, &y, 1);
}

/* --- What users do ---------------------------------------------------------------------------- */

static void run_once(unsigned threads, const char *from, const char *to) {
  network_instance *net;
  CHECK(network_create(threads, &net) == NETWORK_OK);
  CHECK(network_threads(net) == threads);
  void *in = read_input(from), *out = room(OUT);
  for (int round = 0; round < ROUNDS; ++round) {
    memset(out, 0xff, OUT);
    CHECK(run(net, in, out) == NETWORK_OK);
  }
  FILE *file = fopen(to, "wb");
  CHECK(file && fwrite(out, 1, OUT, file) == OUT && fclose(file) == 0);
  network_destroy(net);
  free(in);
  free(out);
}

static void *input_of_all;
static void *expected;

static void *one_of_many(void *argument) {
  network_instance *net;
  CHECK(network_create(1 + (unsigned)(size_t)argument % 3, &net) == NETWORK_OK);
  void *out = room(OUT);
  for (int round = 0; round < ROUNDS; ++round) {
    memset(out, 0xff, OUT);
    CHECK(run(net, input_of_all, out) == NETWORK_OK);
    CHECK(memcmp(out, expected, OUT) == 0);
  }
  network_destroy(net);
  free(out);
  return NULL;
}

/* Eight instances, each on a thread of its own and with one to three of theirs. */
static void run_many(const char *from) {
  network_instance *net;
  CHECK(network_create(1, &net) == NETWORK_OK);
  input_of_all = read_input(from);
  expected = room(OUT);
  CHECK(run(net, input_of_all, expected) == NETWORK_OK);
  pthread_t team[TEAM];
  for (size_t i = 0; i < TEAM; ++i) CHECK(pthread_create(&team[i], NULL, one_of_many, (void *)i) == 0);
  for (size_t i = 0; i < TEAM; ++i) pthread_join(team[i], NULL);
  network_destroy(net);
  free(input_of_all);
  free(expected);
}

static void cycle(long times) {
  for (long i = 0; i < times; ++i) {
    network_instance *net;
    CHECK(network_create(1 + (unsigned)(i % 4), &net) == NETWORK_OK);
    network_destroy(net);
  }
}

/* Idle for longer than the threads spin, so that they sleep, and are woken by the next run. */
static void park(const char *from) {
  network_instance *net;
  CHECK(network_create(4, &net) == NETWORK_OK);
  void *in = read_input(from), *out = room(OUT);
  for (int round = 0; round < ROUNDS; ++round) {
    CHECK(run(net, in, out) == NETWORK_OK);
    usleep(20000);
  }
  network_destroy(net);
  free(in);
  free(out);
}

static void *on_a_small_stack(void *net) {
  void *in = room(IN), *out = room(OUT);
  memset(in, 0, IN);
  CHECK(run(net, in, out) == NETWORK_OK);
  free(in);
  free(out);
  return NULL;
}

/* The stack that the header asks for, and musl gives. */
static void small_stack(void) {
  network_instance *net;
  pthread_attr_t attributes;
  pthread_t thread;
  CHECK(network_create(2, &net) == NETWORK_OK);
  CHECK(pthread_attr_init(&attributes) == 0);
  CHECK(pthread_attr_setstacksize(&attributes, 128 * 1024) == 0);
  CHECK(pthread_create(&thread, &attributes, on_a_small_stack, net) == 0);
  CHECK(pthread_join(thread, NULL) == 0);
  pthread_attr_destroy(&attributes);
  network_destroy(net);
}

static void count_allocations(const char *from) {
  network_instance *net;
  CHECK(network_create(2, &net) == NETWORK_OK);
  void *in = read_input(from), *out = room(OUT);
  counting = 1;
  void *volatile probe = malloc(1); /* the counter works */
  CHECK(allocations == 1);
  for (int round = 0; round < ROUNDS; ++round) CHECK(run(net, in, out) == NETWORK_OK);
  counting = 0;
  CHECK(allocations == 1);
  free(probe);
  network_destroy(net);
  free(in);
  free(out);
}

/* --- What they should not do ------------------------------------------------------------------ */

static void misuse(const char *from) {
  network_instance *net;
  CHECK(network_create(1, NULL) == NETWORK_NULL_POINTER);
  CHECK(network_create(NETWORK_MAX_THREADS + 1, &net) == NETWORK_WRONG_THREADS && !net);
  CHECK(strstr(network_last_error(), "65 threads"));
  CHECK(network_create(2, &net) == NETWORK_OK);
  unsigned char *in = read_input(from), *out = room(OUT), *both = room(IN + OUT);
  network_buffer x = {in, IN}, y = {out, OUT};
  CHECK(network_run(NULL, &x, 1, &y, 1) == NETWORK_NULL_POINTER);
  CHECK(network_run(net, NULL, 1, &y, 1) == NETWORK_NULL_POINTER);
  CHECK(network_run(net, &x, 1, NULL, 1) == NETWORK_NULL_POINTER);
  CHECK(network_run(net, &x, 0, &y, 1) == NETWORK_WRONG_COUNT);
  CHECK(network_run(net, &x, 1, &y, 2) == NETWORK_WRONG_COUNT);
  x.data = NULL;
  CHECK(network_run(net, &x, 1, &y, 1) == NETWORK_NULL_POINTER);
  x.data = in + 4;
  CHECK(network_run(net, &x, 1, &y, 1) == NETWORK_MISALIGNED);
  CHECK(strstr(network_last_error(), network_input(0)->name));
  x.data = in;
  y.data = out + 16;
  CHECK(network_run(net, &x, 1, &y, 1) == NETWORK_MISALIGNED);
  y.data = out;
  y.bytes = OUT - 4;
  CHECK(network_run(net, &x, 1, &y, 1) == NETWORK_WRONG_SIZE);
  y.bytes = OUT;
  x.bytes = IN + 4;
  CHECK(network_run(net, &x, 1, &y, 1) == NETWORK_WRONG_SIZE);
  x.data = both;
  x.bytes = IN;
  y.data = both + (IN - 1) / 64 * 64; /* the last line of the input */
  CHECK(network_run(net, &x, 1, &y, 1) == NETWORK_OVERLAP);
  x.data = in;
  y.data = out;
  double seconds[NETWORK_NUM_STEPS];
  CHECK(network_profile(net, &x, 1, &y, 1, NULL, NETWORK_NUM_STEPS) == NETWORK_NULL_POINTER);
  CHECK(network_profile(net, &x, 1, &y, 1, seconds, 1) == NETWORK_WRONG_COUNT);
  CHECK(network_profile(net, &x, 1, &y, 1, seconds, NETWORK_NUM_STEPS) == NETWORK_OK);
  /* After all of that it still works. */
  CHECK(network_run(net, &x, 1, &y, 1) == NETWORK_OK);
  CHECK(!network_input(1) && !network_output(1) && !network_step_name(NETWORK_NUM_STEPS));
  CHECK(network_threads(NULL) == 0);
  network_destroy(net);
  network_destroy(NULL);
  free(in);
  free(out);
  free(both);
}

static void after_fork(const char *from) {
  network_instance *net, *own;
  CHECK(network_create(2, &net) == NETWORK_OK);
  void *in = read_input(from), *out = room(OUT);
  CHECK(run(net, in, out) == NETWORK_OK);
  const pid_t child = fork();
  if (child == 0) {
    CHECK(run(net, in, out) == NETWORK_FORKED);
    network_destroy(net);
    CHECK(network_create(2, &own) == NETWORK_OK);
    CHECK(run(own, in, out) == NETWORK_OK);
    network_destroy(own);
    _exit(0);
  }
  int status;
  CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0);
  CHECK(run(net, in, out) == NETWORK_OK);
  network_destroy(net);
  free(in);
  free(out);
}

static void *intrude(void *net) {
  void *in = room(IN), *out = room(OUT);
  memset(in, 0, IN);
  for (int done = 0; done < 20 * ROUNDS;) {
    const int status = run(net, in, out);
    CHECK(status == NETWORK_OK || status == NETWORK_BUSY);
    done += status == NETWORK_OK;
    if (status == NETWORK_BUSY) sched_yield();
  }
  free(in);
  free(out);
  return NULL;
}

/* Two threads, one instance: each call succeeds or is told that it is busy. */
static void busy(void) {
  network_instance *net;
  CHECK(network_create(1, &net) == NETWORK_OK);
  pthread_t thread;
  CHECK(pthread_create(&thread, NULL, intrude, net) == 0);
  intrude(net);
  pthread_join(thread, NULL);
  network_destroy(net);
}

/* Linked with a `sched_getaffinity` that tells of more CPUs than an instance can have threads. */
static void many_cpus(void) {
  network_instance *net;
  CHECK(network_get_info()->threads > NETWORK_MAX_THREADS);
  CHECK(network_create(0, &net) == NETWORK_OK);
  CHECK(network_threads(net) == NETWORK_MAX_THREADS);
  network_destroy(net);
}

int main(int count, char **words) {
  const char *const what = count > 1 ? words[1] : "";
  const char *const from = count > 2 ? words[2] : "";
  CHECK(network_get_info()->abi == NETWORK_ABI);
  if (!strcmp(what, "run") && count == 5) run_once((unsigned)atoi(words[4]), from, words[3]);
  else if (!strcmp(what, "many")) run_many(from);
  else if (!strcmp(what, "cycle")) cycle(atol(from));
  else if (!strcmp(what, "park")) park(from);
  else if (!strcmp(what, "allocations")) count_allocations(from);
  else if (!strcmp(what, "misuse")) misuse(from);
  else if (!strcmp(what, "fork")) after_fork(from);
  else if (!strcmp(what, "busy")) busy();
  else if (!strcmp(what, "stack")) small_stack();
  else if (!strcmp(what, "cpus")) many_cpus();
  else return 2;
  return 0;
}
