/* The twin's worker: `process_works`, the loop that takes items and runs them.

   The truth: `_pool/worker_thread.py`.

   Without a GIL a worker that finds nothing more in the list lingers for a moment before it rests, because the thread
   that queues may be about to list the next item, and to wake a worker costs both of them more than many works take.
   A worker that lingers is in the state of one that was kicked and has not arrived: it is counted, `kicked`, and among
   `nr_waking`.  So every rule holds as it is written: nobody is woken for the item for which it lingers, a second item
   has another worker woken, and mending, counting and closing know that state.  It lingers without the lock, for LINGERS
   looks at the list, a few microseconds.  The race: an item is listed just after the last look.  The worker takes the
   lock before it gives up that state, and looks once more.  */

#pragma once
#include "twin_insert.h"

enum {
    LINGERS = 200,               /* looks at the list of a worker that has nothing more to do, without a GIL */
};

typedef struct {
    PoolRecord *pool;
    WorkerRecord *worker;
    PyObject *lock, *worklist, *records;    /* its own references: none of them changes while the pool lives */
    Guard *guard;
    Runner runner;
    PyObject *last, *item, *follower;       /* its own references, or NULL */
    Py_ssize_t running, target;
} Loop;

static int loop_acquire(Loop *l)
{
    if (!guard_lock(l->guard, l->lock))
        return -1;
    l->guard->by_hand = true;
    return 0;
}

static int loop_release(Loop *l)
{
    if (is_held(l->guard))
        return guard_unlock(l->guard) ? 0 : -1;
    PyObject *released = guard_release(l->guard);       /* the rest of what was begun before a fork */
    Py_XDECREF(released);
    return released ? 0 : -1;
}

static int call_of_pair(PyObject *fn, Loop *l)
{
    PyObject *args[] = {(PyObject *)l->pool, (PyObject *)l->worker};
    return call_void(fn, args, 2);
}

static void read_counts(Loop *l)
{
    l->running = l->pool->nr_running;
    l->target = l->pool->target;
}

/* Drop an item that has ended.  Context: no lock held, since finalisers are user code. */
static void drop(PyObject **item)
{
    PyObject *old = *item;
    *item = NULL;
    Py_XDECREF(old);
}

/* Claim the item for the worker.  1: claimed; 0: not; -1: an exception is set. */
static int claim(Loop *l, PyObject *item)
{
    if (Py_IS_TYPE(item, (PyTypeObject *)twin.Future))
        return future_claim((FutureRecord *)item);
    if (Py_IS_TYPE(item, (PyTypeObject *)twin.Queued))
        return queued_claim((QueuedRecord *)item, (PyObject *)l->worker);
    PyObject *claimed = PyObject_CallMethodOneArg(item, name_of.claim, (PyObject *)l->worker);
    int truth = claimed ? PyObject_IsTrue(claimed) : -1;
    Py_XDECREF(claimed);
    return truth;
}

/* The item that was taken is not run here and now: put it away.  -1: an exception is set. */
static int pass(Loop *l)
{
    set_field(l->worker, &l->worker->item, NULL);
    set_field(l->worker, &l->worker->record, NULL);     /* what is known of the function that it does not execute */
    int kicked = method_bool((PyObject *)l->pool, name_of.kick);    /* its place may have gone to other items */
    if (kicked < 0 || (!kicked && method_void((PyObject *)l->pool, name_of.settle)) || loop_release(l))
        return -1;
    drop(&l->last);
    drop(&l->item);
    return loop_acquire(l);
}

/* Take the next item of the list and claim it, as l->item.  1: done; 0: it was put away; 2: the worker has to stop; -1:
   an exception is set. */
