/* SPDX-License-Identifier: MIT
 *
 * A QEMU TCG plugin (API version 1) that counts executions of basic blocks and runs every data
 * access through the caches of a Cortex-A72 cluster.
 *
 * The declarations of QEMU's plugin interface below were written for this project from the
 * interface's documentation; they are all that the plugin needs, so no QEMU header is required.
 *
 * What is modelled (sources: reference of tvmattend/machine/parameters.py):
 *   L1D     32 KB, 2-way, 64-byte lines, LRU, write-back, write-allocate, one per thread
 *   L2      1 MB, 16-way, LRU, shared by all threads
 *   DTLB    32 entries, fully associative, then 1024 entries 4-way
 *   pages   4 KB; the physical frame is a hash of the page's number, since Linux hands out pages
 *           in no order that a program can rely on, and both caches are physically indexed
 *   streams 16 sequential streams a thread: a miss that continues one is "covered" by the
 *           prefetcher (it costs bandwidth), any other is not (it costs latency)
 *
 * Markers: a guest that calls close(0x0A720000 + n) says n = 1 "warm the caches", n = 2 "count",
 * n = 3 "stop counting". The call fails with EBADF, which is harmless. A guest that says nothing is
 * counted from its first instruction to its last.
 *
 * Samples: of every `period` blocks that a thread executes, `window` are written down in order, with
 * the fate of each access that missed. The pipeline model replays them.
 *
 * Arguments: out=FILE, cache=on|off, frames=hashed|identity, markers=on|off (off: count all),
 * window=BLOCKS, period=BLOCKS.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- QEMU's plugin interface, version 1 ------------------------------------------------------ */
typedef uint64_t plugin_id;
typedef uint32_t meminfo;
struct plugin_info;
struct plugin_tb;
struct plugin_insn;
enum { CB_NO_REGS = 0 };
enum { MEM_READ = 1, MEM_WRITE = 2, MEM_BOTH = 3 };
typedef void (*udata_cb)(unsigned vcpu, void *data);
typedef void (*mem_cb)(unsigned vcpu, meminfo info, uint64_t address, void *data);
typedef void (*trans_cb)(plugin_id id, struct plugin_tb *tb);
typedef void (*end_cb)(plugin_id id, void *data);
typedef void (*syscall_cb)(plugin_id id, unsigned vcpu, int64_t number, uint64_t a1, uint64_t a2,
                           uint64_t a3, uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7,
                           uint64_t a8);
void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id id, trans_cb cb);
void qemu_plugin_register_vcpu_tb_exec_cb(struct plugin_tb *tb, udata_cb cb, int flags, void *data);
void qemu_plugin_register_vcpu_mem_cb(struct plugin_insn *insn, mem_cb cb, int flags, int rw,
                                      void *data);
void qemu_plugin_register_vcpu_syscall_cb(plugin_id id, syscall_cb cb);
void qemu_plugin_register_atexit_cb(plugin_id id, end_cb cb, void *data);
size_t qemu_plugin_tb_n_insns(const struct plugin_tb *tb);
uint64_t qemu_plugin_tb_vaddr(const struct plugin_tb *tb);
struct plugin_insn *qemu_plugin_tb_get_insn(const struct plugin_tb *tb, size_t index);
const void *qemu_plugin_insn_data(const struct plugin_insn *insn);
size_t qemu_plugin_insn_size(const struct plugin_insn *insn);
void *qemu_plugin_insn_haddr(const struct plugin_insn *insn);
bool qemu_plugin_mem_is_store(meminfo info);
unsigned qemu_plugin_mem_size_shift(meminfo info);

#define EXPORT __attribute__((visibility("default")))
EXPORT int qemu_plugin_version = 1;

/* ---- what is recorded ------------------------------------------------------------------------ */
enum {
    THREADS = 8, /* guest threads beyond these share the last record */
    LINE_BITS = 6,
    PAGE_BITS = 12,
};

/* One counter per event, thread and memory instruction; the names are in trace.py, same order. */
enum event {
    ACCESSES,
    L2_STREAM,   /* load misses L1, hits L2, continues a stream */
    L2_LONE,     /* load misses L1, hits L2, continues none */
    DRAM_STREAM, /* load misses both, continues a stream */
    DRAM_LONE,
    STORE_L2,   /* store misses L1, hits L2 */
    STORE_DRAM, /* store misses both */
    TLB_L1,     /* misses the first TLB, hits the second */
    TLB_WALK,   /* misses both */
    WRITEBACK_L2,   /* a dirty line leaves L1 */
    WRITEBACK_DRAM, /* a dirty line leaves L2 */
    SPLIT,          /* crosses a line */
    SHARED,         /* the line was in another thread's L1 and dirty there */
    EVENTS
};

