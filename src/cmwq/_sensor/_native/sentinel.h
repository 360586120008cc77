/* The native threads that look: a sentinel on each CPU, and one plain tick.

   This file says when they look and when they sleep.  A sentinel is pinned to its CPU, with policy SCHED_IDLE.  The
   kernel runs it only when that CPU has nothing better to do, so *being scheduled is the event*: the last runnable
   worker there blocked.

   Guarantees
   - These threads never touch the GIL or a Python object.
   - They sleep on one futex (Watch.bell) whenever no lookout is armed, without periodic wake-ups.
   - They are level-triggered: while a lookout is armed the sentinels look again and again (backing off to 1 ms).  So
     blocking may be noticed late, but is never missed.
   - Memory that they may reach is freed by the last of them to end.  */

#pragma once
#include "look.h"

#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>

enum {
    BACKOFF_MIN = 20 * US,      /* the first pause after a look that found nothing to start */
    BACKOFF_MAX = 1 * MS,
    LINGER = 100 * US,          /* a sentinel goes on looking for this long after an event */
    KEPT_OFF = 50 * US,         /* more than this between two looks: other threads had the CPU meanwhile */
    NAP = 20 * US,              /* long enough for a lock of a free-threaded build to end its spinning */
    SHORT_TURN = 100 * US,      /* the shortest that the kernel takes */
    GONE = 50 * MS,             /* between two tries to get back to a CPU that is offline */
    QUIET_TICKS = 10,           /* after this many ticks without anything armed, the tick goes to sleep */
    TICK = 10 * MS,             /* the plain tick's period, in case other processes starve every sentinel */
    TICK_MAX = 4 * TICK,        /* its period grows up to this while it finds nothing to do */
};

static void watch_release(Watch *watch)
{
    if (atomic_fetch_sub(&watch->refs, 1) > 1)
        return;
    for (int i = 0; i < atomic_load(&watch->nr_lookouts); i++) {
        Lookout *lookout = atomic_load(&watch->lookouts[i]);
        for (int k = 0; k < lookout->capacity; k++)
            if (lookout->slots[k].kept)
                close_kept(watch, &lookout->slots[k]);
        free(lookout->slots);
        free(lookout);
    }
    free(watch);
}

typedef struct { Watch *watch; int cpu; } Post;         /* cpu -1: the tick */

/* Look at each armed pool of a CPU once (-1: at all that no thread has looked at for a tick). */
static void make_round(Watch *watch, int cpu, bool *armed, bool *woke)
{
    *armed = *woke = false;
    for (int i = 0, n = atomic_load(&watch->nr_lookouts); i < n; i++) {
        Lookout *lookout = atomic_load(&watch->lookouts[i]);
        if (!atomic_load(&lookout->reserve) || (cpu >= 0 && !serves(lookout, cpu)))
            continue;
        *armed = true;
        if (cpu >= 0 || now_ns(CLOCK_MONOTONIC) - atomic_load(&lookout->last_look) > TICK)
            *woke |= look(watch, lookout, NULL, cpu < 0 ? 1 : atomic_load(&lookout->target));
    }
}

/* Sleep until the bell changes from what it was, or `ns` have passed; -1: for ever. */
static void wait_for_bell(Watch *watch, unsigned bell, long long ns)
{
    struct timespec pause = timespec_of(ns);
    atomic_fetch_add(&watch->sleepers, 1);
    futex(&watch->bell, FUTEX_WAIT, bell, ns < 0 ? NULL : &pause);
    atomic_fetch_sub(&watch->sleepers, 1);
}

/* Whether the thread is on its CPU.  The kernel moves a thread off a CPU that goes offline, and never back, so it moves
   back by itself. */
static bool at_post(int cpu)
{
    cpu_set_t post;
    if (sched_getcpu() == cpu)
        return true;
    CPU_ZERO(&post);
    CPU_SET(cpu, &post);
    return !sched_setaffinity(0, sizeof post, &post) && sched_getcpu() == cpu;
}

/* A sentinel looks again and again for LINGER after an event.  On an idle CPU that delays nobody, and on a busy one
   sched_yield() leaves the CPU to the threads that have work.  It must not sleep on a busy CPU: getting the CPU back is
   the event that it waits for, and a pause begun a moment before would hide it.  Where no other thread wants the CPU it
   naps, because only a CPU without any runnable thread pulls over one that queues on another CPU. */
