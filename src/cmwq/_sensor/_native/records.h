/* Records: the state of the hot path, as C structs that Python sees as attributes.

   The classes of the core (Future, Phase, WorkerPool, ...) are written in Python.  Each of them inherits from a record,
   which has those of its fields that every work reads or writes.  `cmwq._core.records` has the same in Python, and
   chooses.  So there is one state, whichever language changes it, and its legend of letters is that of `_pool/pool.py`.

   Guarantees
   - A field holds what Python stored into it.  None is kept as NULL, and read as None; so is what was never set.
   - Without a GIL a field that changes while others read it is read and changed in its object's critical section
     (set_field, get_field).  Fields that never change once others know the object are plain members.
   - Records are objects of the garbage collector, their Python parts included.  Futures that the twin makes are seen by
     it once they are done, and queueings that it makes never: until the end of the work a list or a worker refers to
     them, and then they refer to nothing that could refer to them.  (In the child of a fork works of the parent that
     have not ended are in no list.  If they are part of a cycle, that stays.)

   Relies on the caller for everything that the letters ask for.  */

#pragma once
#include "lock_type.h"

#ifndef Py_BEGIN_CRITICAL_SECTION       /* new in Python 3.13 */
#define Py_BEGIN_CRITICAL_SECTION(object) {
#define Py_END_CRITICAL_SECTION() }
#endif

/* The states of a future, in the order of STATE_NAMES.  Those from CANCELLED on are final, but for the one step from
   CANCELLED to CANCELLED_AND_NOTIFIED. */
enum { PENDING, RUNS_NOW, CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED, NR_STATES };

/* A submitted call.  Every record begins with all its references, so that one loop can visit them. */
typedef struct {
    PyObject_HEAD
    PyObject *phase;            /* I once queued */
    PyObject *fn;               /* L: NULL: the call has run, or was taken back */
    PyObject *args;             /* L: NULL: no arguments; the only one, if `lone`; else a tuple */
    PyObject *kwargs;           /* L */
    PyObject *context;          /* L: `no_context` stands for one without variables, which is made when it is needed */
    PyObject *result;           /* S: set by the worker before the state is FINISHED */
    PyObject *exception;        /* S: likewise */
    PyObject *audience;         /* L */
    atomic_int state;           /* L to change; read freely */
    bool lone;                  /* L */
} FutureRecord;

/* One queueing of a work. */
typedef struct {
    PyObject_HEAD
    PyObject *phase, *work, *context, *stage, *room, *parkers, *follower, *futures, *held, *raised;
} QueuedRecord;

/* A work. */
typedef struct {
    PyObject_HEAD
    PyObject *fn, *args, *kwargs, *lock, *item, *delay, *last, *execution, *cancels;
    Py_ssize_t disables, born;
} WorkRecord;

/* The works of one place between two flushes. */
typedef struct {
    PyObject_HEAD
    PyObject *pwq;
    Py_ssize_t queued, ended;
} PhaseRecord;

/* A queue's place on one pool. */
typedef struct {
    PyObject_HEAD
    PyObject *wq, *pool, *outside, *inactive, *phase;
    Py_ssize_t nr_active, max_active, nr_withdrawn;
    char attends, careful, frozen;
    atomic_bool gate;           /* L to change; read freely */
} PlaceRecord;

/* A queue. */
typedef struct {
    PyObject_HEAD
    PyObject *only;
    atomic_bool special, shut;  /* L to change; read freely */
} QueueRecord;

/* A pool. */
typedef struct {
    PyObject_HEAD
    PyObject *lock, *worklist, *idle_list, *nappers, *armed_with, *taps;
    Py_ssize_t nr_running, nr_waking, target;
    atomic_llong nr_completed;          /* changed with the lock held, read without */
    char gil, rescued;
} PoolRecord;

/* A worker. */
typedef struct {
    PyObject_HEAD
    PyObject *parker, *item, *record, *served, *blocked, *below, *last, *ended;
    char kicked, counted, dying;
} WorkerRecord;

