/* One look at a pool's workers: which of them sleep, and whether the reserve is to be woken.

   This file has the rules by which a sentinel, the tick, or a worker about to go idle judges what it sees.  They are
   the same as in `_ticking.py`; tests/sensors/test_situations.py tests both with the same table of situations.

   Guarantees
   - A look wakes at most one worker, the reserve that the pool named.  A look by a worker wakes nobody.
   - Nobody is woken once `enough` were found runnable, nor while one waits for the GIL (the GIL rule: another could
     only queue behind it).  The look is over then, whatever the others do: a hundred workers whose sleeps ended
     together, and which queue for a CPU, would otherwise be read again and again.  Only a worker's look goes on past a
     waiter for the GIL.
   - A mark is made only if the worker's word has not changed since it was read: mark() compares it.
   - Nothing is held while the reserve is unparked, because that may preempt this thread for a long time.

   Context: any thread, no GIL needed; several may look at one pool at once.  */

#pragma once
#include "see.h"

enum {
    SHORT_WAIT = 50 * US,       /* a lock wait must last this, times (1 + young ones), to count as blocked */
    YOUNG = 10 * MS,            /* a lock wait older than this no longer damps the next */
    STILL = 10 * MS,            /* a CPU clock must stand for this: a waiter for the GIL stirs more often */
    MAX_WAITING = 32,           /* lock waits that one look judges; those beyond count as runnable */
};

/* For tests: what is seen of a slot's thread, and for how many ns it has not run (-1: it has ended). */
typedef struct {
    Doing doing;
    long long still;
} Sighting;

/* What one look has found so far. */
typedef struct {
    Watch *watch;
    Lookout *lookout;
    const Slot *self;           /* the worker that looks; NULL: a sentinel or the tick */
    int enough;                 /* with this many runnable workers nobody need be woken */
    Sighting *script;           /* used instead of the system for the first nr_scripted slots; NULL: none */
    int nr_scripted;
    long long now;              /* when it began */
    int runnable;
    int gil_waiters;            /* among the runnable ones */
    int young;                  /* counted as blocked in a lock, for less than YOUNG */
    Slot *asleep;               /* the one believed blocked that is visited; NULL: none */
    unsigned asleep_word;
    int nr_waiting;
    struct { Slot *slot; unsigned word; long long key; } waiting[MAX_WAITING];   /* in locks, to be judged at the end */
} Look;

static const Sighting *scripted(const Look *look, const Slot *slot)
{
    ptrdiff_t i = slot - look->lookout->slots;
    return look->script && i < look->nr_scripted ? &look->script[i] : NULL;
}

static Doing doing_of(const Look *look, Slot *slot, long long *key)
{
    const Sighting *sighting = scripted(look, slot);
    int tid = atomic_load(&slot->tid);
    *key = 0;
    if (sighting)
        return sighting->doing;
    if (!tid)
        return RUNS;                    /* it was unparked while its thread starts */
    return look_at(look->watch, look->lookout, slot, tid, key);
}

static long long stillness(const Look *look, Slot *slot, unsigned word, long long key)
{
    const Sighting *sighting = scripted(look, slot);
    return sighting ? sighting->still : still_for(slot, word, key);
}

static bool is_young(const Look *look, Slot *slot)
{
    const Sighting *sighting = scripted(look, slot);
    return sighting ? sighting->still < YOUNG
                    : short_time(look->now) - (uint32_t)atomic_load(&slot->still) < short_time(YOUNG);
}

/* Record a verdict.  False: the worker has changed since `word` was read, and nothing is recorded. */
static bool mark(const Look *look, Slot *slot, unsigned word, unsigned state)
{
    if (!atomic_compare_exchange_strong(&slot->word, &word, step(word, state)))
        return false;
    atomic_store(&look->lookout->changed, true);
    return true;
}

/* Whether nobody will be woken, whatever the other workers do. */
static bool is_decided(const Look *look)
{
    return look->runnable >= look->enough || (look->gil_waiters && !look->self);
}

