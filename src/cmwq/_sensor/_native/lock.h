/* The locks on which it rests that neither an exception nor a call from within leaves anything half done.

   Its one job: Guard, a futex with an owner, a rank, a `mend` and a list of whom to wake once it is free.  They are
   here because only in C can a section begin and end between two bytecodes.  `cmwq._host.locks` is the same in
   Python.

   No deadlock.  A thread that holds a lock asks only for those of a higher rank: it, and whatever runs within it,
   finalisers and signal handlers, which count as what they interrupted.  So among the threads that wait for locks,
   the one that holds the highest rank waits for somebody who doesn't.  Who asks for another is refused before
   anything is touched.

   An exceptional end mends: `mend` recounts what the section may have left half done, before the lock is free.  If it
   fails, the lock is stained, and whoever gets it next mends first, or doesn't get it.

   What can't be done now can be done later (defer, in thread.h): when this thread holds none of them any more.

   That no frame leaves a lock behind is the business of lock_type.h.  */

#pragma once
#include "wake.h"

enum {
    LOCK_SPINS = 400,           /* looks at a pool's lock before sleeping for it, without a GIL */
    MAX_WOKEN = 8,              /* so many unparks of one section wait for its end */
    MAX_RANK = 31,
};

/* What a lock is besides its futex. */
typedef struct {
    const State *state;         /* I */
    atomic_uint *word;          /* I: 0 free, 1 held, 2 held and somebody waits */
    unsigned rank;              /* I */
    _Atomic(Thread *) owner;    /* L to change; anybody may ask whether it is himself */
    unsigned epoch;             /* F: a section that began in another is the parent's */
    PyObject *mend;             /* L, or before others know the lock */
    bool stained;               /* L: left by an exception, and not mended since */
    bool by_hand;               /* L: by acquire() */
    bool forgiven;              /* F: a release() is to come of what the parent acquired */
    int nr_woken;               /* L */
    PyObject *woken[MAX_WOKEN]; /* L */
} Guard;

/* Taken with the GIL held only.  Who got it while waiting for the GIL would stop whoever has that at its next item; two
   workers would change places, at four switches, for each. */
static void word_acquire(atomic_uint *word)
{
    unsigned value = 0;
    if (atomic_compare_exchange_strong(word, &value, 1))
        return;
#ifdef Py_GIL_DISABLED
    /* Whoever holds it runs, on another CPU, and lets go within microseconds: less than two futex calls take.  (With a
       GIL it would wait for the one that this thread has.) */
    for (int i = 0; i < LOCK_SPINS; i++) {
        if (value == 2)
            break;                      /* others sleep for it already */
        spin_wait();
        value = atomic_load_explicit(word, memory_order_relaxed);
        if (!value && atomic_compare_exchange_strong(word, &value, 1))
            return;
    }
#endif
    while (atomic_exchange(word, 2)) {
        Py_BEGIN_ALLOW_THREADS
        futex(word, FUTEX_WAIT, 2, NULL);
        Py_END_ALLOW_THREADS
    }
}

static void word_release(atomic_uint *word)
{
    if (atomic_exchange(word, 0) == 2)
        futex(word, FUTEX_WAKE, 1, NULL);
}

static bool is_held(const Guard *guard)
{
    Thread *me = this_thread;
    return me && atomic_load_explicit(&guard->owner, memory_order_relaxed) == me;
}

/* Note that the lock's holder doesn't hold it any more. */
static void forget_rank(const Guard *guard, Thread *holder)
{
    unsigned bit = 1u << guard->rank;
    if (holder == this_thread)
        atomic_store_explicit(&holder->held, atomic_load_explicit(&holder->held, memory_order_relaxed) & ~bit,
                              memory_order_relaxed);
    else
        atomic_fetch_or(&holder->let_go, bit);
}

static void note_rank(const Guard *guard, Thread *me)
{
    unsigned held = atomic_load_explicit(&me->held, memory_order_relaxed);
    if (atomic_load_explicit(&me->let_go, memory_order_relaxed))
        held &= ~atomic_exchange(&me->let_go, 0);
    atomic_store_explicit(&me->held, held | 1u << guard->rank, memory_order_relaxed);
}

/* False: those whom it woke, or what was deferred and is called now, raised what can't be kept back, and that is set.
   Context: held, if by another thread; no exception is set. */
