/* The twin's ways in: an item is handed to its pool; `submit`, `submit_many` and `queue`.

   The truth: `_workqueue/inserting.py`, `queue.py`, `queueing.py`, and `kick_or_settle` in `_pool/pool.py`.

   When nobody has to be woken.  `settle` depends on the worklist by nothing but whether it is empty.  So if it was not
   empty before an item was listed, everything is settled already, and what is left of `kick_or_settle` is the question
   whether one more worker is needed (`need_more_worker`).  */

#pragma once
#include "twin_items.h"

/* Does the pool need nothing more now that an item was listed?  `had`: others were listed before.  1: yes; 0: the
   Python has to look; -1: an exception is set.  Context: the pool's lock held. */
static int is_served(PoolRecord *pool, bool had)
{
    if (pool->nr_running >= pool->target) {
        if (pool->armed_with)
            return 1;                   /* A3: nobody is woken, and the sensor is armed already */
        return had && pool->target > 0; /* a target of 0 is that of a pool that is held */
    }
    bool on_their_way = length(pool->worklist) <= pool->nr_waking || (pool->nr_waking && pool->gil);
    if (had)
        return on_their_way || !PyList_GET_SIZE(pool->idle_list);
    if (!on_their_way || pool->armed_with || pool->rescued)
        return 0;
    /* The first in the list, and a worker is on its way to it: the sensor is not armed meanwhile.  Has the timer to look
       at children? */
    PyObject *children = PyObject_GetAttr((PyObject *)pool, name_of.children);
    int parents = children ? attribute_bool(children, name_of.parents) : -1;
    int known = parents ? parents : attribute_bool(children, name_of.known);
    Py_XDECREF(children);
    return known < 0 ? -1 : !known;
}

static int settle_listed(PoolRecord *pool, bool had)
{
    int served = is_served(pool, had);
    return served < 0 ? -1 : served ? 0 : method_void((PyObject *)pool, name_of.kick_or_settle);
}

/* The field that says in which phase the item is counted.  NULL: the item is none of ours. */
static PyObject **phase_of(PyObject *item)
{
    if (PyObject_TypeCheck(item, records.future))
        return &((FutureRecord *)item)->phase;
    if (PyObject_TypeCheck(item, records.queued))
        return &((QueuedRecord *)item)->phase;
    return NULL;
}

/* `insert`, within its critical section.  -1: an exception is set. */
static int insert_held(PlaceRecord *pwq, PyObject *item)
{
    PoolRecord *pool = (PoolRecord *)pwq->pool;
    PhaseRecord *phase = (PhaseRecord *)pwq->phase;
    set_field(item, phase_of(item), Py_NewRef(phase));
    phase->queued++;
    if (length(pwq->inactive))
        return hand_on(pwq->inactive, item);
    bool had = length(pool->worklist) > 0;
    if (pwq->attends || pwq->nr_active >= pwq->max_active) {
        if (method_void_of((PyObject *)pwq, name_of.place, item))
            return -1;
        if (length(pwq->inactive))
            return 0;
    } else {
        pwq->nr_active++;
        if (hand_on(pool->worklist, item))
            return -1;
    }
    return settle_listed(pool, had);
}

/* An item that is not queued yet is of the place's `outside`, should anybody in Python look. */
static void be_outside(PlaceRecord *pwq, PyObject *item)
{
    PyObject **phase = phase_of(item);
    if (phase && !*phase)
        set_field(item, phase, Py_NewRef(pwq->outside));
}

/* Begin a section in which the place takes works.  0: it does not, or the lock is not one of ours, and there is none.
   -1: an exception is set. */
static int begin_open(Section *section, PlaceRecord *pwq)
{
    PyObject *lock = ((PoolRecord *)pwq->pool)->lock;
    Guard *guard = guard_of(lock);
    if (!guard || pwq->gate)
        return 0;
    if (!section_begin(section, lock, guard))
        return -1;
    return pwq->gate ? section_end(section, 0) : 1;
}

/* `insert`.  -1: an exception is set. */
static int insert(PlaceRecord *pwq, PyObject *item)
{
    Section section;
    int open = begin_open(&section, pwq);
    if (open)
        return open < 0 ? -1 : section_end(&section, insert_held(pwq, item));
    PyObject *args[] = {(PyObject *)pwq, item};
    be_outside(pwq, item);
    return call_void(twin.insert, args, 2);
}

/* insert(pwq, item) */
static PyObject *twin_insert(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t number)
{
    if (number != 2 || !PyObject_TypeCheck(args[0], records.place) || !phase_of(args[1])) {
        PyErr_SetString(PyExc_TypeError, "insert() takes a place and an item");
        return NULL;
    }
    if (insert((PlaceRecord *)args[0], args[1]))
        return NULL;
    Py_RETURN_NONE;
}

