/* SPDX-License-Identifier: Apache-2.0
 *
 * Replays sampled blocks through an out-of-order core of the Cortex-A72's shape and says how many
 * cycles each block took on average.
 *
 * In order: fetch (16 bytes a cycle, a gshare predictor), dispatch of
 * three slots a cycle, retirement. Out of order: eight pipelines with a queue of eight each, 128
 * entries to reorder. Memory: each access's fate was decided by the plugin's caches; here a miss
 * waits for a latency and takes its share of L2's or DRAM's bandwidth. A miss that the prefetcher
 * covers was asked for some lines ahead, so it pays bandwidth and little latency.
 *
 * Time is in cycles of the core, as 64-bit integers; memory's is in fractions, as doubles.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Same order as in replay.py. */
enum port { B, I, L, M, S, F0, F1, V, PORTS };
enum kind { ALU, LOAD, STORE, BRANCH, PREFETCH };
enum { REGISTERS = 65, REORDER = 128, QUEUE = 8, WIDTH = 3, CALENDAR = 4096, UNITS = 8 };
enum { MISSES = 32, STORES = 64 }; /* at most */
enum { FATE_STREAM = 1, FATE_DRAM = 2, FATE_STORE = 4, FATE_MISS = 8,
       FATE_WRITEBACK_L2 = 16, FATE_WRITEBACK_DRAM = 32, FATE_SHARED = 64, FATE_SPLIT = 128 };
#define BLOCK_WORD 0x80000000u
#define WINDOW_WORD 0xFFFFFFFFu

struct instruction {
    uint8_t slots, kind, latency, forward;
    int8_t accumulator, base;
    uint8_t reads, writes;
    uint8_t read[8];
    uint8_t written[6];
    uint8_t cycles[PORTS];
};

/* The same, without what it does not use: an instruction is replayed thousands of times. */
struct operation {
    const struct instruction *is;
    int uses;
    struct use {
        uint8_t port, first, last, cycles;
    } use[PORTS];
};

struct block {
    uint64_t address;
    uint32_t first, length; /* its instructions */
};

struct parameters {
    double l2_latency, l2_line, dram_latency, dram_line; /* cycles */
    double stream_latency;  /* of a covered miss, on top of an L1 hit */
    double ahead;           /* lines that the prefetcher runs ahead */
    double snoop;
    double mispredict;
    double misses;  /* that may be under way at once */
    double stores;  /* that may wait for their line at once */
    double write_share; /* of a line's cost that a write-back or a store's fill takes */
    double stream_dram_latency;
};

struct core {
    int64_t ready[REGISTERS], accumulated[REGISTERS];
    int64_t calendar[UNITS][CALENDAR];
    int64_t queue[UNITS][QUEUE]; /* a ring, from the soonest on */
    uint32_t soonest[UNITS];
    int64_t reorder[REORDER];
    uint32_t reorder_at;
    int64_t dispatch, retired, fetch;
    int used;
    double l2_free, dram_free;
    double missing[MISSES];
    double draining[STORES];
    uint32_t missing_at, draining_at;
    double drain;
    uint32_t history;
};

enum { GUESSES = 1 << 16 }; /* of the predictor, which windows share */

static int64_t imax(int64_t a, int64_t b) { return a > b ? a : b; }
static double fmaximum(double a, double b) { return a > b ? a : b; }

static int64_t first_free(const int64_t *calendar, int64_t from)
{
    while (calendar[from & (CALENDAR - 1)] == from)
        from++;
    return from;
}

/* When the queue of a unit has a free place. */
static int64_t soonest(const struct core *core, int unit)
{
    return core->queue[unit][core->soonest[unit]];
}

/* Who was to leave first has left; the new one takes its place among those who leave later. */
static void enqueue(struct core *core, int unit, int64_t at)
{
    int64_t *queue = core->queue[unit];
    uint32_t place = core->soonest[unit];
    core->soonest[unit] = (place + 1) % QUEUE;
    for (int i = 1; i < QUEUE && queue[(place - 1) % QUEUE] > at; i++) {
        queue[place] = queue[(place - 1) % QUEUE];
        place = (place - 1) % QUEUE;
    }
    queue[place] = at;
}

