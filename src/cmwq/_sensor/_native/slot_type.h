/* Python: Slot, a worker's parker and its place on a lookout, and Parker, a parker for any thread.

   watch.h says what a slot's methods guarantee; this file makes them methods in Python.  ended() is the hot path,
   called once per item: one atomic add and one load.  */

#pragma once
#include "lock_type.h"
#include "look.h"

#include <math.h>

enum {
    MAX_PARK = 1000000000,      /* s: a longer timeout is cut to this, 31 years */
};

struct LookoutObject {
    Locking locking;            /* of lookout->lock, so that the sentinels know its futex */
    Watch *watch;
    Lookout *lookout;
};

static PyObject *slot_attach(SlotObject *self, PyObject *Py_UNUSED(none))
{
    atomic_store(&self->slot->tid, (int)syscall(SYS_gettid));
    Py_RETURN_NONE;
}

/* park([timeout[, spins]]) */
static int park_arguments(PyObject *const *args, Py_ssize_t nargs, double *timeout, int *spins)
{
    if (nargs > 2) {
        PyErr_SetString(PyExc_TypeError, "park() takes a timeout and whether to spin");
        return -1;
    }
    *timeout = nargs > 0 ? PyFloat_AsDouble(args[0]) : -1;
    if (*timeout == -1 && PyErr_Occurred())
        return -1;
    if (isnan(*timeout)) {
        PyErr_SetString(PyExc_ValueError, "a timeout must not be NaN");
        return -1;
    }
    *timeout = *timeout < MAX_PARK ? *timeout : MAX_PARK;
    *spins = nargs > 1 ? PyObject_IsTrue(args[1]) : 0;
    return *spins < 0 ? -1 : 0;
}

static PyObject *slot_park(SlotObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    double timeout;
    int spins;
    if (park_arguments(args, nargs, &timeout, &spins))
        return NULL;
    slot_become(self->slot, PARKED);
    int unparked = park(&self->slot->parking, timeout, spins, false);
    slot_become(self->slot, RUNNING);
    return PyBool_FromLong(unparked);
}

static PyObject *slot_unpark(SlotObject *self, PyObject *Py_UNUSED(none))
{
    unpark(self->slot, true);
    Py_RETURN_NONE;
}

/* The hot path: once per item. */
static void slot_has_ended(Slot *slot)
{
    unsigned state = atomic_fetch_add(&slot->word, STEP) & STATE;
    if (state == BLOCKED || state == ON_LOCK)
        slot_become(slot, RUNNING);
    if (atomic_load_explicit(&slot->told, memory_order_relaxed))
        atomic_store(&slot->told, false);
}

static PyObject *slot_ended(SlotObject *self, PyObject *Py_UNUSED(none))
{
    slot_has_ended(self->slot);
    Py_RETURN_NONE;
}

/* Set what Python believes of the worker, because an interruption may have lost what was delivered. */
static PyObject *slot_believed(SlotObject *self, PyObject *asleep)
{
    int told = PyObject_IsTrue(asleep);
    if (told < 0)
        return NULL;
    atomic_store(&self->slot->told, told);
    atomic_store(&self->owner->lookout->changed, true);
    Py_RETURN_NONE;
}

static PyObject *slot_exempt(SlotObject *self, PyObject *flag)
{
    int exempt = PyObject_IsTrue(flag);
    if (exempt < 0)
        return NULL;
    slot_become(self->slot, exempt ? AWAY : RUNNING);
    atomic_store(&self->slot->told, false);
    Py_RETURN_NONE;
}

static PyObject *slot_review(SlotObject *self, PyObject *enough)
{
    int others;
    if (!as_int(enough, &others))
        return NULL;
    look(self->owner->watch, self->owner->lookout, self->slot, others);
    Py_RETURN_NONE;
}

/* Whether the thread sleeps right now, in a lock or elsewhere; also if nothing can be told.  It works while the slot is
   exempt, too. */
static PyObject *slot_sleeps(SlotObject *self, PyObject *Py_UNUSED(none))
{
    long long key;
    Doing doing = look_at(self->owner->watch, self->owner->lookout, self->slot, atomic_load(&self->slot->tid), &key);
    return PyBool_FromLong(doing != RUNS && doing != WAITS_FOR_GIL);
}

