/* The locks that a thread holds, and the calls that it deferred until it holds none.

   For each thread there are the set of the ranks of the locks that it holds, and a list of calls that wait until that
   set is empty (defer).

   Guarantees
   - Each deferred call is made once, in the order of deferring, by the thread that deferred it, or by the thread that
     released its last lock in its place.
   - An exception raised in one doesn't prevent the others.

   Relies on lock.h, which maintains the set.  For Python threads only, with their thread state attached.  */

#pragma once
#include "depth.h"

#include <pthread.h>

/* A call that waits until its thread holds no lock. */
typedef struct Deferred {
    struct Deferred *next;
    PyObject *fn;
} Deferred;

/* The record of a thread.  Other threads reach it only through a lock that the thread holds, to release that lock in
   its place.  The last of these and the thread itself frees it; if the thread ends while it holds a lock, the record
   leaks. */
typedef struct {
    atomic_uint held;           /* S to change: the ranks, a bit each; those in let_go are held no longer */
    atomic_uint let_go;         /* A: the ranks of the locks that another thread released meanwhile */
    atomic_int refs;            /* A */
    _Atomic(Deferred *) deferred;   /* A: the newest first */
    Deferred *due;              /* S: taken from `deferred`, the oldest first */
    bool draining;              /* S: the thread is making these calls */
} Thread;

static THREAD_LOCAL Thread *this_thread;
static pthread_key_t thread_key;
static pthread_once_t thread_key_once = PTHREAD_ONCE_INIT;
static bool thread_key_made;

static unsigned held_by(Thread *thread)
{
    return atomic_load_explicit(&thread->held, memory_order_relaxed) & ~atomic_load(&thread->let_go);
}

static void thread_release(Thread *thread)
{
    if (atomic_fetch_sub(&thread->refs, 1) == 1)
        free(thread);
}

static void thread_ends(void *arg)
{
    Thread *thread = arg;
    this_thread = NULL;
    if (!held_by(thread))
        thread_release(thread);
}

static void make_thread_key(void)
{
    thread_key_made = !pthread_key_create(&thread_key, thread_ends);
}

static Thread *new_thread(void)
{
    pthread_once(&thread_key_once, make_thread_key);
    Thread *thread = thread_key_made ? calloc(1, sizeof *thread) : NULL;
    if (thread && pthread_setspecific(thread_key, thread)) {
        free(thread);
        thread = NULL;
    }
    if (!thread) {
        PyErr_NoMemory();
        return NULL;
    }
    atomic_store(&thread->refs, 1);
    return this_thread = thread;
}

/* NULL: no memory. */
static Thread *current_thread(void)
{
    Thread *me = this_thread;
    return me ? me : new_thread();
}

/* Log the exception that is set, and clear it.  Context: this thread holds no lock. */
static void log_failure(PyObject *fn)
{
    PyObject *type, *exception, *traceback;
    PyErr_Fetch(&type, &exception, &traceback);
    PyErr_NormalizeException(&type, &exception, &traceback);
    if (traceback)
        PyException_SetTraceback(exception, traceback);
    PyObject *logging = PyImport_ImportModule("logging");
    PyObject *log = logging ? PyObject_CallMethod(logging, "getLogger", "s", "cmwq") : NULL;
    PyObject *method = log ? PyObject_GetAttrString(log, "error") : NULL;
    PyObject *args = method ? Py_BuildValue("(sO)", "deferred call %r raised", fn) : NULL;
    PyObject *kwargs = args ? Py_BuildValue("{sO}", "exc_info", exception) : NULL;
    PyObject *result = kwargs ? PyObject_Call(method, args, kwargs) : NULL;
    if (!result)
        PyErr_WriteUnraisable(fn);
    Py_XDECREF(result);
    Py_XDECREF(kwargs);
    Py_XDECREF(args);
    Py_XDECREF(method);
    Py_XDECREF(log);
    Py_XDECREF(logging);
    Py_XDECREF(type);
    Py_XDECREF(exception);
    Py_XDECREF(traceback);
}

/* The first of several exceptions, which is raised when all is done. */
typedef struct { PyObject *type, *exception, *traceback; } First;

/* Keep the exception that is set, or, if it isn't the first, report it. */
static void keep(First *first, PyObject *whose)
{
    if (first->type)
        PyErr_WriteUnraisable(whose);
    else
        PyErr_Fetch(&first->type, &first->exception, &first->traceback);
}

/* False: there was one, and it is set. */
static bool raise_first(First *first)
{
    if (!first->type)
        return true;
    PyErr_Restore(first->type, first->exception, first->traceback);
    return false;
}

/* Call fn.  False: it raised a BaseException that is no Exception, and that is set.  An Exception is logged. */
static bool call_deferred(PyObject *fn)
{
    bool more = deepen();               /* whoever deferred it was told that it would be done */
    PyObject *result = PyObject_CallNoArgs(fn);
    Py_XDECREF(result);
    bool raises = !result && !PyErr_ExceptionMatches(PyExc_Exception);
    if (!result && !raises)
        log_failure(fn);
    restore_depth(more);
    return !raises;
}

static void push_deferred(Thread *thread, Deferred *call)
{
    call->next = atomic_load(&thread->deferred);
    while (!atomic_compare_exchange_weak(&thread->deferred, &call->next, call))
        ;
}

/* Take all deferred calls from the list, the oldest first. */
static Deferred *take_deferred(Thread *thread)
{
    Deferred *newest = atomic_load(&thread->deferred) ? atomic_exchange(&thread->deferred, NULL) : NULL, *oldest = NULL;
    while (newest) {
        Deferred *next = newest->next;
        newest->next = oldest;
        oldest = newest;
        newest = next;
    }
    return oldest;
}

/* Make the calls that this thread deferred, while it holds no lock.  Each is taken from the list and called with no
   bytecode in between, so that it is called once, whatever interrupts.  An exception that must be raised doesn't
   prevent the other calls: the first such exception is set at the end, and the result is false.  Calls that these calls
   defer are made by the same loop. */
static bool call_all_deferred(Thread *me)
{
    First first = {0};
    if (me->draining)
        return true;
    me->draining = true;
    while (!held_by(me)) {
        Deferred *call = me->due;
        if (!call && !(call = me->due = take_deferred(me)))
            break;
        PyObject *fn = call->fn;
        me->due = call->next;
        PyMem_RawFree(call);
        if (!call_deferred(fn))
            keep(&first, fn);
        Py_DECREF(fn);
    }
    me->draining = false;
    return raise_first(&first);
}

static bool has_deferred(Thread *thread)
{
    return atomic_load(&thread->deferred) || thread->due;
}

/* Take over the deferred calls of a thread whose lock this thread released.  (A generator's frame may die on another
   thread.)  The holder may have ended, and then no other thread would make its calls. */
static void inherit_deferred(Thread *holder)
{
    Thread *me = current_thread();
    if (!me) {
        PyErr_Clear();
        return;
    }
    for (Deferred *call = held_by(holder) ? NULL : take_deferred(holder), *next; call; call = next) {
        next = call->next;
        push_deferred(me, call);
    }
}
