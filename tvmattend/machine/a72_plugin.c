/* SPDX-License-Identifier: MIT
 *
 * A QEMU TCG plugin (API version 1) that counts executions of basic blocks and runs every data
 * access through the caches of a Cortex-A72 cluster.
 *
 * The caches are in a72_caches.h, QEMU's interface in qemu_plugin_api.h.
 *
 * Markers: a guest that calls close(0x0A720000 + n) says n = 1 "warm the caches", n = 2 "count",
 * n = 3 "stop counting". The call fails with EBADF, which is harmless. A guest that says nothing is
 * counted from its first instruction to its last.
 *
 * Samples: stretches of `window` blocks in a row, from random places on, with the fate of each access
 * that missed. The pipeline model replays them. At first nearly all of a thread's blocks are kept; when
 * there are `most` windows, one of each two neighbours goes (by lot), and from then on they are taken
 * half as often. So a short program is sampled densely, a long one takes no more room, and every
 * block has the same chance.
 *
 * Arguments: out=FILE, cache=on|off, frames=hashed|identity, markers=on|off (off: count all),
 * window=BLOCKS, most=WINDOWS (of a thread).
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "a72_caches.h"
#include "qemu_plugin_api.h"

EXPORT int qemu_plugin_version = 1;

/* ---- what is recorded ------------------------------------------------------------------------ */

struct site {
    uint32_t index; /* of the instruction in its block */
    uint64_t count[THREADS][EVENTS];
};

struct block {
    uint64_t address;
    uint32_t id;
    uint32_t instructions;
    uint32_t bytes;
    uint8_t *code;
    struct block *next;       /* in its hash chain */
    struct site **sites;      /* one per instruction, NULL when it never accesses memory */
    uint64_t count[THREADS];
};

static struct block *table[1 << 16];
static volatile int table_lock;
static volatile bool active = true;  /* counting */
static volatile bool warm = true;    /* cache model runs */
static bool model_caches = true, markers = true;
static char out_path[4096];
static uint64_t guest_base;
static uint64_t futexes[THREADS], switches;
static pid_t owner;
static uint32_t blocks; /* translated so far */

static unsigned record_of(unsigned vcpu) { return vcpu < THREADS ? vcpu : THREADS - 1; }

/* ---- samples --------------------------------------------------------------------------------- */
#define BLOCK_WORD 0x80000000u

struct window {
    uint32_t *words;
    size_t used, size;
};

static struct sample {
    struct window *windows; /* `most` of them; those before `kept` are complete */
    uint64_t kept, period, at, start, random;
    bool open;
    char pad[64];
} samples[THREADS];
static uint64_t window = 512, most = 4096;

static void push(struct sample *sample, uint32_t word)
{
    struct window *last = &sample->windows[sample->kept];
    if (last->used == last->size) {
        last->size = last->size ? 2 * last->size : window + window / 4 + 16;
        last->words = realloc(last->words, last->size * sizeof *last->words);
        if (!last->words)
            _exit(70);
    }
    last->words[last->used++] = word;
}

static uint64_t draw(struct sample *sample)
{
    sample->random = sample->random * 6364136223846793005ull + 1442695040888963407ull;
    return sample->random >> 33;
}

/* Of each two neighbours one stays; what stays is spread as evenly as it was. */
static void thin(struct sample *sample)
{
    for (uint64_t i = 0; i < most / 2; i++) {
        uint64_t lucky = 2 * i + (draw(sample) & 1);
        struct window kept = sample->windows[lucky];
        sample->windows[lucky].words = NULL;
        free(sample->windows[2 * i].words);
        free(sample->windows[2 * i + 1].words);
        sample->windows[2 * i] = sample->windows[2 * i + 1] = (struct window){0};
        sample->windows[i] = kept;
    }
    sample->kept = most / 2;
    sample->period *= 2;
}

static void close_window(struct sample *sample)
{
    sample->open = false;
    if (!sample->windows || !sample->windows[sample->kept].used)
        return;
    if (++sample->kept == most)
        thin(sample);
}

static void sample_block(struct sample *sample, uint32_t id)
{
    if (sample->at == sample->period || !sample->windows) { /* another period */
        if (!sample->windows) {
            sample->windows = calloc(most, sizeof *sample->windows);
            sample->period = window;
            if (!sample->windows)
                _exit(70);
        }
        if (sample->open)
            close_window(sample);
        sample->at = 0;
        /* Anywhere in the period: loops are as regular as the windows would be. */
        sample->start = draw(sample) % (sample->period - window + 1);
    } else if (sample->open && sample->at == sample->start + window) {
        close_window(sample);
    }
    if (sample->at++ == sample->start)
        sample->open = true;
    if (sample->open)
        push(sample, BLOCK_WORD | id);
}