/* Issues one cycle on the better of two units; gives the cycle. */
static int64_t issue(struct core *core, int first, int last, int64_t from)
{
    int unit = first;
    int64_t at = first_free(core->calendar[first], from);
    for (int other = first + 1; other <= last; other++) {
        int64_t candidate = first_free(core->calendar[other], from);
        if (candidate < at) {
            at = candidate;
            unit = other;
        }
    }
    core->calendar[unit][at & (CALENDAR - 1)] = at;
    enqueue(core, unit, at);
    return at;
}

/* Units: 0 B, 1-2 I, 3 L, 4 M, 5 S, 6 F0, 7 F1. */
static void units_of(int port, int *first, int *last)
{
    static const int firsts[PORTS] = {0, 1, 3, 4, 5, 6, 7, 6};
    static const int lasts[PORTS] = {0, 2, 3, 4, 5, 6, 7, 7};
    *first = firsts[port];
    *last = lasts[port];
}

static double fetch_line(struct core *core, const struct parameters *p, double now, uint32_t fate)
{
    double arrival;
    int stream = fate & FATE_STREAM;
    if (!stream) { /* a free miss buffer */
        double *slot = &core->missing[core->missing_at++ % (uint32_t)p->misses];
        now = fmaximum(now, *slot);
        *slot = now + (fate & FATE_DRAM ? p->dram_latency : p->l2_latency);
    }
    double early = stream ? p->ahead : 0;
    double begin = fmaximum(core->l2_free, now - early * p->l2_line);
    core->l2_free = begin + p->l2_line;
    arrival = stream ? fmaximum(now + p->stream_latency, begin + p->l2_line)
                     : begin + p->l2_latency;
    if (fate & FATE_DRAM) {
        begin = fmaximum(core->dram_free, now - early * p->dram_line);
        core->dram_free = begin + p->dram_line;
        arrival = stream ? fmaximum(now + p->stream_dram_latency, begin + p->dram_line)
                         : begin + p->dram_latency;
    }
    if (fate & FATE_SHARED)
        arrival += p->snoop;
    return arrival;
}

static void write_back(struct core *core, const struct parameters *p, double now, uint32_t fate)
{
    if (fate & FATE_WRITEBACK_L2)
        core->l2_free = fmaximum(core->l2_free, now - p->ahead * p->l2_line) +
                        p->l2_line * p->write_share;
    if (fate & FATE_WRITEBACK_DRAM)
        core->dram_free = fmaximum(core->dram_free, now - p->ahead * p->dram_line) +
                          p->dram_line * p->write_share;
}

/* Takes the fates of one instruction's accesses; gives when its data is there. */
static double load(struct core *core, const struct parameters *p, double now, uint32_t fate)
{
    write_back(core, p, now, fate);
    return fate & FATE_MISS ? fetch_line(core, p, now, fate) : now;
}

/* Stores leave in order, one a cycle; a line that is not in L1 takes its share of the bandwidth. */
static void store(struct core *core, const struct parameters *p, double retired, uint32_t fate)
{
    double now = fmaximum(core->drain, retired), done = now + 1;
    write_back(core, p, now, fate);
    if (fate & FATE_MISS) {
        double begin = fmaximum(core->l2_free, now - p->ahead * p->l2_line);
        core->l2_free = begin + p->l2_line;
        done = fmaximum(done, begin + p->l2_line);
        if (fate & FATE_DRAM) {
            begin = fmaximum(core->dram_free, now - p->ahead * p->dram_line);
            core->dram_free = begin + p->dram_line * p->write_share;
            done = fmaximum(done, core->dram_free);
        }
    }
    core->drain = done;
    core->draining[core->draining_at++ % (uint32_t)p->stores] = done;
}