/* ------------------------------------------------------------------------------------- submit */

/* The place of a queue where a work goes that this thread queues now; a reference of one's own.  `only` is set once in a
   process, so what is there stays.  NULL: an exception is set. */
static PlaceRecord *place_of(QueueRecord *wq)
{
    PyObject *place = Py_XNewRef(peek(&wq->only));
    if (!place)
        place = PyObject_CallMethodNoArgs((PyObject *)wq, name_of.place_here);
    if (place && !PyObject_TypeCheck(place, records.place)) {
        PyErr_SetString(PyExc_TypeError, "a queue's place is wanted");
        Py_CLEAR(place);
    }
    return (PlaceRecord *)place;
}

/* Nobody has queued the future, but somebody may come to know it.  -1: an exception is set. */
static int insert_later(PlaceRecord *pwq, FutureRecord *future)
{
    PyObject *both[] = {(PyObject *)pwq, (PyObject *)future};
    be_outside(pwq, (PyObject *)future);
    return call_void(twin.insert_later, both, 2);
}

/* Is it a Work, which `submit` queues?  -1: an exception is set. */
static int is_work(PyObject *fn)
{
    if (PyFunction_Check(fn) || PyMethod_Check(fn) || PyCFunction_Check(fn) || PyType_CheckExact(fn))
        return 0;
    return PyObject_IsInstance(fn, twin.Work);
}

/* Is an exception of these kinds set, which our own code raised? */
static bool is_own(PyObject *kinds)
{
    if (!PyErr_ExceptionMatches(kinds))
        return false;
    PyObject *type, *exception, *traceback;
    PyErr_Fetch(&type, &exception, &traceback);
    bool own = raised_by_us(twin.state, traceback);
    PyErr_Restore(type, exception, traceback);
    return own;
}

/* Was a lock refused?  Then clear that: what was asked for is to be deferred. */
static bool is_refused(void)
{
    if (!is_own(twin.state->refused))
        return false;
    PyErr_Clear();
    return true;
}

static PyObject *submit(QueueRecord *wq, PyObject *fn, PyObject *const *args, Py_ssize_t number, PyObject *kwargs)
{
    int special = wq->special ? 1 : is_work(fn);
    if (special < 0)
        return NULL;
    if (special) {
        PyObject *tuple = PyTuple_New(number), *dict = kwargs ? Py_NewRef(kwargs) : PyDict_New(), *future = NULL;
        for (Py_ssize_t i = 0; tuple && i < number; i++)
            PyTuple_SET_ITEM(tuple, i, Py_NewRef(args[i]));
        if (tuple && dict) {
            PyObject *all[] = {(PyObject *)wq, fn, tuple, dict};
            future = PyObject_Vectorcall(twin.submit_specially, all, 4, NULL);
        }
        Py_XDECREF(tuple);
        Py_XDECREF(dict);
        return future;
    }
    PlaceRecord *pwq = place_of(wq);
    if (!pwq)
        return NULL;
    PyObject *future = (PyObject *)new_future(fn, args, number, kwargs, callers_context());
    if (future && insert(pwq, future) && (!is_refused() || insert_later(pwq, (FutureRecord *)future)))
        Py_CLEAR(future);
    Py_DECREF(pwq);
    return future;
}

/* WorkQueue.submit(fn, /, *args, **kwargs) */
static PyObject *queue_submit(PyObject *self, PyObject *const *args, Py_ssize_t number, PyObject *names)
{
    if (number < 1) {
        PyErr_SetString(PyExc_TypeError, "submit() takes a function, and then its arguments");
        return NULL;
    }
    PyObject *kwargs = NULL;
    if (names && PyTuple_GET_SIZE(names)) {
        if (!(kwargs = PyDict_New()))
            return NULL;
        for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(names); i++)
            if (PyDict_SetItem(kwargs, PyTuple_GET_ITEM(names, i), args[number + i])) {
                Py_DECREF(kwargs);
                return NULL;
            }
    }
    PyObject *future = submit((QueueRecord *)self, args[0], args + 1, number - 1, kwargs);
    Py_XDECREF(kwargs);
    return future;
}

/* WorkQueue.submit_call(fn, args, kwargs) */
static PyObject *queue_submit_call(PyObject *self, PyObject *const *args, Py_ssize_t number)
{
    if (number != 3 || !PyTuple_Check(args[1]) || !PyDict_Check(args[2])) {
        PyErr_SetString(PyExc_TypeError, "submit_call() takes a function, a tuple and a dict");
        return NULL;
    }
    return submit((QueueRecord *)self, args[0], &PyTuple_GET_ITEM(args[1], 0), PyTuple_GET_SIZE(args[1]),
                  PyDict_GET_SIZE(args[2]) ? args[2] : NULL);
}

