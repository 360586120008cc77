/* Python: the records as classes to inherit from.  records.h has the structs and the rules.  */

#pragma once
#include "records.h"

static PyObject *state_names[NR_STATES];    /* I: the words that `concurrent.futures` has for the states */

static PyObject *future_get_state(PyObject *self, void *Py_UNUSED(closure))
{
    return Py_NewRef(state_names[atomic_load(&((FutureRecord *)self)->state)]);
}

/* The collector looks at a future only once it is done: until then a list refers to it, so it can't be garbage, and a
   flood of calls costs no collections.  What is done may be part of a cycle. */
static void be_collected(PyObject *self)
{
    if (!PyObject_GC_IsTracked(self))
        PyObject_GC_Track(self);
}

static int future_set_state(PyObject *self, PyObject *value, void *Py_UNUSED(closure))
{
    for (int i = 0; value && i < NR_STATES; i++) {
        int equal = value == state_names[i] ? 1 : PyObject_RichCompareBool(value, state_names[i], Py_EQ);
        if (equal < 0)
            return -1;
        if (equal) {
            if (i >= CANCELLED)
                be_collected(self);
            atomic_store(&((FutureRecord *)self)->state, i);
            return 0;
        }
    }
    PyErr_SetString(PyExc_ValueError, "no state of a future");
    return -1;
}

/* The call as one tuple: the function, then the positional arguments.  None: it has run, or was taken back. */
static PyObject *future_get_call(PyObject *self, void *Py_UNUSED(closure))
{
    FutureRecord *future = (FutureRecord *)self;
    PyObject *fn, *args;
    bool lone;
    Py_BEGIN_CRITICAL_SECTION(self);
    fn = Py_XNewRef(future->fn);
    args = Py_XNewRef(future->args);
    lone = future->lone;
    Py_END_CRITICAL_SECTION();
    if (!fn) {
        Py_XDECREF(args);
        Py_RETURN_NONE;
    }
    Py_ssize_t number = !args ? 0 : lone ? 1 : PyTuple_GET_SIZE(args);
    PyObject *call = PyTuple_New(number + 1);
    if (call) {
        PyTuple_SET_ITEM(call, 0, Py_NewRef(fn));
        for (Py_ssize_t i = 0; i < number; i++)
            PyTuple_SET_ITEM(call, i + 1, Py_NewRef(lone ? args : PyTuple_GET_ITEM(args, i)));
    }
    Py_DECREF(fn);
    Py_XDECREF(args);
    return call;
}

static int future_set_call(PyObject *self, PyObject *value, void *Py_UNUSED(closure))
{
    FutureRecord *future = (FutureRecord *)self;
    PyObject *fn = NULL, *args = NULL;
    if (value && value != Py_None) {
        if (!PyTuple_Check(value) || !PyTuple_GET_SIZE(value)) {
            PyErr_SetString(PyExc_TypeError, "a call is a tuple: a function and its arguments");
            return -1;
        }
        if (!(args = PyTuple_GetSlice(value, 1, PyTuple_GET_SIZE(value))))
            return -1;
        fn = Py_NewRef(PyTuple_GET_ITEM(value, 0));
    }
    PyObject *old_fn, *old_args;
    Py_BEGIN_CRITICAL_SECTION(self);
    old_fn = future->fn;
    old_args = future->args;
    future->fn = fn;
    future->args = args;
    future->lone = false;
    Py_END_CRITICAL_SECTION();
    Py_XDECREF(old_fn);
    Py_XDECREF(old_args);
    return 0;
}

static PyMemberDef no_members[] = {{NULL}};
static PyGetSetDef no_getset[] = {{NULL}};

#define FutureRecord_members no_members
static PyGetSetDef FutureRecord_getset[] = {
    {"_state", future_get_state, future_set_state, NULL, NULL},
    {"_call", future_get_call, future_set_call, NULL, NULL},
    OBJECT("phase", FutureRecord, phase),
    OBJECT("_kwargs", FutureRecord, kwargs),
    OBJECT("_context", FutureRecord, context),
    OBJECT("_result", FutureRecord, result),
    OBJECT("_exception", FutureRecord, exception),
    OBJECT("_audience", FutureRecord, audience),
    {NULL},
};
RECORD(FutureRecord, 8, "A submitted call.");

#define QueuedRecord_members no_members
static PyGetSetDef QueuedRecord_getset[] = {
    OBJECT("phase", QueuedRecord, phase),
    OBJECT("work", QueuedRecord, work),
    OBJECT("_context", QueuedRecord, context),
    OBJECT("stage", QueuedRecord, stage),
    OBJECT("room", QueuedRecord, room),
    OBJECT("parkers", QueuedRecord, parkers),
    OBJECT("follower", QueuedRecord, follower),
    OBJECT("futures", QueuedRecord, futures),
    OBJECT("held", QueuedRecord, held),
    OBJECT("raised", QueuedRecord, raised),
    {NULL},
};
RECORD(QueuedRecord, 10, "One queueing of a work.");

static PyMemberDef WorkRecord_members[] = {
    FIXED("_fn", WorkRecord, fn),
    FIXED("_args", WorkRecord, args),
    FIXED("_kwargs", WorkRecord, kwargs),
    NUMBER("_disables", WorkRecord, disables),
    NUMBER("_born", WorkRecord, born),
    {NULL},
};
static PyGetSetDef WorkRecord_getset[] = {
    OBJECT("_lock", WorkRecord, lock),
    OBJECT("_item", WorkRecord, item),
    OBJECT("_delay", WorkRecord, delay),
    OBJECT("_last", WorkRecord, last),
    OBJECT("_execution", WorkRecord, execution),
    OBJECT("_cancels", WorkRecord, cancels),
    {NULL},
};
RECORD(WorkRecord, 9, "A work.");