static void take_slots(struct core *core, int slots)
{
    for (int i = 0; i < slots; i++) {
        int64_t oldest = core->reorder[core->reorder_at % REORDER];
        if (oldest > core->dispatch || core->used == WIDTH) {
            core->dispatch = imax(core->dispatch + (core->used == WIDTH), oldest);
            core->used = 0;
        }
        core->used++;
        core->reorder[core->reorder_at++ % REORDER] = INT64_MAX / 2; /* set when it retires */
    }
}

static void wait_until(struct core *core, int64_t when)
{
    if (when > core->dispatch) {
        core->dispatch = when;
        core->used = 0;
    }
}

static void wait_for_queues(struct core *core, const struct operation *op)
{
    for (int i = 0; i < op->uses; i++) {
        int64_t least = INT64_MAX;
        for (int unit = op->use[i].first; unit <= op->use[i].last; unit++) {
            int64_t at = soonest(core, unit);
            least = at < least ? at : least;
        }
        wait_until(core, least);
    }
}

static int64_t sources(const struct core *core, const struct instruction *op)
{
    int64_t ready = core->dispatch + 1;
    for (int i = 0; i < op->reads; i++)
        ready = imax(ready, core->ready[op->read[i]]);
    if (op->accumulator >= 0)
        ready = imax(ready, core->accumulated[op->accumulator]);
    return ready;
}

/* Runs one instruction; `words` points at its accesses' fates, `count` of them. */
static int64_t step(struct core *core, const struct operation *operation,
                    const struct parameters *p, const uint32_t *words, size_t count)
{
    const struct instruction *op = operation->is;
    wait_for_queues(core, operation);
    if (op->kind == STORE)
        wait_until(core, (int64_t)core->draining[core->draining_at % (uint32_t)p->stores]);
    take_slots(core, op->slots);
    int64_t ready = sources(core, op), last = ready, load_at[32];
    int loads = 0;
    for (int u = 0; u < operation->uses; u++) {
        const struct use *use = &operation->use[u];
        for (int i = 0; i < use->cycles; i++) {
            int64_t at = issue(core, use->first, use->last, ready);
            last = imax(last, at);
            if (use->port == L && loads < 32)
                load_at[loads++] = at;
        }
    }
    double arrival = 0;
    if (op->kind == LOAD)
        for (size_t i = 0; i < count; i++)
            arrival = fmaximum(arrival, load(core, p, (double)last, words[i] & 0xFFFF));
    int64_t late = arrival > (double)last ? (int64_t)(arrival - (double)last + 0.5) : 0;
    int64_t done = last + op->latency + late;
    if (op->kind == LOAD && loads > 1 && op->latency >= loads) {
        for (int i = 0; i < op->writes; i++) { /* the first registers are there earlier */
            int at = i * loads / op->writes;
            core->ready[op->written[i]] = load_at[at] + op->latency - (loads - 1) + late;
            core->accumulated[op->written[i]] = core->ready[op->written[i]];
        }
        done = load_at[loads - 1] + op->latency - (loads - 1) + late;
    } else {
        for (int i = 0; i < op->writes; i++) {
            core->ready[op->written[i]] = done;
            core->accumulated[op->written[i]] = op->forward ? last + op->forward : done;
        }
    }
    if (op->base >= 0)
        core->ready[op->base] = core->accumulated[op->base] = ready + 1;
    if (op->kind == STORE)
        done = last + 1;
    core->retired = imax(core->retired, done);
    for (int i = 0; i < op->slots; i++)
        core->reorder[(core->reorder_at - 1 - (uint32_t)i) % REORDER] = core->retired;
    if (op->kind == STORE) {
        uint32_t fate = 0;
        for (size_t i = 0; i < count; i++)
            fate |= words[i] & 0xFFFF;
        store(core, p, (double)core->retired, fate);
    }
    return last;
}