/* The context of a call whose caller had no context variables. */
static struct { PyObject_HEAD } no_context_object = {PyObject_HEAD_INIT(&PyBaseObject_Type)};
#define NO_CONTEXT ((PyObject *)&no_context_object)

/* ------------------------------------------------------------------------------------- references */

/* Make a reference that this thread gives away cheap to drop for others.  Without a GIL an object has one count for the
   thread that made it and one for all others, and whoever takes the latter below zero has to ask the former for help,
   at some hundred nanoseconds.  So the reference is counted among those of the others.  Returns the object. */
static PyObject *give_away(PyObject *object)
{
#ifdef Py_GIL_DISABLED
    if (object && object != NO_CONTEXT && !_Py_IsImmortal(object)) {
        _Py_atomic_add_ssize(&object->ob_ref_shared, (Py_ssize_t)1 << _Py_REF_SHARED_SHIFT);
        Py_DECREF(object);
    }
#endif
    return object;
}

/* Store into a field, and return what was there.  Takes over the reference to `value`, which may be NULL. */
static PyObject *swap_field(void *owner, PyObject **field, PyObject *value)
{
    PyObject *old;
    (void)owner;
    Py_BEGIN_CRITICAL_SECTION((PyObject *)owner);
    old = *field;
#ifdef Py_GIL_DISABLED
    _Py_atomic_store_ptr_release(field, value);
#else
    *field = value;
#endif
    Py_END_CRITICAL_SECTION();
    return old;
}

/* As swap_field(), and drop what was there.  NO_CONTEXT is not counted. */
static void set_field(void *owner, PyObject **field, PyObject *value)
{
    PyObject *old = swap_field(owner, field, value);
    if (old != NO_CONTEXT)
        Py_XDECREF(old);
}

/* A reference of one's own to what is in a field, or NULL. */
static PyObject *get_field(void *owner, PyObject **field)
{
    PyObject *value;
    (void)owner;
    Py_BEGIN_CRITICAL_SECTION((PyObject *)owner);
    value = *field;
    if (value != NO_CONTEXT)
        Py_XINCREF(value);
    Py_END_CRITICAL_SECTION();
    return value;
}

/* What is in a field, for a glance: borrowed, for the caller only asks whether there is something, or holds what keeps
   it from changing. */
static PyObject *peek(PyObject *const *field)
{
#ifdef Py_GIL_DISABLED
    return _Py_atomic_load_ptr_acquire((void *const *)field);
#else
    return *field;
#endif
}

static PyObject *object_get(PyObject *self, void *offset)
{
    PyObject *value = get_field(self, (PyObject **)((char *)self + (size_t)offset));
    return value == NO_CONTEXT ? PyContext_New() : value ? value : Py_NewRef(Py_None);
}

static int object_set(PyObject *self, PyObject *value, void *offset)
{
    PyObject *kept = value && value != Py_None ? Py_NewRef(value) : NULL;
    set_field(self, (PyObject **)((char *)self + (size_t)offset), kept);
    return 0;
}

static PyObject *glance_get(PyObject *self, void *offset)
{
    atomic_bool *field = (atomic_bool *)((char *)self + (size_t)offset);
    return PyBool_FromLong(atomic_load_explicit(field, memory_order_relaxed));
}

static int glance_set(PyObject *self, PyObject *value, void *offset)
{
    if (!value || !PyBool_Check(value)) {
        PyErr_SetString(PyExc_TypeError, "a flag is True or False");
        return -1;
    }
    atomic_store_explicit((atomic_bool *)((char *)self + (size_t)offset), value == Py_True, memory_order_relaxed);
    return 0;
}

static PyObject *count_get(PyObject *self, void *offset)
{
    atomic_llong *field = (atomic_llong *)((char *)self + (size_t)offset);
    return PyLong_FromLongLong(atomic_load_explicit(field, memory_order_relaxed));
}