static PyMemberDef PhaseRecord_members[] = {
    FIXED("pwq", PhaseRecord, pwq),
    NUMBER("queued", PhaseRecord, queued),
    NUMBER("ended", PhaseRecord, ended),
    {NULL},
};
#define PhaseRecord_getset no_getset
RECORD(PhaseRecord, 1, "The works of one place between two flushes.");

static PyMemberDef PlaceRecord_members[] = {
    FIXED("wq", PlaceRecord, wq),
    FIXED("pool", PlaceRecord, pool),
    FIXED("outside", PlaceRecord, outside),
    FIXED("inactive", PlaceRecord, inactive),
    NUMBER("nr_active", PlaceRecord, nr_active),
    NUMBER("max_active", PlaceRecord, max_active),
    NUMBER("nr_withdrawn", PlaceRecord, nr_withdrawn),
    FLAG("attends", PlaceRecord, attends),
    FLAG("careful", PlaceRecord, careful),
    FLAG("frozen", PlaceRecord, frozen),
    {NULL},
};
static PyGetSetDef PlaceRecord_getset[] = {
    OBJECT("phase", PlaceRecord, phase),
    GLANCE("gate", PlaceRecord, gate),
    {NULL},
};
RECORD(PlaceRecord, 5, "A queue's place on one pool.");

static PyMemberDef QueueRecord_members[] = {
    {NULL},
};
static PyGetSetDef QueueRecord_getset[] = {
    OBJECT("_only", QueueRecord, only),
    GLANCE("_special", QueueRecord, special),
    GLANCE("_shut", QueueRecord, shut),
    {NULL},
};
RECORD(QueueRecord, 1, "A queue.");

static PyMemberDef PoolRecord_members[] = {
    FIXED("lock", PoolRecord, lock),
    FIXED("worklist", PoolRecord, worklist),
    FIXED("idle_list", PoolRecord, idle_list),
    FIXED("nappers", PoolRecord, nappers),
    NUMBER("nr_running", PoolRecord, nr_running),
    NUMBER("nr_waking", PoolRecord, nr_waking),
    NUMBER("target", PoolRecord, target),
    FLAG("gil", PoolRecord, gil),
    FLAG("rescued", PoolRecord, rescued),
    {NULL},
};
static PyGetSetDef PoolRecord_getset[] = {
    OBJECT("armed_with", PoolRecord, armed_with),
    OBJECT("taps", PoolRecord, taps),
    COUNT("nr_completed", PoolRecord, nr_completed),
    {NULL},
};
RECORD(PoolRecord, 6, "A pool.");

static PyMemberDef WorkerRecord_members[] = {
    FIXED("parker", WorkerRecord, parker),
    FLAG("kicked", WorkerRecord, kicked),
    FLAG("counted", WorkerRecord, counted),
    FLAG("dying", WorkerRecord, dying),
    {NULL},
};
static PyGetSetDef WorkerRecord_getset[] = {
    OBJECT("item", WorkerRecord, item),
    OBJECT("record", WorkerRecord, record),
    OBJECT("served", WorkerRecord, served),
    OBJECT("blocked", WorkerRecord, blocked),
    OBJECT("below", WorkerRecord, below),
    OBJECT("last", WorkerRecord, last),
    OBJECT("ended", WorkerRecord, ended),
    {NULL},
};
RECORD(WorkerRecord, 8, "A worker.");

typedef struct {
    PyTypeObject *future, *queued, *work, *phase, *place, *queue, *pool, *worker;
} Records;

static Records records;         /* I: of the interpreter that imported this first; others have no twin */

static const struct { const char *name; PyType_Spec *spec; PyTypeObject **type; } record_specs[] = {
    {"FutureRecord", &FutureRecord_spec, &records.future},
    {"QueuedRecord", &QueuedRecord_spec, &records.queued},
    {"WorkRecord", &WorkRecord_spec, &records.work},
    {"PhaseRecord", &PhaseRecord_spec, &records.phase},
    {"PlaceRecord", &PlaceRecord_spec, &records.place},
    {"QueueRecord", &QueueRecord_spec, &records.queue},
    {"PoolRecord", &PoolRecord_spec, &records.pool},
    {"WorkerRecord", &WorkerRecord_spec, &records.worker},
};

/* Add the records to the module, unless another interpreter has them.  -1: an exception is set. */
static int add_records(PyObject *module)
{
    static const char *const names[NR_STATES] = {
        "PENDING", "RUNNING", "CANCELLED", "CANCELLED_AND_NOTIFIED", "FINISHED",
    };
    static atomic_flag taken = ATOMIC_FLAG_INIT;
    if (atomic_flag_test_and_set(&taken))
        return 0;
    PyObject *base = PyImport_ImportModule("concurrent.futures._base");
    if (!base)
        return -1;
    for (int i = 0; i < NR_STATES; i++)
        if (!(state_names[i] = PyObject_GetAttrString(base, names[i]))) {
            Py_DECREF(base);
            return -1;
        }
    Py_DECREF(base);
    for (size_t i = 0; i < sizeof record_specs / sizeof *record_specs; i++) {
        PyObject *type = PyType_FromSpec(record_specs[i].spec);
        if (!type || PyModule_AddObjectRef(module, record_specs[i].name, type))
            return -1;
        *record_specs[i].type = (PyTypeObject *)type;
    }
    return 0;
}