/* ------------------------------------------------------------------------------------- submit_many */

/* `activate`, of items of which none was withdrawn if they are `fresh`.  -1: an exception is set. */
static int activate(PlaceRecord *pwq, bool fresh)
{
    if (!fresh || pwq->careful || pwq->frozen)
        return method_void((PyObject *)pwq, name_of.activate);
    while (length(pwq->inactive) && pwq->nr_active < pwq->max_active) {
        PyObject *item = PySequence_GetItem(pwq->inactive, 0);
        if (!item || deque_append(((PoolRecord *)pwq->pool)->worklist, item)) {
            Py_XDECREF(item);
            return -1;
        }
        Py_DECREF(item);
        pwq->nr_active++;
        Py_XDECREF(deque_popleft(pwq->inactive));       /* last: for a moment in both lists, never in neither */
    }
    return method_void((PyObject *)pwq, name_of._attend_to_inactive);
}

/* `insert_many`, within its critical section.  One step makes all inactive; then those that have room are listed. */
static int insert_many_held(PlaceRecord *pwq, PyObject *futures)
{
    PoolRecord *pool = (PoolRecord *)pwq->pool;
    PhaseRecord *phase = (PhaseRecord *)pwq->phase;
    Py_ssize_t number = PyList_GET_SIZE(futures);
    for (Py_ssize_t i = 0; i < number; i++) {
        FutureRecord *future = (FutureRecord *)PyList_GET_ITEM(futures, i);
        set_field(future, &future->phase, Py_NewRef(phase));
    }
    if (method_void_of(pwq->inactive, name_of.extend, futures))
        return -1;
    for (Py_ssize_t i = 0; i < number; i++)
        give_away(PyList_GET_ITEM(futures, i));         /* the deque's reference */
    phase->queued += number;
    if (activate(pwq, length(pwq->inactive) == number))
        return -1;
    return method_void((PyObject *)pool, name_of.kick_or_settle);
}

/* Let other threads have the GIL, and signals be handled, in the middle of a long loop.  -1: a handler raised. */
static int let_others_in(void)
{
    Py_BEGIN_ALLOW_THREADS
    Py_END_ALLOW_THREADS
    return PyErr_CheckSignals();
}

/* What `submit_many` goes through: the only iterable, or what zip() makes of several.  It is read before anything else is
   looked at, unless reading it runs no code of users. */
static PyObject *elements_of(PyObject *const *iterables, Py_ssize_t number)
{
    if (number == 1 && (PyList_CheckExact(*iterables) || PyTuple_CheckExact(*iterables) ||
                        Py_IS_TYPE(*iterables, &PyRange_Type)))
        return Py_NewRef(*iterables);
    PyObject *elements = number == 1 ? Py_NewRef(*iterables)
                                     : PyObject_Vectorcall((PyObject *)&PyZip_Type, iterables, (size_t)number, NULL);
    PyObject *list = elements ? PySequence_List(elements) : NULL;
    Py_XDECREF(elements);
    return list;
}

/* The futures of fn(*args) for each tuple of zip(*iterables); of each element, if there is one iterable.  NULL: an
   exception is set. */
static PyObject *new_futures(PyObject *fn, PyObject *elements, bool are_tuples)
{
    PyObject *context = callers_context(), *futures = context ? PyList_New(0) : NULL, *element;
    PyObject *iterator = futures ? PyObject_GetIter(elements) : NULL;
    while (iterator && (element = PyIter_Next(iterator))) {
        PyObject *const *args = are_tuples ? &PyTuple_GET_ITEM(element, 0) : &element;
        Py_ssize_t number = are_tuples ? PyTuple_GET_SIZE(element) : 1;
        FutureRecord *future = new_future(fn, args, number, NULL, same_context(context));
        int failed = future ? PyList_Append(futures, (PyObject *)future) : -1;
        Py_XDECREF(future);
        Py_DECREF(element);
        if (failed || (PyList_GET_SIZE(futures) % 1024 == 0 && let_others_in()))
            break;
    }
    if (!iterator || PyErr_Occurred())
        Py_CLEAR(futures);
    Py_XDECREF(iterator);
    if (context != NO_CONTEXT)
        Py_XDECREF(context);
    return futures;
}

/* `insert_many`.  -1: an exception is set. */
static int insert_many(PlaceRecord *pwq, PyObject *futures)
{
    Section section;
    int open = begin_open(&section, pwq);
    if (open)
        return open < 0 ? -1 : section_end(&section, insert_many_held(pwq, futures));
    PyObject *args[] = {(PyObject *)pwq, futures};
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(futures); i++)
        be_outside(pwq, PyList_GET_ITEM(futures, i));
    return call_void(twin.insert_many, args, 2);
}