static int count_set(PyObject *self, PyObject *value, void *offset)
{
    long long number = value ? PyLong_AsLongLong(value) : -1;
    if (!value)
        PyErr_SetString(PyExc_TypeError, "a count is a number");
    if (number == -1 && PyErr_Occurred())
        return -1;
    atomic_store_explicit((atomic_llong *)((char *)self + (size_t)offset), number, memory_order_relaxed);
    return 0;
}

/* Add one to a count.  Context: the lock held, so that no other thread changes it. */
static void count_one(atomic_llong *field)
{
    atomic_store_explicit(field, atomic_load_explicit(field, memory_order_relaxed) + 1, memory_order_relaxed);
}

/* A field that may change at any time; and one that does not once others know the object. */
#define OBJECT(name, Record, field) \
    {name, object_get, object_set, NULL, (void *)offsetof(Record, field)}
#define FIXED(name, Record, field) {name, T_OBJECT_EX, offsetof(Record, field), 0, NULL}
#define NUMBER(name, Record, field) {name, T_PYSSIZET, offsetof(Record, field), 0, NULL}
#define FLAG(name, Record, field) {name, T_BOOL, offsetof(Record, field), 0, NULL}
/* A flag, and a count, at which others glance without the lock. */
#define COUNT(name, Record, field) {name, count_get, count_set, NULL, (void *)offsetof(Record, field)}
#define GLANCE(name, Record, field) {name, glance_get, glance_set, NULL, (void *)offsetof(Record, field)}

/* ------------------------------------------------------------------------------------- garbage */

#define FIRST_FIELD(self) ((PyObject **)((char *)(self) + sizeof(PyObject)))

static int visit_fields(PyObject *self, int number, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    for (int i = 0; i < number; i++)
        if (FIRST_FIELD(self)[i] != NO_CONTEXT)
            Py_VISIT(FIRST_FIELD(self)[i]);
    return 0;
}

static int clear_fields(PyObject *self, int number)
{
    for (int i = 0; i < number; i++)
        set_field(self, &FIRST_FIELD(self)[i], NULL);
    return 0;
}

static void free_record(PyObject *self, int number)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    for (int i = 0; i < number; i++) {
        PyObject *old = FIRST_FIELD(self)[i];
        FIRST_FIELD(self)[i] = NULL;
        if (old != NO_CONTEXT)
            Py_XDECREF(old);
    }
    type->tp_free(self);
    Py_DECREF(type);
}

/* The three functions of a record that begins with so many references, and its spec. */
#define RECORD(Name, number, doc)                                                                                     \
    static int Name##_traverse(PyObject *self, visitproc visit, void *arg)                                            \
    {                                                                                                                 \
        return visit_fields(self, number, visit, arg);                                                                \
    }                                                                                                                 \
    static int Name##_clear(PyObject *self)                                                                           \
    {                                                                                                                 \
        return clear_fields(self, number);                                                                            \
    }                                                                                                                 \
    static void Name##_dealloc(PyObject *self)                                                                        \
    {                                                                                                                 \
        free_record(self, number);                                                                                    \
    }                                                                                                                 \
    static PyType_Slot Name##_slots[] = {                                                                             \
        {Py_tp_doc, doc},                                                                                             \
        {Py_tp_traverse, Name##_traverse},                                                                            \
        {Py_tp_clear, Name##_clear},                                                                                  \
        {Py_tp_dealloc, Name##_dealloc},                                                                              \
        {Py_tp_members, Name##_members},                                                                              \
        {Py_tp_getset, Name##_getset},                                                                                \
        {0, NULL},                                                                                                    \
    };                                                                                                                \
    static PyType_Spec Name##_spec = {                                                                                \
        .name = "cmwq._sensor._sentinel." #Name,                                                                      \
        .basicsize = sizeof(Name),                                                                                    \
        .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,                                       \
        .slots = Name##_slots,                                                                                        \
    }
