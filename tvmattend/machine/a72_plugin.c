/* SPDX-License-Identifier: MIT
 *
 * A QEMU TCG plugin that counts executions of basic blocks and runs every data
 * access through the caches of a Cortex-A72 cluster.
 *
 * The caches are in a72_caches.h, samples in a72_samples.h, QEMU's interface in qemu_plugin_api.h.
 *
 * Markers: a guest that calls close(0x0A720000 + n) says n = 1 "warm the caches", n = 2 "count",
 * n = 3 "stop counting". The call fails with EBADF, which is harmless. A guest that says nothing is
 * counted from its first instruction to its last.
 *
 * Arguments: out=FILE, cache=on|off, frames=hashed|identity, markers=on|off (off: count all),
 * window=BLOCKS, most=WINDOWS (of a thread), parent=PID (whose end is ours).
 *
 * FILE is there when all of it, and of FILE.samples, is written. Where that fails, stderr has a line
 * `a72_plugin: cannot write: errno N`.
 */
#define _GNU_SOURCE /* gettid */
#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

static volatile bool active = true; /* counting */
static volatile bool warm = true;   /* the cache model runs, and threads are kept in step */

static void out_of_memory(void)
{
    fputs("a72_plugin: out of memory\n", stderr);
    _exit(70);
}

#include "a72_caches.h"
#include "a72_pace.h"
#include "a72_samples.h"
#include "qemu_plugin_api.h"

EXPORT int qemu_plugin_version = 2;
static int interface; /* the version that the QEMU has which runs this */

/* When it is loaded, before QEMU reads the version. */
__attribute__((constructor)) static void choose_version(void)
{
    if (qemu_plugin_n_vcpus)
        qemu_plugin_version = 1;
}

/* ---- what is recorded ------------------------------------------------------------------------ */

struct site {
    uint32_t index; /* of the instruction in its block */
    uint64_t count[RECORDS][EVENTS];
};

struct block {
    uint64_t address;
    uint32_t id;
    uint32_t instructions;
    uint32_t bytes;
    uint8_t *code;
    struct block *next;       /* in its hash chain */
    struct site **sites;      /* one per instruction, NULL when it never accesses memory */
    uint64_t count[RECORDS];
};

static struct block *table[1 << 16];
static volatile int table_lock;
static bool model_caches = true, markers = true;
static char out_path[4096];
static uint64_t guest_base;
static uint64_t futexes[RECORDS], switches, children;
static pid_t owner;
static uint32_t blocks; /* translated so far */

/* Several threads write the record CROWD at once: by atomic steps, or with this lock held. */
static volatile int crowd_lock;
static unsigned most_vcpu; /* that counted something */

static unsigned record_of(unsigned vcpu) { return vcpu < THREADS ? vcpu : CROWD; }

/* ---- accesses ----------------------------------------------------------------------------- */
static uint32_t access_memory(unsigned thread, meminfo info, uint64_t address, struct site *site)
{
    static uint64_t ignored[RECORDS][EVENTS];
    uint64_t *count = active ? site->count[thread] : ignored[thread];
    bool store = qemu_plugin_mem_is_store(info);
    uint64_t last = address + (1u << qemu_plugin_mem_size_shift(info)) - 1;
    count[ACCESSES]++;
    uint32_t fate = access_line(thread, address, store, count);
    if ((address ^ last) >> LINE_BITS) {
        count[SPLIT]++;
        fate |= access_line(thread, last, store, count) | FATE_SPLIT;
    }
    return fate ? fate | (store ? FATE_STORE : 0) : 0;
}

static void on_memory(unsigned vcpu, meminfo info, uint64_t address, void *data)
{
    if (!warm)
        return;
    unsigned thread = record_of(vcpu);
    struct site *site = data;
    if (thread == CROWD) {
        lock(&crowd_lock);
        access_memory(thread, info, address, site);
        unlock(&crowd_lock);
        return;
    }
    uint32_t fate = access_memory(thread, info, address, site);
    if (fate && active && samples[thread].open)
        push(&samples[thread], site->index << 16 | fate);
}

/* ---- blocks ---------------------------------------------------------------------------------- */
static void on_block(unsigned vcpu, void *data)
{
    unsigned thread = record_of(vcpu);
    struct block *block = data;
    if (thread != CROWD && warm && model_caches)
        keep_pace(thread, block->instructions);
    if (!active)
        return;
    if (thread == CROWD) { /* no samples: they are stretches of one thread */
        __atomic_fetch_add(&block->count[thread], 1, __ATOMIC_RELAXED);
        unsigned known = __atomic_load_n(&most_vcpu, __ATOMIC_RELAXED);
        while (vcpu > known && !__atomic_compare_exchange_n(&most_vcpu, &known, vcpu, true,
                                                            __ATOMIC_RELAXED, __ATOMIC_RELAXED))
            ;
        return;
    }
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
    if (!block || !copy || !sites)
        out_of_memory();
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
        uintptr_t told = qemu_plugin_insn_data(insn, code + bytes, 4);
        if (interface < 3)
            memcpy(code + bytes, (const void *)told, 4);
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
                out_of_memory();
            block->sites[i]->index = (uint32_t)i;
        }
    unlock(&table_lock);
    qemu_plugin_register_vcpu_tb_exec_cb(tb, on_block, CB_NO_REGS, block);
    for (size_t i = 0; i < n; i++)
        if (block->sites[i])
            qemu_plugin_register_vcpu_mem_cb(qemu_plugin_tb_get_insn(tb, i), on_memory, CB_NO_REGS,
                                             MEM_BOTH, block->sites[i]);
}

