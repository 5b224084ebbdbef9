/* SPDX-License-Identifier: MIT
 *
 * Keeps the threads of a guest in step, for a72_plugin.c.
 *
 * Four cores that read the same weights read them at about the same time, and one fetch from DRAM
 * serves them all. QEMU's threads share the cores of this machine for a time slice each, in which
 * one runs ahead by more than the caches hold. So a thread that is ahead of the slowest by more
 * than STEP instructions waits for it. Threads within a system call count as waiting, and return
 * to where the slowest is, from behind or from ahead. A thread that sleeps within QEMU is waited for
 * no longer after a while, until it moves again; one that only has no core is waited for, however
 * busy this machine is. Threads that a forked child has inherited are not there.
 */
#ifndef A72_PACE_H
#define A72_PACE_H

#include <fcntl.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "a72_caches.h"

enum {
    STEP = 4096,          /* instructions */
    ASLEEP_NS = 50000000, /* a page fault of QEMU's or the translation of a block takes less */
};

struct runner {
    volatile uint64_t done; /* instructions */
    uint64_t check;         /* look at the others when so many are done */
    volatile bool running;
    bool called;            /* it left for a system call */
    volatile pid_t id;      /* for the kernel; 0 for none */
    char pad[64];
};

static struct runner runners[THREADS];
static pid_t paced; /* the process whose threads they are */

/* The slowest of the other running threads, or NULL. */
static struct runner *slowest(unsigned thread)
{
    struct runner *found = NULL;
    for (unsigned other = 0; other < THREADS; other++)
        if (other != thread && runners[other].running &&
            (!found || runners[other].done < found->done))
            found = &runners[other];
    return found;
}

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Whether a thread runs or would if it had a core; not if it waits for something, or is gone. */
static bool runnable(pid_t id)
{
    char path[48], text[128];
    snprintf(path, sizeof path, "/proc/self/task/%d/stat", (int)id);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return false;
    ssize_t size = read(file, text, sizeof text - 1);
    close(file);
    text[size < 0 ? 0 : size] = 0;
    const char *name_end = strrchr(text, ')'); /* proc(5): id (name) state */
    return name_end && (!strncmp(name_end, ") R", 3) || !strncmp(name_end, ") D", 3));
}

/* Called with each block that a thread executes. */
static void keep_pace(unsigned thread, uint32_t instructions)
{
    struct runner *mine = &runners[thread];
    if (!mine->running) {
        struct runner *last = slowest(thread);
        if (last && mine->called)
            mine->done = last->done;
        mine->called = false;
        mine->check = mine->done + STEP;
        mine->id = gettid();
        mine->running = true;
    }
    mine->done += instructions;
    if (mine->done < mine->check)
        return;
    if (getpid() != paced) {
        mine->check = UINT64_MAX;
        return;
    }
    sched_yield(); /* to whom a system call has just returned */
    struct runner *last = slowest(thread), *before = NULL;
    uint64_t done = 0, since = 0;
    while (warm && last && mine->done > last->done + STEP) {
        if (last != before || last->done != done) {
            before = last, done = last->done, since = now_ns();
        } else if (now_ns() - since > ASLEEP_NS) {
            since = now_ns();
            if (!runnable(last->id))
                last->running = false;
        }
        sched_yield();
        last = slowest(thread);
    }
    mine->check = mine->done + STEP;
}

/* Called where a thread enters a system call: the others do not wait for it. */
static void leave_pace(unsigned thread)
{
    runners[thread].called = true;
    runners[thread].running = false;
}

#endif