static void give_back(Watch *watch, Slot *slot)
{
    slot_become(slot, AWAY);
    atomic_store(&slot->tid, 0);
    atomic_store(&slot->told, false);
    if (!atomic_flag_test_and_set(&slot->reading)) {
        if (slot->kept)
            close_kept(watch, slot);
        atomic_flag_clear(&slot->reading);
    }
    atomic_store(&slot->used, false);   /* last, because from here on it may be another worker's */
}

static PyObject *slot_free(SlotObject *self, PyObject *Py_UNUSED(none))
{
    if (!atomic_exchange(&self->freed, true))
        give_back(self->owner->watch, self->slot);
    Py_RETURN_NONE;
}

static void slot_dealloc(SlotObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    Py_DECREF(self->owner);
    PyObject_Free(self);
    Py_DECREF(type);
}

static PyObject *slot_get_index(SlotObject *self, void *Py_UNUSED(closure))
{
    return PyLong_FromLong(self->index);
}

static PyGetSetDef slot_getset[] = {
    {"index", (getter)slot_get_index, NULL, "the slot's number on its lookout", NULL},
    {NULL},
};

static PyMethodDef slot_methods[] = {
    {"attach", (PyCFunction)slot_attach, METH_NOARGS, "The calling thread is the worker."},
    {"park", (PyCFunction)(void (*)(void))slot_park, METH_FASTCALL,
     "park([timeout[, spins]]): wait for an unpark, one that came before included. True if there was one."},
    {"unpark", (PyCFunction)slot_unpark, METH_NOARGS, "Let park() return, now or next time."},
    {"sleeps", (PyCFunction)slot_sleeps, METH_NOARGS, "Whether the worker's thread sleeps, as far as can be told."},
    {"ended", (PyCFunction)slot_ended, METH_NOARGS, "The worker ended an item: what was seen of it is void."},
    {"believed", (PyCFunction)slot_believed, METH_O, "believed(asleep): what differs from it is to be delivered."},
    {"exempt", (PyCFunction)slot_exempt, METH_O, "exempt(flag): do not look at this worker until exempt(False)."},
    {"review", (PyCFunction)slot_review, METH_O,
     "review(enough): the worker itself looks at the others, until it saw so many run."},
    {"free", (PyCFunction)slot_free, METH_NOARGS, "The thread is ending: give the place to another."},
    {NULL},
};

static PyType_Slot slot_slots[] = {
    {Py_tp_doc, "A worker's parker, and its place on a lookout."},
    {Py_tp_dealloc, slot_dealloc},
    {Py_tp_methods, slot_methods},
    {Py_tp_getset, slot_getset},
    {0, NULL},
};

static PyType_Spec slot_spec = {
    .name = "cmwq._sensor._sentinel.Slot",
    .basicsize = sizeof(SlotObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = slot_slots,
};

static PyObject *parker_park(ParkerObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    double timeout;
    int spins;
    if (park_arguments(args, nargs, &timeout, &spins))
        return NULL;
    int unparked = park(&self->parking, timeout, spins, true);
    return unparked < 0 ? NULL : PyBool_FromLong(unparked);
}

/* It ignores its arguments, so it can be the callback of a weak reference, in which no bytecode runs. */
static PyObject *parker_unpark(ParkerObject *self, PyObject *const *Py_UNUSED(args), Py_ssize_t Py_UNUSED(nargs))
{
    give(&self->parking, true);
    Py_RETURN_NONE;
}

static PyMethodDef parker_methods[] = {
    {"park", (PyCFunction)(void (*)(void))parker_park, METH_FASTCALL,
     "park([timeout[, spins]]): wait for an unpark. True if there was one. Signals interrupt it in the main thread."},
    {"unpark", (PyCFunction)(void (*)(void))parker_unpark, METH_FASTCALL,
     "Let park() return, now or next time. Arguments are ignored."},
    {NULL},
};

static PyType_Slot parker_slots[] = {
    {Py_tp_doc, "A parker for any thread."},
    {Py_tp_new, PyType_GenericNew},
    {Py_tp_methods, parker_methods},
    {0, NULL},
};

static PyType_Spec parker_spec = {
    .name = "cmwq._sensor._sentinel.Parker",
    .basicsize = sizeof(ParkerObject),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = parker_slots,
};