enum { AARCH64_CLOSE = 57, AARCH64_FUTEX = 98, AARCH64_CLONE = 220, MARKER = 0x0A720000 };
enum { CLONE_OF_THREAD = 0x10000 };

static void on_syscall(plugin_id id, unsigned vcpu, int64_t number, uint64_t a1, uint64_t a2,
                       uint64_t a3, uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8)
{
    (void)id, (void)a2, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
    if (record_of(vcpu) != CROWD)
        leave_pace(vcpu);
    if (number == AARCH64_FUTEX && active)
        __atomic_fetch_add(&futexes[record_of(vcpu)], 1, __ATOMIC_RELAXED);
    if (number == AARCH64_CLONE && !(a1 & CLONE_OF_THREAD) && active)
        __atomic_fetch_add(&children, 1, __ATOMIC_RELAXED);
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
    for (int t = 0; t < RECORDS; t++)
        total += block->count[t];
    if (!total)
        return;
    fprintf(out, "block %u %llx ", block->id, (unsigned long long)block->address);
    for (uint32_t i = 0; i < block->bytes; i++)
        fprintf(out, "%02x", block->code[i]);
    for (int t = 0; t < RECORDS; t++)
        if (block->count[t])
            fprintf(out, " %d:%llu", t, (unsigned long long)block->count[t]);
    fputc('\n', out);
    for (uint32_t i = 0; i < block->instructions; i++)
        for (int t = 0; block->sites[i] && t < RECORDS; t++) {
            const uint64_t *count = block->sites[i]->count[t];
            if (!count[ACCESSES])
                continue;
            fprintf(out, "site %u %d", i, t);
            for (int e = 0; e < EVENTS; e++)
                fprintf(out, " %llu", (unsigned long long)count[e]);
            fputc('\n', out);
        }
}

static bool write_sample_file(const char *name)
{
    FILE *out = fopen(name, "w");
    if (!out)
        return false;
    for (unsigned t = 0; t < THREADS; t++) {
        close_window(&samples[t]);
        write_samples(out, t);
    }
    bool failed = ferror(out);
    return !fclose(out) && !failed;
}

static bool write_trace(const char *name)
{
    FILE *out = fopen(name, "w");
    if (!out)
        return false;
    fprintf(out, "a72-trace 1\nbase %llx\nmarkers %llu\n", (unsigned long long)guest_base,
            (unsigned long long)switches);
    if (most_vcpu >= THREADS)
        fprintf(out, "crowd %u\n", most_vcpu + 1);
    if (children)
        fprintf(out, "children %llu\n", (unsigned long long)children);
    for (int t = 0; t < RECORDS; t++)
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
    bool failed = ferror(out);
    return !fclose(out) && !failed;
}

static void on_end(plugin_id id, void *data)
{
    (void)id, (void)data;
    if (getpid() != owner) /* a forked child */
        return;
    active = false;
    signal(SIGXFSZ, SIG_IGN); /* a limit on files is an error to tell of */
    char sampled[sizeof out_path + 16], part[sizeof out_path + 16];
    snprintf(sampled, sizeof sampled, "%s.samples", out_path);
    snprintf(part, sizeof part, "%s.part", out_path);
    errno = 0;
    if ((most && !write_sample_file(sampled)) || !write_trace(part) || rename(part, out_path))
        fprintf(stderr, "\na72_plugin: cannot write: errno %d\n", errno);
}

EXPORT int qemu_plugin_install(plugin_id id, const struct plugin_info *info, int argc, char **argv);

int qemu_plugin_install(plugin_id id, const struct plugin_info *info, int argc, char **argv)
{
    interface = info->version.current;
    pid_t parent = 0;
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
            most = (strtoull(argv[i] + 5, NULL, 10) + 1) & ~1ull; /* they are thinned by pairs */
        else if (!strncmp(argv[i], "parent=", 7))
            parent = (pid_t)strtol(argv[i] + 7, NULL, 10);
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
    /* A guest ends with who asked for it, and leaves no core in the user's directory. */
    if (parent && (prctl(PR_SET_PDEATHSIG, SIGKILL) || getppid() != parent))
        _exit(70);
    const struct rlimit none = {0, 0};
    setrlimit(RLIMIT_CORE, &none);
    /* With markers expected, nothing counts before the first. */
    if (markers)
        active = warm = false;
    owner = paced = getpid();
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translate);
    qemu_plugin_register_vcpu_syscall_cb(id, on_syscall);
    qemu_plugin_register_atexit_cb(id, on_end, NULL);
    return 0;
}
