/* What Python threads and native threads share: a slot for each worker, a lookout for each pool, a watch for each
   runtime.

   This file has the structs, and the transitions of a slot's word.

   Guarantees
   - No lock is shared with native threads: one of idle priority may be off the CPU for as long as others are busy,
     and a thread that waited for its lock would wait as long.  All sharing is by atomics.
   - Slots and lookouts are reused, never freed while the watch lives: a thread that looks may be late, but never reads
     freed memory.
   - A verdict fails if the worker has changed since it was looked at: every transition, the end of an item included,
     changes the word.

   README.md argues each word, and why no wake-up is lost.  */

#pragma once
#include "park.h"

enum {
    MAX_LOOKOUTS = 4096,
};

/* The states of a worker.  `word` is sequence << 3 | state, and every change of it advances the sequence, the end of an
   item included.  So a verdict (compare and swap) fails if the worker parked, woke or ended its item, or if another
   thread judged it, since it was looked at. */
enum {
    AWAY,                       /* not to be looked at: free, or exempt */
    PARKED,                     /* not looked at, either; unpark() makes it RUNNING */
    RUNNING,                    /* as far as is known */
    BLOCKED,                    /* a look found it asleep */
    ON_LOCK,                    /* a look found it asleep, waiting for a lock */
    STATE = 7,
    STEP = 8,
};

/* One worker, as the threads that look see it. */
typedef struct {
    Parking parking;            /* A */
    atomic_uint word;           /* A */
    atomic_int tid;             /* A: 0 while the slot is free, or its thread is starting */
    atomic_bool told;           /* P: Python was told that it sleeps */
    atomic_bool used;           /* P */
    atomic_flag reading;        /* A: taken by the thread that uses the last four fields; never waited for */
    atomic_ullong still;        /* A: since when it has been seen not to run: see still_for() */
    int kept, kept_tid;         /* with `reading`: descriptor + 1 on the syscall file of that thread; 0: none */
    dev_t kept_dev;             /* with `reading`: the file's identity */
    ino_t kept_ino;
} Slot;

/* One pool. */
typedef struct {
    atomic_ulong cpus[CPU_SETSIZE / (8 * sizeof(long))];    /* A: where its workers run */
    int capacity;               /* I */
    Slot *slots;                /* I: a slot is reused, never freed while the watch lives */
    atomic_int nr_slots;        /* A: slots[0:nr_slots] have been used */
    atomic_bool taken;          /* P: a pool has it; if not, it goes to the next one for which it has enough places */
    atomic_int target;          /* A: how many may run */
    atomic_int reserve;         /* A: slot to wake + 1; 0: nothing to do here (no work, or nobody to wake) */
    atomic_bool changed;        /* A: marks that Python has not read */
    atomic_int cursor;          /* A: where the next look begins */
    atomic_llong last_look;     /* A */
    atomic_uint lock;           /* A: the pool's lock: 0 free, 1 held, 2 held and somebody waits */
} Lookout;

/* One runtime. */
typedef struct {
    atomic_int refs;            /* A: the Python object and every native thread */
    atomic_bool stop;           /* A */
    atomic_uint bell;           /* A: futex; changes when a lookout is armed */
    atomic_int sleepers;        /* A: threads at the bell */
    atomic_llong gil_low, gil_high;     /* A: futexes in this range are the GIL's; empty range: no GIL */
    atomic_int nr_lookouts;     /* A */
    atomic_int nr_kept;         /* A: slots that keep a descriptor */
    int max_kept;               /* I */
    atomic_int natives;         /* A: native threads among the refs */
    pid_t pid;                  /* I */
    _Atomic(Lookout *) lookouts[MAX_LOOKOUTS];  /* A: set once */
    atomic_long looks, wakes;   /* A: statistics */
} Watch;

static void ring(Watch *watch)
{
    atomic_fetch_add(&watch->bell, 1);
    if (atomic_load(&watch->sleepers))
        futex(&watch->bell, FUTEX_WAKE, INT_MAX, NULL);
}

static unsigned step(unsigned word, unsigned state)
{
    return ((word & ~STATE) + STEP) | state;
}

/* Unpark the worker.  This changes the word of a parked slot only: an exempt one is away for another reason, which a
   late unpark does not end. */
static void unpark(Slot *slot, bool by_python)
{
    unsigned word = atomic_load(&slot->word);
    /* A worker on its way counts as running, or the next look would start another for the same work. */
    if ((word & STATE) == PARKED)
        atomic_compare_exchange_strong(&slot->word, &word, step(word, RUNNING));
    give(&slot->parking, by_python);
}

/* The worker's own transitions (park, exempt, free), which make earlier verdicts fail. */
static void slot_become(Slot *slot, unsigned state)
{
    unsigned word = atomic_load(&slot->word);
    while (!atomic_compare_exchange_weak(&slot->word, &word, step(word, state)))
        ;
}

static bool serves(Lookout *lookout, int cpu)
{
    const int bits = 8 * sizeof(long);
    return cpu < CPU_SETSIZE &&
           atomic_load_explicit(&lookout->cpus[cpu / bits], memory_order_relaxed) >> cpu % bits & 1;
}
