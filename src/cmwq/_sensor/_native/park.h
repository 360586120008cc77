/* Parking: a thread sleeps until another thread unparks it.

   park() waits for an unpark, give() is one.  This is in C because a thread can spin before it sleeps only without the
   GIL, and spinning is much cheaper where the wait is short.

   Guarantees
   - An unpark that comes before its park ends that park at once; several such unparks count as one.
   - No unpark is lost: the spinning is followed by the same compare-and-swap as without it.
   - The GIL is released once, for the spinning and the sleep together.
   - Ctrl-C ends a wait of the main thread (`interruptible`) at once. In the instant before each sleep, in which a signal
     does not wake the thread, it does so after FIRST_SLEEP, or when the wait has lasted twice as long.

   Relies on one thread at a time parking on a Parking, and on the memory outliving all threads that may unpark it.
   README.md, "How a thread parks", argues both the spinning and the sleep.  */

#pragma once
#include "base.h"

enum {
    PARK_SPIN = 50 * US,        /* a thread spins for this long before it sleeps, if it may and that paid off lately */
    PARK_SPINS = 150,           /* looks of any thread before it sleeps, without a GIL */
    ALONE = 5 * US,             /* if a look took longer, another thread had this CPU meanwhile */
    LET_GO = 20 * US,           /* an unparked thread waits this long for its waker to release the GIL */
    FIRST_SLEEP = 10 * MS,      /* of the main thread, which signals may interrupt */
    MAX_PENALTY = 63,           /* after spins in vain, at most this many are skipped */
};

/* What a thread sleeps on until it is unparked. */
typedef struct {
    atomic_uint token;          /* A: 0 empty, 1 unparked, 2 a thread sleeps */
    atomic_uint given;          /* A: what `nr_let_go` was when it was unparked */
} Parking;

static atomic_uint nr_let_go;   /* A: how often a thread released the GIL to park */
static THREAD_LOCAL struct { unsigned char rests, penalty; } habit;   /* whether spinning pays off for this thread */

/* Unpark.  `by_python`: the caller holds the GIL, and may park soon. */
static void give(Parking *parking, bool by_python)
{
    atomic_store_explicit(&parking->given, atomic_load(&nr_let_go) - !by_python, memory_order_relaxed);
    if (atomic_exchange(&parking->token, 1) == 2)
        futex(&parking->token, FUTEX_WAKE, 1, NULL);
}

static bool is_given(Parking *parking)
{
    return atomic_load_explicit(&parking->token, memory_order_acquire) == 1;
}

/* Spin for a moment, because waking a thread that sleeps on an idle CPU takes longer than many works.  If another thread
   had the CPU meanwhile, others want it, and the spin ends.  A thread spins only if it `may`, and where that was not in
   vain lately: after each spin in vain, twice as many parkings pass without one.  Without a GIL it spins a little in any
   case.  Once unparked, it waits until its waker has released the GIL, because to ask for the GIL before is to sleep,
   too.  Context: no GIL. */
static void spin(Parking *parking, bool may)
{
#ifdef Py_GIL_DISABLED
    for (int i = 0; i < PARK_SPINS && !is_given(parking); i++)
        spin_wait();
#endif
    bool longer = may && !habit.rests;
    long long now = now_ns(CLOCK_MONOTONIC), end = now + (longer ? PARK_SPIN : 0), before = now;
    while (!is_given(parking) && now < end && now - before < ALONE) {
        spin_wait();
        before = now;
        now = now_ns(CLOCK_MONOTONIC);
    }
    if (!is_given(parking)) {
        if (longer)
            habit.rests = habit.penalty = habit.penalty < MAX_PENALTY ? habit.penalty * 2 + 1 : MAX_PENALTY;
        else if (may)
            habit.rests--;
        return;
    }
    if (may)
        habit.rests = habit.penalty = 0;
#ifndef Py_GIL_DISABLED
    end = now + LET_GO;
    while (atomic_load(&nr_let_go) == atomic_load_explicit(&parking->given, memory_order_relaxed) && now < end) {
        spin_wait();
        now = now_ns(CLOCK_MONOTONIC);
    }
#endif
}

/* Sleep until unparked, with the GIL released once.  `until`: ns on the monotonic clock; -1: for ever.  False: a signal
   came first. */
static bool sleep_until_given(Parking *parking, long long until, bool spins)
{
    bool signalled = false;
    unsigned token = 0;
    Py_BEGIN_ALLOW_THREADS
    atomic_fetch_add(&nr_let_go, 1);
    spin(parking, spins);
    atomic_compare_exchange_strong(&parking->token, &token, 2);
    while (!signalled && atomic_load(&parking->token) == 2) {
        struct timespec left;
        if (until >= 0) {
            long long ns = until - now_ns(CLOCK_MONOTONIC);
            if (ns <= 0)
                break;
            left = timespec_of(ns);
        }
        signalled = futex(&parking->token, FUTEX_WAIT, 2, until < 0 ? NULL : &left) && errno == EINTR;
    }
    Py_END_ALLOW_THREADS
    return !signalled;
}

/* Whether this is the thread in which signal handlers run. */
static bool in_main_thread(void)
{
    return syscall(SYS_gettid) == getpid();
}

/* Wait for an unpark.  1: unparked.  0: `timeout` seconds passed (-1: for ever).  -1: a signal handler raised.  A
   signal that comes after the GIL was released, but before the thread sleeps, does not wake it.  That time may be long,
   if the thread that got the GIL has the CPU now.  So the first sleep of the main thread is a short one, and the next
   ones are each twice as long (`_core/asleep.py`). */
static int park(Parking *parking, double timeout, bool spins, bool interruptible)
{
    bool first = true, listens = interruptible && in_main_thread();
    long long now = now_ns(CLOCK_MONOTONIC), deadline = timeout < 0 ? -1 : now + (long long)(timeout * 1e9);
    long long sleep = FIRST_SLEEP;
    while (!is_given(parking) && (deadline < 0 || now < deadline || first)) {
        bool briefly = listens && (deadline < 0 || sleep < deadline - now);
        long long until = briefly ? now + sleep : deadline;
        bool undisturbed = sleep_until_given(parking, until, spins && first);
        if (interruptible && (briefly || !undisturbed) && PyErr_CheckSignals()) {
            unsigned token = 2;
            atomic_compare_exchange_strong(&parking->token, &token, 0);     /* an unpark is kept */
            return -1;
        }
        if (briefly && undisturbed)
            sleep *= 2;         /* signals disturb: only time that has passed makes it longer */
        first = false;
        now = now_ns(CLOCK_MONOTONIC);
    }
    return atomic_exchange(&parking->token, 0) == 1;
}
