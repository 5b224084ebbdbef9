# SPDX-License-Identifier: Apache-2.0
"""Threads that read the same memory read it at the same time, however this machine runs them."""

import pytest
from guest_sources import STATIC, compiled

from tvmattend.machine.estimate import estimate
from tvmattend.machine.parameters import SHIPPED
from tvmattend.machine.replay import Program
from tvmattend.machine.trace import EVENTS
from tvmattend.machine.tracing import Settings, trace

MEGABYTES = 4  # four times the second-level cache
LINES = MEGABYTES * 2**20 // 64
READ = r"""
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>
enum { SIZE = MEGABYTES << 20, THREADS = 4 };
static float *shared;
static volatile float sums[THREADS];
static pthread_barrier_t all;
static volatile int apart, awake;

static void *run(void *argument) {
    long id = (long)argument;
    float *from = apart ? malloc(SIZE) : shared, sum = 0;
    if (apart) for (long i = 0; i < SIZE / 4; i += 16) from[i] = 1;
    pthread_barrier_wait(&all);
    if (!id) close(0x0A720002);
    pthread_barrier_wait(&all);
    __sync_fetch_and_add(&awake, 1); /* on a busy machine some are woken much later */
    while (awake < THREADS) ;
    for (long i = 0; i < SIZE / 4; i += 16) sum += from[i];
    pthread_barrier_wait(&all);
    if (!id) close(0x0A720003);
    sums[id] = sum;
    return 0;
}

int main(int argc, char **argv) {
    (void)argv;
    pthread_t ids[THREADS];
    apart = argc > 1;
    shared = malloc(SIZE);
    for (long i = 0; i < SIZE / 4; i += 16) shared[i] = 1;
    pthread_barrier_init(&all, 0, THREADS);
    for (long i = 1; i < THREADS; i++) pthread_create(&ids[i], 0, run, (void *)i);
    run(0);
    for (long i = 1; i < THREADS; i++) pthread_join(ids[i], 0);
    return 0;
}
""".replace("MEGABYTES", str(MEGABYTES))
# One thread works while another sleeps, a third waits for it by looking, and a fourth is gone.
WAIT = r"""
#include <pthread.h>
#include <unistd.h>
static volatile int done;
static float data[4096];

static void *sleeps(void *unused) { (void)unused; usleep(300000); return 0; }
static void *looks(void *unused) { (void)unused; while (!done) ; return 0; }
static void *ends(void *unused) { (void)unused; return 0; }

int main(void) {
    pthread_t ids[3];
    pthread_create(&ids[0], 0, sleeps, 0);
    pthread_create(&ids[1], 0, looks, 0);
    pthread_create(&ids[2], 0, ends, 0);
    for (int round = 0; round < 500; round++)
        for (int i = 0; i < 4096; i++) data[i] += i;
    done = 1;
    for (int i = 0; i < 3; i++) pthread_join(ids[i], 0);
    return 0;
}
"""
# The first thread works, the others spin until it is done; then, if asked, a child works for it,
# which has a copy of what is known of the spinning threads, and no such threads.
SPIN = r"""
#include <pthread.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
static volatile int done;
static volatile float data[4096];

static void *spins(void *unused) { (void)unused; while (!done) ; return 0; }
static void work(void) {
    for (int round = 0; round < 100; round++)
        for (int i = 0; i < 4096; i++) data[i] += i;
}

int main(int argc, char **argv) {
    int threads = atoi(argv[1]);
    pthread_t ids[8];
    for (int i = 1; i < threads; i++) pthread_create(&ids[i], 0, spins, 0);
    if (argc == 2) work();
    else if (!fork()) { work(); _exit(0); }
    else wait(0);
    done = 1;
    for (int i = 1; i < threads; i++) pthread_join(ids[i], 0);
    return 0;
}
"""

# Two threads work in step while all is counted; whoever stops first after that spins until the
# other has stopped as well, which may have been waiting for it to go on.
AFTER = r"""
#include <pthread.h>
#include <unistd.h>
static volatile int over, here[2];
static volatile double sums[2][8];

static void *work(void *argument) {
    long id = (long)argument;
    while (!over)
        for (int i = 0; i < 1000; i++) sums[id][0] += i;
    here[id] = 1;
    while (!here[1 - id]) ;
    return 0;
}

int main(void) {
    pthread_t ids[2];
    for (long i = 0; i < 2; i++) pthread_create(&ids[i], 0, work, (void *)i);
    close(0x0A720001);
    close(0x0A720002);
    usleep(300000);
    close(0x0A720003);
    over = 1;
    for (int i = 0; i < 2; i++) pthread_join(ids[i], 0);
    return 0;
}
"""


def _misses(run):
    """Lines that loads fetched from DRAM, of all threads."""
    fetched = [EVENTS.index(name) for name in ("dram_stream", "dram_lone")]
    sites = [counts for block in run.blocks.values() for counts in block.events.values()]
    return sum(counts[event] for counts in sites for event in fetched)


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    return compiled(tmp_path_factory.mktemp("reader"), READ, *STATIC)


def test_one_fetch_serves_all_threads(reader):
    run, _ = trace([reader], Settings())
    # Without the pace a thread is a time slice ahead, and each fetches nearly all for itself.
    assert LINES * 0.95 < _misses(run) < LINES * 1.3


def test_what_is_not_shared_is_fetched_by_each(reader):
    run, _ = trace([reader, "apart"], Settings())
    assert _misses(run) > 4 * LINES * 0.95


def test_nobody_waits_for_who_waits(tmp_path):
    run, _ = trace([compiled(tmp_path, WAIT, *STATIC)], Settings(markers=False))
    most = max(sum(block.counts.values()) for block in run.blocks.values())
    assert most > 500 * 4096 / 16


def test_nobody_waits_when_nothing_is_counted(tmp_path):
    # Who waits never ends, and the test fails with subprocess.TimeoutExpired.
    trace([compiled(tmp_path, AFTER, *STATIC)], Settings(timeout=30))


@pytest.fixture(scope="module")
def spinner(tmp_path_factory):
    return compiled(tmp_path_factory.mktemp("spinner"), SPIN, *STATIC)


def test_who_spins_is_not_taken_for_who_works(spinner):
    def cycles(threads):
        run, _ = trace([spinner, str(threads)], Settings(markers=False))
        return estimate(Program(run), SHIPPED, threads).whole.cycles

    # Each thread executes as many instructions, three of them three in a cycle.
    assert cycles(4) == pytest.approx(cycles(1), rel=0.1)


def test_a_child_waits_for_none_of_its_parents_threads(spinner):
    # Each 4,096 of its two million instructions, 50 ms long: 25 s, and then the test fails with
    # subprocess.TimeoutExpired.
    trace([spinner, "4", "fork"], Settings(markers=False, timeout=15))