static void write_samples(FILE *out, unsigned thread)
{
    const struct sample *sample = &samples[thread];
    for (uint64_t i = 0; i < sample->kept; i++) {
        const struct window *each = &sample->windows[i];
        uint32_t header[3] = {0xFFFFFFFFu, thread, (uint32_t)each->used};
        fwrite(header, sizeof *header, 3, out);
        fwrite(each->words, sizeof *each->words, each->used, out);
    }
}

/* ---- accesses ----------------------------------------------------------------------------- */
static void on_memory(unsigned vcpu, meminfo info, uint64_t address, void *data)
{
    if (!warm)
        return;
    static uint64_t ignored[THREADS][EVENTS];
    unsigned thread = record_of(vcpu);
    struct site *site = data;
    uint64_t *count = active ? site->count[thread] : ignored[thread];
    bool store = qemu_plugin_mem_is_store(info);
    uint64_t last = address + (1u << qemu_plugin_mem_size_shift(info)) - 1;
    count[ACCESSES]++;
    uint32_t fate = access_line(thread, address, store, count);
    if ((address ^ last) >> LINE_BITS) {
        count[SPLIT]++;
        fate |= access_line(thread, last, store, count) | FATE_SPLIT;
    }
    if (fate && active && samples[thread].open)
        push(&samples[thread], site->index << 16 | fate | (store ? FATE_STORE : 0));
}

/* ---- blocks ---------------------------------------------------------------------------------- */
static void on_block(unsigned vcpu, void *data)
{
    unsigned thread = record_of(vcpu);
    if (!active)
        return;
    struct block *block = data;
    block->count[thread]++;
    if (most)
        sample_block(&samples[thread], block->id);
}

static struct block *find(uint64_t address, uint32_t instructions, const uint8_t *code,
                          uint32_t bytes)
{
    struct block **chain = &table[(address >> 2) % (1 << 16)];
    for (struct block *block = *chain; block; block = block->next)
        if (block->address == address && block->bytes == bytes && !memcmp(block->code, code, bytes))
            return block;
    struct block *block = calloc(1, sizeof *block);
    uint8_t *copy = malloc(bytes);
    struct site **sites = calloc(instructions, sizeof *sites);
    if (!block || !copy || !sites) {
        fputs("a72_plugin: out of memory\n", stderr);
        _exit(70);
    }
    memcpy(copy, code, bytes);
    block->address = address;
    block->id = blocks++;
    block->instructions = instructions;
    block->bytes = bytes;
    block->code = copy;
    block->sites = sites;
    block->next = *chain;
    *chain = block;
    return block;
}

/* Loads and stores have bits 27 and 25 of the encoding as x1x0 (Arm ARM, C4.1). */
static bool may_access(const uint8_t *code)
{
    uint32_t word;
    memcpy(&word, code, 4);
    return (word & 0x0A000000u) == 0x08000000u || (word & 0xFFE00000u) == 0xD5000000u;
}

static void on_translate(plugin_id id, struct plugin_tb *tb)
{
    (void)id;
    size_t n = qemu_plugin_tb_n_insns(tb);
    uint8_t code[4 * 1024];
    uint32_t bytes = 0;
    for (size_t i = 0; i < n && bytes + 4 <= sizeof code; i++) {
        struct plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
        memcpy(code + bytes, qemu_plugin_insn_data(insn), 4);
        bytes += 4;
    }
    if (!n)
        return;
    uint64_t address = qemu_plugin_tb_vaddr(tb);
    lock(&table_lock);
    guest_base = (uint64_t)(uintptr_t)qemu_plugin_insn_haddr(qemu_plugin_tb_get_insn(tb, 0)) - address;
    struct block *block = find(address, (uint32_t)n, code, bytes);
    for (size_t i = 0; model_caches && i < n; i++)
        if (may_access(code + 4 * i) && !block->sites[i]) {
            block->sites[i] = calloc(1, sizeof **block->sites);
            if (!block->sites[i])
                _exit(70);
            block->sites[i]->index = (uint32_t)i;
        }
    unlock(&table_lock);
    qemu_plugin_register_vcpu_tb_exec_cb(tb, on_block, CB_NO_REGS, block);
    for (size_t i = 0; i < n; i++)
        if (block->sites[i])
            qemu_plugin_register_vcpu_mem_cb(qemu_plugin_tb_get_insn(tb, i), on_memory, CB_NO_REGS,
                                             MEM_BOTH, block->sites[i]);
}

enum { AARCH64_CLOSE = 57, AARCH64_FUTEX = 98, MARKER = 0x0A720000 };

