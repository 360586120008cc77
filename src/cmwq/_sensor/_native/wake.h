/* Whom a lock wakes as it is let go of: a worker's slot, a Parker, or whatever else has unpark().

   Its one job: the structs of those two, and wake_now().  */

#pragma once
#include "thread.h"
#include "watch.h"

typedef struct LookoutObject LookoutObject;

typedef struct {
    PyObject_HEAD
    LookoutObject *owner;       /* a strong reference: a lookout is not given up while Python knows a slot of it */
    Slot *slot;
    int index;
} SlotObject;

typedef struct {
    PyObject_HEAD
    Parking parking;
} ParkerObject;

/* One in Python may be interrupted, as by Ctrl-C: then it was perhaps not unparked, and is once more.  False: what
   interrupted it is set. */
static bool wake_now(PyObject *parker, const State *state)
{
    First first = {0};
    if (Py_IS_TYPE(parker, state->slot_type))
        unpark(((SlotObject *)parker)->slot, true);
    else if (Py_IS_TYPE(parker, state->parker_type))
        give(&((ParkerObject *)parker)->parking, true);
    else
        for (int tries = 0; tries < 2; tries++) {
            PyObject *result = PyObject_CallMethod(parker, "unpark", NULL);
            Py_XDECREF(result);
            if (result)
                break;
            keep(&first, parker);
        }
    return raise_first(&first);
}
