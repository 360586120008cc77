/* Python: Lock, its sections (Hold), inside() and defer().

   No frame leaves a lock held.  `with` gets `__exit__` from the type before it calls `__enter__`, and the result lies
   on the frame's stack until the section is over.  Here `__exit__` is a getter: it takes the lock and returns a Hold,
   to which nothing else refers.  A Hold that is called ends its section.  If a Hold dies uncalled, its frame was left
   some other way: by an exception in one of the few bytecodes around a section, which `with` doesn't cover.  Then its
   dealloc ends the section.  No bytecode runs between taking the lock and having the Hold on that stack, nor, those of
   `mend` aside, between calling the Hold and the lock being free.  So at each moment an exception finds one of the two.

   A lock may also be acquired by hand, within a `with` of by_hand().  There the Hold is made before the lock is taken,
   and does for all of the block what it does for a section, so a thread that ends leaves the lock free.

   The methods work for every type that begins as Locking does: Lock, and Lookout, which is its pool's lock.  */

#pragma once
#include "lock.h"

#if defined Py_LIMITED_API && Py_LIMITED_API < 0x030c0000
#define HAS_VECTORCALL 0
#else
#define HAS_VECTORCALL 1
#endif

/* A section.  It is not tracked by the garbage collector, so making one calls no finaliser. */
typedef struct {
    PyObject_HEAD
#if HAS_VECTORCALL
    vectorcallfunc vectorcall;
#endif
    PyObject *lock;             /* NULL: the section has ended */
    Guard *guard;
    Thread *holder;
    unsigned epoch;
} HoldObject;

static bool hold_end(HoldObject *hold, bool exceptional)
{
    PyObject *lock = hold->lock;
    if (!lock)
        return true;
    hold->lock = NULL;
    bool ended = guard_end(hold->guard, hold->holder, hold->epoch, exceptional);
    Py_DECREF(lock);
    return ended;
}

/* What `with` calls: `type` is the exception's, or None. */
static PyObject *hold_leave(HoldObject *hold, PyObject *type, PyObject *traceback)
{
    bool exceptional = hold->lock && type != Py_None && !is_refusal(hold->guard->state, type, traceback);
    if (!hold_end(hold, exceptional))
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *hold_exit(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    return hold_leave((HoldObject *)self, nargs ? args[0] : Py_None, nargs == 3 ? args[2] : NULL);
}

#if HAS_VECTORCALL
static PyObject *hold_call(PyObject *self, PyObject *const *args, size_t nargsf, PyObject *Py_UNUSED(names))
{
    return hold_exit(self, args, PyVectorcall_NARGS(nargsf));
}

static PyMemberDef hold_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(HoldObject, vectorcall), READONLY, NULL},
    {NULL},
};

#define HOLD_CALL {Py_tp_call, PyVectorcall_Call}, {Py_tp_members, hold_members}
#define HOLD_CALL_FLAG Py_TPFLAGS_HAVE_VECTORCALL
#else
/* Its arguments come as a tuple, for which the garbage collector may run.  Its finalisers then run within the section,
   as anywhere in it, and what they raise goes no further. */
static PyObject *hold_call(PyObject *self, PyObject *args, PyObject *Py_UNUSED(names))
{
    Py_ssize_t number = PyTuple_Size(args);
    return hold_leave((HoldObject *)self, number ? PyTuple_GetItem(args, 0) : Py_None,
                      number == 3 ? PyTuple_GetItem(args, 2) : NULL);
}

#define HOLD_CALL {Py_tp_call, hold_call}
#define HOLD_CALL_FLAG 0
#endif

static void hold_dealloc(HoldObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    if (self->lock) {
        PyObject *pending, *exception, *traceback, *lock = Py_NewRef(self->lock);
        PyErr_Fetch(&pending, &exception, &traceback);
        if (!hold_end(self, true))
            PyErr_WriteUnraisable(lock);    /* a finaliser can't raise */
        PyErr_Restore(pending, exception, traceback);
        Py_DECREF(lock);
    }
    PyObject_Free(self);
    Py_DECREF(type);
}

static PyObject *hold_enter(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(none))
{
    Py_RETURN_NONE;
}

static PyMethodDef hold_methods[] = {
    {"__enter__", hold_enter, METH_NOARGS, NULL},
    {"__exit__", (PyCFunction)(void (*)(void))hold_exit, METH_FASTCALL, NULL},
    {NULL},
};

static PyType_Slot hold_slots[] = {
    {Py_tp_doc, "A section: what `with` calls at its end."},
    {Py_tp_dealloc, hold_dealloc},
    {Py_tp_methods, hold_methods},
    HOLD_CALL,
    {0, NULL},
};