static void sentinel_main(Watch *watch, int cpu)
{
    long long active = now_ns(CLOCK_MONOTONIC), last = active, backoff = BACKOFF_MIN;
    unsigned last_bell = 0;
    while (!atomic_load(&watch->stop)) {
        bool armed, woke;
        unsigned bell = atomic_load(&watch->bell);
        if (!at_post(cpu)) {            /* its CPU is gone, so there is nothing to look for */
            struct timespec pause = timespec_of(GONE);
            clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, NULL);
            wait_for_bell(watch, bell, -1);
            continue;
        }
        make_round(watch, cpu, &armed, &woke);
        long long now = now_ns(CLOCK_MONOTONIC);
        if (woke || bell != last_bell || (armed && now - last > KEPT_OFF)) {
            active = now;
            backoff = BACKOFF_MIN;
        }
        last_bell = bell;
        if (now - active < LINGER) {
            last = now;
            sched_yield();
            if (armed && !woke && now_ns(CLOCK_MONOTONIC) - last < ALONE) {
                wait_for_bell(watch, bell, NAP);
                last = now_ns(CLOCK_MONOTONIC);     /* a nap, however long, does not count as being kept off */
            }
            continue;
        }
        wait_for_bell(watch, bell, armed ? backoff : -1);
        backoff = backoff * 2 < BACKOFF_MAX ? backoff * 2 : BACKOFF_MAX;
        last = now_ns(CLOCK_MONOTONIC);
    }
}

/* The tick does not wait on the bell while it may be needed: it has a normal thread's priority, so it must not run each
   time a pool is armed. */
static void tick_main(Watch *watch)
{
    int quiet = 0;
    long long period = TICK;
    while (!atomic_load(&watch->stop)) {
        bool armed, woke;
        unsigned bell = atomic_load(&watch->bell);
        make_round(watch, -1, &armed, &woke);
        quiet = armed ? 0 : quiet + 1;
        period = woke || !armed ? TICK : period * 2 < TICK_MAX ? period * 2 : TICK_MAX;
        if (quiet > QUIET_TICKS)
            wait_for_bell(watch, bell, -1);
        else {
            struct timespec pause = timespec_of(period);
            clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, NULL);
        }
    }
}

/* Ask for turns as short as the kernel gives them (Linux 6.12 on; before that it does nothing).  A turn comes the later
   the longer it is and the less the thread weighs, and SCHED_IDLE weighs 1/341 of a normal thread: beside three busy
   threads the usual 3 ms come after a second.  So long would the end of the process take, since a thread must run in
   order to end, on a CPU that has better things to do.  The policy itself can't be taken back without a privilege.  It
   has to come before SCHED_IDLE, with which the kernel accepts no length, but keeps it. */
static void take_short_turns(void)
{
    struct { uint32_t size, policy; uint64_t flags; int32_t nice; uint32_t priority; uint64_t runtime, deadline, period; }
        attr = {.size = sizeof attr};
    if (syscall(SYS_sched_getattr, 0, &attr, sizeof attr, 0))
        return;
    attr.flags = 0;
    attr.runtime = SHORT_TURN;
    syscall(SYS_sched_setattr, 0, &attr, 0);
}

static void *native_main(void *arg)
{
    Post post = *(Post *)arg;
    free(arg);
    prctl(PR_SET_NAME, post.cpu < 0 ? "cmwq/tick" : "cmwq/sentinel");
    prctl(PR_SET_TIMERSLACK, 1);
    if (post.cpu < 0)
        tick_main(post.watch);
    else {
        struct sched_param param = {0};
        take_short_turns();
        sched_setscheduler(0, SCHED_IDLE, &param);      /* glibc's thread attributes refuse this policy */
        sentinel_main(post.watch, post.cpu);
    }
    atomic_fetch_sub(&post.watch->natives, 1);
    watch_release(post.watch);
    return NULL;
}

static int start_thread(Watch *watch, int cpu)
{
    Post *post = malloc(sizeof *post);
    pthread_attr_t attr;
    pthread_t thread;
    sigset_t all, before;
    if (!post)
        return ENOMEM;
    *post = (Post){watch, cpu};
    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attr, PTHREAD_STACK_MIN > 65536 ? PTHREAD_STACK_MIN : 65536);
    if (cpu >= 0) {
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET(cpu, &set);
        pthread_attr_setaffinity_np(&attr, sizeof set, &set);
    }
    sigfillset(&all);                   /* signals must go to Python's threads */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    atomic_fetch_add(&watch->refs, 1);
    atomic_fetch_add(&watch->natives, 1);
    int error = pthread_create(&thread, &attr, native_main, post);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attr);
    if (error) {
        free(post);
        atomic_fetch_sub(&watch->natives, 1);
        watch_release(watch);
    }
    return error;
}