static int take(Loop *l)
{
    read_counts(l);
    PyObject *args[] = {(PyObject *)l->pool, (PyObject *)l->worker, NULL};
    if (l->running > l->target && l->last) {
        int goes_on = call_bool(twin.goes_on, args, 2);
        if (goes_on <= 0)
            return goes_on < 0 ? -1 : 2;
        l->running = l->pool->nr_running;
    }
    if (!(l->item = deque_popleft(l->worklist)))
        return -1;
    set_field(l->worker, &l->worker->item, Py_NewRef(l->item));
    int claimed = 1;
    if (PyDict_GET_SIZE(l->records)) {
        args[2] = l->item;
        int aside = call_bool(twin.set_aside, args, 3);
        claimed = aside < 0 ? -1 : !aside;
    }
    if (claimed > 0)
        claimed = claim(l, l->item);
    if (claimed <= 0)
        return claimed < 0 || pass(l) ? -1 : 0;
    if (l->worker->record) {
        PyObject *running = PyObject_Vectorcall(twin.begin_on_record, args, 2, NULL);
        if (!running)
            return -1;
        l->running = PyLong_AsSsize_t(running);
        Py_DECREF(running);
    }
    return 1;
}

/* Wake the next worker if more works wait and more may run (A6), and arm the sensor.  What is not called here would do
   nothing: see twin_insert.h.  -1: an exception is set. */
static int look_after_the_rest(Loop *l)
{
    PoolRecord *pool = l->pool;
    Py_ssize_t waiting = length(l->worklist);
    if (!waiting)
        return pool->armed_with || PySet_GET_SIZE(pool->nappers) ? method_void((PyObject *)pool, name_of.settle) : 0;
    if (!PyList_GET_SIZE(pool->idle_list))
        return 0;
    bool on_their_way = waiting <= pool->nr_waking || (pool->nr_waking && pool->gil);
    if (l->running < l->target && !on_their_way && method_void((PyObject *)pool, name_of.kick))
        return -1;
    if (!pool->armed_with && !pool->nr_waking)
        return method_void((PyObject *)pool, name_of.settle);
    return 0;
}

/* Run the item, with no lock held.  -1: an exception that is not the function's is set. */
static int run(Loop *l)
{
    PyObject **field = phase_of(l->item), *phase = field ? *field : NULL;   /* it does not change any more */
    bool served = field && phase == peek(&l->worker->served);
    if (!field) {
        if (!(phase = PyObject_GetAttr(l->item, name_of.phase)))
            return -1;
        served = phase == peek(&l->worker->served);
        Py_DECREF(phase);
    }
    l->runner.breathed = true;          /* all but the direct calls go through Python */
    if (!served)
        return call_of_pair(twin.execute_specially, l);
    if (Py_IS_TYPE(l->item, (PyTypeObject *)twin.Future))
        return future_run(&l->runner, (FutureRecord *)l->item);
    if (Py_IS_TYPE(l->item, (PyTypeObject *)twin.Queued))
        return queued_run(&l->runner, (QueuedRecord *)l->item);
    return method_void(l->item, name_of.run);
}

/* What a sensor saw of the item is void. */
static int ended(Loop *l)
{
    WorkerRecord *worker = l->worker;
    int told = 0;
    if (Py_IS_TYPE(worker->parker, twin.state->slot_type))
        slot_has_ended(((SlotObject *)worker->parker)->slot);
    else {
        PyObject *result = PyObject_CallNoArgs(worker->ended);
        Py_XDECREF(result);
        told = result ? 0 : -1;
    }
    if (!told && (worker->blocked || worker->below)) {
        PyObject *self = (PyObject *)worker;
        told = call_void(twin.over, &self, 1);
    }
    return told;
}

/* Settle the end of the item.  1: it has a follower, which is l->follower; 0: it has none; -1: an exception is set. */
static int end(Loop *l)
{
    int rest = 1;
    if (Py_IS_TYPE(l->item, (PyTypeObject *)twin.Future))
        rest = future_end((FutureRecord *)l->item);
    else if (Py_IS_TYPE(l->item, (PyTypeObject *)twin.Queued))
        rest = queued_end((QueuedRecord *)l->item);
    if (rest <= 0)
        return rest;
    PyObject *announcement = PyObject_CallMethodNoArgs(l->item, name_of.end);
    if (!announcement)
        return -1;
    if (announcement == Py_None) {
        Py_DECREF(announcement);
        return 0;
    }
    PyObject *args[] = {(PyObject *)l->pool, (PyObject *)l->worker, announcement};
    int told = call_void(twin.announce, args, 3);
    Py_DECREF(announcement);
    if (told || !(l->follower = PyObject_GetAttr(l->item, name_of.follower)))
        return -1;
    if (l->follower != Py_None)
        return 1;
    Py_CLEAR(l->follower);
    return 0;
}

