/* The locks, which neither an exception nor a call from within a section leaves in a bad state.

   A Guard is a futex with an owner, a rank, a `mend` and a list of parkers to unpark once it is free.  This is in C
   because only there can a section begin and end between two bytecodes.  `cmwq._host.locks` is the same in Python.

   No deadlock.  A thread that holds a lock may ask only for those of a higher rank.  That includes finalisers and
   signal handlers, which count as the code that they interrupted.  So among the threads that wait for locks, the one
   that holds the highest rank waits for a thread that doesn't wait.  Any other request is refused before anything is
   changed.

   A section that ends by an exception mends: `mend` recounts what the section may have left half done, before the lock
   is free.  If it fails, the lock is stained, and the next thread that takes it mends first, or doesn't get it.

   What can't be done under a lock can be deferred (thread.h) until this thread holds none.

   lock_type.h makes sure that no frame leaves a lock held.  */

#pragma once
#include "wake.h"

enum {
    LOCK_SPINS = 400,           /* looks at a pool's lock before sleeping for it, without a GIL */
    MAX_WOKEN = 8,              /* at most this many unparks of one section wait for its end */
    MAX_RANK = 31,
};

/* A lock's word: 0, or these and the generation of the process in which it was taken. */
enum {
    HELD = 1,
    CONTENDED = 2,              /* a thread waits, perhaps */
    GENERATION = 4,             /* the first; each fork adds as many */
};

/* A lock, without its futex. */
typedef struct {
    const State *state;         /* I */
    atomic_uint *word;          /* I */
    unsigned rank;              /* I */
    _Atomic(Thread *) owner;    /* L to change; any thread may check whether it is the owner */
    unsigned epoch;             /* F: a section that began in another epoch is the parent's */
    PyObject *mend;             /* L, or before others know the lock */
    atomic_bool stained;        /* L to change: an exception ended a section, and `mend` has not succeeded since */
    bool by_hand;               /* L: taken by acquire() */
    bool forgiven;              /* F: the parent acquired it, and the child's release() is still to come */
    int nr_woken;               /* L */
    PyObject *woken[MAX_WOKEN]; /* L */
} Guard;

/* Hooks of others that come before ours in the child of a fork may call us, and may start threads that do, while locks
   are still as the parent's threads left them.  So a lock says in which process it was taken: of one that was taken in
   an earlier process the holder is gone, unless it is the thread that forked. */
static unsigned generation = GENERATION;    /* of this process; changed while it has only one thread */
static Thread *survivor;                    /* the thread that made this process; NULL: it had never taken a lock */

static void note_fork(void)
{
    generation += GENERATION;
    survivor = this_thread;
}

/* Was the lock, whose word was this, left by a thread that is not in this process? */
static bool is_left_over(const Guard *guard, unsigned word)
{
    return word / GENERATION != generation / GENERATION &&
           (!survivor || atomic_load_explicit(&guard->owner, memory_order_relaxed) != survivor);
}

/* Take the lock.  It is taken only while the GIL is held: a thread that got it and then waited for the GIL would stop
   the thread that holds the GIL at its next item, and two workers would alternate, at four switches per item. */
static void word_acquire(const Guard *guard)
{
    atomic_uint *word = guard->word;
    unsigned value = 0, held = generation | HELD;
    if (atomic_compare_exchange_strong(word, &value, held))
        return;
#ifdef Py_GIL_DISABLED
    /* The holder runs on another CPU, and releases it within microseconds, in less time than two futex calls take.
       (With a GIL the holder would wait for the GIL, which this thread holds.) */
    for (int i = 0; i < LOCK_SPINS; i++) {
        if (value & CONTENDED)
            break;                      /* other threads sleep for it already */
        spin_wait();
        value = atomic_load_explicit(word, memory_order_relaxed);
        if (!value && atomic_compare_exchange_strong(word, &value, held))
            return;
    }
#endif
    held |= CONTENDED;
    while ((value = atomic_exchange(word, held)) && !is_left_over(guard, value)) {
        Py_BEGIN_ALLOW_THREADS
        futex(word, FUTEX_WAIT, held, NULL);
        Py_END_ALLOW_THREADS
    }
}

