/* SPDX-License-Identifier: Apache-2.0
 *
 * Runs inside the emulated board: one inference of a standalone library, marked for the machine
 * model.
 *
 *     bundle_guest LIBRARY PREFIX INPUTS THREADS CACHES     CACHES: 1 if they are modelled, 0 if not
 *
 * INPUTS holds the tensors one after the other. Python and numpy take longer to start under QEMU than
 * a network takes, so this calls the C interface that the bundle's header declares: the structures
 * are those of `PREFIX.h`, and ABI is the number that they have there.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct {
    const char *name, *dtype, *layout;
    size_t rank;
    int64_t shape[8];
    size_t bytes;
} spec;
typedef struct {
    uint32_t abi, threads, inputs, outputs; /* and more, which nobody asks for here */
} info;
typedef struct {
    void *data;
    size_t bytes;
} buffer;
enum { ABI = 1, ALIGNMENT = 64, MOST = 64, MARKER = 0x0A720000 };

/* The library asks on how many CPUs its threads may spin while they wait. Here on none, however many
 * this machine has: what a thread does until another is done would look like work. */
int sched_getaffinity(pid_t process, size_t bytes, cpu_set_t *cpus)
{
    (void)process;
    memset(cpus, 0, bytes);
    CPU_SET(0, cpus);
    return 0;
}

static void *library;
static const char *prefix;

static void *function(const char *name)
{
    char symbol[256];
    snprintf(symbol, sizeof symbol, "%s_%s", prefix, name);
    void *found = dlsym(library, symbol);
    if (!found) {
        fprintf(stderr, "%s\n", dlerror());
        exit(65);
    }
    return found;
}

static int refused(const char *what)
{
    const char *(*reason)(void) = (const char *(*)(void))function("last_error");
    fprintf(stderr, "%s: %s\n", what, reason());
    return 67;
}

/* A buffer for each tensor, filled from the file if there is one. */
static int allocate(buffer *buffers, size_t count, const char *describe, FILE *from)
{
    const spec *(*describes)(size_t) = (const spec *(*)(size_t))function(describe);
    for (size_t i = 0; i < count; i++) {
        size_t bytes = describes(i)->bytes;
        void *data = aligned_alloc(ALIGNMENT, (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
        buffers[i] = (buffer){data, bytes};
        if (!data || (from && fread(data, 1, bytes, from) != bytes)) {
            fprintf(stderr, "%s %zu: no memory, or no data for it\n", describe, i);
            return -1;
        }
    }
    return 0;
}

int main(int argc, char **argv)
{
    static buffer inputs[MOST], outputs[MOST];
    if (argc != 6)
        return 64;
    prefix = argv[2];
    library = dlopen(argv[1], RTLD_NOW);
    if (!library) {
        fprintf(stderr, "%s\n", dlerror());
        return 65;
    }
    const info *about = ((const info *(*)(void))function("get_info"))();
    if (about->abi != ABI || about->inputs > MOST || about->outputs > MOST) {
        fprintf(stderr, "the library has ABI %u, expected %d\n", about->abi, ABI);
        return 65;
    }
    FILE *file = fopen(argv[3], "rb");
    if (!file || allocate(inputs, about->inputs, "input", file) ||
        allocate(outputs, about->outputs, "output", NULL))
        return 66;
    fclose(file);
    int (*create)(unsigned, void **) = (int (*)(unsigned, void **))function("create");
    int (*run)(void *, const buffer *, size_t, const buffer *, size_t) =
        (int (*)(void *, const buffer *, size_t, const buffer *, size_t))function("run");
    void *instance;
    if (create((unsigned)atoi(argv[4]), &instance))
        return refused("create");
    if (atoi(argv[5])) { /* an inference to warm the caches; arithmetic is what takes long here */
        close(MARKER + 1);
        if (run(instance, inputs, about->inputs, outputs, about->outputs))
            return refused("run");
    }
    close(MARKER + 2);
    int failed = run(instance, inputs, about->inputs, outputs, about->outputs);
    close(MARKER + 3);
    return failed ? refused("run") : 0;
}
