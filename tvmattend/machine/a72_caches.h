/* SPDX-License-Identifier: MIT
 *
 * The data caches and stream detection of a Cortex-A72 cluster, for a72_plugin.c.
 *
 *   L1D     32 KB, 2-way, 64-byte lines, LRU, write-back, write-allocate, one per thread
 *   L2      1 MB, 16-way, LRU, shared by all threads
 *   pages   4 KB; the physical frame is a hash of the page's number, since Linux hands out pages
 *           in no order that a program can rely on, and both caches are physically indexed
 *   streams 16 sequential streams a thread: a miss that continues one is "covered" by the
 *           prefetcher (it costs bandwidth), any other is not (it costs latency)
 *
 * Sizes and ways: Arm, Cortex-A72 TRM (100095) 6 and 7; Raspberry Pi, bcm2711.
 */
#ifndef A72_CACHES_H
#define A72_CACHES_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

enum {
    THREADS = 8,      /* that have a record, and an L1, of their own */
    CROWD = THREADS,  /* the record, and the L1, of all others; the same number in trace.py */
    RECORDS,
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
    WRITEBACK_L2,   /* a dirty line leaves L1 */
    WRITEBACK_DRAM, /* a dirty line leaves L2 */
    SPLIT,          /* crosses a line */
    SHARED,         /* the line was in another thread's L1 and dirty there */
    EVENTS
};

/* How a sampled access is written: its instruction's index << 16, one of these, and flags. */
enum { FATE_STREAM = 1, FATE_DRAM = 2, FATE_STORE = 4, FATE_MISS = 8,
       FATE_WRITEBACK_L2 = 16, FATE_WRITEBACK_DRAM = 32, FATE_SHARED = 64, FATE_SPLIT = 128 };

static bool hashed_frames = true;

static void lock(volatile int *word)
{
    while (__atomic_exchange_n(word, 1, __ATOMIC_ACQUIRE))
        while (*word)
            ;
}

static void unlock(volatile int *word) { __atomic_store_n(word, 0, __ATOMIC_RELEASE); }

/* A way holds a line number + 1 (0: empty); ways of a set stand in order of use, newest first. */
enum { L1_SETS = 256, L1_WAYS = 2, L2_SETS = 1024, L2_WAYS = 16, STREAMS = 16 };
#define DIRTY (1ull << 63)
#define TAG(way) ((way) & ~DIRTY)

struct stream {
    uint64_t next; /* line that would continue it */
    int64_t step;
    uint32_t length;
};

struct core {
    uint64_t l1[L1_SETS][L1_WAYS];
    struct stream streams[STREAMS]; /* newest first */
    uint64_t page, frame;           /* the last translation */
    char pad[64];
};

static struct core cores[RECORDS];
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

static uint64_t translate(struct core *core, uint64_t page)
{
    if (page != core->page) {
        core->page = page;
        core->frame = frame_of(page);
    }
    return core->frame;
}

/* One access to one line; gives its fate, 0 for a plain hit. */
static uint32_t access_line(unsigned thread, uint64_t address, bool store, uint64_t *count)
{
    struct core *core = &cores[thread];
    uint32_t fate = 0;
    uint64_t frame = translate(core, address >> PAGE_BITS);
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
    for (unsigned other = 0; other < RECORDS; other++) { /* a line that another thread wrote */
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

#endif