static void word_release(atomic_uint *word)
{
    if (atomic_exchange(word, 0) & CONTENDED)
        futex(word, FUTEX_WAKE, 1, NULL);
}

static bool is_held(const Guard *guard)
{
    Thread *me = this_thread;
    return me && atomic_load_explicit(&guard->owner, memory_order_relaxed) == me;
}

/* Note that the holder no longer holds this lock. */
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

/* Release the lock, unpark the listed parkers, and make the deferred calls.  False: one of these raised an exception
   that must be raised, and it is set.  Context: the lock is held, perhaps by another thread; no exception is set. */
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
    word_release(guard->word);          /* from here on it may be another thread's */
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

/* Call `mend`.  False: it raised, and the exception is set.  Context: held; no exception is set. */
static bool guard_mend(Guard *guard)
{
    if (guard->mend) {
        bool more = deepen();           /* a RecursionError in the section would come again */
        PyObject *mend = Py_NewRef(guard->mend), *result = PyObject_CallNoArgs(mend);
        Py_DECREF(mend);
        restore_depth(more);
        if (!result)
            return false;
        Py_DECREF(result);
    }
    guard->stained = false;
    return true;
}

/* guard_unlock() while an exception is set, which stays set. */
static void guard_unlock_under_exception(Guard *guard, PyObject *whose)
{
    PyObject *type, *exception, *traceback;
    PyErr_Fetch(&type, &exception, &traceback);
    if (!guard_unlock(guard))
        PyErr_WriteUnraisable(whose);
    PyErr_Restore(type, exception, traceback);
}

/* Take the lock, and mend it if it is stained.  False: an exception is set, and the lock is not held. */
static bool guard_lock(Guard *guard, PyObject *whose)
{
    Thread *me = current_thread();
    if (!me)
        return false;
    if (held_by(me) >> guard->rank) {
        PyErr_SetString(guard->state->refused,
                        "called by a finaliser or a signal handler in the middle of cmwq's own code on the same thread: "
                        "it would have to wait for itself");
        return false;
    }
    word_acquire(guard);
    atomic_store_explicit(&guard->owner, me, memory_order_relaxed);
    note_rank(guard, me);
    if (guard->stained) {
        unsigned epoch = guard->epoch;
        if (!guard_mend(guard)) {
            if (guard->epoch == epoch)      /* else `mend` forked, and this is the child */
                guard_unlock_under_exception(guard, whose);
            return false;
        }
    }
    return true;
}

/* Whether it is held in a section of that thread.  Not if release() came first, or if this is the child of a fork. */
static bool is_within(const Guard *guard, const Thread *holder, unsigned epoch)
{
    return atomic_load_explicit(&guard->owner, memory_order_relaxed) == holder && guard->epoch == epoch;
}

/* End a section.  False: an exception is set. */
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

/* `raised_by_us`.  Context: no exception is set. */
static bool raised_by_us(const State *state, PyObject *traceback)
{
    bool ours = true;
    Py_XINCREF(traceback);
    while (ours && traceback && traceback != Py_None) {
        PyObject *frame = PyObject_GetAttrString(traceback, "tb_frame"), *next = NULL;
        PyObject *code = frame ? PyObject_GetAttrString(frame, "f_code") : NULL;
        PyObject *file = code ? PyObject_GetAttrString(code, "co_filename") : NULL;
        ours = file && PyUnicode_Tailmatch(file, state->package, 0, PY_SSIZE_T_MAX, -1) == 1 &&
               (next = PyObject_GetAttrString(traceback, "tb_next"));
        Py_XDECREF(file);
        Py_XDECREF(code);
        Py_XDECREF(frame);
        Py_DECREF(traceback);
        traceback = next;
    }
    Py_XDECREF(traceback);
    PyErr_Clear();
    return ours;
}

/* Has the section refused something, before it changed anything?  Context: no exception is set. */
static bool is_refusal(const State *state, PyObject *type, PyObject *traceback)
{
    return PyErr_GivenExceptionMatches(type, state->refusals) && raised_by_us(state, traceback);
}

/* Make the lock free and wake nobody. */
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

/* For the dealloc of the object that it is part of. */
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
    wrong_type("mend must be callable or None", mend);
    return false;
}
