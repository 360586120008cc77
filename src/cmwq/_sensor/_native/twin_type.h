/* Python: how the twin is installed, and its methods.

   `install` is given what the twin calls in Python (TWIN_NAMES), and puts its methods into the classes, in place of
   those written in Python, with their docstrings.  They are ordinary method descriptors: a subclass overrides them, and
   `super()` finds them.  It can be done once in a process; a second interpreter has no records and so no twin.  */

#pragma once
#include "twin_loop.h"

#include <stdio.h>

enum {
    PATIENCE = 150,             /* looks at a future that is not done, without a GIL, before its thread parks */
};

static bool is_done(FutureRecord *future)
{
    return atomic_load(&future->state) >= CANCELLED;
}

/* Future.result(timeout=None) */
static PyObject *future_result(PyObject *self, PyObject *const *args, Py_ssize_t number, PyObject *names)
{
    FutureRecord *future = (FutureRecord *)self;
#ifdef Py_GIL_DISABLED
    for (int i = 0; i < PATIENCE && !is_done(future); i++)
        spin_wait();
#endif
    if (atomic_load(&future->state) == FINISHED && !peek(&future->exception) && !names && number <= 1)
        return Py_NewRef(future->result ? future->result : Py_None);    /* it does not change any more */
    PyObject *all[3] = {self};
    Py_ssize_t total = number + (names ? PyTuple_GET_SIZE(names) : 0);
    if (total > 2) {
        PyErr_SetString(PyExc_TypeError, "result() takes a timeout");
        return NULL;
    }
    for (Py_ssize_t i = 0; i < total; i++)
        all[i + 1] = args[i];
    return PyObject_Vectorcall(twin.result, all, (size_t)number + 1, names);
}

static PyObject *future_done(PyObject *self, PyObject *Py_UNUSED(none))
{
    return PyBool_FromLong(is_done((FutureRecord *)self));
}

static PyObject *future_run_method(PyObject *self, PyObject *Py_UNUSED(none))
{
    Runner runner = {0};
    int told = future_run(&runner, (FutureRecord *)self) || breathe(&runner);
    Py_XDECREF(runner.context);
    return told ? NULL : Py_NewRef(Py_None);
}

static PyObject *queued_run_method(PyObject *self, PyObject *Py_UNUSED(none))
{
    Runner runner = {0};
    int told = queued_run(&runner, (QueuedRecord *)self) || breathe(&runner);
    Py_XDECREF(runner.context);
    return told ? NULL : Py_NewRef(Py_None);
}

/* take(ahead, slowly, limit): take the first of the futures, and return its result; slowly(ahead, limit) does it if it
   has none yet, or raises. */
static PyObject *twin_take(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t number)
{
    if (number != 3 || !Py_IS_TYPE(args[0], (PyTypeObject *)twin.deque)) {
        PyErr_SetString(PyExc_TypeError, "take() takes a deque of futures, who does it slowly, and a limit");
        return NULL;
    }
    PyObject *first = length(args[0]) ? PySequence_GetItem(args[0], 0) : NULL, *result = NULL;
    if (first && Py_IS_TYPE(first, (PyTypeObject *)twin.Future)) {
        FutureRecord *future = (FutureRecord *)first;
        if (atomic_load(&future->state) == FINISHED && !peek(&future->exception)) {
            result = Py_NewRef(future->result ? future->result : Py_None);
            Py_XDECREF(deque_popleft(args[0]));
        }
    }
    Py_XDECREF(first);
    if (result)
        return result;
    if (PyErr_Occurred())
        return NULL;
    PyObject *both[] = {args[0], args[2]};
    return PyObject_Vectorcall(args[1], both, 2, NULL);
}

#define FAST(function) ((PyCFunction)(void (*)(void))(function))

static PyMethodDef queue_methods[] = {
    {"submit", FAST(queue_submit), METH_FASTCALL | METH_KEYWORDS, "($self, fn, /, *args, **kwargs)"},
    {"submit_call", FAST(queue_submit_call), METH_FASTCALL, "($self, fn, args, kwargs, /)"},
    {"submit_many", FAST(queue_submit_many), METH_FASTCALL, "($self, fn, /, *iterables)"},
    {"queue", FAST(queue_queue), METH_FASTCALL | METH_KEYWORDS, "($self, work)"},
    {NULL},
};
static PyMethodDef future_methods[] = {
    {"result", FAST(future_result), METH_FASTCALL | METH_KEYWORDS, "($self, timeout=None)"},
    {"done", future_done, METH_NOARGS, "($self)"},
    {"run", future_run_method, METH_NOARGS, "($self)"},
    {NULL},
};
static PyMethodDef queued_methods[] = {
    {"run", queued_run_method, METH_NOARGS, "($self)"},
    {NULL},
};

