/* What a lock unparks when it is released: a worker's slot, a Parker, or any other object with unpark().

   This file has the structs of the first two, and wake_now().  */

#pragma once
#include "thread.h"
#include "watch.h"

typedef struct LookoutObject LookoutObject;

typedef struct {
    PyObject_HEAD
    LookoutObject *owner;       /* a strong reference, so that a lookout is kept while Python refers to a slot of it */
    Slot *slot;
    int index;
    atomic_bool freed;          /* A: the slot may be another worker's now */
} SlotObject;

typedef struct {
    PyObject_HEAD
    Parking parking;
} ParkerObject;

/* Unpark.  An unpark() in Python may be interrupted, as by Ctrl-C; then it may not have happened, and is called once
   more.  False: the exception that interrupted it is set. */
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
