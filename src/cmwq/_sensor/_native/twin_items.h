/* The twin's items: futures and queueings, made, claimed, run and ended.

   A future is made with three references at most beside its function, and is not seen by the garbage collector until it
   is done (be_collected).  A call whose caller has no context variables gets no context until it runs, and then one that
   its worker uses for all such calls, as long as each leaves it empty and to nobody else.

   The truth: `_workqueue/future.py`, `queued.py`, `phase.py`.  */

#pragma once
#include "twin.h"

/* An instance that is all zeros behind its head, and that the garbage collector does not see yet. */
static void *new_record(PyTypeObject *type)
{
    PyObject *self = PyObject_GC_New(PyObject, type);
    if (self)
        memset((char *)self + sizeof(PyObject), 0, (size_t)type->tp_basicsize - sizeof(PyObject));
    return self;
}

/* A copy of the caller's context, or NO_CONTEXT if that is empty.  NULL: an exception is set. */
static PyObject *callers_context(void)
{
    PyObject *context = PyContext_CopyCurrent();
    if (!context)
        return NULL;
    Py_ssize_t variables = PyObject_Size(context);
    if (variables) {
        if (variables < 0)
            Py_CLEAR(context);
        return give_away(context);
    }
    Py_DECREF(context);
    return NO_CONTEXT;
}

/* Another reference to a context. */
static PyObject *same_context(PyObject *context)
{
    return context == NO_CONTEXT ? context : PyContext_Copy(context);
}

/* A future of that call, which nobody else knows yet, and which has no phase.  Takes over `context`; NULL there: an
   exception is set.  `kwargs` may be NULL. */
static FutureRecord *new_future(PyObject *fn, PyObject *const *args, Py_ssize_t number, PyObject *kwargs,
                                PyObject *context)
{
    FutureRecord *future = context ? new_record((PyTypeObject *)twin.Future) : NULL;
    if (!future) {
        if (context && context != NO_CONTEXT)
            Py_DECREF(context);
        return NULL;
    }
    future->context = context;
    future->fn = give_away(Py_NewRef(fn));
    future->kwargs = give_away(Py_XNewRef(kwargs));
    future->lone = number == 1;
    if (number == 1)
        future->args = give_away(Py_NewRef(args[0]));
    else if (number) {
        PyObject *tuple = PyTuple_New(number);
        if (!tuple) {
            Py_DECREF(future);
            return NULL;
        }
        for (Py_ssize_t i = 0; i < number; i++)
            PyTuple_SET_ITEM(tuple, i, give_away(Py_NewRef(args[i])));
        if (!kwargs)
            PyObject_GC_UnTrack(tuple); /* nothing but the future will ever refer to it */
        future->args = give_away(tuple);
    }
    return future;
}

static QueuedRecord *new_queued(PyObject *work, PyObject *outside, PyObject *context)
{
    QueuedRecord *queued = context ? new_record((PyTypeObject *)twin.Queued) : NULL;
    if (!queued) {
        if (context && context != NO_CONTEXT)
            Py_DECREF(context);
        return NULL;
    }
    queued->context = context;
    queued->work = give_away(Py_NewRef(work));
    queued->phase = Py_NewRef(outside);
    queued->stage = Py_NewRef(twin.LISTED);
    return queued;
}

/* ------------------------------------------------------------------------------------- running */

/* What the calls that a worker makes have in common. */
typedef struct {
    PyObject *context;          /* for calls whose callers had no variables */
    PyObject *used;             /* the context of a call that raised, until that was told */
    bool breathed;              /* the last call was one of a Python function: see breathe() */
} Runner;

/* A worker that only calls functions in C would never let others have the GIL, handle an asynchronous exception or let
   the collector run: the interpreter sees to all of that as a Python function begins.  So one is called after each call
   of anything else.  -1: an exception is set.  Context: no lock held. */
static int breathe(Runner *runner)
{
    if (runner->breathed && !PyThreadState_Get()->async_exc)
        return 0;
    return call_void(twin.breathe, NULL, 0);
}

static bool is_python(PyObject *fn)
{
    return PyFunction_Check(fn) || (PyMethod_Check(fn) && PyFunction_Check(PyMethod_GET_FUNCTION(fn)));
}

/* A context to run in, a reference of one's own: what was taken from `field`, or an empty one. */
static PyObject *context_to_run_in(Runner *runner, PyObject *context)
{
    if (context && context != NO_CONTEXT)
        return context;
    PyObject *kept = runner->context;
    runner->context = NULL;
    return kept ? kept : PyContext_New();
}