/* How a sampled access is written: its instruction's index << 16, one of these, and flags. */
enum { FATE_STREAM = 1, FATE_DRAM = 2, FATE_STORE = 4, FATE_MISS = 8, FATE_TLB = 16,
       FATE_WALK = 32, FATE_WRITEBACK_L2 = 64, FATE_WRITEBACK_DRAM = 128, FATE_SHARED = 256,
       FATE_SPLIT = 512 };

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
static bool model_caches = true, hashed_frames = true, markers = true;
static char out_path[4096];
static uint64_t guest_base;
static uint64_t futexes[THREADS], switches;
static pid_t owner;
static uint32_t blocks; /* translated so far */

static void lock(volatile int *word)
{
    while (__atomic_exchange_n(word, 1, __ATOMIC_ACQUIRE))
        while (*word)
            ;
}

static void unlock(volatile int *word) { __atomic_store_n(word, 0, __ATOMIC_RELEASE); }

static unsigned record_of(unsigned vcpu) { return vcpu < THREADS ? vcpu : THREADS - 1; }

/* ---- samples --------------------------------------------------------------------------------- */
#define BLOCK_WORD 0x80000000u

static struct sample {
    uint32_t *words;
    size_t used, size;
    uint64_t phase;
    bool open;
    char pad[64];
} samples[THREADS];
static uint64_t window = 1024, period = 16384;
static FILE *sample_file;
static volatile int sample_lock;

static void push(struct sample *sample, uint32_t word)
{
    if (sample->used == sample->size) {
        sample->size = sample->size ? 2 * sample->size : 8192;
        sample->words = realloc(sample->words, sample->size * sizeof *sample->words);
        if (!sample->words)
            _exit(70);
    }
    sample->words[sample->used++] = word;
}

static void close_window(unsigned thread)
{
    struct sample *sample = &samples[thread];
    sample->open = false;
    if (!sample->used || !sample_file)
        return;
    uint32_t header[3] = {0xFFFFFFFFu, thread, (uint32_t)sample->used};
    lock(&sample_lock);
    fwrite(header, sizeof *header, 3, sample_file);
    fwrite(sample->words, sizeof *sample->words, sample->used, sample_file);
    unlock(&sample_lock);
    sample->used = 0;
}

static void sample_block(unsigned thread, uint32_t id)
{
    struct sample *sample = &samples[thread];
    uint64_t at = sample->phase++ % period;
    if (at == 0)
        sample->open = true;
    else if (at == window)
        close_window(thread);
    if (sample->open)
        push(sample, BLOCK_WORD | id);
}

/* ---- caches ---------------------------------------------------------------------------------- */
/* A way holds a line number + 1 (0: empty); ways of a set stand in order of use, newest first. */
enum { L1_SETS = 256, L1_WAYS = 2, L2_SETS = 1024, L2_WAYS = 16, STREAMS = 16 };
enum { TLB1 = 32, TLB2_SETS = 256, TLB2_WAYS = 4 };
#define DIRTY (1ull << 63)
#define TAG(way) ((way) & ~DIRTY)

struct stream {
    uint64_t next; /* line that would continue it */
    int64_t step;
    uint32_t length;
};

struct core {
    uint64_t l1[L1_SETS][L1_WAYS];
    uint64_t tlb1[TLB1];
    uint64_t tlb2[TLB2_SETS][TLB2_WAYS];
    struct stream streams[STREAMS]; /* newest first */
    uint64_t page, frame;           /* the last translation */
    char pad[64];
};

static struct core cores[THREADS];
static uint64_t l2[L2_SETS][L2_WAYS];
static volatile int l2_lock;

/* Finds `line` and moves it to the front; what fell out at the back is given in *victim. */
static bool touch(uint64_t *set, int ways, uint64_t line, bool store, uint64_t *victim)
{
    uint64_t tag = line + 1, found = 0;
    int at = 0;
    while (at < ways && TAG(set[at]) != tag)
        at++;
    bool hit = at < ways;
    if (hit) {
        found = set[at];
    } else {
        at = ways - 1;
        *victim = set[at];
        found = tag;
    }
    memmove(set + 1, set, (size_t)at * sizeof *set);
    set[0] = store ? found | DIRTY : found;
    return hit;
}

/* A fixed permutation-like hash: the same page has the same frame in every run. */
static uint64_t frame_of(uint64_t page)
{
    if (!hashed_frames)
        return page;
    uint64_t x = page * 0x9E3779B97F4A7C15ull;
    x ^= x >> 29;
    x *= 0xBF58476D1CE4E5B9ull;
    x ^= x >> 32;
    return x & 0x3FFFFFFFFFFull; /* 54-bit addresses; collisions are as good as impossible */
}

