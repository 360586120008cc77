/* Which futexes are the GIL's, learnt without any CPython internals.

   learn_gil(): while the calling thread holds the GIL, a helper asks for it, and /proc tells on which address the
   helper waits.  The GIL keeps two condition variables and two mutexes side by side, so the result is a range of
   addresses.

   Guarantees: it watches for LEARN_WITHIN at most, and joins the helper, the one native thread that touches the GIL.
   If nothing was learnt, waits for the GIL count as lock waits.  */

#pragma once
#include "see.h"

#include <pthread.h>

enum {
    LEARN_WITHIN = 50 * MS,
    LEARN_PAUSE = 20 * US,
    SIGHTINGS = 3,              /* of the same address, in a row */
};

typedef struct { PyInterpreterState *interpreter; atomic_int tid; } Helper;

static void *helper_main(void *arg)
{
    Helper *helper = arg;
    PyThreadState *tstate = PyThreadState_New(helper->interpreter);
    if (!tstate)
        return NULL;
    atomic_store(&helper->tid, (int)syscall(SYS_gettid));
    PyEval_AcquireThread(tstate);
    PyThreadState_Clear(tstate);
#ifndef Py_LIMITED_API
    PyThreadState_DeleteCurrent();
#else
    PyEval_ReleaseThread(tstate);
    PyThreadState_Delete(tstate);       /* the caller joins this thread, so the interpreter is there */
#endif
    return NULL;
}

/* The address of the futex on which the helper waits for the GIL, which the caller holds; 0: it was not seen in time.
   */
static long long futex_of_helper(Watch *watch, Helper *helper)
{
    long long key = 0, seen = 0, deadline = now_ns(CLOCK_MONOTONIC) + LEARN_WITHIN;
    int sightings = 0;
    while (sightings < SIGHTINGS && now_ns(CLOCK_MONOTONIC) < deadline) {
        struct timespec pause = timespec_of(LEARN_PAUSE);
        clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, NULL);
        int tid = atomic_load(&helper->tid);
        if (!tid || look_at(watch, NULL, NULL, tid, &key) != WAITS_FOR_LOCK || !key)
            continue;
        sightings = key == seen ? sightings + 1 : 1;
        seen = key;
    }
    return sightings < SIGHTINGS ? 0 : seen;
}

/* Find the GIL's futexes.  1: found.  0: not found.  -1: an exception is set.  Context: the caller holds the GIL. */
static int learn_gil(Watch *watch)
{
    Helper helper = {.interpreter = PyInterpreterState_Get()};
    pthread_t thread;
    int error = pthread_create(&thread, NULL, helper_main, &helper);
    if (error) {
        errno = error;
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    atomic_store(&watch->gil_high, 0);
    long long seen = futex_of_helper(watch, &helper);
    Py_BEGIN_ALLOW_THREADS
    pthread_join(thread, NULL);
    Py_END_ALLOW_THREADS
    if (!seen)
        return 0;
    atomic_store(&watch->gil_low, seen - (long long)sizeof(pthread_cond_t));
    atomic_store(&watch->gil_high, seen + (long long)(sizeof(pthread_cond_t) + 2 * sizeof(pthread_mutex_t)));
    return 1;
}
