/* SPDX-License-Identifier: MIT
 *
 * Samples of what each thread executes, for a72_plugin.c.
 *
 * They are stretches of `window` blocks in a row, from random places on, with the fate of each access
 * that missed. The pipeline model replays them. At first nearly all of a thread's blocks are kept; when
 * there are `most` windows, one of each two neighbours goes (by lot), and from then on they are taken
 * half as often. So a short program is sampled densely, a long one takes no more room, and every
 * block has the same chance.
 */
#ifndef A72_SAMPLES_H
#define A72_SAMPLES_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "a72_caches.h"

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
            out_of_memory();
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
                out_of_memory();
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

#endif