/* Keep the context for the next call if it is as good as new.  Nothing of a user is kept alive by that. */
static void keep_context(Runner *runner, PyObject *context, bool was_empty)
{
    if (was_empty && !runner->context && Py_REFCNT(context) == 1 && !PyObject_Size(context))
        runner->context = context;
    else
        Py_DECREF(context);
}

/* fn(*args, **kwargs); `args` is as in FutureRecord. */
static PyObject *make_call(PyObject *fn, PyObject *args, bool lone, PyObject *kwargs)
{
    if (kwargs && PyDict_GET_SIZE(kwargs)) {
        PyObject *tuple = !args ? Py_NewRef(twin.no_args) : lone ? PyTuple_Pack(1, args) : Py_NewRef(args);
        PyObject *result = tuple ? PyObject_Call(fn, tuple, kwargs) : NULL;
        Py_XDECREF(tuple);
        return result;
    }
    if (!args)
        return PyObject_CallNoArgs(fn);
    if (lone)
        return PyObject_CallOneArg(fn, args);
    return PyObject_Vectorcall(fn, &PyTuple_GET_ITEM(args, 0), (size_t)PyTuple_GET_SIZE(args), NULL);
}

/* Make the call within that context.  Takes over the reference to the context. */
static PyObject *call_within(Runner *runner, PyObject *context, PyObject *fn, PyObject *args, bool lone,
                             PyObject *kwargs)
{
    bool was_empty = !context || context == NO_CONTEXT;
    if (!(context = context_to_run_in(runner, context)))
        return NULL;
    if (PyContext_Enter(context)) {
        Py_DECREF(context);
        return NULL;
    }
    runner->breathed = is_python(fn);
    PyObject *result = make_call(fn, args, lone, kwargs), *type = NULL, *exception = NULL, *traceback = NULL;
    if (!result)
        PyErr_Fetch(&type, &exception, &traceback);
    int failed = PyContext_Exit(context);
    if (failed) {                       /* somebody has entered another and not left it */
        Py_CLEAR(result);
        Py_XDECREF(type);
        Py_XDECREF(exception);
        Py_XDECREF(traceback);
        Py_DECREF(context);
    } else if (result)
        keep_context(runner, context, was_empty);
    else {
        runner->used = context;
        PyErr_Restore(type, exception, traceback);
    }
    return result;
}

/* Tell the item, in Python, what its function raised: the exception that is set.  It is being handled meanwhile, as in an
   `except` clause, for functions of users may be called.  -1: that was interrupted. */
static int tell_failure(PyObject *item)
{
    PyObject *type, *exception, *traceback, *handled = PyErr_GetHandledException();
    PyErr_Fetch(&type, &exception, &traceback);
    PyErr_NormalizeException(&type, &exception, &traceback);
    if (traceback)
        PyException_SetTraceback(exception, traceback);
    PyErr_SetHandledException(exception);
    int told = method_void_of(item, name_of._failed, exception);
    PyErr_SetHandledException(handled);
    Py_XDECREF(handled);
    Py_XDECREF(type);
    Py_XDECREF(exception);
    Py_XDECREF(traceback);
    return told;
}

/* `Future.run`.  -1: an exception that is not the function's is set. */
static int future_run(Runner *runner, FutureRecord *future)
{
    PyObject *fn = get_field(future, &future->fn), *args = get_field(future, &future->args);
    PyObject *kwargs = get_field(future, &future->kwargs);
    PyObject *context = swap_field(future, &future->context, NO_CONTEXT);   /* it says that the call has not run */
    PyObject *result = call_within(runner, context, fn ? fn : Py_None, args, future->lone, kwargs);
    int told = 0;
    if (result) {
        set_field(future, &future->result, result == Py_None ? (Py_DECREF(result), NULL) : give_away(result));
        set_field(future, &future->kwargs, NULL);
        set_field(future, &future->fn, NULL);
        set_field(future, &future->args, NULL);
    } else
        told = tell_failure((PyObject *)future);
    Py_CLEAR(runner->used);
    if (!told)
        set_field(future, &future->context, NULL);
    Py_XDECREF(fn);
    Py_XDECREF(args);
    Py_XDECREF(kwargs);
    return told;
}