static void on_syscall(plugin_id id, unsigned vcpu, int64_t number, uint64_t a1, uint64_t a2,
                       uint64_t a3, uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8)
{
    (void)id, (void)a2, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
    if (number == AARCH64_FUTEX && active)
        futexes[record_of(vcpu)]++;
    if (number != AARCH64_CLOSE || (a1 & ~0xFull) != MARKER || !markers)
        return;
    switches++;
    warm = (a1 & 0xF) == 1 || (a1 & 0xF) == 2;
    active = (a1 & 0xF) == 2;
}

/* ---- the record ------------------------------------------------------------------------------ */
static void write_block(FILE *out, const struct block *block)
{
    uint64_t total = 0;
    for (int t = 0; t < THREADS; t++)
        total += block->count[t];
    if (!total)
        return;
    fprintf(out, "block %u %llx ", block->id, (unsigned long long)block->address);
    for (uint32_t i = 0; i < block->bytes; i++)
        fprintf(out, "%02x", block->code[i]);
    for (int t = 0; t < THREADS; t++)
        if (block->count[t])
            fprintf(out, " %d:%llu", t, (unsigned long long)block->count[t]);
    fputc('\n', out);
    for (uint32_t i = 0; i < block->instructions; i++)
        for (int t = 0; block->sites[i] && t < THREADS; t++) {
            const uint64_t *count = block->sites[i]->count[t];
            if (!count[ACCESSES])
                continue;
            fprintf(out, "site %u %d", i, t);
            for (int e = 0; e < EVENTS; e++)
                fprintf(out, " %llu", (unsigned long long)count[e]);
            fputc('\n', out);
        }
}

static void on_end(plugin_id id, void *data)
{
    (void)id, (void)data;
    if (getpid() != owner) /* a forked child */
        return;
    active = false;
    char name[sizeof out_path + 16];
    snprintf(name, sizeof name, "%s.samples", out_path);
    FILE *words = most ? fopen(name, "w") : NULL;
    for (unsigned t = 0; words && t < THREADS; t++) {
        close_window(&samples[t]);
        write_samples(words, t);
    }
    if (most && (!words || fclose(words))) {
        perror(name);
        return;
    }
    FILE *out = fopen(out_path, "w");
    if (!out) {
        perror(out_path);
        return;
    }
    fprintf(out, "a72-trace 1\nbase %llx\nmarkers %llu\n", (unsigned long long)guest_base,
            (unsigned long long)switches);
    for (int t = 0; t < THREADS; t++)
        fprintf(out, "futex %d %llu\n", t, (unsigned long long)futexes[t]);
    FILE *maps = fopen("/proc/self/maps", "r");
    char line[4600];
    while (maps && fgets(line, sizeof line, maps))
        if (strchr(line, '/'))
            fprintf(out, "map %s", line);
    if (maps)
        fclose(maps);
    for (size_t i = 0; i < 1 << 16; i++)
        for (const struct block *block = table[i]; block; block = block->next)
            write_block(out, block);
    fputs("end\n", out);
    fclose(out);
}

EXPORT int qemu_plugin_install(plugin_id id, const struct plugin_info *info, int argc, char **argv);

int qemu_plugin_install(plugin_id id, const struct plugin_info *info, int argc, char **argv)
{
    (void)info;
    for (int i = 0; i < argc; i++) {
        if (!strncmp(argv[i], "out=", 4))
            snprintf(out_path, sizeof out_path, "%s", argv[i] + 4);
        else if (!strncmp(argv[i], "cache=", 6))
            model_caches = !strcmp(argv[i] + 6, "on");
        else if (!strncmp(argv[i], "frames=", 7))
            hashed_frames = !strcmp(argv[i] + 7, "hashed");
        else if (!strncmp(argv[i], "markers=", 8))
            markers = !strcmp(argv[i] + 8, "on");
        else if (!strncmp(argv[i], "window=", 7))
            window = strtoull(argv[i] + 7, NULL, 10);
        else if (!strncmp(argv[i], "most=", 5))
            most = strtoull(argv[i] + 5, NULL, 10) & ~1ull;
        else {
            fprintf(stderr, "a72_plugin: unknown argument %s\n", argv[i]);
            return -1;
        }
    }
    if (!out_path[0]) {
        fputs("a72_plugin: out=FILE is missing\n", stderr);
        return -1;
    }
    if (!window) {
        fputs("a72_plugin: window=0 samples nothing; most=0 says so\n", stderr);
        return -1;
    }
    /* With markers expected, nothing counts before the first. */
    if (markers)
        active = warm = false;
    owner = getpid();
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translate);
    qemu_plugin_register_vcpu_syscall_cb(id, on_syscall);
    qemu_plugin_register_atexit_cb(id, on_end, NULL);
    return 0;
}