/* Execute the item that was claimed, and then its followers.  -1: an exception is set. */
static int execute(Loop *l)
{
    for (;;) {
        if (look_after_the_rest(l) || loop_release(l))
            return -1;
        drop(&l->last);
        drop(&l->follower);
        if (run(l) || breathe(&l->runner) || loop_acquire(l) || ended(l))
            return -1;
        count_one(&l->pool->nr_completed);
        int follows = end(l);
        if (follows > 0)
            follows = claim(l, l->follower);
        if (follows <= 0)
            return follows;
        l->last = l->item;              /* E3: behind its running self, on the same worker */
        l->item = l->follower;
        l->follower = NULL;
        set_field(l->worker, &l->worker->item, Py_NewRef(l->item));
        if (PyObject_SetAttr(l->last, name_of.follower, Py_None))
            return -1;
        read_counts(l);                 /* the lock was dropped */
    }
}

/* Wait a moment for another item.  1: there is one; 0: there is none; -1: an exception is set. */
static int linger(Loop *l)
{
#ifdef Py_GIL_DISABLED
    PoolRecord *pool = l->pool;
    WorkerRecord *worker = l->worker;
    if (!l->last || worker->dying || !worker->counted || worker->blocked || pool->nr_waking || pool->target < 1 ||
        pool->nr_running > pool->target || (pool->taps && PyObject_Size(pool->taps)))
        return 0;
    worker->counted = false;
    worker->kicked = true;
    pool->nr_waking++;
    if (loop_release(l))
        return -1;
    for (int i = 0; i < LINGERS && !length(l->worklist); i++)
        spin_wait();
    if (loop_acquire(l))
        return -1;
    worker->kicked = false;
    pool->nr_waking--;
    worker->counted = true;
    if (ended(l))
        return -1;
    if (!length(l->worklist))
        return 0;
    PyObject *self = (PyObject *)pool;  /* the watchdog may have found the pool quiet meanwhile: only `kick` tells it else */
    return call_void(twin.be_watched, &self, 1) ? -1 : 1;
#else
    (void)l;
    return 0;
#endif
}

static int loop(Loop *l)
{
    do {
        while (length(l->worklist)) {
            int taken = take(l);
            if (taken < 0 || (taken == 1 && execute(l)))
                return -1;
            if (taken == 2)
                return 0;
            if (taken == 1) {
                set_field(l->worker, &l->worker->item, NULL);
                PyObject *before = l->last;
                l->last = l->item;
                l->item = NULL;
                Py_XDECREF(before);
            }
        }
        int more = linger(l);
        if (more <= 0)
            return more;
    } while (true);
}

/* process_works(pool, worker) */
static PyObject *twin_process_works(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t number)
{
    if (number != 2 || !PyObject_TypeCheck(args[0], records.pool) || !PyObject_TypeCheck(args[1], records.worker)) {
        PyErr_SetString(PyExc_TypeError, "process_works() takes a pool and a worker");
        return NULL;
    }
    Loop l = {.pool = (PoolRecord *)args[0], .worker = (WorkerRecord *)args[1]};
    if (!(l.guard = guard_of(l.pool->lock)))
        return PyObject_Vectorcall(twin.process_works, args, 2, NULL);
    PyObject *lane = PyObject_GetAttr(args[0], name_of.lane);
    l.records = lane ? PyObject_GetAttr(lane, name_of.records) : NULL;
    Py_XDECREF(lane);
    if (!l.records)
        return NULL;
    l.lock = Py_NewRef(l.pool->lock);
    l.worklist = Py_NewRef(l.pool->worklist);
    int failed = loop(&l) || method_void_of(args[0], name_of.uncount, args[1]);
    /* The last item is left to be dropped without the lock; after an exception what else there is dies here, unless the
       worker has it still. */
    if (l.last)
        set_field(l.worker, &l.worker->last, l.last);
    Py_XDECREF(l.item);
    Py_XDECREF(l.follower);
    Py_XDECREF(l.runner.context);
    Py_DECREF(l.records);
    Py_DECREF(l.worklist);
    Py_DECREF(l.lock);
    if (failed)
        return NULL;
    Py_RETURN_NONE;
}
