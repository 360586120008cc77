/* The twin: the hot path of a work, from `submit` or `queue` to its end, in C.

   The truth is the Python: `_workqueue/inserting.py`, `future.py`, `queued.py`, `queueing.py`, `phase.py` and
   `_pool/worker_thread.py`.  What is here does the same, step for step, over the same state (records.h), in the usual
   case.  In any other case it calls the Python: a shut gate, a place that is frozen or observed, a limit that is
   learned, a worker to be woken, an exception.  So no rule is written here that is not written there, and a lock that
   is not one of ours (the simulator's) never comes here.

   What it gains, beside speed: no bytecode of ours runs in the middle of these critical sections, so nothing can
   interrupt them there.  If a Python function that is called from one is interrupted, the section mends (lock.h).

       twin.h         what the twin knows of the Python, and sections of locks
       twin_items.h   futures and queueings: made, claimed, run, ended
       twin_insert.h  handing an item to a pool; submit, submit_many, queue
       twin_loop.h    the loop of a worker
       twin_type.h    how it is installed

   Guarantees
   - Objects of the garbage collector are made before a lock is taken, since making one may run finalisers (3.11).
   - References that may be the last are dropped without a lock, because finalisers are user code.

   `_workqueue/twin.py` installs it.  */

#pragma once
#include "record_types.h"
#include "slot_type.h"

/* What the twin calls and compares with.  Given by `install`, in this order. */
#define TWIN_NAMES(_)                                                                                                 \
    _(Future) _(Queued) _(Work) _(Phase) _(LISTED) _(BEGUN) _(ENDED) _(result) _(insert) _(insert_many)              \
    _(insert_later) _(submit_specially) _(submit_many) _(queue) _(queue_specially) _(queue_later) _(process_works)   \
    _(goes_on) _(set_aside) _(begin_on_record) _(over) _(announce) _(execute_specially) \
    _(breathe) _(be_watched)

typedef struct {
#define FIELD(name) PyObject *name;
    TWIN_NAMES(FIELD)
#undef FIELD
    PyObject *append, *popleft, *deque, *no_args;
    const State *state;
    bool on;
} Twin;

static Twin twin;               /* I: set once, before anybody calls what needs it */

/* Names of attributes and methods. */
#define INTERNED(_)                                                                                                   \
    _(place) _(attend) _(complete_phases) _(pass_over) _(kick) _(settle) _(kick_or_settle) _(claim) _(run) _(end)    \
    _(phase) _(retire) _(follower) _(_failed) _(place_here) _(generation) _(lane) _(records) _(uncount) _(children)  \
    _(parents) _(known) _(hand_over) _(extend) _(activate) _(_attend_to_inactive) _(refuse_coroutine_function)

static struct {
#define FIELD(name) PyObject *name;
    INTERNED(FIELD)
#undef FIELD
} name_of;                      /* I */

/* ------------------------------------------------------------------------------------- calls of the Python */

/* Call, and drop the result.  -1: an exception is set. */
static int call_void(PyObject *fn, PyObject *const *args, size_t number)
{
    PyObject *result = PyObject_Vectorcall(fn, args, number, NULL);
    Py_XDECREF(result);
    return result ? 0 : -1;
}

/* Call, and ask whether the result is true.  -1: an exception is set. */
static int call_bool(PyObject *fn, PyObject *const *args, size_t number)
{
    PyObject *result = PyObject_Vectorcall(fn, args, number, NULL);
    int truth = result ? PyObject_IsTrue(result) : -1;
    Py_XDECREF(result);
    return truth;
}

/* fn(self, *args) */
static PyObject *call_with_self(PyObject *fn, PyObject *self, PyObject *const *args, Py_ssize_t number)
{
    PyObject *all = PyTuple_New(number + 1), *result = NULL;
    if (all) {
        PyTuple_SET_ITEM(all, 0, Py_NewRef(self));
        for (Py_ssize_t i = 0; i < number; i++)
            PyTuple_SET_ITEM(all, i + 1, Py_NewRef(args[i]));
        result = PyObject_Call(fn, all, NULL);
        Py_DECREF(all);
    }
    return result;
}

static int method_void(PyObject *self, PyObject *name)
{
    PyObject *result = PyObject_CallMethodNoArgs(self, name);
    Py_XDECREF(result);
    return result ? 0 : -1;
}

static int method_void_of(PyObject *self, PyObject *name, PyObject *argument)
{
    PyObject *result = PyObject_CallMethodOneArg(self, name, argument);
    Py_XDECREF(result);
    return result ? 0 : -1;
}

static int method_bool(PyObject *self, PyObject *name)
{
    PyObject *result = PyObject_CallMethodNoArgs(self, name);
    int truth = result ? PyObject_IsTrue(result) : -1;
    Py_XDECREF(result);
    return truth;
}

/* Is the attribute true?  -1: an exception is set. */
static int attribute_bool(PyObject *self, PyObject *name)
{
    PyObject *value = PyObject_GetAttr(self, name);
    int truth = value ? PyObject_IsTrue(value) : -1;
    Py_XDECREF(value);
    return truth;
}

/* ------------------------------------------------------------------------------------- deques */

static Py_ssize_t length(PyObject *deque)
{
#ifdef Py_GIL_DISABLED
    return _Py_atomic_load_ssize_relaxed(&((PyVarObject *)deque)->ob_size);
#else
    return Py_SIZE(deque);
#endif
}

static int deque_append(PyObject *deque, PyObject *item)
{
    PyObject *args[] = {deque, item};
    return call_void(twin.append, args, 2);
}

/* Take the first of a deque that is not empty. */
static PyObject *deque_popleft(PyObject *deque)
{
    return PyObject_Vectorcall(twin.popleft, &deque, 1, NULL);
}

/* Append an item that another thread will take: see give_away(). */
static int hand_on(PyObject *deque, PyObject *item)
{
    if (deque_append(deque, item))
        return -1;
    give_away(item);                    /* the deque's reference */
    return 0;
}

/* ------------------------------------------------------------------------------------- sections */

/* The guard of a lock of ours; NULL: it is another, and the Python has to do what is to be done. */
static Guard *guard_of(PyObject *lock)
{
    if (Py_IS_TYPE(lock, twin.state->lookout_type) || Py_IS_TYPE(lock, twin.state->lock_type))
        return &((Locking *)lock)->guard;
    return NULL;
}

typedef struct {
    PyObject *lock;
    Guard *guard;
    unsigned epoch;
} Section;

/* Begin a section.  False: an exception is set.  The caller keeps the lock alive. */
static bool section_begin(Section *section, PyObject *lock, Guard *guard)
{
    if (!guard_lock(guard, lock))
        return false;
    *section = (Section){.lock = lock, .guard = guard, .epoch = guard->epoch};
    return true;
}

/* End a section, as `with` does.  `failed`: an exception is set, and unless the section has refused something the lock's
   owner is mended.  -1: an exception is set. */
static int section_end(Section *section, int failed)
{
    if (!failed)
        return guard_end(section->guard, this_thread, section->epoch, false) ? 0 : -1;
    PyObject *type, *exception, *traceback;
    PyErr_Fetch(&type, &exception, &traceback);
    bool mends = !is_refusal(twin.state, type, traceback);
    if (!guard_end(section->guard, this_thread, section->epoch, mends))
        PyErr_WriteUnraisable(section->lock);
    PyErr_Restore(type, exception, traceback);
    return -1;
}