/* Fetch of the next block: after a wrong guess it waits for the branch and the whole front end. */
static void turn(struct core *core, uint32_t *predicted, const struct parameters *p, uint32_t from,
                 uint32_t to, int taken, int64_t resolved)
{
    uint32_t hash = (from * 2654435761u ^ core->history * 40503u) >> 8;
    uint32_t *guess = &predicted[hash & (GUESSES - 1)];
    if (*guess && *guess != to + 1)
        core->fetch = imax(core->fetch, resolved + (int64_t)p->mispredict);
    *guess = to + 1;
    core->history = (core->history << 1 | (uint32_t)taken) & 0x3FF;
}

static void reset(struct core *core)
{
    int64_t start = core->retired + 1000;
    memset(core, 0, sizeof *core);
    core->dispatch = core->retired = core->fetch = start;
    core->l2_free = core->dram_free = core->drain = (double)start;
}

static void decode(const struct instruction *is, struct operation *operation)
{
    operation->is = is;
    for (int port = 0; port < PORTS; port++) {
        if (!is->cycles[port])
            continue;
        int first, last;
        units_of(port, &first, &last);
        operation->use[operation->uses++] = (struct use){
            (uint8_t)port, (uint8_t)first, (uint8_t)last, is->cycles[port]};
    }
}

/* words: the plugin's sample file. Gives, per block, the sum of its cycles and its visits; returns
 * the instructions replayed, -1 without memory, -2 for buffers that are none or too many. */
__attribute__((visibility("default"))) long a72_replay(
    const struct instruction *code, const struct block *blocks, size_t n_blocks,
    const uint32_t *words, size_t n_words, unsigned thread, const struct parameters *p,
    double *cycles, double *visits)
{
    if (p->misses < 1 || p->misses > MISSES || p->stores < 1 || p->stores > STORES)
        return -2;
    size_t length = 0;
    for (size_t i = 0; i < n_blocks; i++)
        if (blocks[i].first + blocks[i].length > length)
            length = blocks[i].first + blocks[i].length;
    struct core *core = calloc(1, sizeof *core);
    struct operation *operations = calloc(length + 1, sizeof *operations);
    uint32_t *predicted = calloc(GUESSES, sizeof *predicted);
    long replayed = 0;
    if (!core || !operations || !predicted) {
        free(core);
        free(operations);
        free(predicted);
        return -1;
    }
    for (size_t i = 0; i < length; i++)
        decode(&code[i], &operations[i]);
    for (size_t at = 0; at + 3 <= n_words;) {
        if (words[at] != WINDOW_WORD)
            break;
        size_t end = at + 3 + words[at + 2];
        int mine = words[at + 1] == thread;
        at += 3;
        if (end > n_words)
            break;
        if (!mine) {
            at = end;
            continue;
        }
        reset(core);
        int64_t start = core->retired;
        while (at < end) {
            uint32_t id = words[at++] & ~BLOCK_WORD;
            if (id >= n_blocks)
                break;
            const struct block *block = &blocks[id];
            int64_t issued = 0;
            core->fetch = imax(core->fetch, core->dispatch - 8);
            for (uint32_t i = 0; i < block->length; i++) {
                size_t from = at;
                while (at < end && !(words[at] & BLOCK_WORD) && words[at] >> 16 <= i)
                    at++;
                wait_until(core, core->fetch + i / 4);
                issued = step(core, &operations[block->first + i], p, words + from, at - from);
                replayed++;
            }
            while (at < end && !(words[at] & BLOCK_WORD))
                at++;
            core->fetch += (block->length + 3) / 4;
            if (at < end) {
                uint32_t next = words[at] & ~BLOCK_WORD;
                if (next < n_blocks)
                    turn(core, predicted, p, id, next,
                         blocks[next].address != block->address + 4ull * block->length, issued);
            }
            cycles[id] += (double)(core->retired - start);
            visits[id] += 1;
            start = core->retired;
        }
        at = end;
    }
    free(predicted);
    free(operations);
    free(core);
    return replayed;
}
