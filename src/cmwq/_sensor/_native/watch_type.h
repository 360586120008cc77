/* Python: Watch, the sentinels of one runtime.

   Guarantees: a watch that Python no longer refers to, or that is a forked parent's, costs nothing: its threads end, or
   don't exist, and the last one frees it.  */

#pragma once
#include "gil.h"
#include "lookout_type.h"

#include <sys/resource.h>

typedef struct {
    PyObject_HEAD
    Watch *watch;
} WatchObject;

static PyObject *watch_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, ":Watch", names))
        return NULL;
    WatchObject *self = (WatchObject *)PyType_GenericAlloc(type, 0);
    if (self && !(self->watch = calloc(1, sizeof(Watch)))) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    if (self) {
        atomic_store(&self->watch->refs, 1);
        self->watch->pid = getpid();
        struct rlimit limit;
        bool low = !getrlimit(RLIMIT_NOFILE, &limit) && limit.rlim_cur / KEPT_SHARE < MAX_KEPT;
        self->watch->max_kept = low ? (int)(limit.rlim_cur / KEPT_SHARE) : MAX_KEPT;
    }
    return (PyObject *)self;
}

static void watch_dealloc(WatchObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    if (self->watch) {
        atomic_store(&self->watch->stop, true);
        ring(self->watch);
        /* In the child of a fork the native threads are missing, so their references are dropped here. */
        if (self->watch->pid != getpid())
            atomic_fetch_sub(&self->watch->refs, atomic_exchange(&self->watch->natives, 0));
        watch_release(self->watch);
    }
    PyObject_Free(self);
    Py_DECREF(type);
}

static PyObject *watch_start(WatchObject *self, PyObject *arg)
{
    int cpu;
    if (!as_int(arg, &cpu))
        return NULL;
    int error = cpu < -1 || cpu >= CPU_SETSIZE ? EINVAL : start_thread(self->watch, cpu);
    if (error) {
        errno = error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    Py_RETURN_NONE;
}

static PyObject *watch_stop(WatchObject *self, PyObject *Py_UNUSED(none))
{
    atomic_store(&self->watch->stop, true);
    ring(self->watch);
    Py_RETURN_NONE;
}

static Lookout *lookout_new(int capacity)
{
    Lookout *lookout = calloc(1, sizeof *lookout);
    if (lookout && !(lookout->slots = calloc((size_t)capacity, sizeof(Slot)))) {
        free(lookout);
        lookout = NULL;
    }
    if (lookout) {
        lookout->capacity = capacity;
        atomic_store(&lookout->taken, true);
    }
    return lookout;
}

/* Take a lookout that no pool uses any more, or a new one.  The caller makes sure that there is one call at a time. */
static Lookout *take_lookout(Watch *watch, int capacity)
{
    int n = atomic_load(&watch->nr_lookouts);
    for (int i = 0; i < n; i++) {
        Lookout *lookout = atomic_load(&watch->lookouts[i]);
        bool taken = false;
        if (lookout->capacity >= capacity &&
            atomic_compare_exchange_strong(&lookout->taken, &taken, true))
            return lookout;
    }
    if (n == MAX_LOOKOUTS) {
        PyErr_SetString(PyExc_RuntimeError, "too many pools for one watch");
        return NULL;
    }
    Lookout *lookout = lookout_new(capacity);
    if (!lookout) {
        PyErr_NoMemory();
        return NULL;
    }
    atomic_store(&watch->lookouts[n], lookout);
    atomic_store(&watch->nr_lookouts, n + 1);
    return lookout;
}

static PyObject *watch_lookout(WatchObject *self, PyObject *args)
{
    PyObject *cpus, *done;
    int target, capacity, rank = 0;
    if (!PyArg_ParseTuple(args, "Oii|i:lookout", &cpus, &target, &capacity, &rank) || !valid_rank(rank))
        return NULL;
    if (capacity < 1) {
        PyErr_SetString(PyExc_ValueError, "a lookout needs a place for one worker at least");
        return NULL;
    }
    capacity = capacity < MAX_CAPACITY ? capacity : MAX_CAPACITY;
    State *state = PyType_GetModuleState(Py_TYPE(self));
    LookoutObject *object = PyObject_New(LookoutObject, state->lookout_type);
    if (!object)
        return NULL;
    guard_init(&object->locking.guard, state->lookout_type, NULL, rank, NULL);
    if (!(object->lookout = take_lookout(self->watch, capacity))) {
        Py_DECREF(object);
        return NULL;
    }
    object->watch = self->watch;
    object->locking.guard.word = &object->lookout->lock;
    atomic_fetch_add(&self->watch->refs, 1);
    atomic_store(&object->lookout->target, target);
    if (!(done = lookout_set_cpus(object, cpus))) {
        Py_DECREF(object);
        return NULL;
    }
    Py_DECREF(done);
    return (PyObject *)object;
}

static PyObject *watch_learn_gil(WatchObject *self, PyObject *Py_UNUSED(none))
{
    int learnt = learn_gil(self->watch);
    return learnt < 0 ? NULL : PyBool_FromLong(learnt);
}

static PyObject *watch_statistics(WatchObject *self, PyObject *Py_UNUSED(none))
{
    return Py_BuildValue("{sl,sl}", "looks", atomic_load(&self->watch->looks), "wakes",
                         atomic_load(&self->watch->wakes));
}

static PyMethodDef watch_methods[] = {
    {"start", (PyCFunction)watch_start, METH_O, "start(cpu): post a sentinel on that CPU; -1: the plain tick."},
    {"stop", (PyCFunction)watch_stop, METH_NOARGS, "Every native thread leaves, each when it next runs."},
    {"lookout", (PyCFunction)watch_lookout, METH_VARARGS,
     "lookout(cpus, target, capacity[, rank]) for one pool. One call at a time."},
    {"learn_gil", (PyCFunction)watch_learn_gil, METH_NOARGS, "Find the GIL's futexes. Call it with the GIL on."},
    {"statistics", (PyCFunction)watch_statistics, METH_NOARGS, "Looks and wakes so far."},
    {NULL},
};

static PyType_Slot watch_slots[] = {
    {Py_tp_doc, "The sentinels of one runtime."},
    {Py_tp_new, watch_new},
    {Py_tp_dealloc, watch_dealloc},
    {Py_tp_methods, watch_methods},
    {0, NULL},
};

static PyType_Spec watch_spec = {
    .name = "cmwq._sensor._sentinel.Watch",
    .basicsize = sizeof(WatchObject),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = watch_slots,
};