static PyType_Spec hold_spec = {
    .name = "cmwq._sensor._sentinel.Hold",
    .basicsize = sizeof(HoldObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | HOLD_CALL_FLAG,
    .slots = hold_slots,
};

static HoldObject *new_hold(Guard *guard)
{
    HoldObject *hold = PyObject_New(HoldObject, guard->state->hold_type);
    if (hold) {
#if HAS_VECTORCALL
        hold->vectorcall = hold_call;
#endif
        hold->lock = NULL;
    }
    return hold;
}

/* Make it end the section in which this thread holds the lock now, or will hold it. */
static PyObject *hold_section(HoldObject *hold, PyObject *lock, Guard *guard)
{
    hold->lock = Py_NewRef(lock);
    hold->guard = guard;
    hold->holder = this_thread;
    hold->epoch = guard->epoch;
    return (PyObject *)hold;
}

static PyObject *guard_begin(PyObject *lock, Guard *guard)
{
    HoldObject *hold = new_hold(guard);
    if (!hold)
        return NULL;
    if (!guard_lock(guard, lock)) {
        Py_DECREF(hold);
        return NULL;
    }
    return hold_section(hold, lock, guard);
}

/* A Hold of what this thread may acquire by hand: at its end the lock is free, if this thread still holds it. */
static PyObject *guard_by_hand(PyObject *lock, Guard *guard)
{
    HoldObject *hold = current_thread() ? new_hold(guard) : NULL;
    return hold ? hold_section(hold, lock, guard) : NULL;
}

static PyObject *guard_acquire(PyObject *lock, Guard *guard)
{
    if (!guard_lock(guard, lock))
        return NULL;
    guard->by_hand = true;
    Py_RETURN_NONE;
}

static PyObject *guard_release(Guard *guard)
{
    if (!is_held(guard)) {
        if (!guard->forgiven) {
            PyErr_SetString(PyExc_RuntimeError, "release of a lock that this thread doesn't hold");
            return NULL;
        }
        guard->forgiven = false;
        Py_RETURN_NONE;
    }
    if (!guard_unlock(guard))
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *guard_wake(Guard *guard, PyObject *parker)
{
    if (!is_held(guard)) {
        PyErr_SetString(PyExc_RuntimeError, "wake() is for whoever holds the lock");
        return NULL;
    }
    if (guard->nr_woken < MAX_WOKEN)
        guard->woken[guard->nr_woken++] = Py_NewRef(parker);
    else if (!wake_now(parker, guard->state))
        return NULL;
    Py_RETURN_NONE;
}

/* In the child of a fork: make the lock free, unless a thread of the child itself holds it, which will release it.  A
   frame that is within a section finds another epoch at its end. */
static PyObject *guard_reinit(Guard *guard)
{
    unsigned value = atomic_load(guard->word);
    do {
        if (value && !is_held(guard) && !is_left_over(guard, value))
            Py_RETURN_NONE;
    } while (!atomic_compare_exchange_weak(guard->word, &value, generation | HELD | (value & CONTENDED)));
    guard->forgiven = is_held(guard) && guard->by_hand;
    guard_forget(guard);
    guard->epoch++;
    word_release(guard->word);
    Py_RETURN_NONE;
}

static int guard_set_mend(Guard *guard, PyObject *mend)
{
    if (!valid_mend(mend ? mend : Py_None))
        return -1;
    PyObject *before = guard->mend;
    guard->mend = mend && mend != Py_None ? Py_NewRef(mend) : NULL;
    Py_XDECREF(before);
    return 0;
}

/* How every object that is a lock begins.  Its methods follow. */
typedef struct {
    PyObject_HEAD
    Guard guard;
} Locking;

static PyObject *locking_acquire(Locking *self, PyObject *Py_UNUSED(none))
{
    return guard_acquire((PyObject *)self, &self->guard);
}

static PyObject *locking_by_hand(Locking *self, PyObject *Py_UNUSED(none))
{
    return guard_by_hand((PyObject *)self, &self->guard);
}

static PyObject *locking_release(Locking *self, PyObject *Py_UNUSED(none))
{
    return guard_release(&self->guard);
}

static PyObject *locking_enter(Locking *Py_UNUSED(self), PyObject *Py_UNUSED(none))
{
    Py_RETURN_NONE;
}

static PyObject *locking_locked(Locking *self, PyObject *Py_UNUSED(none))
{
    return PyBool_FromLong(atomic_load(self->guard.word) != 0);
}

static PyObject *locking_held(Locking *self, PyObject *Py_UNUSED(none))
{
    return PyBool_FromLong(is_held(&self->guard));
}

static PyObject *locking_wake(Locking *self, PyObject *parker)
{
    return guard_wake(&self->guard, parker);
}

static PyObject *locking_reinit(Locking *self, PyObject *Py_UNUSED(none))
{
    return guard_reinit(&self->guard);
}

static PyObject *locking_begin(Locking *self, void *Py_UNUSED(closure))
{
    return guard_begin((PyObject *)self, &self->guard);
}

static PyObject *locking_get_rank(Locking *self, void *Py_UNUSED(closure))
{
    return PyLong_FromLong(self->guard.rank);
}

static PyObject *locking_get_mend(Locking *self, void *Py_UNUSED(closure))
{
    return Py_NewRef(self->guard.mend ? self->guard.mend : Py_None);
}

static PyObject *locking_get_stained(Locking *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(atomic_load_explicit(&self->guard.stained, memory_order_relaxed));
}

static int locking_set_mend(Locking *self, PyObject *mend, void *Py_UNUSED(closure))
{
    return guard_set_mend(&self->guard, mend);
}

#define LOCK_METHOD_DEFS                                                                                              \
    {"by_hand", (PyCFunction)locking_by_hand, METH_NOARGS, "For `with`, around acquire(): it is free at the end."},   \
    {"acquire", (PyCFunction)locking_acquire, METH_NOARGS, "Wait for it. To hold it for a while, say `with`."},       \
    {"release", (PyCFunction)locking_release, METH_NOARGS, "Let go of what acquire() took."},                         \
    {"__enter__", (PyCFunction)locking_enter, METH_NOARGS, NULL},                                                     \
    {"locked", (PyCFunction)locking_locked, METH_NOARGS, "Does anybody hold it?"},                                    \
    {"held", (PyCFunction)locking_held, METH_NOARGS, "Does this thread hold it?"},                                    \
    {"wake", (PyCFunction)locking_wake, METH_O, "wake(parker): unpark it as soon as the lock is free."},              \
    {"_at_fork_reinit", (PyCFunction)locking_reinit, METH_NOARGS, "In the child of a fork: nobody holds it."}

#define LOCK_GETSET_DEFS                                                                                              \
    {"__exit__", (getter)locking_begin, NULL, "for `with` alone: to get it is to take the lock", NULL},               \
    {"rank", (getter)locking_get_rank, NULL, "which locks may be taken within it: those of a higher rank", NULL},     \
    {"stained", (getter)locking_get_stained, NULL, "the next thread that takes it mends first", NULL},                \
    {"mend", (getter)locking_get_mend, (setter)locking_set_mend,                                                      \
     "called, with the lock held, after a section that an exception ended", NULL}

typedef struct {
    Locking locking;
    atomic_uint word;           /* A */
} LockObject;

static PyObject *lock_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"rank", "mend", NULL};
    int rank;
    PyObject *mend = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "i|O:Lock", names, &rank, &mend) || !valid_rank(rank) ||
        !valid_mend(mend))
        return NULL;
    LockObject *self = (LockObject *)PyType_GenericAlloc(type, 0);
    if (self)
        guard_init(&self->locking.guard, type, &self->word, rank, mend == Py_None ? NULL : mend);
    return (PyObject *)self;
}

