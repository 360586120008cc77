/* Python: Lookout, which holds what the sentinels know of one pool, and is that pool's lock.

   Guarantees
   - arm() wakes all threads at the bell if this lookout was not armed, and none otherwise.
   - deliver() returns each change once.  If it fails for lack of memory, the next call returns the same changes.

   Relies on the caller for one deliver() at a time: the pool's lock is held.  */

#pragma once
#include "lock_type.h"
#include "sentinel.h"
#include "slot_type.h"

enum {
    MAX_CAPACITY = 1 << 22,     /* more threads than Linux can have */
};

static PyObject *lookout_slot(LookoutObject *self, PyObject *Py_UNUSED(none))
{
    Lookout *lookout = self->lookout;
    State *state = PyType_GetModuleState(Py_TYPE(self));
    SlotObject *object = PyObject_New(SlotObject, state->slot_type);
    if (!object)
        return NULL;
    object->owner = (LookoutObject *)Py_NewRef(self);
    atomic_init(&object->freed, false);
    for (int i = 0; i < lookout->capacity; i++) {
        Slot *slot = &lookout->slots[i];
        bool used = false;
        if (atomic_load(&slot->used) || !atomic_compare_exchange_strong(&slot->used, &used, true))
            continue;
        atomic_store(&slot->parking.token, 0);
        slot_become(slot, PARKED);      /* from the start, because it may be unparked before its thread exists */
        int n = atomic_load(&lookout->nr_slots);
        while (n <= i && !atomic_compare_exchange_weak(&lookout->nr_slots, &n, i + 1))
            ;
        object->slot = slot;
        object->index = i;
        return (PyObject *)object;
    }
    Py_DECREF(object);
    PyErr_SetString(PyExc_RuntimeError, "every place on this lookout is taken");
    return NULL;
}

/* False: an exception is set. */
static bool is_slot_of(const LookoutObject *lookout, PyObject *object, const State *state)
{
    if (Py_IS_TYPE(object, state->slot_type) && ((SlotObject *)object)->owner == lookout)
        return true;
    PyErr_SetString(PyExc_TypeError, "a slot of this lookout is wanted, or None");
    return false;
}

static PyObject *lookout_arm(LookoutObject *self, PyObject *reserve)
{
    if (reserve == Py_None) {
        atomic_store(&self->lookout->reserve, 0);
        Py_RETURN_NONE;
    }
    State *state = PyType_GetModuleState(Py_TYPE(self));
    if (!is_slot_of(self, reserve, state))
        return NULL;
    if (!atomic_exchange(&self->lookout->reserve, ((SlotObject *)reserve)->index + 1))
        ring(self->watch);
    Py_RETURN_NONE;
}

/* Undo a list that can't be delivered, so that the next one has its entries. */
static void forget_told(Lookout *lookout, PyObject *list)
{
    for (Py_ssize_t i = 0; i < PyList_Size(list); i++) {
        PyObject *entry = PyList_GetItem(list, i);
        Slot *slot = &lookout->slots[PyLong_AsLong(PyTuple_GetItem(entry, 0))];
        atomic_store(&slot->told, PyTuple_GetItem(entry, 1) != Py_True);
    }
    atomic_store(&lookout->changed, true);
}

static PyObject *lookout_deliver(LookoutObject *self, PyObject *Py_UNUSED(none))
{
    Lookout *lookout = self->lookout;
    if (!atomic_load(&lookout->changed) || !atomic_exchange(&lookout->changed, false))
        return PyTuple_New(0);
    PyObject *list = PyList_New(0);
    if (!list) {
        atomic_store(&lookout->changed, true);
        return NULL;
    }
    for (int i = 0, n = atomic_load(&lookout->nr_slots); i < n; i++) {
        Slot *slot = &lookout->slots[i];
        unsigned state = atomic_load(&slot->word) & STATE;
        bool sleeps = state == BLOCKED || state == ON_LOCK;
        if (sleeps == atomic_load(&slot->told))
            continue;
        PyObject *entry = Py_BuildValue("(iOO)", i, sleeps ? Py_True : Py_False,
                                        state == ON_LOCK ? Py_True : Py_False);
        if (!entry || PyList_Append(list, entry)) {
            Py_XDECREF(entry);
            forget_told(lookout, list);
            Py_DECREF(list);
            return NULL;
        }
        atomic_store(&slot->told, sleeps);
        Py_DECREF(entry);
    }
    return list;
}

static PyObject *lookout_set_target(LookoutObject *self, PyObject *value)
{
    int target;
    if (!as_int(value, &target))
        return NULL;
    atomic_store(&self->lookout->target, target);
    Py_RETURN_NONE;
}

static PyObject *lookout_set_cpus(LookoutObject *self, PyObject *sequence)
{
    enum { BITS = 8 * sizeof(long) };
    unsigned long words[CPU_SETSIZE / BITS] = {0};
    PyObject *cpus = PySequence_Tuple(sequence);
    if (!cpus)
        return NULL;
    bool valid = true;
    for (Py_ssize_t i = 0; valid && i < PyTuple_Size(cpus); i++) {
        int cpu;
        valid = as_int(PyTuple_GetItem(cpus, i), &cpu);
        if (valid && cpu >= 0 && cpu < CPU_SETSIZE)
            words[cpu / BITS] |= 1UL << cpu % BITS;
    }
    Py_DECREF(cpus);
    if (!valid)
        return NULL;
    for (int i = 0; i < CPU_SETSIZE / BITS; i++)
        atomic_store(&self->lookout->cpus[i], words[i]);
    ring(self->watch);                  /* it may be armed */
    Py_RETURN_NONE;
}