/* Look at a worker that is believed to run. */
static void visit_running(Look *look, Slot *slot, unsigned word)
{
    long long key, still;
    switch (doing_of(look, slot, &key)) {
    case WAITS_FOR_GIL:
        look->gil_waiters++;
        look->runnable++;
        break;
    case WAITS_FOR_LOCK:
        if (look->nr_waiting < MAX_WAITING) {
            look->waiting[look->nr_waiting].slot = slot;
            look->waiting[look->nr_waiting].word = word;
            look->waiting[look->nr_waiting++].key = key;
        } else
            look->runnable++;           /* its turn comes when some of those are marked */
        break;
    case SLEEPS:
        mark(look, slot, word, BLOCKED);
        break;
    case RUNS:
        look->runnable++;
        break;
    case UNKNOWN:
        /* The CPU-clock rule.  When a worker looks, every CPU is busy, and a clock that stands proves nothing. */
        still = look->self ? 0 : stillness(look, slot, word, -1);
        if (still >= STILL)
            mark(look, slot, word, BLOCKED);
        else if (still >= 0)
            look->runnable++;           /* else it has ended */
        break;
    }
}

/* Visit the workers believed running, until the look is decided.  Of those believed blocked the first is noted, and the
   next look begins behind it, so that each has its turn.  Returns whether all slots were passed. */
static bool visit_all(Look *look)
{
    Lookout *lookout = look->lookout;
    int n = atomic_load(&lookout->nr_slots), first = n ? atomic_load(&lookout->cursor) % n : 0, k = 0;
    for (; k < n && !is_decided(look); k++) {
        int i = first + k < n ? first + k : first + k - n;
        Slot *slot = &lookout->slots[i];
        unsigned word = atomic_load_explicit(&slot->word, memory_order_relaxed), state = word & STATE;
        if (state == AWAY || state == PARKED || slot == look->self)
            continue;
        if (state == RUNNING) {
            visit_running(look, slot, word);
            continue;
        }
        look->young += state == ON_LOCK && is_young(look, slot);
        if (!look->asleep) {
            look->asleep = slot;
            look->asleep_word = word;
            atomic_store_explicit(&lookout->cursor, i + 1, memory_order_relaxed);
        }
    }
    return k == n;
}

/* Mark the noted worker if it is runnable again.  There is no hurry: a worker that ends its item corrects itself. */
static void visit_one_asleep(Look *look)
{
    long long key;
    if (!look->asleep || is_decided(look))
        return;
    Doing doing = doing_of(look, look->asleep, &key);
    if ((doing == RUNS || doing == WAITS_FOR_GIL) && mark(look, look->asleep, look->asleep_word, RUNNING)) {
        look->gil_waiters += doing == WAITS_FOR_GIL;
        look->runnable++;
    }
}

/* The lasting-lock rule.  A contended lock looks like a blocked worker; starting another for it makes more
   contention, and so on without end.  So the wait must have lasted, without the thread having run in between, and for
   longer the more others were lately counted as waiting for locks.  With nobody running and no young waits, the first
   counts at once, because the thread that holds that lock is not about to release it.  Context: all workers were
   passed, so that all young waits were counted. */
static void judge_waits(Look *look)
{
    bool others_run = look->runnable > 0;
    for (int i = 0; i < look->nr_waiting; i++) {
        Slot *slot = look->waiting[i].slot;
        unsigned word = look->waiting[i].word;
        if (stillness(look, slot, word, look->waiting[i].key) >= SHORT_WAIT * (others_run + look->young)) {
            mark(look, slot, word, ON_LOCK);
            look->young++;
        } else
            look->runnable++;
    }
}

static bool wake_reserve(const Look *look)
{
    Lookout *lookout = look->lookout;
    int reserve = look->self || is_decided(look) ? 0 : atomic_exchange(&lookout->reserve, 0);
    if (!reserve)
        return false;
    atomic_fetch_add_explicit(&look->watch->wakes, 1, memory_order_relaxed);
    unpark(&lookout->slots[reserve - 1], false);    /* may preempt this thread for long, so it holds nothing */
    return true;
}

/* Take one look.  Returns whether a worker was woken. */
static bool look_as(Look *look)
{
    look->now = now_ns(CLOCK_MONOTONIC);
    look->runnable = look->gil_waiters = look->young = look->nr_waiting = 0;
    look->asleep = NULL;
    atomic_store(&look->lookout->last_look, look->now);
    atomic_fetch_add_explicit(&look->watch->looks, 1, memory_order_relaxed);
    bool complete = visit_all(look);
    visit_one_asleep(look);
    if (complete && !is_decided(look))  /* otherwise nobody would be woken for those marked now */
        judge_waits(look);
    return wake_reserve(look);
}

static bool look(Watch *watch, Lookout *lookout, const Slot *self, int enough)
{
    Look look;
    look.watch = watch;
    look.lookout = lookout;
    look.self = self;
    look.enough = enough;
    look.script = NULL;
    return look_as(&look);
}
