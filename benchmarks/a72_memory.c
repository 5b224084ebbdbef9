/* SPDX-License-Identifier: Apache-2.0
 *
 * Loops over memory for a72_micro.py: memory MODE KILOBYTES, marked for the machine model.
 * c copy, f fill, r read each line, s read every fifth line, p chase pointers in random order.
 */
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

enum { LINE = 64, MARKER = 0x0A720000 };

static void copy(char *to, const char *from, long bytes)
{
    for (const char *end = from + bytes; from < end;)
        __asm__ volatile("ldp q0, q1, [%0], #32\n ldp q2, q3, [%0], #32\n"
                         "stp q0, q1, [%1], #32\n stp q2, q3, [%1], #32"
                         : "+r"(from), "+r"(to) : : "v0", "v1", "v2", "v3", "memory");
}

static void fill(char *to, long bytes)
{
    for (char *end = to + bytes; to < end;)
        __asm__ volatile("stp q0, q0, [%0], #32\n stp q0, q0, [%0], #32" : "+r"(to) : : "memory");
}

static void read_lines(const char *from, long bytes, long step)
{
    for (long at = 0; at < bytes; at += step)
        __asm__ volatile("ldr w9, [%0]" : : "r"(from + at) : "w9");
}

static void chase(char *from, long lines)
{
    void **at = (void **)from;
    while (lines--)
        __asm__ volatile("ldr %0, [%0]" : "+r"(at));
}

/* Sattolo's shuffle: one cycle through all lines. */
static void link_lines(char *base, long lines)
{
    uint64_t seed = 1;
    uint32_t *order = malloc((size_t)lines * sizeof *order);
    for (long i = 0; i < lines; i++)
        order[i] = (uint32_t)i;
    for (long i = lines - 1; i > 0; i--) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        long other = (long)((seed >> 33) % (uint64_t)i);
        uint32_t kept = order[i];
        order[i] = order[other];
        order[other] = kept;
    }
    for (long i = 0; i < lines; i++)
        *(void **)(base + LINE * (long)order[i]) = base + LINE * (long)order[(i + 1) % lines];
    free(order);
}

int main(int argc, char **argv)
{
    if (argc != 3)
        return 64;
    long bytes = 1024 * atol(argv[2]);
    char mode = argv[1][0], *a = aligned_alloc(4096, (size_t)bytes);
    char *b = aligned_alloc(4096, (size_t)bytes);
    if (!a || !b)
        return 65;
    fill(a, bytes);
    fill(b, bytes);
    if (mode == 'p')
        link_lines(a, bytes / LINE);
    for (int pass = 1; pass <= 2; pass++) {
        close(MARKER + pass);
        if (mode == 'c')
            copy(b, a, bytes);
        else if (mode == 'f')
            fill(b, bytes);
        else if (mode == 'p')
            chase(a, 8 * (bytes / LINE));
        else
            read_lines(a, bytes, mode == 's' ? 5 * LINE : LINE);
    }
    close(MARKER + 3);
    return 0;
}
