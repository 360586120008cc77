/* The sentinel: watching Python's own threads without the GIL.

   This folder knows which threads are workers (Slot), whether work waits (Lookout.reserve is set), and how many may run
   (Lookout.target).  It looks at the workers, marks those that sleep, and wakes the one reserve worker it was given.
   The woken worker reads the marks and decides, in Python.

   It is one translation unit, so that the compiler can optimise across files.  Each file builds on those before it:

       base.h          time, futexes, the legend of letters
       depth.h         more frames than the recursion limit leaves
       park.h          how a thread sleeps until it is told
       watch.h         Slot, Lookout, Watch: what Python and native threads share
       see.h           what a thread does right now
       look.h          one look at a pool: who sleeps, is somebody to be woken
       sentinel.h      the threads that look, and when
       thread.h        the locks that a thread holds, and the calls that it deferred
       wake.h          what a lock unparks when it is released
       lock.h          the locks
       lock_type.h     Python's Lock, and sections of it
       slot_type.h     Python's Slot and Parker
       lookout_type.h  Python's Lookout
       gil.h           which futexes are the GIL's
       watch_type.h    Python's Watch
       children.h      which processes a thread has started
       records.h       the state of works, places, pools and workers, as structs that Python sees
       record_types.h  Python's classes of these
       twin.h          the hot path of a work: what the next four need, and how they are divided
       twin_items.h    the beginning and the end of a work
       twin_insert.h   submit, queue, insert
       twin_loop.h     process_works
       twin_type.h     what Python sees of the twin

   The last six need more than the limited API, so an extension for every Python (Py_LIMITED_API) has them not, and the
   Python serves in their stead.

   README.md, one folder up, explains the whole.  */

#include "children.h"
#include "watch_type.h"
#ifndef Py_LIMITED_API
#include "twin_type.h"
#endif

static PyObject *get_cpu(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(none))
{
    return PyLong_FromLong(sched_getcpu());
}

static PyObject *set_name(PyObject *Py_UNUSED(self), PyObject *name)
{
    const char *text = PyUnicode_AsUTF8AndSize(name, NULL);
    if (!text)
        return NULL;
    prctl(PR_SET_NAME, text);           /* cut to 15 bytes by the kernel */
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"get_cpu", get_cpu, METH_NOARGS, "The CPU this thread runs on, as sched_getcpu(3)."},
    {"set_name", set_name, METH_O, "set_name(text): the calling thread's name for top, ps and debuggers."},
    {"inside", inside, METH_NOARGS, "The ranks of the locks that this thread holds, a bit each."},
    {"defer", defer, METH_O, "defer(fn): call it once this thread holds no lock."},
#ifndef Py_LIMITED_API
    {"at_any_depth", (PyCFunction)(void (*)(void))at_any_depth, METH_FASTCALL,
     "at_any_depth(fn, *args): call it, with room for more frames than the recursion limit leaves."},
#endif
    {"has_children", has_children, METH_NOARGS, "Has this process any child that it has not waited for yet?"},
    {"children_of", children_of, METH_VARARGS,
     "children_of(tid[, pid]): the children that a thread of this process, or of that one, has started."},
#ifndef Py_LIMITED_API
    {"insert", FAST(twin_insert), METH_FASTCALL, "insert(pwq, item): see cmwq._workqueue.inserting."},
    {"process_works", FAST(twin_process_works), METH_FASTCALL,
     "process_works(pool, worker): see cmwq._pool.worker_thread."},
    {"take", FAST(twin_take), METH_FASTCALL, "take(ahead, slowly, limit): see cmwq._workqueue.map."},
    {"is_installed", twin_is_installed, METH_NOARGS, "Was install() called?"},
    {"install", FAST(twin_install), METH_VARARGS | METH_KEYWORDS, "install(**names): see cmwq._workqueue.twin."},
#endif
    {NULL},
};

/* Add the rules' constants in ns, for a test that those of `_ticking.py` are the same.  -1: an exception is set. */
static int add_constants(PyObject *m)
{
    return PyModule_AddIntMacro(m, SHORT_WAIT) || PyModule_AddIntMacro(m, YOUNG) ||
           PyModule_AddIntMacro(m, STILL) ? -1 : 0;
}

static int exec(PyObject *m)
{
    State *state = PyModule_GetState(m);
    static atomic_flag watching = ATOMIC_FLAG_INIT;
    if (!atomic_flag_test_and_set(&watching) && pthread_atfork(NULL, NULL, note_fork)) {
        PyErr_NoMemory();
        return -1;
    }
    if (!(state->slot_type = (PyTypeObject *)PyType_FromModuleAndSpec(m, &slot_spec, NULL)) ||
        !(state->lookout_type = (PyTypeObject *)PyType_FromModuleAndSpec(m, &lookout_spec, NULL)) ||
        !(state->watch_type = (PyTypeObject *)PyType_FromModuleAndSpec(m, &watch_spec, NULL)) ||
        !(state->parker_type = (PyTypeObject *)PyType_FromModuleAndSpec(m, &parker_spec, NULL)) ||
        !(state->lock_type = (PyTypeObject *)PyType_FromModuleAndSpec(m, &lock_spec, NULL)) ||
        !(state->hold_type = (PyTypeObject *)PyType_FromModuleAndSpec(m, &hold_spec, NULL)))
        return -1;
    PyObject *errors = PyImport_ImportModule("cmwq._errors");
    if (!errors)
        return -1;
    state->refusals = PyObject_GetAttrString(errors, "REFUSALS");
    state->refused = PyObject_GetAttrString(errors, "Refused");
    state->package = PyObject_GetAttrString(errors, "PACKAGE");
    Py_DECREF(errors);
    if (!state->refusals || !state->refused || !state->package)
        return -1;
#ifndef Py_LIMITED_API
    if (add_records(m))
        return -1;
#endif
    return PyModule_AddType(m, state->watch_type) || PyModule_AddType(m, state->parker_type) ||
           PyModule_AddType(m, state->lock_type) || add_constants(m) ? -1 : 0;
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, exec},
#ifdef Py_MOD_PER_INTERPRETER_GIL_SUPPORTED
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
#ifdef Py_MOD_GIL_NOT_USED
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_sentinel",
    .m_doc = "An idle-priority sentinel per CPU that notices when a worker blocks. See README.md beside it.",
    .m_size = sizeof(State),
    .m_methods = functions,
    .m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__sentinel(void)
{
    return PyModuleDef_Init(&module);
}