/* Give the method, whose doc is its signature, the docstring of that which it replaces. */
static bool document(PyMethodDef *method, PyObject *replaced)
{
    PyObject *doc = PyObject_GetAttrString(replaced, "__doc__");
    const char *text = !doc ? NULL : doc == Py_None ? "" : PyUnicode_AsUTF8(doc);
    char *both = text ? malloc(strlen(method->ml_name) + strlen(method->ml_doc) + strlen(text) + 8) : NULL;
    if (both) {
        sprintf(both, "%s%s\n--\n\n%s", method->ml_name, method->ml_doc, text);
        method->ml_doc = both;          /* for good, as the class that has it */
    } else if (text)
        PyErr_NoMemory();
    Py_XDECREF(doc);
    return both != NULL;
}

/* Put the methods into the class.  False: an exception is set. */
static bool put_methods(PyObject *class, PyMethodDef *methods)
{
    for (PyMethodDef *method = methods; method->ml_name; method++) {
        PyObject *replaced = PyObject_GetAttrString(class, method->ml_name);
        bool documented = replaced && document(method, replaced);
        Py_XDECREF(replaced);
        PyObject *descriptor = documented ? PyDescr_NewMethod((PyTypeObject *)class, method) : NULL;
        int failed = descriptor ? PyObject_SetAttrString(class, method->ml_name, descriptor) : -1;
        Py_XDECREF(descriptor);
        if (failed)
            return false;
    }
    return true;
}

/* Look up what the twin calls.  False: an exception is set. */
static bool look_up(PyObject *given)
{
    static const char *const twins[] = {
#define FIELD(name) #name,
        TWIN_NAMES(FIELD)
    };
    static PyObject **const fields[] = {
#undef FIELD
#define FIELD(name) &twin.name,
        TWIN_NAMES(FIELD)
    };
    static const char *const names[] = {
#undef FIELD
#define FIELD(name) #name,
        INTERNED(FIELD)
    };
    static PyObject **const interned[] = {
#undef FIELD
#define FIELD(name) &name_of.name,
        INTERNED(FIELD)
#undef FIELD
    };
    for (size_t i = 0; i < sizeof twins / sizeof *twins; i++) {
        PyObject *value = PyDict_GetItemString(given, twins[i]);
        if (!value) {
            PyErr_Format(PyExc_TypeError, "install() lacks %s", twins[i]);
            return false;
        }
        *fields[i] = Py_NewRef(value);
    }
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!(*interned[i] = PyUnicode_InternFromString(names[i])))
            return false;
    PyObject *collections = PyImport_ImportModule("collections");
    if (!collections)
        return false;
    twin.deque = PyObject_GetAttrString(collections, "deque");
    Py_DECREF(collections);
    return twin.deque && (twin.append = PyObject_GetAttrString(twin.deque, "append")) &&
           (twin.popleft = PyObject_GetAttrString(twin.deque, "popleft")) && (twin.no_args = PyTuple_New(0));
}

static PyObject *twin_is_installed(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    return PyBool_FromLong(twin.on);
}

/* install(WorkQueue=..., and all of TWIN_NAMES) */
static PyObject *twin_install(PyObject *module, PyObject *Py_UNUSED(args), PyObject *kwargs)
{
    PyObject *queue = kwargs ? PyDict_GetItemString(kwargs, "WorkQueue") : NULL;
    if (!queue || twin.on) {
        PyErr_SetString(PyExc_RuntimeError, "the twin is installed once, with keyword arguments");
        return NULL;
    }
    twin.state = PyModule_GetState(module);
    if (!look_up(kwargs))
        return NULL;
    PyObject *const classes[] = {twin.Future, twin.Queued, twin.Work, twin.Phase, queue};
    PyTypeObject *const bases[] = {records.future, records.queued, records.work, records.phase, records.queue};
    for (size_t i = 0; i < sizeof classes / sizeof *classes; i++)
        if (!PyType_Check(classes[i]) || !PyType_IsSubtype((PyTypeObject *)classes[i], bases[i])) {
            PyErr_Format(PyExc_TypeError, "%R has no record", classes[i]);
            return NULL;
        }
    if (!put_methods(queue, queue_methods) || !put_methods(twin.Future, future_methods) ||
        !put_methods(twin.Queued, queued_methods))
        return NULL;
    twin.on = true;
    Py_RETURN_NONE;
}