/* WorkQueue.submit_many(fn, /, *iterables) */
static PyObject *queue_submit_many(PyObject *self, PyObject *const *args, Py_ssize_t number)
{
    QueueRecord *wq = (QueueRecord *)self;
    int special = number < 2 || wq->special ? 1 : is_work(args[0]);
    if (special < 0)
        return NULL;
    if (special)
        return call_with_self(twin.submit_many, self, args, number);
    if (method_void_of(self, name_of.refuse_coroutine_function, args[0]))    /* an executor's queue refuses nothing */
        return NULL;
    PyObject *elements = elements_of(args + 1, number - 1);
    PlaceRecord *pwq = elements ? place_of(wq) : NULL;
    PyObject *futures = pwq ? new_futures(args[0], elements, number != 2) : NULL;
    if (futures && PyList_GET_SIZE(futures) && insert_many(pwq, futures)) {
        bool later = is_refused();
        for (Py_ssize_t i = 0; later && i < PyList_GET_SIZE(futures); i++)
            later = !insert_later(pwq, (FutureRecord *)PyList_GET_ITEM(futures, i));
        if (!later)
            Py_CLEAR(futures);
    }
    Py_XDECREF(pwq);
    Py_XDECREF(elements);
    return futures;
}

/* ------------------------------------------------------------------------------------- queue */

/* `hand_over` and what is around it in `queue`, with the work's lock held.  1: queued; 0: not; -1: an exception. */
static int queue_held(PlaceRecord *pwq, WorkRecord *work, PyObject *queued)
{
    if (peek(&work->item) || work->delay || work->disables || (work->cancels && PyObject_Size(work->cancels)))
        return 0;
    PyObject *last = peek(&work->last);  /* as `item`, it is stored by whoever claims the work, under a pool's lock */
    if (last && last != pwq->pool)
        return method_void_of(queued, name_of.hand_over, (PyObject *)pwq) ? -1 : 1;
    set_field(work, &work->item, give_away(Py_NewRef(queued)));
    if (!insert(pwq, queued))
        return 1;
    if (is_own(twin.state->refusals)) {      /* after any other exception `Work.mend` finds out */
        PyObject *type, *exception, *traceback;
        PyErr_Fetch(&type, &exception, &traceback);
        set_field(work, &work->item, NULL);
        PyErr_Restore(type, exception, traceback);
    }
    return -1;
}

/* Queue a work in the usual case.  1: queued; 0: it was pending, or is blocked; -1: an exception is set. */
static int queue_now(QueueRecord *wq, WorkRecord *work, Guard *guard, PyObject *lock)
{
    PlaceRecord *pwq = place_of(wq);
    if (!pwq)
        return -1;
    PyObject *queued = (PyObject *)new_queued((PyObject *)work, pwq->outside, callers_context());
    int done = -1;
    Section section;
    if (queued && section_begin(&section, lock, guard)) {
        done = queue_held(pwq, work, queued);
        if (section_end(&section, done < 0))
            done = -1;
    }
    Py_XDECREF(queued);
    Py_DECREF(pwq);
    return done;
}

/* WorkQueue.queue(work) */
static PyObject *queue_queue(PyObject *self, PyObject *const *args, Py_ssize_t number, PyObject *names)
{
    if (number + (names ? PyTuple_GET_SIZE(names) : 0) != 1) {
        PyErr_SetString(PyExc_TypeError, "queue() takes a work");
        return NULL;
    }
    QueueRecord *wq = (QueueRecord *)self;
    WorkRecord *work = (WorkRecord *)args[0];
    PyObject *both[] = {self, args[0]};
    if (names || !PyObject_TypeCheck(args[0], records.work))
        return PyObject_Vectorcall(twin.queue, both, (size_t)number + 1, names);
    PyObject *generation = PyObject_GetAttr(twin.Work, name_of.generation);
    if (!generation)
        return NULL;
    bool is_old = PyLong_AsSsize_t(generation) != work->born;
    Py_DECREF(generation);
    if (wq->special || wq->shut || is_old)
        return PyObject_Vectorcall(twin.queue_specially, both, 2, NULL);
    PyObject *lock = get_field(work, &work->lock);
    Guard *guard = lock ? guard_of(lock) : NULL;
    PyObject *answer = NULL;
    if (!guard)
        answer = PyObject_Vectorcall(twin.queue, both, 2, NULL);
    else if ((peek(&work->item) || peek(&work->delay)) && !guard->stained)
        answer = Py_NewRef(Py_False);
    else {
        int done = queue_now(wq, work, guard, lock);
        if (done >= 0)
            answer = PyBool_FromLong(done);
        else if (is_refused())
            answer = PyObject_Vectorcall(twin.queue_later, both, 2, NULL);
    }
    Py_XDECREF(lock);
    return answer;
}
