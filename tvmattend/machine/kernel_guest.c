/* SPDX-License-Identifier: Apache-2.0
 *
 * Runs inside the emulated board: one compiled TVM kernel, marked for the machine model.
 *
 *     kernel_guest LIBRARY ENTRY OUTPUT THREADS ARGUMENT...      ARGUMENT: code:bits:dim,dim,...
 *
 * Python and TVM's runtime take a second to start under QEMU; a kernel takes a hundredth. So this
 * is all of the runtime that a kernel needs: its arguments, memory, and parallel loops. Of those, the
 * first task is counted, which has the largest share; the others run before it, uncounted.
 *
 * The kernel runs once: arithmetic is what takes long under QEMU, and one run gives the counts and
 * the tensors both. The caches are warmed beforehand by reading the tensors, the last first: L2 then
 * holds the input whole, as after the kernel before it, and of the weights what still fits.
 *
 * Tensors of float32 and float64 are seeded noise in [-1, 1), those of 8 bits random bytes, all else
 * zeros; after the run all are written to OUTPUT ("-": no).
 */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The layouts of DLPack and of TVM's FFI, version 0.1. */
typedef struct {
    void *data;
    int32_t device_type, device_id;
    int32_t dimensions;
    uint8_t code, bits;
    uint16_t lanes;
    int64_t *shape, *strides;
    uint64_t offset;
} tensor;
typedef struct {
    int32_t type, padding;
    union {
        int64_t number;
        void *pointer;
    };
} value;
typedef struct {
    void *sync;
    int32_t tasks;
} group;
typedef int (*kernel)(void *self, const value *arguments, int32_t count, value *result);
typedef int (*task)(int id, group *tasks, void *data);
enum { TENSOR = 7, MOST = 32, MARKER = 0x0A720000 };

static int threads = 1;
static int counting = 0;

static void phase(int number)
{
    counting = number == 2;
    close(MARKER + number);
}

/* Of this name, so that the model counts it as the start of a parallel region. */
int TVMBackendParallelLaunch(task work, void *data, int tasks)
{
    group all = {NULL, threads};
    (void)tasks;
    int counted = counting, failed = 0;
    if (counted && threads > 1)
        phase(1);
    for (int id = threads - 1; id > 0; id--)
        failed |= work(id, &all, data);
    if (counted && threads > 1)
        phase(2);
    return failed | work(0, &all, data);
}

static void *allocate(int device, int id, uint64_t bytes, int code, int bits)
{
    (void)device, (void)id, (void)code, (void)bits;
    return aligned_alloc(64, (bytes + 63) / 64 * 64);
}

static int release(int device, int id, void *memory)
{
    (void)device, (void)id;
    free(memory);
    return 0;
}

void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count)
{
    fprintf(stderr, "%s: ", kind);
    for (int32_t i = 0; i < count; i++)
        fputs(parts[i], stderr);
    fputc('\n', stderr);
}

void TVMFFIErrorSetRaisedFromCStr(const char *kind, const char *text)
{
    TVMFFIErrorSetRaisedFromCStrParts(kind, &text, 1);
}

static void give(void *library, const char *name, void *function)
{
    void **place = dlsym(library, name);
    if (place)
        *place = function;
}

static size_t bytes_of(const tensor *x)
{
    size_t bytes = (size_t)x->bits / 8;
    for (int i = 0; i < x->dimensions; i++)
        bytes *= (size_t)x->shape[i];
    return bytes;
}

/* Noise without arithmetic on floats, which takes QEMU tens of nanoseconds: a sign, an exponent of
 * 2^-1 to 2^-4, and 23 bits of a fraction. */
static void fill(tensor *x, uint32_t seed)
{
    size_t count = bytes_of(x) / (x->bits / 8);
    for (size_t i = 0; i < count; i++) {
        seed = seed * 1664525u + 1013904223u;
        uint32_t exponent = 126 - (seed >> 21 & 3);
        uint32_t single = (seed & 0x80000000u) | exponent << 23 | (seed >> 8 & 0x7FFFFFu);
        if (x->code == 2 && x->bits == 32)
            memcpy((char *)x->data + 4 * i, &single, 4);
        else if (x->code == 2 && x->bits == 64)
            ((double *)x->data)[i] = (double)(int32_t)seed / 2147483648.0;
        else if (x->bits == 8)
            ((uint8_t *)x->data)[i] = (uint8_t)(seed >> 24);
        else
            memset((char *)x->data + i * (x->bits / 8), 0, x->bits / 8);
    }
}

static int parse(char *text, tensor *x)
{
    unsigned code, bits;
    int at = 0;
    if (sscanf(text, "%u:%u:%n", &code, &bits, &at) != 2 || !at || bits < 8)
        return -1;
    *x = (tensor){.device_type = 1, .code = (uint8_t)code, .bits = (uint8_t)bits, .lanes = 1};
    x->shape = calloc(16, sizeof *x->shape);
    for (char *word = strtok(text + at, ","); word && x->dimensions < 16; word = strtok(NULL, ","))
        x->shape[x->dimensions++] = strtoll(word, NULL, 10);
    x->data = aligned_alloc(64, (bytes_of(x) + 63) / 64 * 64 + 64);
    return x->data ? 0 : -1;
}

/* Reads a word of each line, from the end, so that what is used first was read last. */
static void warm(const tensor *x)
{
    const volatile uint8_t *bytes = x->data;
    for (size_t at = (bytes_of(x) + 63) / 64; at-- > 0;)
        (void)bytes[64 * at];
}

static int run(kernel function, const value *arguments, int count)
{
    value result = {0};
    int failed = function(NULL, arguments, count, &result);
    if (failed)
        fputs("the kernel refused its arguments\n", stderr);
    return failed;
}

static int write_all(const char *path, const tensor *tensors, int count)
{
    FILE *out = fopen(path, "wb");
    size_t failed = !out;
    for (int i = 0; !failed && i < count; i++)
        failed = fwrite(tensors[i].data, 1, bytes_of(&tensors[i]), out) != bytes_of(&tensors[i]);
    if (out && fclose(out))
        failed = 1;
    return failed ? 68 : 0;
}

int main(int argc, char **argv)
{
    static tensor tensors[MOST];
    static value arguments[MOST];
    if (argc < 6 || argc - 5 > MOST)
        return 64;
    threads = atoi(argv[4]);
    void *library = dlopen(argv[1], RTLD_NOW);
    kernel function = library ? (kernel)dlsym(library, argv[2]) : NULL;
    if (!function) {
        fprintf(stderr, "%s\n", dlerror());
        return 65;
    }
    give(library, "__TVMBackendParallelLaunch", (void *)TVMBackendParallelLaunch);
    give(library, "__TVMBackendAllocWorkspace", (void *)allocate);
    give(library, "__TVMBackendFreeWorkspace", (void *)release);
    int count = argc - 5;
    for (int i = 0; i < count; i++) {
        if (parse(argv[5 + i], &tensors[i]))
            return 66;
        fill(&tensors[i], (uint32_t)i + 1);
        arguments[i] = (value){.type = TENSOR, .pointer = &tensors[i]};
    }
    phase(1);
    for (int i = count - 1; i >= 0; i--)
        warm(&tensors[i]);
    phase(2);
    if (run(function, arguments, count))
        return 67;
    phase(3);
    return strcmp(argv[3], "-") ? write_all(argv[3], tensors, count) : 0;
}