/* Whether a missed line continues a stream; at the edge of a page a stream ends, as in silicon. */
static bool follows(struct core *core, uint64_t line)
{
    struct stream *streams = core->streams;
    for (int i = 0; i < STREAMS; i++) {
        struct stream found = streams[i];
        if (!found.length)
            continue;
        int64_t gap = (int64_t)(line - (found.next - (uint64_t)found.step));
        bool hit = found.length > 1 ? line == found.next : gap == 1 || gap == -1 || gap == 2 || gap == -2;
        if (!hit)
            continue;
        if (found.length == 1)
            found.step = gap;
        found.next = line + (uint64_t)found.step;
        found.length++;
        memmove(streams + 1, streams, (size_t)i * sizeof *streams);
        streams[0] = found;
        return found.length > 2;
    }
    memmove(streams + 1, streams, (STREAMS - 1) * sizeof *streams);
    streams[0] = (struct stream){line + 1, 1, 1};
    return false;
}

static uint64_t translate(struct core *core, uint64_t page, uint64_t *count, uint32_t *fate)
{
    if (page == core->page)
        return core->frame;
    core->page = page;
    core->frame = frame_of(page);
    uint64_t victim = 0;
    if (!touch(core->tlb1, TLB1, page, false, &victim)) {
        bool second = touch(core->tlb2[page % TLB2_SETS], TLB2_WAYS, page, false, &victim);
        count[second ? TLB_L1 : TLB_WALK]++;
        *fate |= second ? FATE_TLB : FATE_WALK;
    }
    return core->frame;
}

/* One access to one line; gives its fate, 0 for a plain hit. */
static uint32_t access_line(unsigned thread, uint64_t address, bool store, uint64_t *count)
{
    struct core *core = &cores[thread];
    uint32_t fate = 0;
    uint64_t frame = translate(core, address >> PAGE_BITS, count, &fate);
    uint64_t line = (frame << (PAGE_BITS - LINE_BITS)) |
                    ((address & ((1u << PAGE_BITS) - 1)) >> LINE_BITS);
    uint64_t *set = core->l1[line % L1_SETS];
    if (TAG(set[0]) == line + 1) { /* the common case */
        if (store)
            set[0] |= DIRTY;
        return fate;
    }
    uint64_t victim = 0, below = 0;
    if (touch(set, L1_WAYS, line, store, &victim))
        return fate;
    bool stream = follows(core, address >> LINE_BITS);
    lock(&l2_lock);
    for (unsigned other = 0; other < THREADS; other++) { /* a line that another thread wrote */
        if (other == thread)
            continue;
        uint64_t *theirs = cores[other].l1[line % L1_SETS];
        for (int way = 0; way < L1_WAYS; way++)
            if (theirs[way] == ((line + 1) | DIRTY)) {
                theirs[way] = store ? 0 : line + 1;
                count[SHARED]++;
                fate |= FATE_SHARED;
            }
    }
    bool hit = touch(l2[line % L2_SETS], L2_WAYS, line, false, &below);
    uint32_t lost = !hit && (below & DIRTY);
    if (victim & DIRTY) {
        uint64_t lower = 0;
        count[WRITEBACK_L2]++;
        touch(l2[(TAG(victim) - 1) % L2_SETS], L2_WAYS, TAG(victim) - 1, true, &lower);
        fate |= FATE_WRITEBACK_L2;
        lost += (lower & DIRTY) != 0;
    }
    unlock(&l2_lock);
    if (store)
        count[hit ? STORE_L2 : STORE_DRAM]++;
    else
        count[hit ? (stream ? L2_STREAM : L2_LONE) : (stream ? DRAM_STREAM : DRAM_LONE)]++;
    count[WRITEBACK_DRAM] += lost;
    return fate | FATE_MISS | (stream ? FATE_STREAM : 0) | (hit ? 0 : FATE_DRAM) |
           (lost ? FATE_WRITEBACK_DRAM : 0);
}

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
    if (!active)
        return;
    struct block *block = data;
    unsigned thread = record_of(vcpu);
    block->count[thread]++;
    if (sample_file)
        sample_block(thread, block->id);
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
    for (unsigned t = 0; t < THREADS; t++)
        close_window(t);
    if (sample_file)
        fclose(sample_file);
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
        else if (!strncmp(argv[i], "period=", 7))
            period = strtoull(argv[i] + 7, NULL, 10);
        else {
            fprintf(stderr, "a72_plugin: unknown argument %s\n", argv[i]);
            return -1;
        }
    }
    if (!out_path[0]) {
        fputs("a72_plugin: out=FILE is missing\n", stderr);
        return -1;
    }
    char name[sizeof out_path + 16];
    snprintf(name, sizeof name, "%s.samples", out_path);
    if (window && period >= window)
        sample_file = fopen(name, "w");
    if (window && !sample_file) {
        perror(name);
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