/* `Queued.run`. */
static int queued_run(Runner *runner, QueuedRecord *queued)
{
    PyObject *object = get_field(queued, &queued->work);
    if (!object || !PyObject_TypeCheck(object, records.work)) {
        Py_XDECREF(object);
        PyErr_SetString(PyExc_RuntimeError, "a queueing that was taken back is run");
        return -1;
    }
    WorkRecord *work = (WorkRecord *)object;
    PyObject *context = get_field(queued, &queued->context);
    PyObject *result = call_within(runner, context, work->fn, work->args, false, work->kwargs);
    int told = 0;
    if (!result) {
        if (runner->used) {             /* `work_failed` runs in it, too */
            set_field(queued, &queued->context, runner->used);
            runner->used = NULL;
        }
        told = tell_failure((PyObject *)queued);
    } else if (peek(&queued->futures)) {
        PyObject *outcome = PyTuple_Pack(2, result, Py_None);
        told = outcome ? PyObject_SetAttrString((PyObject *)queued, "outcome", outcome) : -1;
        Py_XDECREF(outcome);
    }
    if (!told)
        set_field(queued, &queued->context, NULL);
    Py_XDECREF(result);
    Py_DECREF(object);
    return told;
}

/* ------------------------------------------------------------------------------------- ending */

/* `Phase.retire`.  Context: the pool's lock held. */
static int retire(PyObject *object)
{
    if (!Py_IS_TYPE(object, (PyTypeObject *)twin.Phase))
        return method_void(object, name_of.retire);
    PhaseRecord *phase = (PhaseRecord *)object;
    PlaceRecord *pwq = (PlaceRecord *)phase->pwq;
    phase->ended++;
    if (!pwq->attends)
        pwq->nr_active--;
    else if (pwq->nr_withdrawn || pwq->careful || pwq->nr_active > pwq->max_active || !length(pwq->inactive)) {
        pwq->nr_active--;
        if (method_void((PyObject *)pwq, name_of.attend))
            return -1;
    } else {                            /* the usual case while works wait: the next one takes the place */
        PyObject *next = PySequence_GetItem(pwq->inactive, 0);
        if (!next || deque_append(((PoolRecord *)pwq->pool)->worklist, next)) {
            Py_XDECREF(next);
            return -1;
        }
        Py_DECREF(next);
        Py_XDECREF(deque_popleft(pwq->inactive));
        pwq->attends = length(pwq->inactive) > 0;
    }
    if (object != pwq->phase && phase->ended == phase->queued)
        return method_void_of((PyObject *)pwq, name_of.complete_phases, object);
    return 0;
}

/* `Future.claim`.  1: claimed; 0: not; -1: an exception is set.  Context: the pool's lock held. */
static int future_claim(FutureRecord *future)
{
    if (atomic_load_explicit(&future->state, memory_order_relaxed) != PENDING) {
        PyObject *pwq = ((PhaseRecord *)future->phase)->pwq;
        return method_void(pwq, name_of.pass_over) ? -1 : 0;
    }
    atomic_store_explicit(&future->state, RUNS_NOW, memory_order_relaxed);
    return 1;
}

/* `Queued.claim`, as future_claim(). */
static int queued_claim(QueuedRecord *queued, PyObject *worker)
{
    WorkRecord *work = (WorkRecord *)queued->work;
    PlaceRecord *pwq = (PlaceRecord *)((PhaseRecord *)queued->phase)->pwq;
    if (queued->stage != twin.LISTED || !work || !PyObject_TypeCheck((PyObject *)work, records.work) ||
        work->execution || queued->room || pwq->frozen) {
        PyObject *claimed = PyObject_CallMethodOneArg((PyObject *)queued, name_of.claim, worker);
        int truth = claimed ? PyObject_IsTrue(claimed) : -1;
        Py_XDECREF(claimed);
        return truth;
    }
    set_field(queued, &queued->stage, Py_NewRef(twin.BEGUN));
    set_field(work, &work->execution, Py_NewRef(queued));
    if (work->last != pwq->pool)
        set_field(work, &work->last, Py_NewRef(pwq->pool));
    Py_XDECREF(swap_field(work, &work->item, NULL));    /* E4: cleared before the function runs; not the last one */
    return 1;
}

/* `Future.end`, if nobody waits.  0: ended; 1: the Python has to do it; -1: an exception is set. */
static int future_end(FutureRecord *future)
{
    if (future->audience)
        return 1;
    be_collected((PyObject *)future);
    atomic_store(&future->state, FINISHED);
    return retire(future->phase);
}

/* `Queued.end`, likewise. */
static int queued_end(QueuedRecord *queued)
{
    WorkRecord *work = (WorkRecord *)queued->work;
    if (!work || !PyObject_TypeCheck((PyObject *)work, records.work) || queued->held || queued->futures ||
        queued->follower || queued->parkers)
        return 1;
    if (work->execution == (PyObject *)queued)      /* else it was the parent's, before a fork */
        set_field(work, &work->execution, NULL);
    set_field(queued, &queued->stage, Py_NewRef(twin.ENDED));
    return retire(queued->phase);
}