static bool guard_unlock(Guard *guard)
{
    const State *state = guard->state;
    First first = {0};
    PyObject *woken[MAX_WOKEN];
    int nr_woken = guard->nr_woken;
    for (int i = 0; i < nr_woken; i++)
        woken[i] = guard->woken[i];
    guard->nr_woken = 0;
    guard->by_hand = false;
    Thread *holder = atomic_load_explicit(&guard->owner, memory_order_relaxed);
    bool foreign = holder != this_thread;
    if (foreign)
        atomic_fetch_add(&holder->refs, 1);
    atomic_store_explicit(&guard->owner, NULL, memory_order_relaxed);
    forget_rank(guard, holder);
    word_release(guard->word);          /* from here on it is another's */
    for (int i = 0; i < nr_woken; i++) {
        if (!wake_now(woken[i], state))
            keep(&first, woken[i]);
        Py_DECREF(woken[i]);
    }
    if (foreign) {
        inherit_deferred(holder);
        thread_release(holder);
    }
    Thread *me = this_thread;
    if (me && has_deferred(me) && !call_all_deferred(me))
        keep(&first, Py_None);
    return raise_first(&first);
}

/* Context: held; no exception is set.  False: one is. */
static bool guard_mend(Guard *guard)
{
    if (guard->mend) {
        PyObject *mend = Py_NewRef(guard->mend), *result = PyObject_CallNoArgs(mend);
        Py_DECREF(mend);
        if (!result)
            return false;
        Py_DECREF(result);
    }
    guard->stained = false;
    return true;
}

/* guard_unlock() where an exception is set, and stays. */
static void guard_unlock_under_exception(Guard *guard, PyObject *whose)
{
    PyObject *type, *exception, *traceback;
    PyErr_Fetch(&type, &exception, &traceback);
    if (!guard_unlock(guard))
        PyErr_WriteUnraisable(whose);
    PyErr_Restore(type, exception, traceback);
}

/* False: an exception is set, and it is not held. */
static bool guard_lock(Guard *guard, PyObject *whose)
{
    Thread *me = current_thread();
    if (!me)
        return false;
    if (held_by(me) >> guard->rank) {
        PyErr_SetString(guard->state->reentered,
                        "called by a finaliser or a signal handler in the middle of cmwq's own code on the same thread:
                        " "it would have to wait for itself"); return false; } word_acquire(guard->word);
                        atomic_store_explicit(&guard->owner, me, memory_order_relaxed); note_rank(guard, me); if
                        (guard->stained) { unsigned epoch = guard->epoch; if (!guard_mend(guard)) { if (guard->epoch ==
                        epoch)      /* else: it forked, and this is the child */
                guard_unlock_under_exception(guard, whose);
            return false;
        }
    }
    return true;
}

/* Is it held in a section of that thread?  Not if release() came first, or if this is the child of a fork. */
static bool is_within(const Guard *guard, const Thread *holder, unsigned epoch)
{
    return atomic_load_explicit(&guard->owner, memory_order_relaxed) == holder && guard->epoch == epoch;
}

/* False: an exception is set. */
static bool guard_end(Guard *guard, const Thread *holder, unsigned epoch, bool exceptional)
{
    if (!is_within(guard, holder, epoch))
        return true;
    if (exceptional && guard->mend) {
        guard->stained = true;
        if (!guard_mend(guard))
            PyErr_Clear();
        if (!is_within(guard, holder, epoch))
            return true;
    }
    return guard_unlock(guard);
}

/* Nobody holds it any more, and nobody is woken. */
static void guard_forget(Guard *guard)
{
    Thread *holder = atomic_exchange(&guard->owner, NULL);
    if (holder)
        forget_rank(guard, holder);
    guard->by_hand = false;
    while (guard->nr_woken)
        Py_DECREF(guard->woken[--guard->nr_woken]);
}

static void guard_init(Guard *guard, PyTypeObject *type, atomic_uint *word, int rank, PyObject *mend)
{
    memset(guard, 0, sizeof *guard);
    guard->state = PyType_GetModuleState(type);
    guard->word = word;
    guard->rank = (unsigned)rank;
    guard->mend = Py_XNewRef(mend);
}

/* For the end of what it is part of. */
static void guard_clear(Guard *guard)
{
    guard_forget(guard);
    Py_XDECREF(guard->mend);
}

static bool valid_rank(int rank)
{
    if (rank >= 0 && rank <= MAX_RANK)
        return true;
    PyErr_Format(PyExc_ValueError, "a lock's rank is from 0 to %d, not %d", MAX_RANK, rank);
    return false;
}

static bool valid_mend(PyObject *mend)
{
    if (mend == Py_None || PyCallable_Check(mend))
        return true;
    PyErr_Format(PyExc_TypeError, "mend must be callable or None, not %.200s", Py_TYPE(mend)->tp_name);
    return false;
}