static void lock_dealloc(LockObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    guard_clear(&self->locking.guard);
    PyObject_Free(self);
    Py_DECREF(type);
}

static PyMethodDef lock_methods[] = {
    LOCK_METHOD_DEFS,
    {NULL},
};

static PyGetSetDef lock_getset[] = {
    LOCK_GETSET_DEFS,
    {NULL},
};

static PyType_Slot lock_slots[] = {
    {Py_tp_doc, "Lock(rank, mend=None): see cmwq._host.locks."},
    {Py_tp_new, lock_new},
    {Py_tp_dealloc, lock_dealloc},
    {Py_tp_methods, lock_methods},
    {Py_tp_getset, lock_getset},
    {0, NULL},
};

static PyType_Spec lock_spec = {
    .name = "cmwq._sensor._sentinel.Lock",
    .basicsize = sizeof(LockObject),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = lock_slots,
};

static PyObject *inside(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(none))
{
    Thread *me = this_thread;
    return PyLong_FromUnsignedLong(me ? held_by(me) : 0);
}

static PyObject *defer(PyObject *Py_UNUSED(self), PyObject *fn)
{
    Thread *me = current_thread();
    if (!me)
        return NULL;
    if (!PyCallable_Check(fn)) {
        wrong_type("defer() takes a callable", fn);
        return NULL;
    }
    if (!held_by(me) && (me->draining || !has_deferred(me))) {
        if (!call_deferred(fn))
            return NULL;
        Py_RETURN_NONE;
    }
    Deferred *call = PyMem_RawMalloc(sizeof *call);
    if (!call)
        return PyErr_NoMemory();
    call->fn = Py_NewRef(fn);
    push_deferred(me, call);
    /* If another thread released the last lock in this one's place, it may not have seen this call. */
    if (!held_by(me) && !call_all_deferred(me))
        return NULL;
    Py_RETURN_NONE;
}