/* Parse a sighting, as given to look_as_if().  False: an exception is set. */
static bool as_sighting(PyObject *pair, Sighting *sighting)
{
    static const char *const names[] = {
        [RUNS] = "runs", [WAITS_FOR_GIL] = "waits for the GIL", [WAITS_FOR_LOCK] = "waits for a lock",
        [SLEEPS] = "sleeps", [UNKNOWN] = "unknown",
    };
    const char *name;
    if (!PyTuple_Check(pair)) {
        PyErr_SetString(PyExc_TypeError, "a sighting is a pair: what the thread does, for how many ns it has not run");
        return false;
    }
    if (!PyArg_ParseTuple(pair, "sL", &name, &sighting->still))
        return false;
    for (unsigned i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcmp(name, names[i])) {
            sighting->doing = (Doing)i;
            return true;
        }
    PyErr_Format(PyExc_ValueError, "a thread doesn't do that: %s", name);
    return false;
}

/* Parse the sightings.  False: an exception is set.  The caller must free look->script in either case. */
static bool read_script(Look *look, PyObject *sightings)
{
    PyObject *pairs = PySequence_Tuple(sightings);
    if (!pairs)
        return false;
    Py_ssize_t nr = PyTuple_Size(pairs);
    bool valid = nr <= MAX_CAPACITY && (look->script = calloc((size_t)nr + 1, sizeof(Sighting)));
    if (!valid)
        PyErr_NoMemory();
    for (Py_ssize_t i = 0; valid && i < nr; i++)
        valid = as_sighting(PyTuple_GetItem(pairs, i), &look->script[i]);
    Py_DECREF(pairs);
    look->nr_scripted = (int)nr;
    return valid;
}

/* For tests: take a look that reads `sightings`, a pair for each slot, instead of the system. */
static PyObject *lookout_look_as_if(LookoutObject *self, PyObject *args)
{
    PyObject *looker, *sightings;
    State *state = PyType_GetModuleState(Py_TYPE(self));
    Look look = {.watch = self->watch, .lookout = self->lookout};
    if (!PyArg_ParseTuple(args, "OiO:look_as_if", &looker, &look.enough, &sightings))
        return NULL;
    if (looker != Py_None) {
        if (!is_slot_of(self, looker, state))
            return NULL;
        look.self = ((SlotObject *)looker)->slot;
    }
    bool valid = read_script(&look, sightings), woke = valid && look_as(&look);
    free(look.script);
    return valid ? PyBool_FromLong(woke) : NULL;
}

/* The struct is left to the next pool, because pools whose start failed must not use up the places.  Native threads may
   be in the middle of a look at it.  That does no harm: they touch only atomics and fields that never change (capacity,
   slots).  Giving back each slot here advances its word, so verdicts under way fail.  At worst such a look takes the
   next pool's reserve and wakes it in vain; that worker finds that it isn't needed, and arms anew. */
static void lookout_dealloc(LookoutObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    Lookout *lookout = self->lookout;
    guard_clear(&self->locking.guard);
    if (lookout) {
        atomic_store(&lookout->reserve, 0);
        for (int i = 0, n = atomic_load(&lookout->nr_slots); i < n; i++)
            give_back(self->watch, &lookout->slots[i]);
        atomic_store(&lookout->nr_slots, 0);
        atomic_store(&lookout->changed, false);
        atomic_store(&lookout->lock, 0);
        atomic_store(&lookout->taken, false);   /* last, because from here on it may be another pool's */
        watch_release(self->watch);
    }
    PyObject_Free(self);
    Py_DECREF(type);
}

static PyMethodDef lookout_methods[] = {
    LOCK_METHOD_DEFS,
    {"slot", (PyCFunction)lookout_slot, METH_NOARGS, "A place for one more worker."},
    {"arm", (PyCFunction)lookout_arm, METH_O,
     "arm(slot | None): work waits, and this is whom to wake for it; None: nothing to look out for."},
    {"deliver", (PyCFunction)lookout_deliver, METH_NOARGS,
     "What changed: slot number, 'sleeps', and whether for a lock."},
    {"look_as_if", (PyCFunction)lookout_look_as_if, METH_VARARGS,
     "look_as_if(looker, enough, sightings): for tests, one look that sees what it is told. Was the reserve woken?"},
    {"set_target", (PyCFunction)lookout_set_target, METH_O, "How many may run."},
    {"set_cpus", (PyCFunction)lookout_set_cpus, METH_O, "The CPUs whose sentinels look after it."},
    {NULL},
};

static PyGetSetDef lookout_getset[] = {
    LOCK_GETSET_DEFS,
    {NULL},
};

static PyType_Slot lookout_slots[] = {
    {Py_tp_doc, "What the sentinels know of one worker pool, and its lock."},
    {Py_tp_dealloc, lookout_dealloc},
    {Py_tp_methods, lookout_methods},
    {Py_tp_getset, lookout_getset},
    {0, NULL},
};

static PyType_Spec lookout_spec = {
    .name = "cmwq._sensor._sentinel.Lookout",
    .basicsize = sizeof(LookoutObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = lookout_slots,
};
